"""What of a cost no choice of channels changes, and which primitive froze it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from dtp_jax.graph.graph import Graph
from dtp_jax.graph.groups import module_of

__all__ = ['Frozen', 'floor_in_words', 'frozen_costs']

_SHOWN = 3  # largest parts of a floor that an error names
_ENDS = ('an input', 'an output')  # frozen in every network: no news beside another reason
_UNITS = {'macs': 'MACs', 'params': 'parameters'}


class Frozen(NamedTuple):
  """A part of a cost that no group has a hand in.

  Attributes:
    name: the module of the kernel; 'activations' for what has none.
    amount: its cost.
    reason: what froze it, as in 'gather (no rule for it)'.
  """

  name: str
  amount: int
  reason: str


def frozen_costs(graph: Graph, unit: str) -> list[Frozen]:
  """The parts of a cost that stay whatever is pruned, the largest first.

  Args:
    graph: from `trace`.
    unit: 'macs', for one example, or 'params'; of another one nothing is known.

  Returns:
    One entry for each module, or primitive of activations, that is frozen on all sides.
  """
  amounts: dict[tuple[str, str], int] = {}
  for name, primitive, amount in _parts(graph, unit):
    amounts[name, primitive] = amounts.get((name, primitive), 0) + amount
  reasons: dict[str, list[str]] = {}
  for group in graph.frozen:
    for s in group.slices:
      reasons.setdefault(module_of(s.path), []).append(group.reason or '')
  found = [
    Frozen(name, amount, min(reasons.get(name, [primitive]), key=lambda reason: reason in _ENDS))
    for (name, primitive), amount in amounts.items()
    if amount
  ]
  return sorted(found, key=lambda part: -part.amount)


def floor_in_words(graph: Graph, unit: str, pruned: Iterable[str]) -> str:
  """Why a cost cannot fall further: the largest frozen parts, and the groups that are left out.

  Args:
    graph: from `trace`.
    unit: as in `frozen_costs`.
    pruned: names of the groups that may be pruned.

  Returns:
    A sentence; empty where nothing stays.
  """
  if unit not in _UNITS:
    return ''
  cost = graph.macs if unit == 'macs' else graph.params
  none_of_all = cost.at(dict.fromkeys(cost.sizes, 0))
  none_of_pruned = cost.at({name: 0 for name in pruned if name in cost.sizes})
  parts = frozen_costs(graph, unit)
  words = [f'{p.name} by {p.reason} ({_percent(p.amount, cost.total)})' for p in parts[:_SHOWN]]
  if len(parts) > _SHOWN:
    words.append(f'{len(parts) - _SHOWN} more')
  if none_of_pruned > none_of_all:
    words.append(f'excluded groups ({_percent(none_of_pruned - none_of_all, cost.total)})')
  if not words:
    return ''
  share = _percent(none_of_pruned, cost.total)
  return (
    f'{share} of the {_UNITS[unit]} cannot be pruned: {", ".join(words)}; print(graph) tells all.'
  )


def _parts(graph: Graph, unit: str) -> Iterable[tuple[str, str, int]]:
  """(module, primitive, cost that no group changes) of operators, or of arrays."""
  if unit == 'macs':
    for operator in graph.operators:
      yield operator.name, operator.primitive, operator.macs.terms.get((), 0)
  else:
    pruned = {s.path for group in graph.groups.values() for s in group.slices}
    for leaf in graph.leaves:
      if leaf.is_param and leaf.path not in pruned:
        yield module_of(leaf.path), 'no group', math.prod(leaf.shape)


def _percent(part: int, total: int) -> str:
  return f'{100 * part / max(total, 1):.1f} %'
