"""Rules of the primitives that compute: elementwise ones, products and convolutions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from dtp_jax.graph import bounds as interval
from dtp_jax.graph.dead import ANYTHING, FINITE, STEADY, Dead, Kind, either, together
from dtp_jax.graph.dims import UNIT, Atom, Dim, Product, freeze, is_one, unify
from dtp_jax.graph.flow import CONSTANT, Flow, Value, fixed, origin_of, plain, rule, shape_of
from dtp_jax.graph.origins import ELEMENTWISE

TRUSTED = (1.0, 1.0)  # the range of what is not asked for its poles


@rule(*ELEMENTWISE)
def elementwise(flow: Flow, eqn: Any, ins: list[Value]) -> list[Value]:
  """One result per element; scalars and axes of size 1 spread."""
  rank = len(shape_of(eqn.outvars[0]))
  dims = flow.unify(eqn, [v for v in ins if len(v.dims) == rank])
  dead = tuple(_dead(eqn, ins, axis, rank) for axis in range(rank))
  return [Value(tuple(dims), dead, origin_of(ins))]


def _dead(eqn: Any, ins: Sequence[Value], axis: int, rank: int) -> Dead:
  """What the operator makes of what its operands are at the dead positions of an axis."""
  parts = [value.along(axis, rank) for value in ins]
  # No mask makes a pole of what does not vary along the axis, or of what no mask reaches.
  ranges = [
    TRUSTED if part == STEADY or value.origin == CONSTANT else _range(part, value.bounds)
    for part, value in zip(parts, ins, strict=True)
  ]
  if any(part.kind == Kind.ANYTHING for part in parts) or not interval.finite(eqn, ranges):
    return ANYTHING
  zeros = [n for n, part in enumerate(parts) if part.kind == Kind.ZERO]
  for chosen in _enough(zeros, parts, ins):
    given = [interval.POINT_ZERO if n in chosen else v.bounds for n, v in enumerate(ins)]
    if interval.bounds(eqn, given) == interval.POINT_ZERO:
      return together(parts[n] for n in chosen)
  known = together(parts)
  return Dead(min(known.kind, Kind.COMMON), known.masks) if known.kind >= Kind.GIVEN else FINITE


def _enough(
  zeros: list[int], parts: Sequence[Dead], ins: Sequence[Value]
) -> Iterator[Sequence[int]]:
  """Choices of zero operands that may make a result zero, those with the fewest masks first."""
  yield ()
  activations = [n for n in zeros if not ins[n].fixed]
  for n in sorted(activations, key=lambda n: len(parts[n].masks)):
    yield (n,)
  yield [n for n in zeros if ins[n].fixed]
  yield zeros


def _range(part: Dead, bounds: interval.Bounds) -> interval.Bounds:
  return interval.POINT_ZERO if part.kind == Kind.ZERO else bounds


@rule('bitcast_convert_type')
def bitcast(flow: Flow, eqn: Any, ins: list[Value]) -> list[Value] | None:
  """Elementwise as long as the width stays."""
  same = shape_of(eqn.outvars[0]) == shape_of(eqn.invars[0])
  return [plain(ins[0].dims, ins[0].origin)] if same else None


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
      flow.productions += [(value.makers(d), value.dims[d]) for d in free if value.makers(d)]
  axes = [(lhs, l) for l in lhs_batch] + [(lhs, d) for d in lhs_free] + [(rhs, d) for d in rhs_free]
  dead = [v.dead[d] for v, d in axes]
  for i, (l, r) in enumerate(zip(lhs_batch, rhs_batch, strict=True)):
    dead[i] = either(lhs.dead[l], rhs.dead[r])
  out = Value(tuple(v.dims[d] for v, d in axes), tuple(dead), origin_of(ins))
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
  if kernel.fixed and kernel.makers(out_axis):
    flow.productions.append((kernel.makers(out_axis), produced))
  dims: list[Dim] = [UNIT] * len(lhs.dims)
  sizes = shape_of(eqn.outvars[0])
  for axis in numbers.out_spec[2:]:
    dims[axis] = fixed(sizes[axis], flow.reason(eqn, ' slides over it'))
  dims[numbers.out_spec[0]] = lhs.dims[batch]
  dims[numbers.out_spec[1]] = kernel.dims[out_axis]
  out = plain(dims, origin_of(ins))
  out = out.with_dead(numbers.out_spec[1], kernel.dead[out_axis])
  flow.operate(eqn, ins, kernel, dims, [kernel.dims[in_axis], *(kernel.dims[w] for w in window)])
  return [out]
