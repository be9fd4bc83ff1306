"""Layers under scan: whose channels could stand in another order in each layer.

The layers of a scan keep channels at the same places. Where channels live inside of the body alone,
as the units of an MLP do, their order in a layer means nothing, and may be another in each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from dtp_jax.graph.dims import Atom, Dim, atoms
from dtp_jax.graph.flow import Flow, Scope


def layered(scope: Scope, leaves: int, flow: Flow) -> dict[Atom, int]:
  """{atom: layers} of the atoms whose elements each layer of a scan may put in its own order.

  Args:
    scope: the walked program; its first arguments are the leaves of the variables.
    leaves: how many there are.
    flow: the events of the walk.
  """
  given = [scope.values[var] for var in scope.jaxpr.invars[:leaves]]
  found: dict[Atom, int] = {}
  for stack in flow.stacks:
    run_along = {id(value) for value in stack.xs}
    stacked = [value for value in given if id(value) in run_along]
    if not stacked:
      continue
    free = _atoms(dim for value in stacked for dim in value.dims[1:])
    ids = {id(value) for value in stacked}
    free -= _atoms(dim for value in given if id(value) not in ids for dim in value.dims)
    for outer in _scopes(scope, stack.body):  # carried, handed in, or used beside the scan
      values = [value for value in outer.values.values() if id(value) not in ids]
      free -= _atoms(dim for value in values for dim in value.dims)
    outside = (c for n, c in enumerate(flow.contractions) if n not in stack.contractions)
    free -= _atoms(contraction.dim for contraction in outside)
    for inner in _scopes(stack.body):
      free -= _atoms(_ordered(inner))
    found |= dict.fromkeys(free, int(stacked[0].dims[0].size))
  return found


def _ordered(scope: Scope) -> Iterator[Dim]:
  """Dims along which places have a meaning: of captured arrays, and of counted numbers."""
  counted = [
    scope.jaxpr.eqns[i].outvars[0]
    for i in scope.equations
    if scope.jaxpr.eqns[i].primitive.name == 'iota'
  ]
  for var in (*scope.jaxpr.constvars, *counted):
    yield from scope.values[var].dims


def _scopes(entered: Any, without: Scope | None = None) -> Iterator[Scope]:
  """A scope, or those a call has entered, and all that are entered from there."""
  if entered is without:
    return
  if isinstance(entered, Scope):
    yield entered
    entered = tuple(entered.calls.values())
  if isinstance(entered, tuple):
    for part in entered:
      yield from _scopes(part, without)


def _atoms(dims: Iterable[Dim]) -> set[Atom]:
  return {atom for dim in dims for atom in atoms(dim)}
