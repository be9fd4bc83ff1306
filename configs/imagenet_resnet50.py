"""ResNet-50 on ImageNet: channels by MACs, parameters or published ratios, and single weights.

Arguments: granularity=channels|weights, budget=ratios|macs|params (weights: params|ratios|uniform|
erk), keep=FRACTION, method=ROW, pretrained=PATH of torchvision's weights (without it, 90 dense
epochs come first); without any, channels at 43.3 % of the MACs. No label smoothing, as in GReg;
evaluated in batches of 250.

Paper: Li et al., Differentiable Transportation Pruning, ICCV 2023 (our default);
       recipe and ratios of GReg (Wang et al., ICLR 2021): 1.49x, 2.31x, 2.56x and 3.06x, which come
       to 1.489x, 2.308x, 2.564x and 3.063x here; at 82.7 % of the weights every layer but the first
       loses as much. CHEX: 2 of 4.09 G MACs. STR: 81.27, 90.23, 95.15 % of the weights. RigL: 80 %.
Command: python -m dtp_jax.data.prepare imagenet2012 --from FOLDER
         python -m experiments.train --workdir=runs/resnet50 \
           --config=configs/imagenet_resnet50.py:budget=macs,keep=0.433,pretrained=resnet50.pth
Hardware: one GPU or more.
Time: not run.
Expected: not run; TPP reports 76.44, 75.60, 75.12 and 74.51 % (76.13 % dense) at 1.49, 2.31, 2.56
          and 3.06x, CHEX 77.4 %; of single weights GReg-1 75.45 % (76.13 %) at 82.7 %, STR 76.12,
          74.31 and 70.23 % (77.01 %), RigL 74.75 % and magnitude 75.53 % (76.67 %). STR and RigL
          train from scratch by recipes of their own. With `runlocal` a network of width 4 with
          four blocks takes a few steps on digits in seconds.
"""

from collections.abc import Iterator
from typing import Any

from configs import grid


def _ratios(first, second, third, fourth):
  """Kept fractions of the two inner convolutions of the bottlenecks of each stage."""
  stages = enumerate((first, second, third, fourth), start=1)
  return tuple((f'layer{stage}_*/conv[12]', kept) for stage, kept in stages)


BUDGETS = {
  ('channels', 'macs'): (0.433, 0.671, 0.391, 0.327, 0.489),
  ('channels', 'ratios'): {
    0.433: _ratios(0.4, 0.4, 0.4, 0.79),
    0.671: _ratios(0.7, 0.7, 0.7, 0.86),
    0.391: _ratios(0.26, 0.26, 0.4, 0.79),
    0.327: _ratios(0.32, 0.32, 0.32, 0.5),
  },
  ('channels', 'params'): (0.624, 0.768, 0.618, 0.434),  # what the ratios leave
  ('weights', 'params'): (0.173, 0.2, 0.1873, 0.0977, 0.0485),
  ('weights', 'ratios'): {0.173: (('conv1/kernel', 1.0), ('*', 0.173))},
  ('weights', 'uniform'): (0.2, 0.1873, 0.0977, 0.0485),
  ('weights', 'erk'): (0.2, 0.1873, 0.0977, 0.0485),
}


def get_config(arg: str = '') -> Any:
  """The config of one cell; see the arguments above."""
  choice = grid.read(arg, BUDGETS, pretrained='')
  config = grid.imagenet(choice.pretrained)
  config.model.update({'name': 'resnet', 'depth': 50, 'width': 64})
  config = grid.fill(config, choice, BUDGETS)
  return grid.runlocal(config, width=4, blocks=(1, 1, 1, 1)) if choice.runlocal else config


def get_sweep(arg: str = '') -> Iterator[tuple[str, Any]]:
  """Every method at every budget that the arguments leave."""
  return grid.points(get_config, BUDGETS, arg)
