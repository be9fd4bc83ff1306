"""The report of a graph: what can be pruned, what cannot, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dtp_jax.graph.cost import Polynomial
from dtp_jax.graph.groups import ROLES, Group


def report(
  groups: Mapping[str, Group],
  frozen: Sequence[Group],
  macs: Polynomial,
  params: Polynomial,
  per_example: bool,
) -> str:
  """What `print(graph)` shows.

  One block per prunable group (size, the parameters and the MACs that would go with it, its slices
  as path:axis by role), one per frozen group (what froze it), and the totals.
  """
  lines = [f'{len(groups)} prunable channel groups']
  width = max([5, *map(len, groups), *(len(g.name) for g in frozen)])
  if groups:
    lines.append(f'{"group":{width}}  {"size":>6}  {"params":>12}  {"MACs":>15}')
  for group in groups.values():
    lines.append(f'{group.name:{width}}  {group.size:>6,}  {group.params:>12,}  {group.macs:>15,}')
    lines += _slices(group)
    if group.layers is not None:
      lines.append(f'  layers     {group.layers}, each with an order of its own')
  lines.append(f'{len(frozen)} frozen')
  for group in frozen:
    lines.append(f'{group.name:{width}}  {group.size:>6,}  {group.reason}')
    lines += _slices(group)
  of = 'for one example' if per_example else 'of the whole call (no axis is a batch)'
  lines.append(f'prunable: {_share(groups, macs)} MACs {of}, {_share(groups, params)} parameters')
  return '\n'.join(lines)


def _slices(group: Group) -> list[str]:
  return [
    f'  {role + "s":9}  {", ".join(map(str, group.role(role)))}'
    for role in ROLES
    if group.role(role)
  ]


def _share(groups: Mapping[str, Group], cost: Polynomial) -> str:
  """The share of a cost that depends on some group's width."""
  left = cost.at({name: 0 for name in groups if name in cost.sizes})
  share = 100 * (cost.total - left) / max(cost.total, 1)
  return f'{share:.1f} % of {cost.total:,}'
