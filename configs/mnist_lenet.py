"""LeNet-5 on 5,000 MNIST digits, pruned to 5 % of its weights; needs no download.

Paper: Li et al., Differentiable Transportation Pruning, ICCV 2023 (our default).
Command: python -m experiments.train --config=configs/mnist_lenet.py --workdir=runs/mnist_lenet
Hardware: 2 CPU cores. Time and expected result: see the table in README.md.
"""

from typing import Any

from configs import default
from configs.arguments import parse


def get_config(arg: str = '') -> Any:
  """The config; `:runlocal` shrinks every stage to a few steps."""
  choice = parse(arg)
  config = default.get_config()
  config.baselines = ('dense', 'magnitude')
  config.prune.keep = 0.05
  config.data.crop_padding = 2
  config.optimizer.learning_rate = 0.05
  config.stages.dense = 10.0
  config.stages.soft = 6.0
  config.stages.hard = 14.0
  config.eval_every = 2.0
  if choice.runlocal:
    config.stages.dense = config.stages.soft = config.stages.hard = 0.1
    config.eval_every = 0.1
  return config
