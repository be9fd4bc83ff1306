"""A budget on the elements of a network, worked out once: its transport problems and its account.

All counts are exact integers. What a method, a training run and a report need to know of a budget
is in the one object that `resolve` returns.
"""

import fnmatch
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from dtp_jax.budget.budget import Budget, floored
from dtp_jax.budget.problem import CostProblem, CountProblem, Problem
from dtp_jax.budget.rounding import Cost, FloorError, Widths, round_to_budget
from dtp_jax.budget.widths import Choice, choice
from dtp_jax.graph.cost import counts_of
from dtp_jax.graph.floor import floor_in_words
from dtp_jax.prunable import Prunable

__all__ = ['Account', 'Resolved', 'resolve']

Sizes = Mapping[str, int]
Shapes = Mapping[str, tuple[int, ...]]


class Account(NamedTuple):
  """Requested and achieved, in the unit asked for, and what the dense network has of it.

  `multiples` says which widths the groups of channels had to choose from, and why; empty for any.
  """

  unit: str
  requested: int
  achieved: int
  total: int
  multiples: str = ''


@dataclass(frozen=True, eq=False)
class Resolved:
  """What a budget comes to on given elements.

  Attributes:
    problems: the transport problems; together they hold every score array once.
    unit: what is counted: 'count', 'params', 'macs' or 'ns'.
    requested: how much is to be kept, in that unit.
    total: how much the dense network has.
    spend: {name: number kept} -> its amount in that unit, exact.
    widths: which numbers of channels the groups may keep, and why.
  """

  problems: tuple[Problem, ...]
  unit: str
  requested: int
  total: int
  spend: Callable[[Mapping[str, int]], int]
  widths: Choice

  @property
  def keep(self) -> float:
    """The kept fraction rho of all problems together: of elements, or of their one cost."""
    return sum(p.keep * p.size for p in self.problems) / sum(p.size for p in self.problems)

  def account(self, hard: Mapping[str, Any]) -> Account:
    """What was asked for and what hard masks {name: array of 0 and 1} came to."""
    achieved = self.spend(counts_of(hard))
    return Account(self.unit, self.requested, achieved, self.total, self.widths.why)


def resolve(budget: Budget, elements: Prunable) -> Resolved:
  """Works a budget out on the elements it is for.

  Args:
    budget: how much to keep.
    elements: what competes for it.

  Returns:
    Its problems and its account.

  Raises:
    ValueError: a budget that cannot be met: an amount above what there is, one below the floors of
      the channel groups (the message names what is frozen, and by which primitive), for 'row' a
      fraction that is not a whole number of elements in every row; or a unit or scope that the
      elements do not know.
    TypeError: no budget, or no elements.
  """
  if not isinstance(elements, Prunable) or not isinstance(budget, Budget):
    raise TypeError(
      f'the budget is {_short(budget)} for elements {_short(elements)}; expected a dtp_jax.Budget, '
      "as in Budget(0.4, of='macs'), and a graph from dtp_jax.trace or what dtp_jax.weights and "
      'its like give.'
    )
  if elements.costs:
    return _channels(budget, elements)
  if budget.of != 'count' or budget.multiple_of != 1:
    raise ValueError(
      f'of is {budget.of!r} and multiple_of {budget.multiple_of!r}; single weights, rows and '
      "blocks are counted: expected of='count', multiple_of=1."
    )
  problems = _counted(budget, elements.shapes, elements.sizes, elements.density)
  problems = tuple(problem.split_into(elements.parts) for problem in problems)
  requested = sum(p.k * p.copies for p in problems)
  total = sum(elements.sizes.values())
  return Resolved(problems, 'count', requested, total, _sum, Choice(1, ''))


def _short(value: Any) -> str:
  """What a value is, in one line."""
  text = repr(value).partition('\n')[0]
  return text if len(text) <= 60 else f'{text[:60]}...'


def _sum(counts: Sizes) -> int:
  return sum(counts.values())


def _counted(
  budget: Budget, shapes: Shapes, sizes: Sizes, density: Mapping[str, float]
) -> tuple[CountProblem, ...]:
  """The problems of elements that are counted."""
  if isinstance(budget.keep, Mapping):
    return _per_array(shapes, _shares(budget.keep, sizes))
  if budget.scope == 'row':
    return tuple(_row_problem(name, shape, budget) for name, shape in shapes.items())
  total = sum(sizes.values())
  k = budget.count(total)
  if budget.scope == 'global':
    return (CountProblem(tuple(shapes), tuple(shapes.values()), False, total, k),)
  density = density if budget.scope == 'erk' else dict.fromkeys(sizes, 1.0)
  return _per_array(shapes, _apportion(k, _quotas(k, sizes, density), sizes))


