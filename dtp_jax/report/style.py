"""How a row of a table looks everywhere: its label, its place, its colour and its mark."""

import zlib
from typing import Any

__all__ = ['axes', 'label', 'mark', 'place']

_LABELS = {
  'transportation': 'DTP (transportation)',
  'dense': 'dense',
  'magnitude': 'one-shot magnitude',
  'gradual_magnitude': 'gradual magnitude',
  'straight_through': 'straight-through top-k',
  'spartan': "Spartan's mask",
  'pdp': 'PDP',
  'fisher': 'gradual Fisher',
  'lamp': 'gradual LAMP',
  'paper': "DTP, the paper's rule",
  'random': 'random',
  'l1_uniform': 'L1, uniform width',
  'random_uniform': 'random, uniform width',
}

# Okabe and Ito's colours, told apart by the colour-blind; the marks differ without colour too.
_MARKS = {
  'transportation': ('#0072b2', 'o'),
  'spartan': ('#d55e00', 's'),
  'pdp': ('#009e73', 'D'),
  'straight_through': ('#cc79a7', '^'),
  'gradual_magnitude': ('#e69f00', 'v'),
  'magnitude': ('#56b4e9', 'P'),
  'random': ('#777777', 'X'),
  'l1_uniform': ('#5b2a86', '>'),
  'random_uniform': ('#777777', '<'),
}
_OTHERS = tuple((c, m) for m in ('p', 'h', '8', '*') for c in ('#882255', '#117733', '#000000'))


def label(row: str) -> str:
  """The name of a row in tables."""
  return _LABELS.get(row, row)


def mark(row: str) -> tuple[str, str]:
  """(colour, marker) of a row, the same in every figure; an unknown name always gets the same."""
  return _MARKS.get(row, _OTHERS[zlib.crc32(row.encode()) % len(_OTHERS)])


def place(row: str, method: str) -> tuple[bool, bool, str]:
  """Sorts rows: dense, then ours, then the baselines by name."""
  return method != 'dense', method != 'transportation', row


def axes(figsize: tuple[float, float]) -> Any:
  """(figure, axes) without a frame above and to the right."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=figsize, layout='constrained')
  plot = figure.subplots()
  plot.spines[['top', 'right']].set_visible(False)
  return figure, plot
