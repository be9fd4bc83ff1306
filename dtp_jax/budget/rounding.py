"""From a ranking of channels to the exact channels that a cost budget can hold.

Costs are evaluated on the host in exact integers. The promise: the cost of what is kept is at most
the budget, and no channel that is left out could be added without exceeding it.
"""

import bisect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

__all__ = ['PARTS', 'Cost', 'FloorError', 'Widths', 'limit_at', 'round_to_budget']

PARTS = 2**24  # of a whole: kept fractions on a ramp are rounded down to it, as float32 holds them

Counts = Mapping[str, int]
Allowed = Mapping[str, Sequence[int]]  # {group: the increasing counts that it may keep}


class FloorError(ValueError):
  """A budget below what every group keeps at least."""


class Cost(Protocol):
  """A cost that rises with every count: `dtp_jax.graph.cost.Polynomial`, or a latency table's."""

  @property
  def total(self) -> int:
    """The cost of the dense network."""
    ...

  @property
  def degree(self) -> int:
    """Largest number of counts that multiply each other in a term."""
    ...

  def at(self, counts: Mapping[str, int]) -> int:
    """The exact cost when group g keeps counts[g] channels."""
    ...

  def fraction(self, masks: Mapping[str, Any]) -> Any:
    """The differentiable share of the total that soft masks {group: (n,)} keep."""
    ...


def round_to_budget(
  ranking: Mapping[str, Any],
  cost: Cost,
  limit: int,
  *,
  min_keep: int = 1,
  multiple_of: int | Allowed = 1,
  fill_once: bool = False,
) -> dict[str, np.ndarray]:
  """The best-ranked channels whose cost stays within a limit.

  The longest prefix of the global ranking that fits is found by bisection; what is left of the
  budget is filled greedily, in the order of the ranking, with any channel that still fits. As costs
  only rise, a group that does not fit once never fits again: one pass suffices.

  Args:
    ranking: {group: (n,) floats}, higher is kept first; ties by order of the groups, then by index.
      NaN ranks last.
    cost: its `at` must rise with every count.
    limit: largest cost, in the unit of the cost.
    min_keep: channels that every group keeps at least.
    multiple_of: groups keep a multiple of it, or all their channels; or {group: counts} that each
      may keep, increasing, none and all of its channels among them.
    fill_once: the filling adds at most one channel (or multiple) to a group.

  Returns:
    {group: boolean (n,)}.

  Raises:
    FloorError: a limit below the cost of the floors; the message names both.
  """
  widths = Widths.of({name: len(z) for name, z in ranking.items()}, min_keep, multiple_of)
  sizes = list(widths.sizes.values())
  flat = np.concatenate([np.asarray(z, np.float64) for z in ranking.values()])
  order = np.argsort(-np.where(np.isnan(flat), -np.inf, flat), kind='stable')
  owner = np.repeat(np.arange(len(sizes)), sizes)[order]

  def cost_of_prefix(length: int) -> int:
    return cost.at(widths.of_prefix(owner[:length]))

  if cost_of_prefix(0) > limit:
    steps = f' (multiples of {multiple_of})' if isinstance(multiple_of, int) else ''
    raise FloorError(
      f'a budget of {limit} cannot be met: the floor of {min_keep} channels a group{steps} costs '
      f'{cost_of_prefix(0)} of {cost.total}. Raise the budget or lower min_keep or multiple_of.'
    )
  longest = bisect.bisect_right(range(1, len(owner) + 1), limit, key=cost_of_prefix)
  counts = widths.of_prefix(owner[:longest])
  counts = widths.filled(owner, counts, lambda counts: cost.at(counts) <= limit, fill_once)
  kept = np.zeros(len(flat), bool)
  for i, count in enumerate(counts.values()):
    kept[order[owner == i][:count]] = True
  return dict(zip(counts, np.split(kept, np.cumsum(sizes)[:-1]), strict=True))


def limit_at(cost: Cost, keep: Any) -> int:
  """The largest cost within a kept fraction in float32: floor(keep 2^24) / 2^24 of the total."""
  parts = int(np.clip(np.float32(keep), 0, 1) * np.float32(PARTS))
  return parts * cost.total // PARTS


class Widths(NamedTuple):
  """The counts that groups of some `sizes` may have, with a floor for all."""

  sizes: Counts
  min_keep: int
  allowed: Allowed

  @classmethod
  def of(cls, sizes: Counts, min_keep: int, multiple_of: int | Allowed) -> 'Widths':
    """From the arguments of `round_to_budget`."""
    if isinstance(multiple_of, int):
      multiple_of = {name: (*range(0, n, multiple_of), n) for name, n in sizes.items()}
    return cls(sizes, min_keep, multiple_of)

  def above(self, name: str, count: int) -> int:
    """The smallest allowed count that is at least `count`; the whole group where none is."""
    allowed = self.allowed[name]
    return allowed[min(bisect.bisect_left(allowed, count), len(allowed) - 1)]

  def below(self, name: str, count: int) -> int:
    """The largest allowed count that is at most `count`."""
    allowed = self.allowed[name]
    return allowed[bisect.bisect_right(allowed, count) - 1]

  def of_prefix(self, owner: np.ndarray) -> dict[str, int]:
    """The largest allowed counts within a prefix of the ranking, but for the floors."""
    counts: dict[str, int] = {}
    taken = np.bincount(owner, minlength=len(self.sizes)).tolist()
    for name, count in zip(self.sizes, taken, strict=True):
      counts[name] = max(self.above(name, self.min_keep), self.below(name, count))
    return counts

  def filled(
    self, owner: np.ndarray, counts: Counts, fits: Callable[[Counts], bool], once: bool
  ) -> dict[str, int]:
    """Counts after adding whatever still fits, in the order of the ranking."""
    counts, seen, names = dict(counts), dict.fromkeys(counts, 0), list(counts)
    still_open = set(names)
    for name in (names[i] for i in owner):
      seen[name] += 1
      if name not in still_open or seen[name] <= counts[name]:
        continue
      following = {**counts, name: self.above(name, counts[name] + 1)}
      fitted = fits(following)
      counts = following if fitted else counts
      if once or not fitted:
        still_open.discard(name)
        if not still_open:
          break
    return counts
