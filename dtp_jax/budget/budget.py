"""Budgets: how much to keep, in exact integers, and which elements compete for it."""

import dataclasses
import fnmatch
import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from dtp_jax.budget.problem import CostProblem, CountProblem, Problem
from dtp_jax.budget.rounding import Cost, round_to_budget
from dtp_jax.prunable import Prunable

__all__ = ['Account', 'Budget', 'Scope', 'account', 'cost_of', 'problems']

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
  """

  keep: float | int | Mapping[str, float]
  of: Any = 'count'
  scope: Scope = 'global'
  min_keep: int = 1
  multiple_of: int = 1

  def __post_init__(self):
    """Raises ValueError on a keep or a scope out of range."""
    _check_keep(self)
    if self.scope not in get_args(Scope):
      raise ValueError(f'scope is {self.scope!r}; expected one of {get_args(Scope)}.')
    if not isinstance(self.of, str) and not hasattr(self.of, 'cost'):
      raise ValueError(f"of is {self.of!r}; expected 'count', 'params', 'macs' or a LatencyTable.")
    if self.min_keep < 0 or self.multiple_of < 1:
      raise ValueError(
        f'min_keep is {self.min_keep} and multiple_of {self.multiple_of}; expected >= 0 and >= 1.'
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
      return round(self.keep * n) if self.of == 'count' else _floor(self.keep, n)
    if self.keep > n:
      raise ValueError(f'keep is {self.keep} {self.unit}; expected at most the {n} there are.')
    return self.keep


class Account(NamedTuple):
  """Requested and achieved, in the unit asked for, and what the dense network has of it."""

  unit: str
  requested: int
  achieved: int
  total: int


def problems(prunable: Prunable, budget: Budget) -> tuple[Problem, ...]:
  """The transport problems of a budget.

  Raises:
    ValueError: a budget that cannot be met: an amount above what there is, one below the floors of
      the channel groups, for 'row' a fraction that is not a whole number of elements in every row;
      or a unit or scope that the elements do not know.
  """
  if prunable.costs:
    return _channel_problems(prunable, budget)
  if budget.of != 'count' or budget.multiple_of != 1:
    raise ValueError(
      f'of is {budget.of!r} and multiple_of {budget.multiple_of}; single weights, rows and blocks '
      "are counted: expected of='count', multiple_of=1."
    )
  shapes = prunable.shapes
  sizes = {name: math.prod(shape) for name, shape in shapes.items()}
  total = sum(sizes.values())
  if isinstance(budget.keep, Mapping):
    return _per_array(shapes, _shares(budget.keep, sizes))
  if budget.scope == 'row':
    return tuple(_row_problem(name, shape, budget) for name, shape in shapes.items())
  k = budget.count(total)
  if budget.scope == 'global':
    return (CountProblem(tuple(shapes), tuple(shapes.values()), False, total, k),)
  density = prunable.density if budget.scope == 'erk' else dict.fromkeys(sizes, 1.0)
  return _per_array(shapes, _apportion(k, _quotas(k, sizes, density), sizes))


def account(prunable: Prunable, budget: Budget, hard: Mapping[str, Any]) -> Account:
  """What was asked for and what the hard masks {name: boolean array} came to, in one unit."""
  if not prunable.costs:
    plan = problems(prunable, budget)
    requested = sum(p.k * p.copies for p in plan if isinstance(p, CountProblem))
    kept = sum(int(np.count_nonzero(mask)) for mask in hard.values())
    return Account(budget.of, requested, kept, sum(mask.size for mask in hard.values()))
  cost = cost_of(prunable, budget)
  counts = {name: int(np.count_nonzero(mask)) for name, mask in hard.items()}
  if isinstance(budget.keep, Mapping):
    requested = sum(_shares(budget.keep, prunable.sizes).values())
  else:
    requested = budget.count(cost.total)
  return Account(budget.unit, requested, cost.at(counts), cost.total)


def cost_of(prunable: Prunable, budget: Budget) -> Cost:
  """The cost a budget of channels is counted in.

  Raises:
    ValueError: a unit that the elements do not have.
  """
  if not isinstance(budget.of, str):
    return budget.of.cost(prunable.sizes)
  if budget.of not in prunable.costs:
    raise ValueError(
      f'of is {budget.of!r}; expected one of {sorted(prunable.costs)} or a latency table.'
    )
  return prunable.costs[budget.of]


def _channel_problems(prunable, budget):
  """One problem of all groups, or for 'layer' one per group, of the same width to one channel."""
  if budget.scope not in ('global', 'layer'):
    raise ValueError(f"scope is {budget.scope!r}; channels know 'global' and 'layer'.")
  if isinstance(budget.keep, Mapping):
    shares = _shares(budget.keep, prunable.sizes)
    widths = {name: _width(budget, name, k, prunable.sizes[name]) for name, k in shares.items()}
    return _per_array(prunable.shapes, widths)
  sizes, cost = prunable.sizes, cost_of(prunable, budget)
  limit = budget.count(cost.total)
  floors = {'min_keep': budget.min_keep, 'multiple_of': budget.multiple_of}
  if budget.scope == 'global':
    return (CostProblem(sizes, cost, limit, **floors),)
  # Ranked by their place in their group, a prefix of all channels is the same share of each. What
  # is left of the budget widens a group once: cheap ones would take many channels of it.
  uniform = {name: -np.arange(1, n + 1) / n for name, n in sizes.items()}
  kept = round_to_budget(uniform, cost, limit, **floors, fill_once=True)
  return _per_array(prunable.shapes, {name: int(kept[name].sum()) for name in sizes})


def _per_array(shapes, counts):
  """One problem per score array, which keeps `counts` of it."""
  return tuple(
    CountProblem((name,), (shape,), False, math.prod(shape), counts[name])
    for name, shape in shapes.items()
  )


def _shares(ratios, sizes):
  """The count of each name under fractions by pattern: the first that matches counts, else all."""
  counts, left = dict(sizes), list(sizes)
  for pattern, fraction in ratios.items():
    matched = fnmatch.filter(left, pattern)
    if not matched:
      raise ValueError(
        f'keep has the pattern {pattern!r}, which matches none of {left}; names that an earlier '
        'pattern matches are taken.'
      )
    counts |= {name: _floor(fraction, sizes[name]) for name in matched}
    left = [name for name in left if name not in matched]
  return counts


def _width(budget, name, count, size):
  """The largest width of a group within `count` channels, which may not be below its floor."""
  multiple = budget.multiple_of
  width = size if count == size else count // multiple * multiple
  if width < min(size, budget.min_keep):
    raise ValueError(
      f'keep leaves {width} of the {size} channels of {name!r} (multiples of {multiple}), below '
      f'min_keep={budget.min_keep}. Raise its fraction or lower min_keep or multiple_of.'
    )
  return width


def _floor(fraction, n):
  # As written: 29 % of 100 is 29, where the float product lies below.
  return math.floor(Fraction(str(fraction)) * n)


def _check_keep(budget):
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


def _row_problem(name, shape, budget):
  n = shape[-1]
  k = budget.count(n)
  if isinstance(budget.keep, float) and abs(budget.keep * n - k) > 1e-6:
    raise ValueError(
      f'keep is {budget.keep} of rows of {n} ({name}): {budget.keep * n:g} elements; expected a '
      'whole number, as in keep=0.5 for 2:4.'
    )
  return CountProblem((name,), (shape,), True, n, k)


def _quotas(k, sizes, density):
  """Real-valued counts proportional to density x size with sum k; full arrays are capped."""
  full: set[str] = set()
  while True:
    free = k - sum(sizes[n] for n in full)
    weight = sum(density[n] * sizes[n] for n in sizes if n not in full)
    scale = free / weight if weight else 0.0
    over = {n for n in sizes if n not in full and scale * density[n] > 1}
    if not over:
      return {n: sizes[n] if n in full else scale * density[n] * sizes[n] for n in sizes}
    full |= over


def _apportion(k, quotas, sizes):
  """Integers nearest to the quotas with sum k exactly: largest remainders first."""
  counts = {n: min(math.floor(q + 1e-9), sizes[n]) for n, q in quotas.items()}
  remainders = sorted(counts, key=lambda n: counts[n] - quotas[n])  # stable: ties in order
  for name in remainders[: k - sum(counts.values())]:
    counts[name] += 1
  return counts
