"""Replay: running a walked program again with some atoms at their kept size.

Most primitives read their shapes from their operands; those that carry sizes as parameters get
them from the dims the walk has found. Literals and everything else stay as traced.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from dtp_jax.graph.dead import Kind
from dtp_jax.graph.dims import Dim
from dtp_jax.graph.flow import Scope, Value, shape_of
from dtp_jax.graph.origins import REDUCTIONS, origins
from dtp_jax.graph.positions import Kept, count, positions, pruned
from dtp_jax.graph.replay_calls import run_call
from dtp_jax.graph.rules_gather import known_start, known_steps

# Axes on which a value is looked at where channels are dead: how many of them there are, or one if
# these are all the same.
Axes: TypeAlias = Mapping[int, int]
NO_AXES: Axes = {}


def replay(scope: Scope, kept: Kept, args: Sequence[Any], refit: bool = False) -> list[Any]:
  """Runs a program whose arguments have already lost the elements that `kept` leaves out.

  Args:
    scope: the program.
    kept: what is left of the atoms that lose elements.
    args: its arguments.
    refit: leave the dead out of every reduction, and of the count by which a sum is divided.
  """
  return Frame(scope, kept, args, refit).run()


class Frame:
  """One run of a scope: its arrays on kept channels, and on demand what they are at dead ones.

  A reduction over channels that are all the same where they are dead needs one of them beside the
  kept, and all of them where constants make them what they are. They are computed on arrays of
  these channels alone, backwards from the reduction to zeros and constants.
  """

  def __init__(
    self,
    scope: Scope,
    kept: Kept,
    args: Sequence[Any],
    refit: bool,
    outside: Callable[[int, Axes], Any] | None = None,
  ):
    self.scope, self.kept, self.refit = scope, kept, refit
    self.outside = outside  # (argument, axes) -> that argument at dead channels of these axes
    self.arrays = dict(zip(scope.jaxpr.invars, args, strict=True))
    self.consts = dict(zip(scope.jaxpr.constvars, scope.consts, strict=True))
    for var, const in self.consts.items():
      self.arrays[var] = take(const, scope.values[var].dims, kept)
    self.inner: dict[int, Frame] = {}  # by equation
    self.made: dict[Any, tuple[int, int]] = {}  # variable -> its equation, and which result

  def run(self) -> list[Any]:
    """The results."""
    for i in self.scope.equations:
      eqn = self.scope.jaxpr.eqns[i]
      self.made.update((var, (i, n)) for n, var in enumerate(eqn.outvars))
      self.arrays.update(zip(eqn.outvars, self._run(i), strict=True))
    return [self.at(var) for var in self.scope.jaxpr.outvars]

  def at(self, var: Any, dead: Axes = NO_AXES) -> Any:
    """A variable: its kept channels, but on the axes `dead` the dead ones, or one of them."""
    if isinstance(var, jex.Literal):
      return var.val
    if not dead:
      return self.arrays[var]
    value = self.scope.value(var)
    if any(value.dead[d].kind == Kind.ZERO for d in dead):
      shape = [dead.get(d, n) for d, n in enumerate(jnp.shape(self.arrays[var]))]
      return jnp.zeros(shape, self.arrays[var].dtype)
    if var in self.consts:
      return take(self.consts[var], value.dims, self.kept, dead)
    if var not in self.made:
      assert self.outside is not None
      return self.outside(self.scope.jaxpr.invars.index(var), dead)
    i, n = self.made[var]
    if i in self.inner:
      return self.inner[i].at(self.inner[i].scope.jaxpr.outvars[n], dead)
    return self._evaluate(self.scope.jaxpr.eqns[i], dead)

  def _evaluate(self, eqn: Any, dead: Axes) -> Any:
    """The one result of an equation that treats every position of the axes `dead` alike."""
    axes: list[dict[int, int]] = [{} for _ in eqn.invars]
    for axis, number in dead.items():
      for found, origin in zip(axes, origins(eqn, axis), strict=True):
        found |= {} if origin is None else {origin: number}
    if eqn.primitive.name in REDUCTIONS:
      return self._reduce(eqn, axes[0])
    args = [self.at(var, d) for var, d in zip(eqn.invars, axes, strict=True)]
    return _bind(eqn, self.scope, self.kept, args, dead)[0]

  def _reduce(self, eqn: Any, dead: Axes) -> Any:
    """A reduction of kept channels and of the dead, or of one of these as often as there are."""
    (var,), name = eqn.invars, eqn.primitive.name
    value, sizes = self.scope.value(var), tuple(var.aval.shape)
    matter = (Kind.GIVEN, Kind.COMMON, *([] if name == 'reduce_sum' else [Kind.ZERO]))
    missing = {
      d: sizes[d] - size(value.dims[d], sizes[d], self.kept)
      for d in eqn.params['axes']
      if d not in dead and value.dead[d].kind in matter and pruned(value.dims[d], self.kept)
    }
    each = {d: n if value.dead[d].kind == Kind.GIVEN else 1 for d, n in missing.items()}
    total = None
    for chosen in _subsets([] if self.refit else list(missing)):
      looked_at = {**dead, **{d: each[d] for d in chosen}}
      part = _bind(eqn, self.scope, self.kept, [self.at(var, looked_at)], dead)[0]
      if name == 'reduce_sum':
        part = part * np.asarray(math.prod(missing[d] // each[d] for d in chosen), part.dtype)
      total = part if total is None else JOIN[name](total, part)
    return total

  def _run(self, i: int) -> list[Any]:
    """One equation on kept channels."""
    eqn, call = self.scope.jaxpr.eqns[i], self.scope.calls[i]
    if eqn.primitive.name in REDUCTIONS:
      return [self._reduce(eqn, NO_AXES)]
    args = [self.at(var) for var in eqn.invars]
    if call is None:
      outs = _bind(eqn, self.scope, self.kept, args)
      return self._refitted(i, outs) if self.refit and i in self.scope.means else outs
    if not isinstance(call, Scope) or 'prevent_cse' in eqn.params:
      return run_call(call, eqn, args, self._inside)
    self.inner[i] = Frame(
      call, self.kept, args, self.refit, lambda n, dead: self.at(eqn.invars[n], dead)
    )
    return self.inner[i].run()

  def _inside(self, scope: Scope, args: Sequence[Any]) -> list[Any]:
    """A scope that cannot be looked into from here."""
    return replay(scope, self.kept, args, self.refit)

  def _refitted(self, i: int, means: list[Any]) -> list[Any]:
    """Means whose count is that of the kept."""
    dims, divisor = self.scope.means[i]
    dense = math.prod(dim.size for dim in dims)
    left = math.prod(size(dim, dim.size, self.kept) for dim in dims)
    ratio = divisor / max(divisor - dense + left, 1)
    return means if left == dense else [mean * np.asarray(ratio, mean.dtype) for mean in means]


JOIN = {'reduce_sum': jnp.add, 'reduce_max': jnp.maximum, 'reduce_min': jnp.minimum}


def _subsets(items: list[int]) -> list[tuple[int, ...]]:
  """All subsets, the empty one first."""
  sizes = range(len(items) + 1)
  return [chosen for n in sizes for chosen in itertools.combinations(items, n)]


def take(array: Any, dims: Sequence[Dim], kept: Kept, dead: Axes = NO_AXES) -> Any:
  """The elements of an array of the traced size that remain; on the axes `dead` the others."""
  for axis, dim in enumerate(dims):
    if pruned(dim, kept):
      index = positions(dim, kept)
      if axis in dead:
        index = np.setdiff1d(np.arange(dim.size), index)
      array = (
        np.take(array, index, axis)
        if isinstance(array, np.ndarray)
        else jnp.take(array, index, axis)
      )
  return array


def within(dim: Dim, start: int, limit: int, kept: Kept) -> tuple[int, int]:
  """Where a range of a dim starts and ends after pruning."""
  first, last = np.searchsorted(positions(dim, kept), (start, limit))
  return int(first), int(last)


def size(dim: Dim, traced: Any, kept: Kept) -> Any:
  """The size of a dim after pruning; `traced` (perhaps symbolic) if it loses nothing."""
  return count(dim, kept) if pruned(dim, kept) else traced


def _bind(eqn: Any, scope: Scope, kept: Kept, args: list[Any], dead: Axes = NO_AXES) -> list[Any]:
  """One equation that calls nothing; the axes `dead` of its result have the dead channels."""
  ins = [scope.value(var) for var in eqn.invars]
  outs = [scope.values[var] for var in eqn.outvars]
  params = {**eqn.primitive.get_bind_params(eqn.params), **_resized(eqn, ins, outs, kept, args)}
  generated = eqn.primitive.name in ('iota', 'random_bits')
  for key in ('shape', 'new_sizes'):
    if key in params and not generated:
      params[key] = tuple(dead.get(d, n) for d, n in enumerate(params[key]))
  if eqn.primitive.name == 'gather':
    args = [args[0], _places(eqn, ins, outs, kept, args[1])]
  result = eqn.primitive.bind(*args, **params)
  results = result if eqn.primitive.multiple_results else [result]
  if generated:  # at the traced size, so that the kept agree
    results = [take(results[0], outs[0].dims, kept, dead)]
  return list(results)


def _resized(
  eqn: Any, ins: list[Value], outs: list[Value], kept: Kept, args: list[Any]
) -> dict[str, Any]:
  """The parameters of an equation that carry sizes, as they are after pruning."""
  params = eqn.params

  def sizes(dims: Sequence[Dim], traced: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(size(dim, n, kept) for dim, n in zip(dims, traced, strict=True))

  match eqn.primitive.name:
    case 'broadcast_in_dim':
      return {'shape': sizes(outs[0].dims, params['shape'])}
    case 'reshape':
      return {'new_sizes': sizes(outs[0].dims, params['new_sizes'])}
    case 'gather':
      return {'slice_sizes': _gathered(eqn, ins, kept, args[0])}
    case 'dynamic_slice':
      pairs = zip(ins[0].dims, params['slice_sizes'], args[0].shape, strict=True)
      return {'slice_sizes': tuple(n if pruned(dim, kept) else part for dim, part, n in pairs)}
    case 'split':
      return {'sizes': sizes([out.dims[params['axis']] for out in outs], params['sizes'])}
    case 'slice':  # ends move to the number of kept positions before them
      starts, limits = list(params['start_indices']), list(params['limit_indices'])
      for d, dim in enumerate(ins[0].dims):
        if pruned(dim, kept):
          whole = (starts[d], limits[d]) == (0, dim.size)
          if whole or (params['strides'] or [1] * len(starts))[d] != 1:
            limits[d] = args[0].shape[d]  # whole runs go, so the first one starts where it did
            continue
          starts[d], limits[d] = within(dim, starts[d], limits[d], kept)
      return {'start_indices': tuple(starts), 'limit_indices': tuple(limits)}
    case 'conv_general_dilated':
      numbers = params['dimension_numbers']
      features = args[0].shape[numbers.lhs_spec[1]]
      return {'feature_group_count': features // args[1].shape[numbers.rhs_spec[1]]}
    case _:
      return {}


def _gathered(eqn: Any, ins: list[Value], kept: Kept, table: Any) -> tuple[Any, ...]:
  """How much of each axis a gather takes: all that is left, or what is left of a window."""
  numbers, start = eqn.params['dimension_numbers'], known_start(eqn, ins[1])
  taken = list(eqn.params['slice_sizes'])
  for d, (dim, whole) in enumerate(zip(ins[0].dims, shape_of(eqn.invars[0]), strict=True)):
    if not pruned(dim, kept) or d in (
      *numbers.collapsed_slice_dims,
      *numbers.operand_batching_dims,
    ):
      continue
    if taken[d] == whole:
      taken[d] = table.shape[d]
    elif start is not None:
      first, last = within(dim, start, start + taken[d], kept)
      taken[d] = last - first
  return tuple(taken)


def _steps_dim(eqn: Any, outs: list[Value]) -> Dim:
  """The dim of a gather's result that runs over its indices."""
  offsets = eqn.params['dimension_numbers'].offset_dims
  return next(dim for d, dim in enumerate(outs[0].dims) if d not in offsets)


def _places(eqn: Any, ins: list[Value], outs: list[Value], kept: Kept, indices: Any) -> Any:
  """The indices of a gather; of a window at a known place, where that place is now."""
  if known_steps(eqn, ins[1]) is not None:  # whole runs go: there are fewer, at the same places
    return indices[: size(_steps_dim(eqn, outs), indices.shape[0], kept)]
  start = known_start(eqn, ins[1])
  if start is None:
    return indices
  dim = ins[0].dims[eqn.params['dimension_numbers'].start_index_map[0]]
  moved = within(dim, start, start, kept)[0] if pruned(dim, kept) else start
  return jnp.full_like(indices, moved)