def _channels(budget: Budget, elements: Prunable) -> Resolved:
  """One problem of all groups, or for 'layer' one per group, of the same width to one channel."""
  if budget.scope not in ('global', 'layer'):
    raise ValueError(f"scope is {budget.scope!r}; channels know 'global' and 'layer'.")
  sizes, cost = elements.sizes, _cost_of(budget, elements)
  allowed = choice(budget, sizes)
  if isinstance(budget.keep, Mapping):
    shares = _shares(budget.keep, sizes)
    known = Widths.of(sizes, budget.min_keep, allowed.multiple_of)
    widths = {name: _width(known, name, k) for name, k in shares.items()}
    problems, limit = _per_array(elements.shapes, widths), sum(shares.values())
  else:
    limit = budget.count(cost.total)
    try:
      problems = _of_cost(budget, elements.shapes, cost, limit, allowed)
    except FloorError as error:
      graph = elements.graph
      why = '' if graph is None else floor_in_words(graph, budget.unit, sizes)
      raise ValueError(f'{error} {why}'.rstrip()) from None
  return Resolved(problems, budget.unit, limit, cost.total, cost.at, allowed)


def _of_cost(
  budget: Budget, shapes: Shapes, cost: Cost, limit: int, allowed: Choice
) -> tuple[Problem, ...]:
  """The problems of channels whose cost is limited."""
  sizes = {name: math.prod(shape) for name, shape in shapes.items()}
  floors: Any = {'min_keep': budget.min_keep, 'multiple_of': allowed.multiple_of}
  if budget.scope == 'global':
    return (CostProblem(sizes, cost, limit, **floors),)
  # Ranked by their place in their group, a prefix of all channels is the same share of each. What
  # is left of the budget widens a group once: cheap ones would take many channels of it.
  uniform = {name: -np.arange(1, n + 1) / n for name, n in sizes.items()}
  kept = round_to_budget(uniform, cost, limit, **floors, fill_once=True)
  return _per_array(shapes, {name: int(kept[name].sum()) for name in sizes})


def _cost_of(budget: Budget, elements: Prunable) -> Cost:
  """The cost a budget of channels is counted in."""
  if not isinstance(budget.of, str):
    return budget.of.cost(elements.sizes)
  if budget.of not in elements.costs:
    raise ValueError(
      f'of is {budget.of!r}; expected one of {sorted(elements.costs)} or a latency table.'
    )
  return elements.costs[budget.of]


def _per_array(shapes: Shapes, counts: Sizes) -> tuple[CountProblem, ...]:
  """One problem per score array, which keeps `counts` of it."""
  return tuple(
    CountProblem((name,), (shape,), False, math.prod(shape), counts[name])
    for name, shape in shapes.items()
  )


def _shares(ratios: Mapping[str, float], sizes: Sizes) -> dict[str, int]:
  """The count of each name under fractions by pattern: the first that matches counts, else all."""
  counts, left = dict(sizes), list(sizes)
  for pattern, fraction in ratios.items():
    matched = fnmatch.filter(left, pattern)
    if not matched:
      raise ValueError(
        f'keep has the pattern {pattern!r}, which matches none of {left}; names that an earlier '
        'pattern matches are taken.'
      )
    counts |= {name: floored(fraction, sizes[name]) for name in matched}
    left = [name for name in left if name not in matched]
  return counts


def _width(widths: Widths, name: str, count: int) -> int:
  """The largest width of a group within `count` channels, which may not be below its floor."""
  width, size = widths.below(name, count), widths.sizes[name]
  if width < min(size, widths.min_keep):
    raise ValueError(
      f'keep leaves {width} of the {size} channels of {name!r}, which may keep '
      f'{_listed(widths.allowed[name])}: below min_keep={widths.min_keep}. Raise its fraction or '
      'lower min_keep or multiple_of.'
    )
  return width


def _listed(counts: Sequence[int]) -> str:
  """A few counts in words."""
  if len(counts) <= 6:
    return ', '.join(map(str, counts))
  return f'{", ".join(map(str, counts[:3]))}, ..., {counts[-1]}'


def _row_problem(name: str, shape: tuple[int, ...], budget: Budget) -> CountProblem:
  n = shape[-1]
  k = budget.count(n)
  if isinstance(budget.keep, float) and abs(budget.keep * n - k) > 1e-6:
    raise ValueError(
      f'keep is {budget.keep} of rows of {n} ({name}): {budget.keep * n:g} elements; expected a '
      'whole number, as in keep=0.5 for 2:4.'
    )
  return CountProblem((name,), (shape,), True, n, k)


def _quotas(k: int, sizes: Sizes, density: Mapping[str, float]) -> dict[str, float]:
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


def _apportion(k: int, quotas: Mapping[str, float], sizes: Sizes) -> dict[str, int]:
  """Integers nearest to the quotas with sum k exactly: largest remainders first."""
  counts = {n: min(math.floor(q + 1e-9), sizes[n]) for n, q in quotas.items()}
  remainders = sorted(counts, key=lambda n: counts[n] - quotas[n])  # stable: ties in order
  for name in remainders[: k - sum(counts.values())]:
    counts[name] += 1
  return counts
