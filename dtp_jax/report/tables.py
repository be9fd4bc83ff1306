"""The tables of a report, as cells of text; Markdown of them."""

import statistics
from collections.abc import Iterable, Sequence

from dtp_jax.markdown import Table
from dtp_jax.report.compare import Cell, Difference, Line, by_row, cells_of, paired, studies_of
from dtp_jax.report.measure import Measure
from dtp_jax.report.rows import Published, Row
from dtp_jax.report.style import label

__all__ = [
  'against',
  'budget_name',
  'by_budget',
  'heading',
  'markdown',
  'of_cell',
  'of_published',
  'of_runs',
  'percent',
  'rates',
  'summary',
]

Study = Sequence[Cell]

_ELEMENTS = {'channels': 'channels', 'weights': 'single weights'}
_UNITS = {'macs': 'MACs', 'count': 'elements', 'params': 'parameters'}


def markdown(rows: Sequence[Row]) -> str:
  """Every table of some rows: of a single cell its rows, of several a column for each budget."""
  cells = cells_of(rows)
  if len(cells) == 1:
    return str(of_cell(cells[0]))
  parts = []
  for study in studies_of(cells):
    parts.append(f'{heading(study)}:\n\n{by_budget(study)}')
    parts += [str(table) for table in (summary(study), rates(study)) if table.rows]
  return '\n'.join(parts)


def heading(study: Study) -> str:
  """The network, its data and what was pruned, in words."""
  cell = study[0]
  what = _ELEMENTS.get(cell.granularity, cell.granularity)
  return f'{cell.model} on {cell.data}' + (f', {what}' if what else '')


def percent(keep: float) -> str:
  """A fraction as in '5 %'."""
  return f'{100 * keep:.4g} %'


def of_cell(cell: Cell) -> Table:
  """One cell in full: seeds, measure, what was kept, seconds and predictions a second (medians)."""
  totals = {run['total'] for line in cell.lines for run in line.runs if run['total'] != ''}
  if len(totals) > 1:
    raise ValueError(f'runs of one cell have different totals {totals}; report them apart.')
  total, measure = totals.pop() if totals else None, cell.lines[0].measure
  timed = any(line.rate is not None for line in cell.lines)
  rows = tuple(
    (
      label(line.row),
      str(len(line.runs)),
      _spread(line),
      _kept(line, total, cell.unit),
      f'{statistics.mean(run["parameters_left"] for run in line.runs):,.0f}',
      f'{statistics.median(run["seconds"] for run in line.runs):.0f}',
      *((_rate(line),) if timed else ()),
    )
    for line in cell.lines
  )
  header = ('run', 'seeds', measure.name, 'kept', 'parameters left', 'seconds')
  return Table((*header, measure.rate) if timed else header, rows)


def by_budget(study: Study) -> Table:
  """Rows are methods, columns the budgets: mean and deviation over the seeds.

  The dense network has no budget: its figure stands in every column, to compare with.
  """
  rows = []
  for (name, method), found in by_row(study).items():
    most = max(len(line.runs) for line in found.values())
    lines = (found.get(cell.keep) for cell in _budgets(study) or study)
    values = (_spread(line, most) if line else '' for line in lines)
    rows.append((_name(name, method), *values, str(most)))
  return Table((_measure(study).name, *_columns(study), 'seeds'), tuple(rows))


def rates(study: Study) -> Table:
  """Predictions a second of the networks that were timed, as `by_budget` has their measure."""
  rows = []
  for (name, method), found in by_row(study).items():
    values = [_rate(found.get(cell.keep)) for cell in _budgets(study) or study]
    if any(values):
      rows.append((_name(name, method), *values))
  return Table((_measure(study).rate, *_columns(study)), tuple(rows))


def against(study: Study, other: str) -> Table:
  """Paired differences of every row to the best baseline or to dense, budget by budget.

  Args:
    study: cells of one network.
    other: 'best baseline' or 'dense'.
  """
  budgets = _budgets(study)
  rows = []
  for (name, method), found in by_row(study).items():
    if method == other:
      continue
    values = []
    for cell in budgets:
      reference = cell.dense if other == 'dense' else cell.best_baseline
      values.append(_against(found.get(cell.keep), reference, other))
    if any(values):
      rows.append((label(name), *values))
  header = f'{_measure(study).unit} against {other}'
  return Table((header, *map(budget_name, budgets)), tuple(rows))


