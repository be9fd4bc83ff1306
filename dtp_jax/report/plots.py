"""Accuracy, or bits per byte, against MACs and against the weights kept."""

import io
import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from dtp_jax.report.compare import Cell, Line, by_row
from dtp_jax.report.measure import FEWEST, MEASURES
from dtp_jax.report.rows import Published
from dtp_jax.report.style import axes, label, mark

__all__ = ['accuracy_against_kept', 'png']

_HOLLOW = ('o', 's', '^', 'D', 'v', 'p', 'h')
_GREY = '#555555'


def accuracy_against_kept(study: Sequence[Cell], published: Iterable[Published] = ()) -> Any:
  """The measure of the runs against what is left, with error bars of one deviation over the seeds.

  For channels x is the share of the dense MACs that is left, for everything else the share of the
  budget's unit; both axes are logarithmic, y in the errors, so that rows near the dense network
  stay apart. Marks of one budget are moved a little aside, where they would lie on each other.

  Args:
    study: cells of one network, see `dtp_jax.report.compare.studies_of`.
    published: figures of the same network, drawn hollow.

  Returns:
    The matplotlib figure.

  Raises:
    ImportError: matplotlib is missing (extra `demo`).
  """
  published = [x for x in published if x.kept is not None and isinstance(x.accuracy, float)]
  figure, plot = axes(figsize=(6.8, 5.2))
  plot.set(xscale='log', yscale='log')
  pruned = [tuple(lines.values()) for (_, m), lines in by_row(study).items() if m != 'dense']
  step = _step(study, len(pruned))
  handles = [] if study[0].dense is None else [_draw_dense(plot, study[0].dense)]
  for i, lines in enumerate(pruned):
    handles.append(_draw_row(plot, lines, step ** (i - (len(pruned) - 1) / 2)))
  hollow = _draw_published(plot, published)
  _label_axes(plot, study, _best(study, published))
  style = {'frameon': False, 'fontsize': 9, 'title_fontsize': 9}
  if hollow:
    figure.legend(handles=hollow, loc='outside upper center', ncols=2, title='published', **style)
  figure.legend(handles=handles, loc='outside lower center', ncols=3, **style)
  return figure


def png(figure: Any) -> bytes:
  """A figure as a PNG of at most 256 colours: a third of the size, and no eye sees it."""
  from PIL import Image

  full, small = io.BytesIO(), io.BytesIO()
  figure.savefig(full, format='png', dpi=160)
  image = Image.open(full).convert('RGB')
  image.quantize(256, dither=Image.Dither.NONE).save(small, format='png', optimize=True)
  return small.getvalue()


def _draw_dense(plot, dense):
  error, std = dense.measure.error(dense.mean), dense.std or 0.0
  plot.axhspan(_fewer(dense), error + std, color='#000000', alpha=0.08, lw=0, zorder=0)
  return plot.axhline(error, color='black', lw=1, ls='--', label='dense', zorder=1)


def _draw_row(plot, lines, aside):
  """The lines of one row, a budget each."""
  color, marker = mark(lines[0].row)
  ours = lines[0].method == 'transportation'
  errors = [line.measure.error(line.mean) for line in lines]
  stds = [line.std or 0.0 for line in lines]
  up = [e - _fewer(line) for e, line in zip(errors, lines, strict=True)]
  return plot.errorbar(
    [_left(line) * aside for line in lines],
    errors,
    yerr=(up, stds),
    color=color,
    marker=marker,
    ms=8 if marker in 'PX' else 7,
    mec='white',
    mew=0.6,
    lw=1.8 if ours else 0.8,
    elinewidth=1.2,
    capsize=2,
    label=label(lines[0].row),
    zorder=4 if ours else 3,
  )


