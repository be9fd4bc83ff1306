"""Bounds of values: what interval arithmetic knows of the numbers in an intermediate.

A literal is a point, a square is not negative, and so a variance plus epsilon is positive, and its
reciprocal root finite wherever a channel is dead. The empty interval is that of NaN: a program that
picks it has gone wrong without any pruning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

Bounds: TypeAlias = tuple[float, float]
UNBOUNDED: Bounds = (-math.inf, math.inf)
EMPTY: Bounds = (math.inf, -math.inf)
POINT_ZERO: Bounds = (0.0, 0.0)
SMALLEST = 5e-324  # of the positive numbers: an exponential is never zero but by rounding


def point(value: Any) -> Bounds:
  """The bounds of a literal or captured constant; only single numbers are looked at."""
  if np.size(value) != 1 or not np.issubdtype(getattr(value, 'dtype', type(value)), np.number):
    return UNBOUNDED
  if np.iscomplexobj(value):
    return UNBOUNDED
  number = float(np.reshape(value, ()))
  return EMPTY if math.isnan(number) else (number, number)


def hull(parts: Sequence[Bounds]) -> Bounds:
  """The smallest interval around several."""
  return min((lo for lo, _ in parts), default=math.inf), max(
    (hi for _, hi in parts), default=-math.inf
  )


def bounds(eqn: Any, ins: Sequence[Bounds]) -> Bounds:
  """Bounds of every result of an equation whose operands have the bounds `ins`."""
  name = eqn.primitive.name
  if name in MOVES or name in MONOTONE:
    found = _monotone(MONOTONE.get(name, _same), ins[0]) if name in MONOTONE else hull(ins)
  elif name in INTERVALS:
    found = INTERVALS[name](eqn, *ins)
  else:
    return UNBOUNDED
  return UNBOUNDED if any(map(math.isnan, found)) else found


def finite(eqn: Any, ins: Sequence[Bounds]) -> bool:
  """Whether results are finite for all finite operands within their bounds."""
  name = eqn.primitive.name
  lo, hi = ins[0] if ins else UNBOUNDED
  match name:
    case 'div' | 'rem':
      return ins[1][0] > 0 or ins[1][1] < 0
    case (
      'log' | 'log2' | 'rsqrt' | 'pow' | 'digamma' | 'lgamma' | 'polygamma' | 'zeta' | 'bessel_i0e'
    ):
      return lo > 0
    case 'integer_pow':
      return eqn.params['y'] >= 0 or lo > 0 or hi < 0
    case 'sqrt':
      return lo >= 0
    case 'log1p':
      return lo > -1
    case 'asin' | 'acos' | 'atanh' | 'erf_inv':
      return lo > -1 and hi < 1
    case 'acosh':
      return lo >= 1
    case _:
      return not name.startswith(('igamma', 'regularized'))


def _same(x: float) -> float:
  return x


def _monotone(fn: Callable[[float], float], x: Bounds) -> Bounds:
  return x if x == EMPTY else (fn(x[0]), fn(x[1]))


def _add(_: Any, a: Bounds, b: Bounds) -> Bounds:
  return a[0] + b[0], a[1] + b[1]


def _sub(_: Any, a: Bounds, b: Bounds) -> Bounds:
  return a[0] - b[1], a[1] - b[0]


def _mul(eqn: Any, a: Bounds, b: Bounds) -> Bounds:
  if len(eqn.invars) == 2 and eqn.invars[0] is eqn.invars[1]:
    return _square(eqn, a)
  # What is called finite is: 0 times an unbounded number is 0.
  ends = [0.0 if 0 in (x, y) else x * y for x in a for y in b]
  return min(ends), max(ends)


def _div(_: Any, a: Bounds, b: Bounds) -> Bounds:
  if a == POINT_ZERO:
    return POINT_ZERO  # by denominators that `finite` has passed
  return _signs(a) if b[0] > 0 else UNBOUNDED


def _square(_: Any, a: Bounds) -> Bounds:
  ends = (a[0] * a[0], a[1] * a[1])
  return (0.0 if a[0] <= 0 <= a[1] else max(min(ends), SMALLEST)), max(ends)


def _power(eqn: Any, a: Bounds) -> Bounds:
  y = eqn.params['y']
  if a == POINT_ZERO and y > 0:
    return POINT_ZERO
  if a[0] > 0:
    return SMALLEST, math.inf
  return (0.0, math.inf) if y % 2 == 0 or a[0] >= 0 else UNBOUNDED


def _abs(_: Any, a: Bounds) -> Bounds:
  ends = (abs(a[0]), abs(a[1]))
  return (0.0 if a[0] <= 0 <= a[1] else min(ends)), max(ends)


def _signs(a: Bounds) -> Bounds:
  """What is left of bounds once the size of a number is no longer known."""
  lo = SMALLEST if a[0] > 0 else 0.0 if a[0] == 0 else -math.inf
  return lo, 0.0 if a[1] <= 0 else math.inf


def _converted(eqn: Any, a: Bounds) -> Bounds:
  if not np.issubdtype(eqn.params['new_dtype'], np.integer):
    return a
  if np.issubdtype(eqn.params['new_dtype'], np.unsignedinteger) and a[0] < 0:
    return UNBOUNDED
  lo, hi = (x if math.isinf(x) else float(math.trunc(x)) for x in a)
  return lo, hi


def _positive(_: Any, *__: Bounds) -> Bounds:
  return SMALLEST, math.inf


def _polynomial(_: Any, x: Bounds, first: Bounds, *rest: Bounds) -> Bounds:
  """Of x, with its coefficients from the constant one on."""
  vanishes = x == POINT_ZERO or all(one == POINT_ZERO for one in rest)
  return first if vanishes else UNBOUNDED


def _unit(_: Any, *__: Bounds) -> Bounds:
  return 0.0, 1.0


INTERVALS: dict[str, Callable[..., Bounds]] = {
  'neg': lambda _, a: (-a[1], -a[0]),
  'add': _add,
  'add_any': _add,
  'sub': _sub,
  'mul': _mul,
  'div': _div,
  'square': _square,
  'integer_pow': _power,
  'abs': _abs,
  'max': lambda _, a, b: (max(a[0], b[0]), max(a[1], b[1])),
  'min': lambda _, a, b: (min(a[0], b[0]), min(a[1], b[1])),
  'clamp': lambda _, a, x, b: (min(max(x[0], a[0]), b[0]), min(max(x[1], a[1]), b[1])),
  'select_n': lambda _, which, *cases: hull(cases),
  'polynomial': _polynomial,
  'exp': _positive,
  'exp2': _positive,
  'rsqrt': _positive,
  'logistic': lambda _, a: (SMALLEST, 1.0),
  'reduce_sum': lambda _, a: _signs(a),
  'cumsum': lambda _, a: _signs(a),
  'convert_element_type': _converted,
  'iota': lambda _: (0.0, math.inf),
  'sin': lambda _, a: POINT_ZERO if a == POINT_ZERO else (-1.0, 1.0),
  'tan': lambda _, a: POINT_ZERO if a == POINT_ZERO else UNBOUNDED,
  'asin': lambda _, a: POINT_ZERO if a == POINT_ZERO else UNBOUNDED,
  'atanh': lambda _, a: POINT_ZERO if a == POINT_ZERO else UNBOUNDED,
  'erf_inv': lambda _, a: POINT_ZERO if a == POINT_ZERO else UNBOUNDED,
  **dict.fromkeys(('eq', 'ne', 'lt', 'le', 'gt', 'ge', 'is_finite'), _unit),
}
MONOTONE: dict[str, Callable[[float], float]] = {
  'tanh': math.tanh,
  'erf': math.erf,
  'atan': math.atan,
  'cbrt': lambda x: math.copysign(abs(x) ** (1 / 3), x),
  'sqrt': lambda x: math.sqrt(max(x, 0.0)),
  'sign': lambda x: float(np.sign(x)),
  'sinh': lambda x: math.copysign(math.inf, x) if abs(x) > 700 else math.sinh(x),
  'asinh': math.asinh,
  'log1p': lambda x: math.log1p(x) if x > -1 else -math.inf,
  'expm1': lambda x: math.expm1(min(x, 700.0)) if x < 700 else math.inf,
}
MOVES = frozenset((
  'copy', 'reduce_precision', 'stop_gradient', 'name', 'real',
  'sharding_constraint', 'layout_constraint', 'optimization_barrier', 'broadcast_in_dim', 'reshape',
  'transpose', 'squeeze', 'slice', 'split', 'concatenate', 'tile', 'rev', 'stack', 'pad',
  'reduce_max', 'reduce_min', 'cummax', 'cummin', 'sort',
))  # fmt: skip
