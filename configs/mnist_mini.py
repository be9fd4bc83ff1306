"""A small residual CNN on crowded digits, pruned to 5 % of its MACs; needs no download.

The task is made of 5,000 MNIST digits: tell the one in the middle, whose neighbours reach into the
image. The widths of all layers, multiples of 4, are learned under one budget of
multiply-accumulates; baselines at uniform width start from the same dense network under the
identical recipe.

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
  config.prune.keep = 0.05
  config.prune.multiple_of = 4
  config.model.update({'name': 'resnet_cifar', 'depth': 8, 'width': 24, 'stem_strides': 2})
  config.data.name = 'mnist_crowded'
  config.data.crop_padding = 2
  config.stages.dense = 1.5
  config.stages.soft = 0.4
  config.stages.hard = 0.8
  if choice.runlocal:
    config.stages.dense = config.stages.soft = config.stages.hard = 0.02
    config.eval_every = 0.02
  return config
