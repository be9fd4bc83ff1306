"""The config of the runs that tests kill: channels, a checkpoint at every third step, an export."""

from tests.train.conftest import tiny_config


def get_config():
  config = tiny_config()
  config.baselines = ()
  config.prune.update({'granularity': 'channels', 'of': 'macs', 'keep': 0.5})
  return config


def get_sweep(argument):
  """Four points, with the dense run five runs to a seed."""
  del argument
  for method in ('transportation', 'magnitude'):
    for keep in (0.45, 0.6):
      config = get_config()
      config.method, config.prune.keep = method, keep
      yield f'{method}/{keep}', config
