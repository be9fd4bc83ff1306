"""Rules of the primitives that move elements: reshape, transpose, broadcast, slice and the like."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from dtp_jax.graph.bounds import POINT_ZERO
from dtp_jax.graph.dead import FINITE, GIVEN, NOTHING, STEADY, Dead, together
from dtp_jax.graph.dims import UNIT, Concat, Dim, Product, freeze, frozen, is_one, segments, unify
from dtp_jax.graph.flow import (
  CONSTANT,
  Flow,
  Value,
  fixed,
  fresh,
  origin_of,
  plain,
  rule,
  shape_of,
)


@rule('transpose')
def transpose(flow: Flow, eqn: Any, ins: list[Value]) -> list[Value]:
  """Permutes the axes."""
  return [ins[0].picked(eqn.params['permutation'])]


@rule('squeeze')
def squeeze(flow: Flow, eqn: Any, ins: list[Value]) -> list[Value]:
  """Drops axes of size 1."""
  return [ins[0].without(eqn.params['dimensions'])]


@rule('broadcast_in_dim')
def broadcast_in_dim(flow: Flow, eqn: Any, ins: list[Value]) -> list[Value]:
  """Keeps the axes that keep their size; what is spread out is a fresh dim."""
  value, sizes = ins[0], shape_of(eqn.outvars[0])
  dims: list[Dim] = [fresh(size) for size in sizes]
  dead = [NOTHING if value.bounds == POINT_ZERO else STEADY] * len(sizes)
  for d, axis in enumerate(eqn.params['broadcast_dimensions']):
    if not is_one(shape_of(eqn.invars[0])[d]):
      dims[axis], dead[axis] = value.dims[d], value.dead[d]
  return [value._replace(dims=tuple(dims), dead=tuple(dead))]


@rule('reshape')
def reshape(flow: Flow, eqn: Any, ins: list[Value]) -> list[Value] | None:
  """Splits and merges: within each run of axes that holds the same elements, one product."""
  if eqn.params['dimensions'] is not None:
    return None
  value, sizes = ins[0], shape_of(eqn.outvars[0])
  runs = _runs(shape_of(eqn.invars[0]), sizes)
  if runs is None:
    return None
  dims: list[Dim] = [UNIT] * len(sizes)
  dead = [STEADY] * len(sizes)
  reason = flow.reason(eqn, ' that no product of its axes explains')
  for ins_axes, out_axes in runs:
    inside = together(value.dead[d] for d in ins_axes if not frozen(value.dims[d]))
    outs = [fresh(sizes[d]) for d in out_axes]
    if len(ins_axes) == 1 and len(outs) == 1:
      outs = [value.dims[ins_axes[0]]]
    else:
      inside = inside.moved
    unify(Product(tuple(value.dims[d] for d in ins_axes)), Product(tuple(outs)), reason)
    for d, dim in zip(out_axes, outs, strict=True):
      dims[d], dead[d] = dim, inside
  return [value._replace(dims=tuple(dims), dead=tuple(dead))]


def _runs(before: Sequence[Any], after: Sequence[Any]) -> list[tuple[list[int], list[int]]] | None:
  """Pairs of runs of axes with equal products, axes of size 1 left out; None if none fits."""
  a = [d for d, size in enumerate(before) if not is_one(size)]
  b = [d for d, size in enumerate(after) if not is_one(size)]
  runs: list[tuple[list[int], list[int]]] = []
  while a and b:
    ins, outs = [a.pop(0)], [b.pop(0)]
    p, q = before[ins[0]], after[outs[0]]
    while p != q:
      if p < q and a:
        ins.append(a.pop(0))
        p = p * before[ins[-1]]
      elif not p < q and b:
        outs.append(b.pop(0))
        q = q * after[outs[-1]]
      else:
        return None
    runs.append((ins, outs))
  return None if a or b else runs


@rule('concatenate')
def concatenate(flow: Flow, eqn: Any, ins: list[Value]) -> list[Value]:
  """Parts one after the other along one axis; the other axes unify."""
  axis = eqn.params['dimension']
  parts = Concat(tuple(v.dims[axis] for v in ins))
  dims = flow.unify(eqn, [v.with_dim(axis, UNIT) for v in ins])
  dims[axis] = parts
  dead = [together(_undecided(ins, d)) for d in range(len(dims))]
  dead[axis] = dead[axis].moved
  return [Value(tuple(dims), tuple(dead), origin_of(ins))]


def _undecided(ins: Sequence[Value], axis: int) -> Iterator[Dead]:
  """What values are where an axis of them is dead; a frozen one never is."""
  return (v.dead[axis] for v in ins if not frozen(v.dims[axis]))


@rule('stack')
def stack(flow: Flow, eqn: Any, ins: list[Value]) -> list[Value]:
  """Operands of one shape along a new, fixed axis."""
  axis, dims = eqn.params['axis'], flow.unify(eqn, ins)
  dead = [together(v.dead[d] for v in ins) for d in range(len(dims))]
  dims.insert(axis, fixed(len(ins), flow.reason(eqn)))
  dead.insert(axis, STEADY)
  return [Value(tuple(dims), tuple(dead), origin_of(ins))]


@rule('unstack')
def unstack(flow: Flow, eqn: Any, ins: list[Value]) -> list[Value]:
  """The inverse of stack: the axis freezes."""
  axis = eqn.params['axis']
  freeze(ins[0].dims[axis], flow.reason(eqn, ' takes it apart'))
  return [ins[0].without([axis]) for _ in eqn.outvars]


@rule('split')
def split(flow: Flow, eqn: Any, ins: list[Value]) -> list[Value]:
  """The inverse of concatenate."""
  value, axis, sizes = ins[0], eqn.params['axis'], [int(s) for s in eqn.params['sizes']]
  pieces = divided(flow, eqn, value.dims[axis], sizes)
  return [value.with_dim(axis, piece) for piece in pieces]


@rule('slice')
def slice_(flow: Flow, eqn: Any, ins: list[Value]) -> list[Value]:
  """A range of each axis; a channel axis is divided at its ends, or into runs of a stride."""
  value, sizes = ins[0], shape_of(eqn.invars[0])
  starts, limits = eqn.params['start_indices'], eqn.params['limit_indices']
  strides = eqn.params['strides'] or (1,) * len(starts)
  for d, size in enumerate(shape_of(eqn.outvars[0])):
    if size == sizes[d]:
      continue
    if strides[d] != 1:
      part = every(flow, eqn, value.dims[d], starts[d], strides[d], size)
    else:
      part = window(flow, eqn, value.dims[d], starts[d], limits[d])
    value = value.with_dim(d, part).with_dead(d, value.dead[d].moved)
  return [value]


def window(flow: Flow, eqn: Any, dim: Dim, start: int, limit: int) -> Dim:
  """The elements `start` to `limit` of a dim, which is divided there; frozen if it cannot be."""
  if frozen(dim):
    return fixed(limit - start, flow.reason(eqn, ' of a frozen axis'))
  lengths = [start, limit - start, dim.size - limit]
  return divided(flow, eqn, dim, [n for n in lengths if n])[1 if start else 0]


def every(flow: Flow, eqn: Any, dim: Dim, start: int, stride: int, size: int) -> Dim:
  """One of every `stride` elements: the runs of as many live or die together."""
  if not frozen(dim) and start < stride and dim.size == size * stride:
    runs = fresh(size)
    one = fixed(stride, flow.reason(eqn, ' with a stride'), hidden=True)
    unify(dim, Product((runs, one)), flow.reason(eqn, ' with a stride'))
    return runs
  freeze(dim, flow.reason(eqn, ' with a stride'))
  return fixed(size, flow.reason(eqn, ' of a frozen axis'))


@rule('pad')
def pad(flow: Flow, eqn: Any, ins: list[Value]) -> list[Value]:
  """Fixed elements before and after an axis; dilated or cropped axes freeze."""
  value, dims = ins[0], []
  sizes = shape_of(eqn.outvars[0])
  for d, (low, high, inner) in enumerate(eqn.params['padding_config']):
    if (low, high, inner) == (0, 0, 0):
      dims.append(value.dims[d])
      continue
    if inner or low < 0 or high < 0:
      freeze(value.dims[d], flow.reason(eqn, ' that dilates or crops'))
    if frozen(value.dims[d]):
      dims.append(fixed(sizes[d], flow.reason(eqn, ' of a frozen axis')))
      continue
    ends = [fixed(n, flow.reason(eqn, ': padding')) if n else None for n in (low, high)]
    dims.append(Concat(tuple(p for p in (ends[0], value.dims[d], ends[1]) if p is not None)))
  zeros = ins[1].bounds == POINT_ZERO
  return [value._replace(dims=tuple(dims), dead=value.dead if zeros else plain(dims).dead)]


@rule('tile')
def tile(flow: Flow, eqn: Any, ins: list[Value]) -> list[Value]:
  """Repeats an axis: a product with the repeats slowest."""
  dims = [
    dim if is_one(reps) else Product((fixed(reps, flow.reason(eqn)), dim))
    for dim, reps in zip(ins[0].dims, eqn.params['reps'], strict=True)
  ]
  return [ins[0]._replace(dims=tuple(dims))]


@rule('rev')
def rev(flow: Flow, eqn: Any, ins: list[Value]) -> list[Value]:
  """Reversed axes freeze."""
  for d in eqn.params['dimensions']:
    freeze(ins[0].dims[d], flow.reason(eqn, ' reverses it'))
  return ins


@rule('iota', 'random_bits')
def generated(flow: Flow, eqn: Any, ins: list[Value]) -> list[Value]:
  """Elements from nothing: fresh dims. Replay makes all of them and takes those that are kept."""
  sizes = shape_of(eqn.outvars[0])
  keys = [dim for value in ins for dim in value.dims]
  dims = (*keys, *(fresh(size) for size in sizes[len(keys) :]))
  known = GIVEN if eqn.primitive.name == 'iota' else FINITE
  return [Value(dims, (known,) * len(dims), CONSTANT)]


@rule('dynamic_slice')
def dynamic_slice(flow: Flow, eqn: Any, ins: list[Value]) -> list[Value]:
  """A window at a computed place: axes that are not taken whole freeze."""
  value, sizes = ins[0], shape_of(eqn.outvars[0])
  for d, size in enumerate(shape_of(eqn.invars[0])):
    if sizes[d] != size:
      freeze(value.dims[d], flow.reason(eqn, ' takes a part of it'))
      value = value.with_dim(d, fixed(sizes[d], flow.reason(eqn)))
  return [value]


@rule('dynamic_update_slice')
def dynamic_update_slice(flow: Flow, eqn: Any, ins: list[Value]) -> list[Value]:
  """A window written at a computed place: axes that are not written whole freeze."""
  value, update = ins[:2]
  for d, (size, part) in enumerate(
    zip(shape_of(eqn.invars[0]), shape_of(eqn.invars[1]), strict=True)
  ):
    if size == part:
      unify(value.dims[d], update.dims[d], flow.reason(eqn))
    else:
      freeze(value.dims[d], flow.reason(eqn, ' writes a part of it'))
      freeze(update.dims[d], flow.reason(eqn, ' writes a part of it'))
  dead = tuple(together(pair) for pair in zip(value.dead, update.dead, strict=True))
  return [Value(value.dims, dead, origin_of([value, update]))]


def divided(flow: Flow, eqn: Any, dim: Dim, lengths: list[int]) -> list[Dim]:
  """Consecutive pieces of a dim; a dim that cannot be cut there freezes."""
  if not frozen(dim):
    bounds = list(np.cumsum(lengths)[:-1].tolist())
    pieces = segments(dim, bounds, flow.reason(eqn, ' cuts it'))
    if pieces is not None:
      return pieces
    freeze(dim, flow.reason(eqn, ' cuts it where it cannot be divided'))
  return [fixed(length, flow.reason(eqn, ' of a frozen axis')) for length in lengths]
