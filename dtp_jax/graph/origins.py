"""Where an axis of a result comes from, for primitives through which dead channels are followed.

A number that all dead channels share is computed once, on arrays in which the axis has size 1, and
what constants make of the dead channels on arrays of these alone. That needs primitives that treat
every position of the axis alike, and to know the axis in each operand.
"""

from __future__ import annotations

import math
from typing import Any

from dtp_jax.graph.dims import is_one

ELEMENTWISE = (
  'abs', 'acos', 'acosh', 'add', 'add_any', 'and', 'asin', 'asinh', 'atan', 'atan2', 'atanh',
  'bessel_i0e', 'bessel_i1e', 'cbrt', 'ceil', 'clamp', 'clz', 'complex', 'conj',
  'convert_element_type', 'copy', 'cos', 'cosh', 'digamma', 'div', 'eq', 'eq_to', 'erf', 'erf_inv',
  'erfc', 'exp', 'exp2', 'expm1', 'floor', 'ge', 'gt', 'igamma', 'igamma_grad_a', 'igammac',
  'imag', 'integer_pow', 'is_finite', 'layout_constraint', 'le', 'le_to', 'lgamma', 'log',
  'log1p', 'log2', 'logistic', 'lt', 'lt_to', 'max', 'min', 'mul', 'mulhi', 'name', 'ne', 'neg',
  'nextafter', 'not', 'one_minus_square', 'or', 'polygamma', 'polynomial', 'population_count',
  'pow', 'real',
  'reduce_precision', 'regularized_incomplete_beta', 'rem', 'round', 'rsqrt', 'select_n',
  'sharding_constraint', 'shift_left', 'shift_right_arithmetic', 'shift_right_logical', 'sign',
  'sin', 'sinh', 'sqrt', 'square', 'stop_gradient', 'sub', 'tan', 'tanh', 'xor', 'zeros_like',
  'zeta',
)  # fmt: skip
REDUCTIONS = ('reduce_sum', 'reduce_max', 'reduce_min')
# Calls that are replayed where they stand, so that what is outside can be seen from inside.
PLAIN_CALLS = ('jit', 'pjit', 'closed_call', 'core_call', 'composite', 'eval_jaxpr')
FOLLOWED = frozenset((
  *ELEMENTWISE, *REDUCTIONS, 'broadcast_in_dim', 'transpose', 'squeeze', 'reshape', 'slice',
  'dynamic_slice', 'gather', 'concatenate', 'iota',
))  # fmt: skip


def origins(eqn: Any, axis: int) -> list[int | None]:
  """The axis of each operand from which `axis` of the result comes; None where it is not in it.

  Args:
    eqn: an equation of one of the primitives `FOLLOWED`.
    axis: an axis of its result, not of size 1; one that is taken whole, if of a reshape, a slice or
      a gather, and none along which operands are concatenated.
  """
  match eqn.primitive.name:
    case 'broadcast_in_dim':
      places = eqn.params['broadcast_dimensions']
      found = places.index(axis) if axis in places else None
    case 'transpose':
      found = eqn.params['permutation'][axis]
    case 'dynamic_slice':
      found = axis
    case 'squeeze':
      found = _behind(axis, eqn.params['dimensions'])
    case 'reduce_sum' | 'reduce_max' | 'reduce_min':
      found = _behind(axis, eqn.params['axes'])
    case 'gather':
      numbers = eqn.params['dimension_numbers']
      gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
      found = _behind(numbers.offset_dims.index(axis), gone)
    case 'reshape':
      found = _unmerged(tuple(eqn.invars[0].aval.shape), tuple(eqn.outvars[0].aval.shape), axis)
    case _:
      rank = len(eqn.outvars[0].aval.shape)
      shapes = [getattr(v.aval, 'shape', ()) for v in eqn.invars]
      return [axis if len(s) == rank and not is_one(s[axis]) else None for s in shapes]
  if found is not None and is_one(eqn.invars[0].aval.shape[found]):
    found = None
  return [found, *[None] * (len(eqn.invars) - 1)]


def _behind(axis: int, gone: Any) -> int:
  """The axis before the axes `gone` were dropped."""
  for d in sorted(gone):
    axis += d <= axis
  return axis


def _unmerged(before: tuple[Any, ...], after: tuple[Any, ...], axis: int) -> int:
  """The axis of a reshape's operand that has the same elements before it, and as many itself."""
  ahead = math.prod(after[:axis])
  same = (d for d, n in enumerate(before) if n == after[axis] and math.prod(before[:d]) == ahead)
  return next(same)