def _draw_published(plot, published):
  handles = []
  for i, (method, source) in enumerate(dict.fromkeys((x.method, x.source) for x in published)):
    points = [x for x in published if (x.method, x.source) == (method, source)]
    handles += plot.plot(
      [x.kept for x in points],
      [MEASURES['accuracy'].error(x.accuracy) for x in points],
      ls='none',
      marker=_HOLLOW[i % len(_HOLLOW)],
      mfc='none',
      mec=_GREY,
      label=f'{method} ({_short(source)})',
      zorder=2,
    )
  return handles


def _short(source):
  """Authors and venue of a source, without the title."""
  parts = source.split(', ')
  return ', '.join(dict.fromkeys((parts[0], parts[-1])))


def _left(line: Line) -> float:
  """Percent of the dense MACs, or else of the budget's total, that the runs of a row keep."""

  def share(run):
    if run['macs'] != '':
      return run['macs_left'] / run['macs']
    return run['achieved'] / run['total']

  return 100 * max(statistics.mean(map(share, line.runs)), 1e-4)


def _fewer(line: Line) -> float:
  """The errors of one deviation better than the mean."""
  return max(line.measure.error(line.mean) - (line.std or 0.0), FEWEST)


def _step(study, names):
  """The factor between marks: 3 %, or what lets all take a third of the room between budgets."""
  budgets = sorted({math.log(cell.keep) for cell in study if cell.keep > 0})
  gaps = [b - a for a, b in itertools.pairwise(budgets)]
  return math.exp(min([0.03, *(gap / 3 / max(1, names) for gap in gaps)]))


def _best(study, published):
  """The fewest errors that must be seen: bars may run out of the plot, means may not."""
  means = [x.measure.error(x.mean) for cell in study for x in cell.lines]
  known = [MEASURES['accuracy'].error(x.accuracy) for x in published]
  dense = study[0].dense
  return min([*means, *known, *([] if dense is None else [_fewer(dense)])])


def _label_axes(plot, study, best):
  from matplotlib import ticker

  cell = study[0]
  macs = any(run['macs'] != '' for c in study for x in c.lines for run in x.runs)
  what = 'MACs' if macs else {'count': cell.granularity}.get(cell.unit, cell.unit)
  measure = cell.lines[0].measure
  plot.set(xlabel=f'{what} left, % (log)', ylabel=measure.axis)
  low, high = plot.dataLim.intervalx
  room = max(1.15, (high / low) ** 0.06)
  plot.set_xlim(low / room, high * room)
  asked = [100 * c.keep for c in study if c.keep > 0 and (cell.unit == 'macs' or not macs)]
  bottom, top = plot.get_ylim()
  bottom = max(bottom, best / (top / best) ** 0.05)
  plot.set_ylim(top, bottom)
  for axis, ticks, form in (
    (plot.xaxis, _share_ticks(asked), '{:.4g}'.format),
    (plot.yaxis, _error_ticks(bottom, top), lambda error: f'{measure.value(error):.4g}'),
  ):
    axis.set_major_locator(ticker.FixedLocator(ticks))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _, form=form: form(value)))
    axis.set_minor_locator(ticker.NullLocator())
  plot.grid(axis='y', color='#e4e4e4', lw=0.6, zorder=0)
  plot.set_axisbelow(True)


def _share_ticks(asked):
  """The budgets, and round shares where those leave room."""
  round_shares = [s * 10.0**e for e in range(-2, 3) for s in (1, 2, 5)]
  apart = [t for t in round_shares if all(abs(math.log(t / x)) > 0.35 for x in asked)]
  return [*asked, *apart]


def _error_ticks(low, high):
  """Round errors from low to high: evenly over a narrow range, else evenly in the logarithm."""
  from matplotlib import ticker

  if high / low < 3:
    return [t for t in ticker.MaxNLocator(6).tick_values(low, high) if low <= t <= high]
  steps = (1, 2, 5) if high / low > 30 else (1, 1.5, 2, 3, 5, 7)
  return [s * 10.0**e for e in range(-2, 3) for s in steps if low <= s * 10.0**e <= high]
