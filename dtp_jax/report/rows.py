"""Finished runs as rows of a CSV file that everything else is made from; published figures too."""

import csv
import hashlib
import io
import json
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from dtp_jax.files import read_json, read_table, write_text
from dtp_jax.report import style

__all__ = [
  'COLUMNS',
  'Published',
  'Row',
  'collect',
  'model_key',
  'read_csv',
  'read_published',
  'write_csv',
]

Row = dict[str, Any]

_TYPES: dict[str, type] = {
  'data': str, 'model': str, 'granularity': str, 'unit': str, 'keep': float, 'row': str,
  'method': str, 'seed': int, 'accuracy': float, 'loss': float, 'measure': str,
  'dense_accuracy': float, 'gap': float,
  'requested': int, 'achieved': int, 'total': int, 'parameters': int, 'parameters_left': int,
  'macs': int, 'macs_left': int, 'dense_steps': int, 'soft_steps': int, 'hard_steps': int,
  'seconds': float, 'per_second': float, 'run': str, 'config': str, 'dtp-jax': str, 'jax': str,
  'flax': str, 'optax': str, 'python': str, 'device': str, 'cpus': int, 'command': str,
}  # fmt: skip
COLUMNS = tuple(_TYPES)

_RESULT = (
  'accuracy', 'loss', 'dense_accuracy', 'achieved', 'total', 'parameters_left', 'macs_left',
)  # fmt: skip


def collect(folders: Iterable[str | pathlib.Path]) -> tuple[list[Row], list[str]]:
  """The finished runs below some folders, at any depth, baselines inside a run included.

  A run that is there twice (the same cell, row and seed) counts once where both have one config
  and one result: runs of one seed repeat bit for bit, their seconds do not.

  Args:
    folders: each holds a run or, at any depth, several.

  Returns:
    (rows in the order of tables with the fields `COLUMNS`, names of the runs that were begun and
    have not finished).

  Raises:
    FileNotFoundError: a folder that is not there or has no finished run.
    ValueError: a file that is not what a run leaves behind, or one run with two configs or results.
  """
  rows: dict[tuple, tuple[Row, pathlib.Path]] = {}
  unfinished = []
  for folder in map(pathlib.Path, folders):
    root = folder.resolve()
    if not root.is_dir():
      raise FileNotFoundError(f'{folder} is not a folder; expected one that holds finished runs.')
    found = sorted(path.parent for path in root.rglob('summary.json'))
    if not found:
      raise FileNotFoundError(f'{folder} holds no finished run: there is no summary.json below it.')
    begun = (path.parent for name in ('config.json', 'log.txt') for path in root.rglob(name))
    names = {p: str(p.relative_to(root.parent)) for p in (*found, *begun)}
    unfinished += sorted(name for p, name in names.items() if p not in set(found))
    for path in found:
      row = _row(path, names[path])
      key = _identity(row)
      first, place = rows.setdefault(key, (row, path))
      if _differ(row, first):
        raise ValueError(
          f'{place} and {path} are the same run (cell, row and seed {key}) with two configs '
          'or results; report them apart, or tell them apart by config.row.'
        )
  return sorted((row for row, _ in rows.values()), key=_order), unfinished


def _differ(one, other):
  # The config of a dense run may name any budget: it is not used.
  names = _RESULT if one['method'] == other['method'] == 'dense' else (*_RESULT, 'config')
  pairs = [(one[name], other[name]) for name in names]
  return any(a != b for a, b in pairs if '' not in (a, b))


def _identity(row):
  """What names a run. A dense run belongs to no budget: it counts in every one of its network."""
  cell = () if row['method'] == 'dense' else (row['granularity'], row['unit'], row['keep'])
  return row['data'], row['model'], *cell, row['row'], row['seed']


def _order(row):
  keep = row['keep'] or 1.0
  return (
    row['data'], row['model'], row['method'] != 'dense', row['granularity'], row['unit'], -keep,
    style.place(row['row'], row['method']), row['seed'],
  )  # fmt: skip


def _row(folder: pathlib.Path, name: str) -> Row:
  """One finished run. Raises ValueError where a file or a field of it is missing or torn."""
  try:
    config, summary, environment = (
      read_json(folder / f'{part}.json') for part in ('config', 'summary', 'environment')
    )
    found = {
      'loss': None,  # runs of 0.3.0 and before say neither this nor what they are compared by
      'measure': None,
      'per_second': _per_second(folder),
      **environment['versions'],
      **environment,
      **summary,
      **{f'{stage}_steps': steps for stage, steps in summary['stages'].items()},
      **_macs(summary),
      'data': config['data']['name'],
      'model': model_key(config['model']),
      'granularity': _granularity(config['prune']),
      'keep': _keep(config['prune'], summary),
      'config': _digest(config),
      'command': _without_places(environment['command']),
      'run': name,
    }
    row = {field: _checked(field, found[field]) for field in COLUMNS}
  except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
    raise ValueError(
      f'{folder} is not a readable run ({type(error).__name__}: {error}); expected config.json, '
      'environment.json and summary.json as training writes them. Train it anew or move it away.'
    ) from error
  if row['method'] == 'dense':
    row |= dict.fromkeys(('granularity', 'unit', 'keep', 'requested', 'achieved', 'total'), '')
  return row


