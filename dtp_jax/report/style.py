"""How a row of a table looks everywhere: its label, its place, its colour and its mark."""

import zlib
from typing import Any

__all__ = ['axes', 'label', 'mark', 'place']

# Label, colour and mark. The colours are Okabe and Ito's, told apart by the colour-blind; the marks
# differ without colour too.
_LOOKS = {
  'transportation': ('DTP (transportation)', '#0072b2', 'o'),
  'dense': ('dense', '#882255', '*'),
  'magnitude': ('one-shot magnitude', '#56b4e9', 'P'),
  'gradual_magnitude': ('gradual magnitude', '#e69f00', 'v'),
  'straight_through': ('straight-through top-k', '#cc79a7', '^'),
  'spartan': ("Spartan's mask", '#d55e00', 's'),
  'pdp': ('PDP', '#009e73', 'D'),
  'fisher': ('gradual Fisher', '#882255', 'p'),
  'lamp': ('gradual LAMP', '#000000', 'p'),
  'taylor': ('gradual Taylor', '#117733', 'h'),
  'greg': ('growing penalty (GReg)', '#117733', '*'),
  'acdc': ('AC/DC', '#000000', '*'),
  'rigl': ('RigL', '#117733', '8'),
  'paper': ("DTP, the paper's rule", '#882255', '8'),
  'random': ('random', '#777777', 'X'),
  'l1_uniform': ('L1, uniform width', '#5b2a86', '>'),
  'random_uniform': ('random, uniform width', '#777777', '<'),
}
_OTHERS = tuple((c, m) for m in ('p', 'h', '8', '*') for c in ('#882255', '#117733', '#000000'))


def label(row: str) -> str:
  """The name of a row in tables."""
  return _LOOKS[row][0] if row in _LOOKS else row


def mark(row: str) -> tuple[str, str]:
  """(colour, marker) of a row, the same in every figure; an unknown name always gets the same."""
  if row in _LOOKS:
    return _LOOKS[row][1:]
  return _OTHERS[zlib.crc32(row.encode()) % len(_OTHERS)]


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
