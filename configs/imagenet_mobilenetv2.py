"""MobileNetV2 on ImageNet: channels by MACs or parameters, and single weights.

Arguments: granularity=channels|weights, budget=macs|params (weights: params|uniform|erk),
keep=FRACTION, method=ROW, pretrained=PATH of torchvision's weights (without it, 90 dense epochs
come first); without any, channels at 75 % of the MACs. No label smoothing, as in GReg; evaluated
in batches of 250.

Paper: Li et al., Differentiable Transportation Pruning, ICCV 2023 (our default);
       recipe of GReg (Wang et al., ICLR 2021), with the weight decay of Sandler et al. 2018: those
       of AMC and ENOT are not at hand, and neither are ratios by layer, so that there is no such
       budget. Speed-ups of AMC (0.75 and 0.5, taken as fractions of the MACs) and ENOT (209 of 301
       MMACs). No sparsity of this network, nor a size in parameters, is at hand: those are ours.
Command: python -m dtp_jax.data.prepare imagenet2012 --from FOLDER
         python -m experiments.train --workdir=runs/mobilenetv2 \
           --config=configs/imagenet_mobilenetv2.py:budget=macs,keep=0.75,pretrained=mobilenetv2.pth
Hardware: one GPU.
Time: not run.
Expected: not run; AMC reports 70.94 % at 0.75 and 68.89 % at 0.5 (71.79 % dense), ENOT 71.38 %
          (71.88 %) at 209 MMACs. With `runlocal` a network of five blocks takes a few steps on
          digits in seconds.
"""

from collections.abc import Iterator
from typing import Any

from configs import grid

BUDGETS = {
  ('channels', 'macs'): (0.75, 0.695, 0.5),
  ('channels', 'params'): (0.75, 0.5),
  ('weights', 'params'): (0.2, 0.1, 0.05),
  ('weights', 'uniform'): (0.2, 0.1, 0.05),
  ('weights', 'erk'): (0.2, 0.1, 0.05),
}
_SMALL = {'stages': ((1, 8, 1, 1), (6, 8, 2, 2), (6, 16, 2, 2)), 'stem': 8, 'last': 32}


def get_config(arg: str = '') -> Any:
  """The config of one cell; see the arguments above."""
  choice = grid.read(arg, BUDGETS, pretrained='')
  config = grid.imagenet(choice.pretrained)
  config.optimizer.weight_decay = 4e-5
  config.model.update({'name': 'mobilenet_v2', 'width': 1.0})
  config = grid.fill(config, choice, BUDGETS)
  return grid.runlocal(config, **_SMALL) if choice.runlocal else config


def get_sweep(arg: str = '') -> Iterator[tuple[str, Any]]:
  """Every method at every budget that the arguments leave."""
  return grid.points(get_config, BUDGETS, arg)
