"""Accuracy against MACs, and against the weights kept."""

import io
import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from dtp_jax.report.compare import Cell, Line
from dtp_jax.report.published import Published
from dtp_jax.report.style import axes, label, mark, place

__all__ = ['accuracy_against_kept', 'png']

_HOLLOW = ('o', 's', '^', 'D', 'v', 'p', 'h')
_GREY = '#555555'
_TOP = 0.05  # percent of errors: a log axis has no place for none


def accuracy_against_kept(study: Sequence[Cell], published: Iterable[Published] = ()) -> Any:
  """Test accuracy against what is left, with error bars of one deviation over the seeds.

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
  figure, plot = axes(figsize=(6.8, 4.9))
  plot.set(xscale='log', yscale='log')
  _draw_dense(plot, study[0].dense)
  names = sorted({(x.row, x.method) for c in study for x in c.lines if x.method != 'dense'},
                 key=lambda name: place(*name))  # fmt: skip
  step = _step(study, len(names))
  for i, (name, method) in enumerate(names):
    lines = [x for cell in study for x in cell.lines if (x.row, x.method) == (name, method)]
    aside = step ** (i - (len(names) - 1) / 2)
    _draw_row(plot, name, method == 'transportation', lines, aside)
  _draw_published(plot, published)
  _label_axes(plot, study)
  figure.legend(loc='outside lower center', ncols=3, frameon=False, fontsize=9)
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
  if dense is None:
    return
  error, std = _error(dense.mean), dense.std or 0.0
  plot.axhline(error, color='black', lw=1, ls='--', label='dense', zorder=1)
  plot.axhspan(_error(dense.mean + std), error + std, color='#000000', alpha=0.08, lw=0, zorder=0)


def _draw_row(plot, name, ours, lines, aside):
  color, marker = mark(name)
  x = [_left(line) * aside for line in lines]
  y = [_error(line.mean) for line in lines]
  std = [line.std or 0.0 for line in lines]
  low = [v - _error(line.mean + s) for v, line, s in zip(y, lines, std, strict=True)]
  plot.errorbar(
    x,
    y,
    yerr=(low, std),
    color=color,
    marker=marker,
    ms=7 if ours else 6,
    mec='white',
    mew=0.7,
    lw=1.8 if ours else 0.8,
    elinewidth=1.2,
    capsize=2,
    label=label(name),
    zorder=4 if ours else 3,
  )


def _draw_published(plot, published):
  known = [x for x in published if x.kept is not None and isinstance(x.accuracy, float)]
  series = list(dict.fromkeys((x.method, x.source) for x in known))
  for i, (method, source) in enumerate(series):
    points = [x for x in known if (x.method, x.source) == (method, source)]
    plot.plot(
      [x.kept for x in points],
      [_error(x.accuracy) for x in points],
      ls='none',
      marker=_HOLLOW[i % len(_HOLLOW)],
      mfc='none',
      mec=_GREY,
      label=f'{method}, published ({_short(source)})',
      zorder=2,
    )


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


def _error(accuracy):
  return max(100 - accuracy, _TOP)


def _step(study, names):
  """The factor between neighbouring marks: all rows take a third of the room between budgets."""
  budgets = sorted({math.log(cell.keep) for cell in study if cell.keep > 0})
  gaps = [b - a for a, b in itertools.pairwise(budgets)]
  return math.exp(0.34 * min(gaps, default=0.7) / max(1, names))


def _label_axes(plot, study):
  from matplotlib import ticker

  cell = study[0]
  runs = [run for c in study for x in c.lines if x.method != 'dense' for run in x.runs]
  macs = any(run['macs'] != '' for run in runs)
  what = 'MACs' if macs else {'count': cell.granularity}.get(cell.unit, cell.unit)
  plot.set(xlabel=f'{what} left, % (log)', ylabel='test accuracy, % (log of the errors)')
  plot.invert_yaxis()
  ticks = [100 * c.keep for c in study if c.keep > 0]
  if cell.unit == 'macs' or not macs:
    plot.xaxis.set_major_locator(ticker.FixedLocator(ticks))
  else:
    plot.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
  plot.xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: f'{x:.4g}'))
  plot.xaxis.set_minor_locator(ticker.NullLocator())
  plot.margins(x=0.08)
  bottom, top = sorted(plot.get_ylim())
  plot.yaxis.set_major_locator(ticker.FixedLocator(_error_ticks(bottom, top)))
  plot.yaxis.set_major_formatter(ticker.FuncFormatter(lambda y, _: f'{100 - y:.4g}'))
  plot.yaxis.set_minor_locator(ticker.NullLocator())
  plot.grid(axis='y', color='#e4e4e4', lw=0.6, zorder=0)
  plot.set_axisbelow(True)


def _error_ticks(low, high):
  """Round errors in (low, high), about six: even where the range is narrow, else 1, 2, 5."""
  if high / low < 3:
    from matplotlib import ticker

    return [t for t in ticker.MaxNLocator(6).tick_values(low, high) if low <= t <= high]
  return [s * 10.0**e for e in range(-2, 3) for s in (1, 2, 5) if low <= s * 10.0**e <= high]
