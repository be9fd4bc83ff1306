"""Rules of the primitives that compute: elementwise ones, products and convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dtp_jax.graph.dims import UNIT, Atom, Dim, Product, freeze, is_one, unify
from dtp_jax.graph.flow import (
  CONSTANT,
  NONE,
  Axis,
  Flow,
  Value,
  fixed,
  origin_of,
  plain,
  rule,
  shape_of,
)

# Zero wherever their (first) operand is zero.
ZERO_IN_ZERO_OUT = (
  'neg', 'convert_element_type', 'copy', 'reduce_precision', 'abs', 'square', 'stop_gradient',
  'name', 'sharding_constraint', 'layout_constraint',
)  # fmt: skip
ELEMENTWISE = (
  'abs', 'acos', 'acosh', 'add_any', 'and', 'asin', 'asinh', 'atan', 'atan2', 'atanh',
  'bessel_i0e', 'bessel_i1e', 'cbrt', 'ceil', 'clamp', 'clz', 'complex', 'conj',
  'convert_element_type', 'copy', 'cos', 'cosh', 'digamma', 'eq', 'eq_to', 'erf', 'erf_inv',
  'erfc', 'exp', 'exp2', 'expm1', 'floor', 'ge', 'gt', 'igamma', 'igamma_grad_a', 'igammac',
  'imag', 'integer_pow', 'is_finite', 'layout_constraint', 'le', 'le_to', 'lgamma', 'log',
  'log1p', 'log2', 'logistic', 'lt', 'lt_to', 'max', 'min', 'mulhi', 'name', 'ne', 'neg',
  'nextafter', 'not', 'one_minus_square', 'or', 'polygamma', 'population_count', 'pow', 'real',
  'reduce_precision', 'regularized_incomplete_beta', 'rem', 'round', 'rsqrt', 'select_n',
  'sharding_constraint', 'shift_left', 'shift_right_arithmetic', 'shift_right_logical', 'sign',
  'sin', 'sinh', 'sqrt', 'square', 'stop_gradient', 'tan', 'tanh', 'xor', 'zeros_like', 'zeta',
)  # fmt: skip


def _elementwise(flow: Flow, eqn: Any, ins: list[Value]) -> Value:
  """Unifies the axes of operands of one rank; scalars and axes of size 1 spread."""
  rank = len(shape_of(eqn.outvars[0]))
  return plain(flow.unify(eqn, [v for v in ins if len(v.dims) == rank]), origin_of(ins))


@rule(*ELEMENTWISE)
def elementwise(flow: Flow, eqn: Any, ins: list[Value]) -> list[Value]:
  """One result per element."""
  out = _elementwise(flow, eqn, ins)
  if eqn.primitive.name in ZERO_IN_ZERO_OUT:
    out = out._replace(zeroed=ins[0].zeroed)
  return [out]


@rule('bitcast_convert_type')
def bitcast(flow: Flow, eqn: Any, ins: list[Value]) -> list[Value] | None:
  """Elementwise as long as the width stays."""
  same = shape_of(eqn.outvars[0]) == shape_of(eqn.invars[0])
  return elementwise(flow, eqn, ins) if same else None


@rule('mul', 'div')
def multiply(flow: Flow, eqn: Any, ins: list[Value]) -> list[Value]:
  """Zero where a factor is, or a numerator; but 0 times 1 / 0 is not zero.

  Masking may make a norm zero, and its reciprocal infinite. So the other operand is trusted where
  it does not vary along the axis, where no mask reaches it, or (a factor) where it is zero itself.
  """
  out = _elementwise(flow, eqn, ins)
  divides = eqn.primitive.name == 'div'

  def promise(value: Value, other: Value, axis: int) -> frozenset[Axis]:
    if len(value.dims) != len(out.dims):
      return NONE
    varies = len(other.dims) == len(out.dims) and other.dims[axis] is not UNIT
    zero_too = not divides and varies and bool(other.zeroed[axis])
    return value.zeroed[axis] if not varies or other.origin == CONSTANT or zero_too else NONE

  zeroed = [promise(ins[0], ins[1], d) for d in range(len(out.dims))]
  if not divides:
    zeroed = [z | promise(ins[1], ins[0], d) for d, z in enumerate(zeroed)]
  return [out._replace(zeroed=tuple(zeroed))]


@rule('add', 'sub')
def add(flow: Flow, eqn: Any, ins: list[Value]) -> list[Value]:
  """Zero only where both terms are."""
  out = _elementwise(flow, eqn, ins)
  if any(len(v.dims) < len(out.dims) for v in ins):
    return [out]
  return [out._replace(zeroed=tuple(meet(z) for z in zip(*(v.zeroed for v in ins), strict=True)))]


def meet(promises: Sequence[frozenset[Axis]]) -> frozenset[Axis]:
  """What must be masked for several values to be zero together; nothing if one never is."""
  return frozenset().union(*promises) if all(promises) else NONE


@rule('optimization_barrier')
def barrier(flow: Flow, eqn: Any, ins: list[Value]) -> list[Value]:
  """Hands every operand through."""
  return ins


@rule('dot_general')
def dot_general(flow: Flow, eqn: Any, ins: list[Value]) -> list[Value]:
  """Contracts pairs of axes; the axes left over keep their dims, and their promises."""
  lhs, rhs = ins
  (lhs_sum, rhs_sum), (lhs_batch, rhs_batch) = eqn.params['dimension_numbers']
  reason = flow.reason(eqn, ' of dims that do not line up')
  for l, r in zip((*lhs_sum, *lhs_batch), (*rhs_sum, *rhs_batch), strict=True):
    unify(lhs.dims[l], rhs.dims[r], reason)
  for l, r in zip(lhs_sum, rhs_sum, strict=True):
    flow.contract(lhs.dims[l], eqn, [(lhs, l), (rhs, r)])
  lhs_free = [d for d in range(len(lhs.dims)) if d not in (*lhs_sum, *lhs_batch)]
  rhs_free = [d for d in range(len(rhs.dims)) if d not in (*rhs_sum, *rhs_batch)]
  for value, free in ((lhs, lhs_free), (rhs, rhs_free)):
    if value.fixed:
      flow.productions += [(value.zeroed[d], value.dims[d]) for d in free if value.zeroed[d]]
  axes = [(lhs, l) for l in lhs_batch] + [(lhs, d) for d in lhs_free] + [(rhs, d) for d in rhs_free]
  zeroed = [v.zeroed[d] for v, d in axes]
  for i, (l, r) in enumerate(zip(lhs_batch, rhs_batch, strict=True)):
    zeroed[i] = lhs.zeroed[l] | rhs.zeroed[r]
  out = Value(tuple(v.dims[d] for v, d in axes), tuple(zeroed), origin_of(ins))
  flow.operate(eqn, ins, rhs if rhs.fixed else lhs, out.dims, [lhs.dims[l] for l in lhs_sum])
  return [out]


@rule('conv_general_dilated')
def conv(flow: Flow, eqn: Any, ins: list[Value]) -> list[Value] | None:
  """A convolution in any layout; grouped: the feature axis is groups x features of a group."""
  if eqn.params['batch_group_count'] != 1:
    return None
  lhs, kernel = ins
  numbers, groups = eqn.params['dimension_numbers'], eqn.params['feature_group_count']
  batch, feature, *space = numbers.lhs_spec
  out_axis, in_axis, *window = numbers.rhs_spec
  reason = flow.reason(eqn, ' of dims that do not line up')
  for axis in space:
    freeze(lhs.dims[axis], flow.reason(eqn, ' slides over it'))
  for axis in window:
    freeze(kernel.dims[axis], 'the window of a convolution', hidden=True)
  produced = kernel.dims[out_axis]
  if groups == 1:
    unify(lhs.dims[feature], kernel.dims[in_axis], reason)
  else:
    group, outs = Atom(groups), shape_of(eqn.invars[1])[out_axis] // groups
    produced = UNIT if is_one(outs) else Atom(outs)
    unify(lhs.dims[feature], Product((group, kernel.dims[in_axis])), reason)
    unify(kernel.dims[out_axis], Product((group, produced)), reason)
  flow.contract(
    kernel.dims[in_axis],
    eqn,
    [(kernel, in_axis)] if groups > 1 else [(lhs, feature), (kernel, in_axis)],
  )
  if kernel.zeroed[out_axis] and kernel.fixed:
    flow.productions.append((kernel.zeroed[out_axis], produced))
  dims: list[Dim] = [UNIT] * len(lhs.dims)
  zeroed = [NONE] * len(lhs.dims)
  sizes = shape_of(eqn.outvars[0])
  for axis in numbers.out_spec[2:]:
    dims[axis] = fixed(sizes[axis], flow.reason(eqn, ' slides over it'))
  dims[numbers.out_spec[0]] = lhs.dims[batch]
  dims[numbers.out_spec[1]] = kernel.dims[out_axis]
  zeroed[numbers.out_spec[1]] = kernel.zeroed[out_axis]
  flow.operate(eqn, ins, kernel, dims, [kernel.dims[in_axis], *(kernel.dims[w] for w in window)])
  return [Value(tuple(dims), tuple(zeroed), origin_of(ins))]
