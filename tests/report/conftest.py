"""Run folders as training leaves them behind, from dictionaries: test data, not results."""

import json
import pathlib
from typing import Any

import pytest

TOTAL, PARAMETERS = 1000, 1100


def write_run(folder: pathlib.Path, row: str, seed: int, accuracy: float, **options: Any) -> None:
  """One finished run of LeNet-5 with single weights, or of a ResNet with of='macs'.

  Args:
    folder: of the run.
    row: its name, the method's own where `method` is not given.
    seed: of the run.
    accuracy: in [0, 1].
    **options: method, keep, of, data, seconds.
  """
  method, keep = options.get('method', row), options.get('keep', 0.05)
  of, data = options.get('of', 'count'), options.get('data', 'mnist_mini')
  channels = of == 'macs'
  left = TOTAL if method == 'dense' else round(keep * TOTAL)
  prune = {'granularity': 'channels' if channels else 'weights', 'keep': keep, 'of': of}
  config = {
    'seed': seed,
    'method': method,
    'row': row,
    'data': {'name': data, 'data_dir': '/home/someone/data'},
    'model': {'name': 'resnet_cifar', 'depth': 56, 'width': 16} if channels else {'name': 'lenet'},
    'prune': {**prune, 'count': None, 'scope': 'global'},
  }
  summary = {
    'row': row,
    'method': method,
    'seed': seed,
    'stages': {'dense': 10, 'soft': 5, 'hard': 5},
    'dense_accuracy': 0.9,
    'accuracy': accuracy,
    'gap': None,
    'unit': of,
    'requested': left,
    'achieved': left,
    'total': TOTAL,
    'multiples': '',
    'parameters': PARAMETERS,
    'parameters_left': left + 100,
    'costs': {'macs': [left, TOTAL], 'params': [left + 100, PARAMETERS]} if channels else {},
    'seconds': options.get('seconds', 10.0 + seed),
  }
  environment = {
    'command': f'python -m experiments.sweep --config=configs/x.py --workdir=/home/x/{data}',
    'python': '3.11.7',
    'device': 'cpu',
    'cpus': 2,
    'versions': {'dtp-jax': '0.1.0', 'jax': '0.10.2', 'flax': '0.12.8', 'optax': '0.2.8'},
  }
  folder.mkdir(parents=True)
  parts = {'config': config, 'summary': summary, 'environment': environment}
  for name, content in parts.items():
    (folder / f'{name}.json').write_text(json.dumps(content))


SCORES = {
  'transportation': (0.970, 0.961, 0.975),
  'magnitude': (0.950, 0.955, 0.948),
  'spartan': (0.968, 0.957, 0.966),
}
DENSE = (0.975, 0.971, 0.978)


@pytest.fixture
def swept(tmp_path) -> pathlib.Path:
  """A sweep: three methods at two budgets with three seeds; at 2 % Spartan's seed 1 is missing."""
  root = tmp_path / 'sweep'
  for seed, accuracy in enumerate(DENSE):
    write_run(root / f'dense/seed{seed}', 'dense', seed, accuracy, keep=1.0)
  for keep, loss in ((0.05, 0.0), (0.02, 0.01)):
    for row, accuracies in SCORES.items():
      for seed, accuracy in enumerate(accuracies):
        if (keep, row, seed) != (0.02, 'spartan', 1):
          write_run(root / f'w/{keep}/{row}/seed{seed}', row, seed, accuracy - loss, keep=keep)
  return root
