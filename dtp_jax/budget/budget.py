"""Budgets: how much of a network to keep, and which elements compete for it."""

import dataclasses
import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Literal, get_args

import numpy as np

__all__ = ['Budget', 'Scope', 'floored']

Scope = Literal['global', 'layer', 'erk', 'row']


@dataclasses.dataclass(frozen=True)
class Budget:
  """How much of a network to keep.

  Attributes:
    keep: a float in [0, 1] is the fraction to keep, an int the amount itself. A number of elements
      is rounded to the nearest integer; a cost is rounded down and covers the whole network, what
      cannot be pruned included. A mapping {glob pattern: fraction}, as in {'layer1_*/conv1': 0.25},
      gives every score array a fraction of its own, rounded down to whole elements (and to
      `multiple_of`): that of the first pattern that matches its name, else 1. It takes of='count'
      and scope='layer'.
    of: the unit. 'count' of elements; for channels also 'params', 'macs' (for one example) or a
      `dtp_jax.budget.latency.LatencyTable` (nanoseconds).
    scope: which elements compete. 'global': all of them. 'layer': the same fraction of every score
      array. 'erk': per array, the fraction proportional to the Erdos-Renyi-kernel density (RigL,
      arXiv:1911.11134), full arrays capped. 'row': the same count in every row of every array, as
      for N:M sparsity. The counts add up to the requested total exactly in the first three.
      Channels know 'global' (learned widths) and 'layer' (uniform width, to one channel a group
      and as large as that allows).
    min_keep: channels that every group keeps at least (single weights know no floor); a mapping
      that gives a group less is refused.
    multiple_of: channel groups keep a multiple of it (8, 128 for hardware), or all their channels.
      'auto' chooses for each group what the device is fast at, as `dtp_jax.budget.multiples` says;
      what was chosen stands in the account.
  """

  keep: float | int | Mapping[str, float]
  of: Any = 'count'
  scope: Scope = 'global'
  min_keep: int = 1
  multiple_of: int | Literal['auto'] = 1

  def __post_init__(self):
    """Raises ValueError on a keep or a scope out of range; numbers of numpy become Python's."""
    for name in ('keep', 'min_keep', 'multiple_of'):
      object.__setattr__(self, name, _plain(getattr(self, name)))
    _check_keep(self)
    if self.scope not in get_args(Scope):
      raise ValueError(f'scope is {self.scope!r}; expected one of {get_args(Scope)}.')
    if not isinstance(self.of, str) and not hasattr(self.of, 'cost'):
      raise ValueError(f"of is {self.of!r}; expected 'count', 'params', 'macs' or a LatencyTable.")
    multiple, whole = self.multiple_of, isinstance(self.min_keep, int)
    if not (whole and self.min_keep >= 0) or (
      multiple < 1 if isinstance(multiple, int) else multiple != 'auto'
    ):
      raise ValueError(
        f'min_keep is {self.min_keep!r} and multiple_of {multiple!r}; expected integers >= 0 and '
        ">= 1, or 'auto' for the latter."
      )

  @property
  def unit(self) -> str:
    """The unit in words."""
    return self.of if isinstance(self.of, str) else 'ns'

  def count(self, n: int) -> int:
    """The requested amount out of n, in exact integers.

    Raises:
      ValueError: an amount larger than n, or fractions per array.
    """
    if isinstance(self.keep, Mapping):
      raise ValueError(f'keep is {self.keep}, fractions per array: there is none of all together.')
    if isinstance(self.keep, float):
      return round(self.keep * n) if self.of == 'count' else floored(self.keep, n)
    if self.keep > n:
      raise ValueError(f'keep is {self.keep} {self.unit}; expected at most the {n} there are.')
    return self.keep


def _plain(value: Any) -> Any:
  """Numbers of numpy as those of Python: 0.4 in float32 is the fraction 0.4, as it is written."""
  if isinstance(value, Mapping):
    return {key: _plain(fraction) for key, fraction in value.items()}
  if isinstance(value, np.integer):
    return int(value)
  return float(str(value)) if isinstance(value, np.floating) else value


def floored(fraction: float, n: int) -> int:
  """A fraction of n, rounded down in exact arithmetic."""
  # As written: 29 % of 100 is 29, where the float product lies below.
  return math.floor(Fraction(str(fraction)) * n)


def _check_keep(budget: Budget) -> None:
  keep = budget.keep
  if isinstance(keep, Mapping):
    if not keep or not all(isinstance(f, float) and 0 <= f <= 1 for f in keep.values()):
      raise ValueError(f'keep is {keep}; expected fractions (float) in [0, 1] by pattern.')
    if budget.scope != 'layer' or budget.of != 'count':
      raise ValueError(
        f'scope is {budget.scope!r} and of {budget.of!r}; fractions per array are counts: expected '
        "scope='layer', of='count'."
      )
    return
  if isinstance(keep, bool) or not isinstance(keep, int | float):
    raise ValueError(f'keep is {keep!r}; expected a fraction (float) or a count (int).')
  if not 0 <= keep <= (math.inf if isinstance(keep, int) else 1.0):
    raise ValueError(f'keep is {keep}; expected a fraction in [0, 1] or a count >= 0.')
