"""The report of a graph: what can be pruned, what cannot, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dtp_jax.graph.groups import ROLES, Group

if TYPE_CHECKING:
  from dtp_jax.graph.groups import Graph


def report(graph: Graph) -> str:
  """What `print(graph)` shows.

  One block per prunable group (size, the parameters and the MACs of one example that would go with
  it, its slices as path:axis by role), one per frozen group (what froze it), and the totals.
  """
  lines = [f'{len(graph.groups)} prunable channel groups']
  width = max([5, *map(len, graph.groups), *(len(g.name) for g in graph.frozen)])
  if graph.groups:
    lines.append(f'{"group":{width}}  {"size":>6}  {"params":>12}  {"MACs":>15}')
  for group in graph.groups.values():
    lines.append(f'{group.name:{width}}  {group.size:>6,}  {group.params:>12,}  {group.macs:>15,}')
    lines += _slices(group)
  lines.append(f'{len(graph.frozen)} frozen')
  for group in graph.frozen:
    lines.append(f'{group.name:{width}}  {group.size:>6,}  {group.reason}')
    lines += _slices(group)
  lines.append(
    f'prunable: {_share(graph, "macs")} MACs for one example, {_share(graph, "params")} parameters'
  )
  return '\n'.join(lines)


def _slices(group: Group) -> list[str]:
  return [
    f'  {role + "s":9}  {", ".join(map(str, group.role(role)))}'
    for role in ROLES
    if group.role(role)
  ]


def _share(graph: Graph, cost: str) -> str:
  """The share of a cost that depends on some group's width."""
  polynomial = getattr(graph, cost)
  left = polynomial.at({name: 0 for name in graph.groups if name in polynomial.sizes})
  share = 100 * (polynomial.total - left) / max(polynomial.total, 1)
  return f'{share:.1f} % of {polynomial.total:,}'
