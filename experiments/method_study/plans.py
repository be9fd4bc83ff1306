"""Plans of runs, and the CSV that says which of them are done."""

import csv
import itertools
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from dtp_jax.files import check_file, read_table
from dtp_jax.train.flags import names_of, numbers

__all__ = ['DONE', 'Job', 'append', 'check_out', 'done', 'jobs']

DONE = ('bed', 'keep', 'options', 'seed')  # the columns that say which run a line is of

Job = tuple[str, float, str, int]


def jobs(plan: str, beds: Iterable[str], rows: Iterable[str]) -> list[Job]:
  """(bed, keep, row, seed) of every run of a plan, seeds innermost.

  Args:
    plan: its text.
    beds: names that there are.
    rows: names that there are.

  Raises:
    ValueError: a line that is none, by its number, or no line at all.
  """
  checks = names_of(beds), numbers(float, 0, 1), names_of(rows), numbers(int, 0, 2**31)
  found: list[Job] = []
  for number, line in enumerate(plan.splitlines(), 1):
    fields = [field.split(',') for field in line.partition('#')[0].split()]
    if not fields:
      continue
    try:
      if len(fields) != len(checks):
        raise ValueError(f'{len(fields)} fields; expected BEDS KEEPS ROWS SEEDS')
      for check, field in zip(checks, fields, strict=True):
        check(field)
    except ValueError as error:
      raise ValueError(f'line {number} of the plan, {line!r}: {error}') from error
    found += [(bed, float(k), row, int(s)) for bed, k, row, s in itertools.product(*fields)]
  if not found:
    raise ValueError('the plan has no line; expected some BEDS KEEPS ROWS SEEDS.')
  return found


def done(path: pathlib.Path) -> set[tuple[Any, ...]]:
  """What a CSV has: (bed, keep, options, seed), whatever the row was called.

  Raises:
    ValueError: a file that is not one of the study, or was cut short.
  """
  if not path.exists():
    return set()
  lines = read_table(path, DONE, others=True)
  return {(r['bed'], float(r['keep']), r['options'], int(r['seed'])) for r in lines}


def check_out(path: str, columns: Sequence[str]) -> None:
  """Raises ValueError or OSError unless lines with these columns can be appended to a file."""
  check_file(path, '--out')
  if pathlib.Path(path).exists():
    read_table(pathlib.Path(path), columns, others=True)


def append(path: pathlib.Path, row: dict[str, Any]) -> None:
  """One line more, under a header if it is the first; an older file keeps its columns."""
  path.parent.mkdir(parents=True, exist_ok=True)
  new, columns = not path.exists(), list(row)
  if not new:
    with path.open(newline='') as file:
      columns = next(csv.reader(file))
  with path.open('a', newline='') as file:
    writer = csv.DictWriter(file, columns, extrasaction='ignore', lineterminator='\n')
    if new:
      writer.writeheader()
    writer.writerow(row)
