"""Rules of gather and scatter: tables looked up by rows, constant windows, rows of a batch."""

from __future__ import annotations

from typing import Any

from dtp_jax.graph.dead import ANYTHING, together
from dtp_jax.graph.dims import freeze, unify
from dtp_jax.graph.flow import Flow, Value, fixed, origin_of, rule, shape_of
from dtp_jax.graph.rules_shape import every, window


@rule('gather')
def gather(flow: Flow, eqn: Any, ins: list[Value]) -> list[Value]:
  """Axes taken whole, or in known windows or steps, pass; those looked up by rows freeze."""
  table, indices = ins
  numbers, taken = eqn.params['dimension_numbers'], eqn.params['slice_sizes']
  size, start = shape_of(eqn.invars[0]), known_start(eqn, indices)
  rows, batched = numbers.collapsed_slice_dims, numbers.operand_batching_dims
  pieces, dims = list(table.dims), list(indices.dims[:-1])
  strided = known_steps(eqn, indices)
  for d, i in zip(batched, numbers.start_indices_batching_dims, strict=True):
    unify(table.dims[d], indices.dims[i], flow.reason(eqn, ' of dims that do not line up'))
  for d, dim in enumerate(table.dims):
    if d in batched or (taken[d] == size[d] and d not in rows):
      continue
    if strided and d in rows:
      dims[0] = every(flow, eqn, dim, *strided, shape_of(eqn.invars[1])[0])
      continue
    if start is not None and d in numbers.start_index_map:
      pieces[d] = window(flow, eqn, dim, start, start + taken[d])
    else:
      freeze(dim, flow.reason(eqn, ' looks up rows of it'))
      pieces[d] = fixed(taken[d], flow.reason(eqn))
  dead = [table.dead[rows[0]].moved if strided else ANYTHING] * len(dims)
  for d, i in zip(batched, numbers.start_indices_batching_dims, strict=True):
    dead[i] = table.dead[d].moved
  kept = [d for d in range(len(size)) if d not in (*rows, *batched)]
  for d, axis in zip(kept, numbers.offset_dims, strict=True):  # increasing, so each in its place
    dims.insert(axis, pieces[d])
    dead.insert(axis, table.dead[d] if pieces[d] is table.dims[d] else table.dead[d].moved)
    if table.fixed and table.makers(d) and pieces[d] is table.dims[d]:  # an embedding
      flow.productions.append((table.makers(d), table.dims[d]))
  return [Value(tuple(dims), tuple(dead), origin_of(ins))]


@rule('scatter', 'scatter-add', 'scatter-sub', 'scatter-mul', 'scatter-min', 'scatter-max')
def scatter(flow: Flow, eqn: Any, ins: list[Value]) -> list[Value] | None:
  """Axes written whole pass; those written in part freeze, and those of the indices."""
  if eqn.primitive.name == 'scatter' and eqn.params['update_jaxpr'] is not None:
    return None  # of any function
  value, indices, update = ins
  numbers, reason = eqn.params['dimension_numbers'], flow.reason(eqn, ' writes parts of it')
  batched, windows = numbers.operand_batching_dims, numbers.update_window_dims
  kept = [d for d in range(len(value.dims)) if d not in (*numbers.inserted_window_dims, *batched)]
  rows = [u for u in range(len(update.dims)) if u not in windows]
  places = [rows[i] for i in numbers.scatter_indices_batching_dims]
  whole = {d: u for d, u in zip(kept, windows, strict=True) if _same_size(eqn, d, u)}
  whole |= dict(zip(batched, places, strict=True))
  for u, dim in zip(rows, indices.dims[:-1], strict=True):
    unify(update.dims[u], dim, reason)
  for d, dim in enumerate(value.dims):
    if d in whole:
      unify(dim, update.dims[whole[d]], reason)
      value = value.with_dead(d, together((value.dead[d], update.dead[whole[d]])))
    else:
      freeze(dim, reason)
  for u in range(len(update.dims)):
    if u not in whole.values():
      freeze(update.dims[u], reason)
  return [value._replace(origin=origin_of(ins))]


def _same_size(eqn: Any, axis: int, update_axis: int) -> bool:
  return shape_of(eqn.invars[0])[axis] == shape_of(eqn.invars[2])[update_axis]


def known_steps(eqn: Any, indices: Value) -> tuple[int, int] | None:
  """(start, stride) of a gather that is a slice with a stride of one axis, and takes no more."""
  numbers = eqn.params['dimension_numbers']
  one_axis = tuple(numbers.start_index_map) == tuple(numbers.collapsed_slice_dims)
  if indices.steps is None or not one_axis or len(indices.dims) != 2:
    return None
  start, stride = map(int, indices.steps)
  return (
    (start, stride) if start >= 0 and stride > 0 and len(numbers.start_index_map) == 1 else None
  )


def known_start(eqn: Any, indices: Value) -> int | None:
  """Where a gather along one axis starts, if it is the same known place for all of its rows."""
  low, high = indices.bounds
  (axis, *others) = eqn.params['dimension_numbers'].start_index_map or (None,)
  if axis is None or others or low != high:
    return None
  last = shape_of(eqn.invars[0])[axis] - eqn.params['slice_sizes'][axis]
  return int(low) if isinstance(last, int) and 0 <= low <= last else None
