"""ResNet-56 on CIFAR-10: channels by MACs, parameters or published ratios, and single weights.

Arguments: granularity=channels|weights, budget=ratios|macs|params (weights: params|uniform|erk),
keep=FRACTION, method=ROW; without any, channels at 39.2 % of the MACs.

Paper: Li et al., Differentiable Transportation Pruning, ICCV 2023 (our default);
       recipe, and ratios for 2.55x, of GReg (Wang et al., ICLR 2021). By MACs of convolutions and
       dense layers its ratios come to 2.546x here.
       Speed-ups of GReg (2.55), DepGraph (2.57, 2.13), ResRep (2.12), TPP (1.99, 3.59, 11.41,
       19.31). No sparsity of this network is at hand: 80, 90 and 95 % are ours.
Command: python -m dtp_jax.data.prepare cifar10
         python -m experiments.train --workdir=runs/resnet56 \
           --config=configs/cifar10_resnet56.py:granularity=channels,budget=macs,keep=0.392
Hardware: one GPU.
Time: not run.
Expected: not run; GReg-2 reports 93.36 % (93.36 % dense) at 2.55x, DepGraph 93.77 % (93.53 %) at
          2.13x. With `runlocal` a ResNet-8 of width 4 takes a few steps on digits in seconds.
"""

from collections.abc import Iterator
from typing import Any

from configs import grid

BUDGETS = {
  ('channels', 'macs'): (0.392, 0.389, 0.469, 0.472, 0.503, 0.279, 0.0876, 0.0518),
  ('channels', 'ratios'): {0.392: (('layer[12]_*/conv1', 0.25), ('layer3_*/conv1', 0.68))},
  ('channels', 'params'): (0.574,),  # what the ratios leave
  ('weights', 'params'): (0.2, 0.1, 0.05),
  ('weights', 'uniform'): (0.2, 0.1, 0.05),
  ('weights', 'erk'): (0.2, 0.1, 0.05),
}


def get_config(arg: str = '') -> Any:
  """The config of one cell; see the arguments above."""
  choice = grid.read(arg, BUDGETS)
  config = grid.cifar(batch_size=128)
  config.data.name = 'cifar10'
  config.model.update({'name': 'resnet_cifar', 'depth': 56, 'width': 16})
  config = grid.fill(config, choice, BUDGETS)
  return grid.runlocal(config, depth=8, width=4) if choice.runlocal else config


def get_sweep(arg: str = '') -> Iterator[tuple[str, Any]]:
  """Every method at every budget that the arguments leave."""
  return grid.points(get_config, BUDGETS, arg)
