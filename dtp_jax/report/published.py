"""Figures that others published, to stand beside ours and never among them."""

import csv
import pathlib
from collections.abc import Iterable
from typing import NamedTuple

from dtp_jax.report.compare import Cell
from dtp_jax.report.tables import Table

__all__ = ['Published', 'read_published', 'table_of', 'that_match']


class Published(NamedTuple):
  """One published figure; what its source does not say, or is not at hand, is ''.

  Attributes:
    data: name of the data set.
    model: key of the network, as `dtp_jax.report.rows.model_key` writes it.
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


_NUMBERS = ('accuracy', 'base_accuracy', 'speedup', 'sparsity')


def read_published(path: pathlib.Path) -> list[Published]:
  """The figures in a CSV file with the fields of `Published` as columns.

  Raises:
    ValueError: other columns, a number that is none, or a figure without a source.
  """
  found = []
  with path.open(newline='') as file:
    reader = csv.DictReader(file)
    if tuple(reader.fieldnames or ()) != Published._fields:
      raise ValueError(f'{path} has {reader.fieldnames}; expected {list(Published._fields)}.')
    for row in reader:
      if not row['source']:
        raise ValueError(f'{path} has a figure without a source: {row}.')
      numbers = {k: float(row[k]) if row[k] else '' for k in _NUMBERS}
      found.append(Published(**{**row, **numbers}))
  return found


def that_match(published: Iterable[Published], cell: Cell) -> list[Published]:
  """The figures of exactly this data set, network and granularity."""
  wanted = (cell.data, cell.model, cell.granularity)
  return [x for x in published if (x.data, x.model, x.granularity) == wanted]


def table_of(found: Iterable[Published]) -> Table:
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


def _amount(x):
  if isinstance(x.speedup, float):
    return f'{x.speedup:g}x fewer MACs'
  return f'{x.sparsity:g} % zeros' if isinstance(x.sparsity, float) else x.at
