"""What the runs of a table are compared by: accuracy, or bits per byte of a text."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ['FEWEST', 'MEASURES', 'Measure']

FEWEST = 0.05  # errors that are shown: a log axis has no place for none


class Measure(NamedTuple):
  """A figure of a run, and how it is written.

  Attributes:
    column: of the CSV.
    scale: what its entries are multiplied by.
    name: of the figure with its unit, as a table's header says it.
    unit: of differences.
    digits: behind the point.
    perfect: the value without any error; larger values are worse if it is 0.
    axis: what stands at a figure's axis.
    rate: what a network predicts in a second.
  """

  column: str
  scale: float
  name: str
  unit: str
  digits: int
  perfect: float
  axis: str
  rate: str

  def of(self, run: Mapping[str, Any]) -> float:
    """The figure of a row of the CSV."""
    return self.scale * run[self.column]

  def error(self, value: float) -> float:
    """How far a value is from perfect, > 0: the less, the better."""
    return max(abs(self.perfect - value), FEWEST)

  def value(self, error: float) -> float:
    """The inverse of `error`."""
    return abs(self.perfect - error)

  def text(self, value: float, sign: str = '') -> str:
    """A value in digits; `sign` '+' is that of a difference."""
    return f'{value:{sign}.{self.digits}f}'


# By the name that a data set gives, see `dtp_jax.data.dataset.Dataset.measure`.
MEASURES = {
  'accuracy': Measure(
    column='accuracy',
    scale=100.0,
    name='test accuracy, %',
    unit='points',
    digits=2,
    perfect=100.0,
    axis='test accuracy, % (log of the errors)',
    rate='images per second',
  ),
  'bits_per_byte': Measure(
    column='loss',
    scale=1 / math.log(2),
    name='bits per byte',
    unit='bits',
    digits=3,
    perfect=0.0,
    axis='bits per byte (log)',
    rate='tokens per second',
  ),
}
