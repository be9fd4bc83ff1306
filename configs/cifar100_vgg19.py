"""VGG-19 on CIFAR-100: channels by MACs, parameters or published ratios, and single weights.

Arguments: granularity=channels|weights, budget=ratios|macs|params (weights: params|uniform|erk),
keep=FRACTION, method=ROW; without any, channels at 11.3 % of the MACs.

Paper: Li et al., Differentiable Transportation Pruning, ICCV 2023 (our default);
       recipe, and ratios for 8.84x, of GReg (Wang et al., ICLR 2021). By MACs of convolutions and
       dense layers its ratios come to 8.89x here; GReg counts normalisation, activations and
       pooling too, by which they come to 8.85x.
       Speed-ups of GReg (8.84), DepGraph (8.92), and of L1 beside it (8). No sparsity of this
       network is at hand: 80, 90 and 95 % are ours.
Command: python -m dtp_jax.data.prepare cifar100
         python -m experiments.train --workdir=runs/vgg19 \
           --config=configs/cifar100_vgg19.py:granularity=channels,budget=macs,keep=0.113
Hardware: one GPU.
Time: not run.
Expected: not run; GReg-2 reports 67.75 % (74.02 % dense) at 8.84x, DepGraph 70.39 % (73.50 %) at
          8.92x, L1 68.82 % (73.87 %) at 8x. With `runlocal` a VGG-13 of width 4 takes a few steps
          on digits in seconds.
"""

from collections.abc import Iterator
from typing import Any

from configs import grid

BUDGETS = {
  ('channels', 'macs'): (0.113, 0.112, 0.125),
  ('channels', 'ratios'): {0.113: (('conv1_2', 0.3), ('conv[2-5]_*', 0.3))},
  ('channels', 'params'): (0.0903,),  # what the ratios leave
  ('weights', 'params'): (0.2, 0.1, 0.05),
  ('weights', 'uniform'): (0.2, 0.1, 0.05),
  ('weights', 'erk'): (0.2, 0.1, 0.05),
}


def get_config(arg: str = '') -> Any:
  """The config of one cell; see the arguments above."""
  choice = grid.read(arg, BUDGETS)
  config = grid.cifar(batch_size=256)
  config.data.name = 'cifar100'
  config.model.update({'name': 'vgg', 'depth': 19, 'width': 64})
  config = grid.fill(config, choice, BUDGETS)
  return grid.runlocal(config, depth=13, width=4) if choice.runlocal else config


def get_sweep(arg: str = '') -> Iterator[tuple[str, Any]]:
  """Every method at every budget that the arguments leave."""
  return grid.points(get_config, BUDGETS, arg)
