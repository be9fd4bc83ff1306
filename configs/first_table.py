"""The first table: every method at several budgets, two data sets, two small networks.

LeNet-5 loses single weights (to 10, 5 and 2 % of them), a ResNet-8 of width 12 loses channels (to
50, 30 and 15 % of its MACs), on 5,000 MNIST digits and on Fashion-MNIST. One recipe for every row:
as many steps, the same schedules, forked from the same dense network. No field was tuned for it.

Paper: Li et al., Differentiable Transportation Pruning, ICCV 2023 (our default).
Command: python -m dtp_jax.data.prepare fashion_mnist
         python -m experiments.sweep --config=configs/first_table.py --workdir=runs/first_table
           --seeds=3 --processes=2
Hardware: 2 CPU cores. Time: 92 minutes for 282 runs, two at a time, beside other work.
Expected result: the tables in README.md are those of 0.1.0, whose default rule of DTP was another,
without fisher and lamp. There DTP was level with gradual magnitude on weights to 5 % and behind the
best baseline on channels; PDP, straight-through and random broke down in places.
"""

import itertools
from collections.abc import Iterator
from typing import Any

from configs import default, grid
from configs.arguments import parse

DATA = ('mnist_mini', 'fashion_mnist')
NETS = {
  'lenet': {'name': 'lenet'},
  'resnet8': {'name': 'resnet_cifar', 'depth': 8, 'width': 12, 'stem_strides': 2},
}
RATES = {'lenet': 0.05, 'resnet8': 0.1}  # of the dense stage
BUDGETS = {'weights': (0.1, 0.05, 0.02), 'channels': (0.5, 0.3, 0.15)}
ROWS = {'weights': grid.weights_rows, 'channels': grid.channels_rows}
SCORE_RATES = {'weights': 1e-3, 'channels': 1e-2}


def get_config(arg: str = '') -> Any:
  """One point: data, net, granularity; `crossed` is read by get_sweep alone."""
  choice = parse(arg, data=DATA, net=tuple(NETS), granularity=tuple(BUDGETS), crossed=False)
  config = default.get_config()
  config.model.update(NETS[choice.net])
  config.data.name = choice.data
  config.data.crop_padding = 2
  config.optimizer.learning_rate = RATES[choice.net]
  config.prune.granularity = choice.granularity
  config.prune.of = 'macs' if choice.granularity == 'channels' else 'count'
  config.prune.keep = BUDGETS[choice.granularity][0]
  config.optimizer.score_learning_rate = SCORE_RATES[choice.granularity]
  if choice.data == 'mnist_mini':  # epochs of 4,000 and of 60,000 images
    config.stages.dense, config.stages.soft, config.stages.hard = 8.0, 6.0, 4.0
  else:
    config.stages.dense, config.stages.soft, config.stages.hard = 1.0, 0.4, 0.3
  config.eval_every = 100.0  # at the ends of the stages only
  if choice.runlocal:
    config.stages.dense = config.stages.soft = config.stages.hard = 0.05
  return config


def get_sweep(arg: str = '') -> Iterator[tuple[str, Any]]:
  """The points; `crossed` gives weights of the ResNet-8 and channels of LeNet-5 instead."""
  choice = parse(arg, crossed=False)
  nets = zip(NETS, reversed(BUDGETS) if choice.crossed else BUDGETS, strict=True)
  for data, (net, granularity) in itertools.product(DATA, nets):
    point = f'data={data},net={net},granularity={granularity}' + ',runlocal' * choice.runlocal
    rows = ROWS[granularity]().items()
    for keep, (row, fields) in itertools.product(BUDGETS[granularity], rows):
      config = get_config(point)
      config.update({**fields, 'row': row})
      config.prune.keep = keep
      yield f'{data}/{net}/{granularity}/{keep}/{row}', config
