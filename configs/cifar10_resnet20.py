"""ResNet-20 on CIFAR-10, pruned to 10 % of its weights by DTP.

Paper: He et al. 2016 (recipe of the network); Li et al., ICCV 2023 (method, our default).
Command: python -m dtp_jax.data.prepare cifar10
         python -m experiments.train --config=configs/cifar10_resnet20.py --workdir=runs/cifar10
Hardware: one GPU. Time and expected result: not run in full; one epoch was, to show the path works.
"""

from typing import Any

from configs import default
from configs.arguments import parse


def get_config(arg: str = '') -> Any:
  """The config; `:runlocal` shrinks every stage to a few steps."""
  choice = parse(arg)
  config = default.get_config()
  config.baselines = ('dense', 'magnitude', 'gradual_magnitude')
  config.model.update({'name': 'resnet_cifar', 'depth': 20})
  config.data.name = 'cifar10'
  config.data.batch_size = 128
  config.data.crop_padding = 4
  config.data.flip = True
  config.stages.dense = 160.0
  config.stages.soft = 80.0
  config.stages.hard = 40.0
  config.eval_every = 5.0
  if choice.runlocal:
    config.stages.dense = config.stages.soft = config.stages.hard = 0.02
    config.eval_every = 0.02
  return config
