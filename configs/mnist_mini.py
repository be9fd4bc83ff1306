"""A small residual CNN on 5,000 MNIST digits, pruned to 40 % of its MACs; needs no download.

The widths of all layers are learned under one budget of multiply-accumulates; baselines at uniform
width start from the same dense network under the identical recipe.

Paper: Li et al., Differentiable Transportation Pruning, ICCV 2023 (our default).
Command: python -m experiments.train --config=configs/mnist_mini.py --workdir=runs/mnist_mini
Hardware: 2 CPU cores. Time and expected result: see the table in README.md.
"""

from typing import Any

from configs import default
from configs.arguments import parse


def get_config(arg: str = '') -> Any:
  """The config; `:runlocal` shrinks every stage to a few steps."""
  choice = parse(arg)
  config = default.get_config()
  config.baselines = ('dense', 'l1_uniform', 'random_uniform')
  uniform = {'prune': {'scope': 'layer', 'importance': 'l1'}}
  config.rows.l1_uniform = {'method': 'magnitude', **uniform}
  config.rows.random_uniform = {'method': 'random', **uniform}
  config.prune.granularity = 'channels'
  config.prune.of = 'macs'
  config.prune.keep = 0.4
  config.model.update({'name': 'resnet_cifar', 'depth': 8, 'width': 12, 'stem_strides': 2})
  config.data.crop_padding = 2
  config.optimizer.score_learning_rate = 0.01
  config.stages.dense = 5.0
  config.stages.soft = 2.0
  config.stages.hard = 6.0
  if choice.runlocal:
    config.stages.dense = config.stages.soft = config.stages.hard = 0.1
    config.eval_every = 0.1
  return config
