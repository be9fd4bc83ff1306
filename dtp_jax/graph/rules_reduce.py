"""Rules of the primitives that run along an axis: reductions, pooling windows, scans, sorts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dtp_jax.graph.dims import Dim, freeze
from dtp_jax.graph.flow import Flow, Value, fixed, origin_of, plain, rule, shape_of, unify_all


@rule('reduce_sum')
def reduce_sum(flow: Flow, eqn: Any, ins: list[Value]) -> list[Value]:
  """Of weights: a contraction with ones (weight norm). Of activations: reduced axes freeze.

  Terms of an activation may well be zero when a kernel before it is masked, but what sums channels
  (layer norm) also counts them, and a mask before a norm is undone by it.
  """
  value, axes = ins[0], eqn.params['axes']
  for d in axes:
    if value.fixed:
      flow.contract(value.dims[d], eqn, [(value, d)])
    else:
      freeze(value.dims[d], flow.reason(eqn, ' over it'))
  kept = [d for d in range(len(value.dims)) if d not in axes]
  return [
    Value(tuple(value.dims[d] for d in kept), tuple(value.zeroed[d] for d in kept), value.origin)
  ]


@rule(
  'reduce_max',
  'reduce_min',
  'reduce_prod',
  'reduce_and',
  'reduce_or',
  'reduce_xor',
  'argmax',
  'argmin',
)
def reduce(flow: Flow, eqn: Any, ins: list[Value]) -> list[Value]:
  """Reduced axes freeze."""
  value, axes = ins[0], eqn.params['axes']
  for d in axes:
    freeze(value.dims[d], flow.reason(eqn, ' over it'))
  return [plain([dim for d, dim in enumerate(value.dims) if d not in axes], value.origin)]


@rule('reduce')
def reduce_any(flow: Flow, eqn: Any, ins: list[Value]) -> list[Value]:
  """A reduction by any function: operands, then as many initial values; reduced axes freeze."""
  operands, axes = ins[: len(ins) // 2], eqn.params['dimensions']
  dims = unified(flow, eqn, operands)
  for d in axes:
    freeze(dims[d], flow.reason(eqn, ' over it'))
  return [plain([dim for d, dim in enumerate(dims) if d not in axes]) for _ in operands]


@rule('reduce_window', 'reduce_window_max', 'reduce_window_min', 'reduce_window_sum')
def reduce_window(flow: Flow, eqn: Any, ins: list[Value]) -> list[Value] | None:
  """Pooling: axes that the window slides over freeze, the others pass."""
  p, sizes = eqn.params, shape_of(eqn.outvars[0])
  arrays = [value for value in ins if value.dims]
  if len(arrays) != 1:
    return None
  dims: list[Dim] = []
  for d, size in enumerate(sizes):
    untouched = (
      p['window_dimensions'][d],
      p['window_strides'][d],
      p['base_dilation'][d],
      tuple(p['padding'][d]),
    ) == (1, 1, 1, (0, 0))
    if untouched:
      dims.append(arrays[0].dims[d])
    else:
      freeze(arrays[0].dims[d], flow.reason(eqn, ' slides over it'))
      dims.append(fixed(size, flow.reason(eqn, ' slides over it')))
  return [plain(dims, arrays[0].origin)]


@rule('cumsum', 'cumprod', 'cummax', 'cummin', 'cumlogsumexp')
def cumulative(flow: Flow, eqn: Any, ins: list[Value]) -> list[Value]:
  """The axis run along freezes."""
  return _along(flow, eqn, ins, [eqn.params['axis']])


@rule('sort')
def sort(flow: Flow, eqn: Any, ins: list[Value]) -> list[Value]:
  """The sorted axis freezes; operands sorted together share their other axes."""
  return _along(flow, eqn, ins, [eqn.params['dimension']])


@rule('top_k')
def top_k(flow: Flow, eqn: Any, ins: list[Value]) -> list[Value]:
  """The last axis freezes."""
  value, k = ins[0], shape_of(eqn.outvars[0])[-1]
  freeze(value.dims[-1], flow.reason(eqn, ' over it'))
  return [plain([*value.dims[:-1], fixed(k, flow.reason(eqn))], value.origin) for _ in eqn.outvars]


def _along(flow: Flow, eqn: Any, ins: list[Value], axes: Sequence[int]) -> list[Value]:
  """Freezes the axes run along; operands taken together share the others."""
  dims = unified(flow, eqn, ins)
  for d in axes:
    freeze(dims[d], flow.reason(eqn, ' runs along it'))
  return [plain(dims, origin_of(ins)) for _ in ins]


def unified(flow: Flow, eqn: Any, ins: list[Value]) -> list[Dim]:
  """The dims that operands of one shape share."""
  reason = flow.reason(eqn, ' of dims that do not line up')
  return [unify_all([v.dims[d] for v in ins], reason) for d in range(len(ins[0].dims))]
