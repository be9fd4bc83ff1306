"""Rows as cells of a study: mean and deviation over the seeds, paired differences."""

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from scipy import special  # jax requires scipy

from dtp_jax.report.measure import MEASURES, Measure
from dtp_jax.report.rows import Published, Row
from dtp_jax.report.style import place

__all__ = [
  'Cell',
  'Difference',
  'Line',
  'by_row',
  'cells_of',
  'difference',
  'paired',
  'select',
  'studies_of',
  'that_match',
]

_FILTERS = ('data', 'model', 'granularity', 'unit', 'keep')
_NO_BUDGET = ('', '', 0.0)  # of a network that was trained dense only


@dataclasses.dataclass(frozen=True)
class Line:
  """The runs of one row of a table, one a seed.

  Attributes:
    row: its name.
    method: its method.
    runs: rows of the CSV, by seed.
  """

  row: str
  method: str
  runs: tuple[Row, ...]

  @property
  def measure(self) -> Measure:
    """What its runs are compared by; accuracy where they do not say."""
    return MEASURES[self.runs[0].get('measure') or 'accuracy']

  @property
  def values(self) -> dict[int, float]:
    """The measure by seed: test accuracy in percent, or bits per byte."""
    return {run['seed']: self.measure.of(run) for run in self.runs}

  @property
  def rate(self) -> float | None:
    """Predictions a second, the median over the seeds that were timed; None where none was."""
    found = [run['per_second'] for run in self.runs if run.get('per_second', '') != '']
    return statistics.median(found) if found else None

  @property
  def mean(self) -> float:
    """Mean of the values over the seeds."""
    return statistics.mean(self.values.values())

  @property
  def std(self) -> float | None:
    """Sample standard deviation over the seeds; None of a single one."""
    return statistics.stdev(self.values.values()) if len(self.runs) > 1 else None


@dataclasses.dataclass(frozen=True)
class Cell:
  """One network at one budget.

  Attributes:
    data: name of the data set.
    model: key of the network.
    granularity: what was pruned; '' where the network was trained dense only.
    unit: of the budget.
    keep: fraction asked for.
    lines: dense first, then the rows of transportation, then the baselines by name.
  """

  data: str
  model: str
  granularity: str
  unit: str
  keep: float
  lines: tuple[Line, ...]

  @property
  def dense(self) -> Line | None:
    """The dense network, trained for as long."""
    return next((line for line in self.lines if line.method == 'dense'), None)

  @property
  def ours(self) -> tuple[Line, ...]:
    """The rows of transportation."""
    return tuple(line for line in self.lines if line.method == 'transportation')

  @property
  def best_baseline(self) -> Line | None:
    """The baseline of the best mean; the first by name of several."""
    baselines = [x for x in self.lines if x.method not in ('dense', 'transportation')]
    return min(baselines, key=lambda line: line.measure.error(line.mean), default=None)


class Difference(NamedTuple):
  """Mean difference over the seeds two rows share, in the unit of their measure.

  Attributes:
    n: shared seeds.
    mean: of the differences.
    low: lower end of the 95 % confidence interval, None of a single seed.
    high: upper end.
  """

  n: int
  mean: float
  low: float | None
  high: float | None


def paired(line: Line, other: Line, confidence: float = 0.95) -> Difference | None:
  """The difference `line` - `other` seed by seed, with Student's interval over the seeds.

  Args:
    line: a row.
    other: the row to compare it with.
    confidence: of the interval, in (0, 1).

  Returns:
    The difference; None where the two share no seed.
  """
  return difference(line.values, other.values, confidence)


def difference(
  ours: Mapping[int, float], theirs: Mapping[int, float], confidence: float = 0.95
) -> Difference | None:
  """`paired` of values by seed."""
  gains = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
  if not gains:
    return None
  mean, n = statistics.mean(gains), len(gains)
  if n == 1:
    return Difference(n, mean, None, None)
  quantile = float(special.stdtrit(n - 1, 0.5 + confidence / 2))
  half = quantile * statistics.stdev(gains) / math.sqrt(n)
  return Difference(n, mean, mean - half, mean + half)


def select(rows: Sequence[Row], **wanted: str) -> list[Row]:
  """The rows of some data sets, networks and budgets.

  Args:
    rows: of the CSV.
    **wanted: data, model (a key, or the name of a network for all of its keys), granularity, unit,
      keep (a fraction). A dense run has none of the last three and stays.

  Raises:
    ValueError: an unknown field, or no pruned row left.
  """
  unknown = sorted(set(wanted) - set(_FILTERS))
  if unknown:
    raise ValueError(f'unknown fields {unknown} of a table; expected some of {_FILTERS}.')
  kept = [row for row in rows if all(_fits(row, *item) for item in wanted.items())]
  if not any(row['method'] != 'dense' for row in kept):
    there = sorted({tuple(str(row[name]) for name in _FILTERS) for row in rows})
    raise ValueError(f'no run has {wanted}; there are {there}.')
  return kept


def _fits(row, name, value):
  if row['method'] == 'dense' and name in ('granularity', 'unit', 'keep'):
    return True
  if name == 'model':
    return value in (row['model'], row['model'].split('(')[0])
  return row[name] == (float(value) if name == 'keep' else value)


def _grouped(rows: Iterable[Row], *fields: str) -> dict[tuple, list[Row]]:
  """{values of the fields: rows that have them}, in the order of the first of each."""
  found: dict[tuple, list[Row]] = {}
  for row in rows:
    found.setdefault(tuple(row[field] for field in fields), []).append(row)
  return found


def cells_of(rows: Iterable[Row]) -> list[Cell]:
  """The cells of some rows; the dense runs of a network belong to each of its cells."""
  cells = []
  for (data, model), mine in sorted(_grouped(rows, 'data', 'model').items()):
    dense = [row for row in mine if row['method'] == 'dense']
    pruned = [row for row in mine if row['method'] != 'dense']
    budgets = _grouped(pruned, 'granularity', 'unit', 'keep')
    for budget in sorted(budgets or {_NO_BUDGET: []}, key=lambda b: (b[0], b[1], -b[2])):
      cells.append(Cell(data, model, *budget, _lines([*dense, *budgets.get(budget, ())])))
  return cells


def _lines(rows):
  lines = _grouped(sorted(rows, key=lambda row: row['seed']), 'row', 'method')
  keys = sorted(lines, key=lambda key: place(*key))
  return tuple(Line(row, method, tuple(lines[row, method])) for row, method in keys)


def studies_of(cells: Iterable[Cell]) -> list[tuple[Cell, ...]]:
  """Cells that differ in their budget's size only, together, the largest budget first."""
  studies: dict[tuple, list[Cell]] = {}
  for cell in cells:
    studies.setdefault((cell.data, cell.model, cell.granularity, cell.unit), []).append(cell)
  return [tuple(study) for study in studies.values()]


def by_row(study: Iterable[Cell]) -> dict[tuple[str, str], dict[float, Line]]:
  """{(row, method): {kept fraction: line}} of some cells, in the order of tables."""
  found: dict[tuple[str, str], dict[float, Line]] = {}
  for cell in study:
    for line in cell.lines:
      found.setdefault((line.row, line.method), {})[cell.keep] = line
  return {key: found[key] for key in sorted(found, key=lambda key: place(*key))}


def that_match(published: Iterable[Published], cell: Cell) -> list[Published]:
  """The figures of exactly this data set, network and granularity."""
  wanted = (cell.data, cell.model, cell.granularity)
  return [x for x in published if (x.data, x.model, x.granularity) == wanted]