def summary(study: Study) -> Table:
  """Our rows against the best baseline and against dense, a line each budget."""
  rows = []
  for cell in _budgets(study):
    best = cell.best_baseline
    for line in cell.ours:
      rows.append(
        (
          budget_name(cell),
          label(line.row),
          'none' if best is None else label(best.row),
          _against(line, best, '') or 'none',
          _against(line, cell.dense, '') or 'none',
        )
      )
  unit = _measure(study).unit
  header = ('kept', 'run', 'best baseline', f'{unit} against it (95 %)', f'{unit} against dense')
  return Table(header, tuple(rows), texts=3)


def of_runs(study: Study) -> Table:
  """Every run: what names it, what it reached, where it lies."""
  measure = _measure(study)
  name = measure.name.removeprefix('test ')
  header = ('run', 'kept', 'seed', name, 'achieved', 'parameters left', 'seconds')
  runs = {
    (cell.keep if line.method != 'dense' else 1.0, line.row, run['seed']): run
    for cell in study
    for line in cell.lines
    for run in line.runs
  }
  rows = tuple(
    (
      label(row),
      percent(keep),
      str(seed),
      measure.text(measure.of(run)),
      '' if run['achieved'] == '' else f'{run["achieved"]:,}',
      f'{run["parameters_left"]:,}',
      f'{run["seconds"]:.0f}',
      run['config'],
      run['run'],
    )
    for (keep, row, seed), run in runs.items()
  )
  return Table((*header, 'config', 'folder'), rows)


def of_published(found: Iterable[Published]) -> Table:
  """Published figures as a table."""
  rows = tuple(
    (
      x.method,
      x.source,
      f'{x.accuracy:.2f}' if isinstance(x.accuracy, float) else '',
      f'{x.base_accuracy:.2f}' if isinstance(x.base_accuracy, float) else '',
      _amount(x),
    )
    for x in found
  )
  return Table(('method', 'source', 'accuracy, %', 'of dense, %', 'at'), rows, texts=2)


def _measure(study: Study) -> Measure:
  return study[0].lines[0].measure


def _budgets(study):
  return [cell for cell in study if cell.granularity]


def _columns(study):
  return [budget_name(cell) for cell in _budgets(study)] or ['all']


def _name(row, method):
  return 'dense, nothing pruned' if method == 'dense' else label(row)


def _rate(line):
  return '' if line is None or line.rate is None else f'{line.rate:,.0f}'


def budget_name(cell: Cell) -> str:
  """The budget of a cell, as in '5 % of weights'."""
  unit = _UNITS.get(cell.unit, cell.unit)
  unit = 'weights' if cell.granularity == 'weights' else unit
  unit = 'channels' if (cell.granularity, cell.unit) == ('channels', 'count') else unit
  return f'{percent(cell.keep)} of {unit}'


def _kept(line: Line, total: int | None, unit: str) -> str:
  """What the runs of a row kept, as a range where learned widths leave different remainders."""
  if total is None:
    return 'all'
  achieved = [total if line.method == 'dense' else run['achieved'] for run in line.runs]
  found = sorted(set(achieved))
  shares = list(dict.fromkeys(f'{100 * k / total:.2f}' for k in (found[0], found[-1])))
  amounts = ' to '.join(f'{k:,}' for k in dict.fromkeys((found[0], found[-1])))
  return f'{amounts} of {total:,} {_UNITS.get(unit, unit)} ({" to ".join(shares)} %)'


def _spread(line, seeds=None):
  text = line.measure.text
  spread = '' if line.std is None else f' ± {text(line.std)}'
  fewer = '' if seeds in (None, len(line.runs)) else f' (n = {len(line.runs)})'
  return f'{text(line.mean)}{spread}{fewer}'


def _against(line, other, name):
  if line is None or other is None:
    return ''
  if line is other:
    return name
  difference = paired(line, other)
  if difference is None:
    return 'no seed in common'
  return _interval(difference, len(line.runs), line.measure)


def _interval(difference: Difference, seeds: int, measure: Measure) -> str:
  mean = measure.text(difference.mean, '+')
  if difference.low is None or difference.high is None:
    return f'{mean} (one seed)'
  fewer = '' if difference.n == seeds else f', n = {difference.n}'
  low, high = (measure.text(bound, '+') for bound in (difference.low, difference.high))
  return f'{mean} ({low} to {high}{fewer})'


def _amount(x):
  if isinstance(x.speedup, float):
    return f'{x.speedup:g}x fewer MACs'
  return f'{x.sparsity:g} % zeros' if isinstance(x.sparsity, float) else x.at
