"""From a ranking of channels to the exact channels that a cost budget can hold.

Costs are evaluated on the host in exact integers. The promise: the cost of what is kept is at most
the budget, and no channel that is left out could be added without exceeding it.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

__all__ = ['Cost', 'round_to_budget']

Counts = Mapping[str, int]


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
  multiple_of: int = 1,
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
    multiple_of: groups keep a multiple of it, or all their channels.
    fill_once: the filling adds at most one channel (or multiple) to a group.

  Returns:
    {group: boolean (n,)}.

  Raises:
    ValueError: a limit below the cost of the floors; the message names both.
  """
  sizes = {name: len(z) for name, z in ranking.items()}
  groups = list(sizes)
  flat = np.concatenate([np.asarray(ranking[name], np.float64) for name in groups])
  flat = np.where(np.isnan(flat), -np.inf, flat)
  order = np.argsort(-flat, kind='stable')
  owner = np.repeat(np.arange(len(groups)), [sizes[name] for name in groups])[order]
  counts = _longest_prefix(owner, groups, sizes, cost, limit, min_keep, multiple_of)
  counts = _filled(owner, groups, sizes, counts, cost, limit, multiple_of, fill_once)
  return {name: _best(ranking[name], counts[name]) for name in groups}


def _longest_prefix(
  owner: np.ndarray,
  groups: list[str],
  sizes: Counts,
  cost: Cost,
  limit: int,
  min_keep: int,
  multiple_of: int,
) -> dict[str, int]:
  """Counts of the longest prefix of the ranking within the limit, floors and multiples kept."""

  def counts_at(k: int) -> dict[str, int]:
    raw = np.bincount(owner[:k], minlength=len(groups))
    floors = {name: _above(min_keep, sizes[name], multiple_of) for name in groups}
    return {
      name: max(floors[name], _below(int(raw[i]), sizes[name], multiple_of))
      for i, name in enumerate(groups)
    }

  if cost.at(counts_at(0)) > limit:
    raise ValueError(
      f'a budget of {limit} cannot be met: the floor of {min_keep} channels a group (multiples of '
      f'{multiple_of}) costs {cost.at(counts_at(0))} of {cost.total}. Raise the budget or lower '
      'min_keep or multiple_of.'
    )
  low, high = 0, len(owner)  # the prefix of length low fits
  while low < high:
    middle = (low + high + 1) // 2
    low, high = (middle, high) if cost.at(counts_at(middle)) <= limit else (low, middle - 1)
  return counts_at(low)


def _filled(
  owner: np.ndarray,
  groups: list[str],
  sizes: Counts,
  counts: Counts,
  cost: Cost,
  limit: int,
  multiple_of: int,
  once: bool,
) -> dict[str, int]:
  """Counts after adding whatever still fits, in the order of the ranking."""
  counts, seen = dict(counts), dict.fromkeys(groups, 0)
  still_open = set(groups)
  for i in owner:
    name = groups[i]
    seen[name] += 1
    if name not in still_open or seen[name] <= counts[name]:
      continue
    following = {**counts, name: _above(counts[name] + 1, sizes[name], multiple_of)}
    fits = cost.at(following) <= limit
    counts = following if fits else counts
    if once or not fits:
      still_open.discard(name)
      if not still_open:
        break
  return counts


def _below(count: int, size: int, multiple: int) -> int:
  """The largest allowed count that is at most `count`: a multiple, or the whole group."""
  return size if count >= size else count // multiple * multiple


def _above(count: int, size: int, multiple: int) -> int:
  """The smallest allowed count that is at least `count`."""
  return min(size, -(-count // multiple) * multiple)


def _best(z: Any, count: int) -> np.ndarray:
  mask = np.zeros(len(z), bool)
  z = np.where(np.isnan(z), -np.inf, np.asarray(z, np.float64))
  mask[np.argsort(-z, kind='stable')[:count]] = True
  return mask
