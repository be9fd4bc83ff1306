"""The final table of the study as a report of the project: runs.csv, table.md, figures, a page.

  python -m experiments.method_study.final test.csv --out=FOLDER --command='what made the CSV'

The rows are called what the report calls them; what a short run does not know stays empty.
"""

import argparse
import functools
import hashlib
import importlib.metadata
import json
import pathlib
import platform
import sys
from typing import Any

import jax
import jax.numpy as jnp

from dtp_jax import models
from dtp_jax.files import check_folder, read_table
from dtp_jax.report.rows import COLUMNS, Row, model_key
from experiments.method_study import rows
from experiments.method_study.beds import BEDS
from experiments.report import write_folder

# What a row of the study is called in tables, with the share of the run that was soft; rows of
# methods that choose at once have none.
NAMES = {
  'dense': 'dense',
  'ours_soft0.5': 'transportation',
  'paper_soft0.5': 'paper',
  'paper_eps0.1_0.01_0.5': 'paper',
  'spartan_soft0.5': 'spartan',
  'gradual_soft0.5': 'gradual_magnitude',
  'gradual_ramp0.4': 'gradual_magnitude',
  'pdp_t0.03': 'pdp',
  'straight_through_adam0.001': 'straight_through',
  'lamp_soft0.5': 'lamp',
  'greg': 'greg',
  'l1_uniform': 'l1_uniform',
}
_READ = (
  'bed', 'keep', 'row', 'seed', 'split', 'accuracy', 'dense', 'soft_accuracy', 'requested',
  'achieved', 'total', 'parameters_left', 'cpu_seconds',
)  # fmt: skip
_SHAPES = {'fashion_mnist': (28, 28, 1), 'cifar10': (32, 32, 3)}
_MODELS = {
  'channels': {'name': 'resnet_cifar', 'depth': 8, 'width': 12, 'stem_strides': 2},
  'weights': {'name': 'lenet'},
}


def main() -> None:
  """Writes the folder."""
  parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
  parser.add_argument('csv', type=pathlib.Path)
  parser.add_argument('--out', type=pathlib.Path, required=True)
  parser.add_argument('--command', default='', help='The command that made the CSV.')
  choice = parser.parse_args()
  title = 'DTP against its baselines: the final table of the method study'
  try:
    check_folder(choice.out, '--out')
    lines = read_table(choice.csv, _READ, others=True)
    write_folder(choice.out, title, [_row(line, choice.command) for line in lines], [])
  except (ValueError, OSError, ImportError) as error:
    sys.exit(f'{type(error).__name__}: {error}')


def _row(line: dict[str, str], command: str) -> Row:
  """A run of the study with the fields of the report.

  Raises:
    ValueError: a row that has no name in tables, or was not evaluated on the test split.
  """
  if line['split'] != 'test' or line['row'] not in NAMES or line['bed'] not in BEDS:
    raise ValueError(
      f'{line} is no row of the final table; expected the split test, one of {sorted(NAMES)} and '
      f'one of {sorted(BEDS)}.'
    )
  spec, row = BEDS[line['bed']], rows.ROWS[line['row']]
  long = {'prune_steps': spec.steps} if spec.steps not in (500, 800) else {}
  accuracy, dense = (float(line[name]) / 100 for name in ('accuracy', 'dense'))
  soft = round(row.soft * spec.steps) if line['soft_accuracy'] else 0
  found: dict[str, Any] = {
    'data': spec.data,
    'model': model_key(_MODELS[spec.granularity] | long),
    'granularity': spec.granularity,
    'unit': 'macs' if spec.granularity == 'channels' else 'count',
    'keep': float(line['keep']),
    'row': NAMES[line['row']],
    'method': row.method,
    'seed': int(line['seed']),
    'accuracy': round(accuracy, 6),
    'dense_accuracy': round(dense, 6),
    'requested': int(line['requested']),
    'achieved': int(line['achieved']),
    'total': int(line['total']),
    'parameters': _parameters(spec.data, spec.granularity),
    'parameters_left': int(line['parameters_left']),
    'dense_steps': spec.dense_steps,
    'soft_steps': soft,
    'hard_steps': spec.steps - soft,
    'seconds': float(line['cpu_seconds']),
    'run': f'{line["bed"]}/{line["keep"]}/{line["row"]}/seed{line["seed"]}',
    'config': hashlib.sha256(json.dumps([spec, row.text]).encode()).hexdigest()[:8],
    **{name: importlib.metadata.version(name) for name in ('dtp-jax', 'jax', 'flax', 'optax')},
    'python': platform.python_version(),
    'device': jax.devices()[0].device_kind,
    'cpus': 1,
    'command': command,
  }
  if row.method == 'dense':
    found |= dict.fromkeys(('granularity', 'unit', 'keep', 'requested', 'achieved', 'total'), '')
  return {name: found.get(name, '') for name in COLUMNS}


@functools.cache
def _parameters(data: str, granularity: str) -> int:
  """Of the dense network."""
  fields = {k: v for k, v in _MODELS[granularity].items() if k != 'name'}
  net = models.LeNet() if granularity == 'weights' else models.CifarResNet(**fields)
  shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *_SHAPES[data])))
  return sum(leaf.size for leaf in jax.tree.leaves(shapes['params']))


if __name__ == '__main__':
  main()
