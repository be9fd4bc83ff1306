"""The method study: DTP against the baselines on held-out training images, never the test split.

A ResNet-8 of width 12 loses channels (to 30, 15 and 10 % of its MACs), LeNet-5 loses single weights
(to 5, 2 and 1 %), on Fashion-MNIST and CIFAR-10. One recipe for every row: forked from the same
dense network, 800 (LeNet-5: 1,000) steps of 128 images of which 30 % with soft masks, the same
schedules. 5,000 training images are held out and evaluated in place of the test split.

Paper: Li et al., Differentiable Transportation Pruning, ICCV 2023 (our default).
Command: python -m dtp_jax.data.prepare fashion_mnist && python -m dtp_jax.data.prepare cifar10
         python -m experiments.sweep --config=configs/method_study.py --workdir=runs/method_study
           --seeds=4
Hardware: 2 CPU cores. Time: not run as a whole.
Expected result: not run as a whole; a first part, made by a throwaway driver, is in
  experiments/results/2026-11-24_method_study/study.md.
"""

import itertools
from collections.abc import Iterator
from typing import Any

from configs import default, grid
from configs.arguments import parse

DATA = ('fashion_mnist', 'cifar10')
GRANULARITIES = ('channels', 'weights')
BUDGETS = {'channels': (0.3, 0.15, 0.1), 'weights': (0.05, 0.02, 0.01)}
NETS = {
  'channels': {'name': 'resnet_cifar', 'depth': 8, 'width': 12, 'stem_strides': 2},
  'weights': {'name': 'lenet'},
}
ROWS = {'weights': grid.weights_rows, 'channels': grid.channels_rows}
EPOCHS = {'fashion_mnist': 2.0, 'cifar10': 4.0}  # of the dense stage
STEPS = {'channels': 800, 'weights': 1000}  # of the soft and the hard stage together
IMAGES = {'fashion_mnist': 55_000, 'cifar10': 45_000}  # left to train on


def get_config(arg: str = '') -> Any:
  """One point: data, granularity."""
  choice = parse(arg, data=DATA, granularity=GRANULARITIES, keep=0.0, row='')
  config = default.get_config()
  config.model.update(NETS[choice.granularity])
  config.data.update({'name': choice.data, 'validation': 5000, 'batch_size': 128})
  config.data.update({'crop_padding': 2, 'flip': choice.data == 'cifar10'})
  config.prune.granularity = choice.granularity
  config.prune.of = 'macs' if choice.granularity == 'channels' else 'count'
  config.prune.keep = BUDGETS[choice.granularity][0]
  config.optimizer.learning_rate = 0.1 if choice.granularity == 'channels' else 0.05
  config.optimizer.score_learning_rate = 1e-2 if choice.granularity == 'channels' else 1e-3
  epochs = STEPS[choice.granularity] * 128 / IMAGES[choice.data]
  config.stages.update({'dense': EPOCHS[choice.data], 'soft': 0.3 * epochs, 'hard': 0.7 * epochs})
  config.eval_every = 100.0  # at the ends of the stages only
  if choice.runlocal:
    config.data.update({'name': 'mnist_mini', 'validation': 500, 'flip': False})
    config.stages.dense = config.stages.soft = config.stages.hard = 0.05
  return config


def get_sweep(arg: str = '') -> Iterator[tuple[str, Any]]:
  """Every method at every budget; `data=`, `granularity=`, `keep=` and `row=` leave a part."""
  choice = parse(arg, data=('', *DATA), granularity=('', *GRANULARITIES), keep=0.0, row='')
  for data, granularity in itertools.product(DATA, GRANULARITIES):
    if choice.data in ('', data) and choice.granularity in ('', granularity):
      rows = ROWS[granularity]()
      keeps = (choice.keep,) if choice.keep else BUDGETS[granularity]
      for keep, row in itertools.product(keeps, choice.row.split('+') if choice.row else rows):
        config = get_config(
          f'data={data},granularity={granularity}' + ',runlocal' * choice.runlocal
        )
        config.update({**rows[row], 'row': row})
        config.prune.keep = keep
        yield f'{data}/{granularity}/{keep}/{row}', config
