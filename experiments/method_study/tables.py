"""The tables of the study, in Markdown, from its CSVs alone.

  python -m experiments.method_study.tables validation.csv --ours=ours_soft0.5

A cell's rows by mean accuracy: mean, standard deviation and number of seeds, then the difference of
the first of `--ours` to the row, paired by seed, with its 95 % interval by Student's t.
"""

import argparse
import collections
import pathlib
import statistics
import sys
from collections.abc import Iterator, Mapping

from dtp_jax.files import read_table
from dtp_jax.report.compare import difference
from dtp_jax.train.flags import names_of

Cell = Mapping[str, Mapping[int, float]]  # {row: {seed: accuracy}}


def main() -> None:
  """Prints a table for each cell."""
  parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
  parser.add_argument('csv')
  parser.add_argument('--ours', default='ours', help='The row that is set against the others.')
  parser.add_argument('--rows', default='', help='The rows shown, with commas; all if empty.')
  choice = parser.parse_args()
  try:
    cells = read(choice.csv)
    there = dict.fromkeys(name for cell in cells.values() for name in cell)
    names_of(there)([choice.ours, *(choice.rows.split(',') if choice.rows else ())])
  except (ValueError, OSError) as error:
    sys.exit(f'{type(error).__name__}: {error}')
  for (bed, keep), cell in sorted(cells.items()):
    rows = choice.rows.split(',') if choice.rows else list(cell)
    shown = {name: cell[name] for name in rows if name in cell}
    if choice.ours in cell and shown:
      print(f'\n### {bed}, {100 * keep:g} %\n')
      print('\n'.join(table(cell[choice.ours], shown)))


def read(path: str) -> dict[tuple[str, float], dict[str, dict[int, float]]]:
  """{(bed, keep): {row: {seed: accuracy}}} of a CSV.

  Raises:
    ValueError: a file that is not one of the study, or was cut short.
  """
  cells: dict[tuple[str, float], dict[str, dict[int, float]]] = collections.defaultdict(
    lambda: collections.defaultdict(dict)
  )
  columns = ('bed', 'keep', 'row', 'seed', 'accuracy')
  for line in read_table(pathlib.Path(path), columns, others=True):
    cell = cells[line['bed'], float(line['keep'])]
    cell[line['row']][int(line['seed'])] = float(line['accuracy'])
  return cells


def table(ours: Mapping[int, float], cell: Cell) -> Iterator[str]:
  """Lines of Markdown, best row first."""
  yield '| row | accuracy | std | seeds | ours minus it |'
  yield '|---|--:|--:|--:|--:|'
  for name in sorted(cell, key=lambda name: -statistics.mean(cell[name].values())):
    found = cell[name]
    mean, n = statistics.mean(found.values()), len(found)
    std = f'{statistics.stdev(found.values()):.2f}' if n > 1 else ''
    difference = '' if found == ours else paired(ours, found)
    yield f'| {name} | {mean:.2f} | {std} | {n} | {difference} |'


def paired(a: Mapping[int, float], b: Mapping[int, float]) -> str:
  """Mean of a - b over the seeds of both, with the half width of its 95 % interval."""
  found = difference(a, b)
  if found is None:
    return ''
  if found.low is None or found.high is None:
    return f'{found.mean:+.2f} (n 1)'
  return f'{found.mean:+.2f} ± {(found.high - found.low) / 2:.2f}'


if __name__ == '__main__':
  main()
