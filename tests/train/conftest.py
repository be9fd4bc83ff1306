"""One finished run of the real main job in miniature, shared by the tests of the training loop."""

import pytest

from configs import mnist_lenet
from dtp_jax.train import runner, sweep


def tiny_config():
  """The main job with a small network, 6 steps a stage and a remainder in the last batch."""
  config = mnist_lenet.get_config('runlocal')
  config.model.features = (2, 4)
  config.model.hidden = (16,)
  config.data.eval_batch_size = 300
  config.stages.dense = config.stages.soft = config.stages.hard = 0.096
  config.eval_every = 0.048
  config.log_every = 2
  config.baselines = ('dense', 'magnitude')
  config.mesh.data = 1  # the devices of the session are tried in mesh_test
  return config


@pytest.fixture(scope='session')
def finished(tmp_path_factory):
  """(run folder, summaries by name) of a run with its baselines."""
  workdir = tmp_path_factory.mktemp('finished')
  return workdir, runner.run_here(sweep.with_baselines(tiny_config()), workdir)
