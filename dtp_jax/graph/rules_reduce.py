"""Rules of the primitives that run along an axis: reductions, pooling windows, scans, sorts."""

from __future__ import annotations

from typing import Any

from dtp_jax.graph.dims import Dim, freeze
from dtp_jax.graph.flow import Flow, Value, fixed, origin_of, plain, rule, shape_of
from dtp_jax.graph.origins import REDUCTIONS


@rule(*REDUCTIONS)
def reduce_known(flow: Flow, eqn: Any, ins: list[Value]) -> list[Value]:
  """Reduces the kept, and one of the dead where these are all the same; else the axis freezes."""
  value, axes = ins[0], eqn.params['axes']
  for d in axes:
    flow.reduce(value.dims[d], eqn, value.dead[d])
  terms = tuple(value.dims[d] for d in axes)
  return [value.without(axes)._replace(terms=terms)]


@rule('reduce', 'reduce_prod', 'reduce_and', 'reduce_or', 'reduce_xor', 'argmax', 'argmin')
def reduce(flow: Flow, eqn: Any, ins: list[Value]) -> list[Value]:
  """Reduced axes freeze; one by any function has as many initial values behind its operands."""
  by_any = eqn.primitive.name == 'reduce'
  operands, axes = ins[: len(eqn.outvars)], eqn.params['dimensions' if by_any else 'axes']
  dims = flow.unify(eqn, operands)
  for d in axes:
    freeze(dims[d], flow.reason(eqn, ' over it'))
  kept = [dim for d, dim in enumerate(dims) if d not in axes]
  return [plain(kept, origin_of(ins)) for _ in operands]


@rule('reduce_window', 'reduce_window_max', 'reduce_window_min', 'reduce_window_sum')
def reduce_window(flow: Flow, eqn: Any, ins: list[Value]) -> list[Value] | None:
  """Pooling: axes that the window slides over freeze, the others pass."""
  p, sizes = eqn.params, shape_of(eqn.outvars[0])
  arrays = [value for value in ins if value.dims]
  if len(arrays) != 1:
    return None
  dims: list[Dim] = []
  # Zeros pool to zero: what pads a maximum or a sum is less than they are, or zero as well.
  zeros = eqn.primitive.name != 'reduce_window'
  steps = zip(p['window_dimensions'], p['window_strides'], p['base_dilation'], strict=True)
  for d, (step, padding) in enumerate(zip(steps, p['padding'], strict=True)):
    if step == (1, 1, 1) and tuple(padding) == (0, 0):
      dims.append(arrays[0].dims[d])
    else:
      freeze(arrays[0].dims[d], flow.reason(eqn, ' slides over it'))
      dims.append(fixed(sizes[d], flow.reason(eqn, ' slides over it')))
  dead = arrays[0].dead if zeros else plain(dims).dead
  return [arrays[0]._replace(dims=tuple(dims), dead=dead)]


@rule('cumsum', 'cumprod', 'cummax', 'cummin', 'cumlogsumexp', 'sort')
def along(flow: Flow, eqn: Any, ins: list[Value]) -> list[Value]:
  """The axis run along, or sorted, freezes; operands sorted together share their other axes."""
  axis = eqn.params['dimension' if eqn.primitive.name == 'sort' else 'axis']
  dims = flow.unify(eqn, ins)
  freeze(dims[axis], flow.reason(eqn, ' runs along it'))
  if len(ins) == 1 and eqn.primitive.name in ('cumsum', 'cummax', 'cummin', 'sort'):
    return ins  # zeros stay zeros
  return [plain(dims, origin_of(ins)) for _ in ins]


@rule('top_k')
def top_k(flow: Flow, eqn: Any, ins: list[Value]) -> list[Value]:
  """The last axis freezes."""
  value, k = ins[0], shape_of(eqn.outvars[0])[-1]
  freeze(value.dims[-1], flow.reason(eqn, ' over it'))
  return [plain([*value.dims[:-1], fixed(k, flow.reason(eqn))], value.origin) for _ in eqn.outvars]
