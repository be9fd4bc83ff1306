"""Plans of runs, and the CSV that says which of them are done."""

import csv
import itertools
import pathlib
from collections.abc import Iterator
from typing import Any

__all__ = ['Job', 'append', 'done', 'jobs']

Job = tuple[str, float, str, int]


def jobs(plan: str) -> Iterator[Job]:
  """(bed, keep, row, seed) of every run of a plan, seeds innermost."""
  for line in plan.splitlines():
    line = line.partition('#')[0]
    if line.strip():
      beds, keeps, names, seeds = (field.split(',') for field in line.split())
      for bed, keep, name, seed in itertools.product(beds, keeps, names, seeds):
        yield bed, float(keep), name, int(seed)


def done(path: pathlib.Path) -> set[tuple[Any, ...]]:
  """What a CSV has: (bed, keep, options, seed), whatever the row was called."""
  if not path.exists():
    return set()
  with path.open(newline='') as file:
    return {
      (r['bed'], float(r['keep']), r['options'], int(r['seed'])) for r in csv.DictReader(file)
    }


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
