"""The config of the jobs that tests start in processes of their own."""

from tests.train.conftest import tiny_config


def get_config():
  config = tiny_config()
  config.baselines = ()
  config.mesh.data = -1
  return config