def _checked(field, value):
  """The value of a field; '' for none. Raises TypeError where it is of another type."""
  kind = int | float if _TYPES[field] is float else _TYPES[field]
  if value in (None, ''):
    return ''
  if not isinstance(value, kind) or isinstance(value, bool):
    raise TypeError(f'{field} is {value!r}, not of type {_TYPES[field].__name__}')
  return value


def _per_second(folder):
  """Predictions a second, where the network was timed; see `dtp_jax.export.throughput`."""
  path = folder / 'throughput.json'
  return read_json(path)['per_second'] if path.exists() else None


def _macs(summary):
  """MACs of the dense and of the pruned network, where channels were pruned."""
  left, dense = summary.get('costs', {}).get('macs', ('', ''))
  if dense == '' and summary['unit'] == 'macs':
    left, dense = summary['achieved'], summary['total']
  return {'macs': dense, 'macs_left': left}


def model_key(model: dict[str, Any]) -> str:
  """A network by name and fields, as in 'resnet_cifar(depth=20)'."""
  fields = ','.join(
    f'{name}={json.dumps(value, separators=(",", ":"))}'
    for name, value in sorted(model.items())
    if name != 'name'
  )
  return f'{model["name"]}({fields})' if fields else model['name']


def _granularity(prune):
  if prune['granularity'] == 'nm':
    return f'nm:{prune["group"]}'
  if prune['granularity'] == 'blocks':
    return f'blocks:{"x".join(map(str, prune["block"]))}'
  return prune['granularity']


def _keep(prune, summary):
  """The fraction asked for; of a count, or of fractions for each layer, what they come to."""
  if prune['count'] is None and not prune.get('ratios'):
    return float(prune['keep'])
  return float(f'{summary["requested"] / summary["total"]:.6g}')


def _digest(config):
  """Eight hex digits of everything in a config but the seed and the place of the data."""
  data = {**config['data'], 'data_dir': None}
  content = json.dumps({**config, 'seed': None, 'data': data}, sort_keys=True)
  return hashlib.sha256(content.encode()).hexdigest()[:8]


def _without_places(command):
  """A command line with absolute paths cut to their last part: the rest is this machine's."""
  return re.sub(r'(?<![^\s=\'"])/(?:[^\s/\'"]+/)*([^\s/\'"]*)/?', r'\1', command)


def write_csv(path: pathlib.Path, rows: Sequence[Row]) -> None:
  """Writes rows whole or not at all."""
  text = io.StringIO()
  writer = csv.DictWriter(text, COLUMNS, lineterminator='\n')
  writer.writeheader()
  writer.writerows(rows)
  write_text(path, text.getvalue())


def read_csv(path: pathlib.Path) -> list[Row]:
  """The rows of a CSV file that `write_csv` wrote; what is empty there is '' here.

  Raises:
    ValueError: other columns, or a number that is none.
  """
  rows = read_table(path, COLUMNS)
  return [
    {name: _typed(path, name, text, _TYPES[name]) for name, text in row.items()} for row in rows
  ]


def _typed(path, name, text, kind):
  if text == '' or kind is str:
    return text
  try:
    return kind(text)
  except (TypeError, ValueError) as error:
    raise ValueError(f'{path} has {name} {text!r}; expected a number.') from error


class Published(NamedTuple):
  """One published figure; what its source does not say, or is not at hand, is ''.

  Attributes:
    data: name of the data set.
    model: key of the network, as `model_key` writes it.
    granularity: 'channels' or 'weights'.
    method: its name there.
    accuracy: percent.
    base_accuracy: percent, of the dense network it started from.
    speedup: dense over pruned MACs.
    sparsity: percent of the weights that are gone.
    at: the budget in the source's words, where it is neither of the two.
    source: the paper.
  """

  data: str
  model: str
  granularity: str
  method: str
  accuracy: float | str
  base_accuracy: float | str
  speedup: float | str
  sparsity: float | str
  at: str
  source: str

  @property
  def kept(self) -> float | None:
    """Percent of the dense MACs (channels) or weights that is left; None if it is not said."""
    if self.granularity == 'channels':
      return 100 / self.speedup if isinstance(self.speedup, float) else None
    return 100 - self.sparsity if isinstance(self.sparsity, float) else None


def read_published(path: pathlib.Path) -> list[Published]:
  """The figures in a CSV file with the fields of `Published` as columns.

  Raises:
    ValueError: other columns, a number that is none, or a figure without a source.
  """
  found = []
  for cells in read_table(path, Published._fields):
    row: dict[str, Any] = dict(cells)
    if not row['source']:
      raise ValueError(f'{path} has a figure without a source: {row}.')
    for name in ('accuracy', 'base_accuracy', 'speedup', 'sparsity'):
      row[name] = _typed(path, name, row[name], float)
    found.append(Published(**row))
  return found
