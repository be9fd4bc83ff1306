"""Replay: running a walked program again with some atoms at their kept size.

Most primitives read their shapes from their operands; those that carry sizes as parameters get
them from the dims the walk has found. Literals and everything else stay as traced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from dtp_jax.graph.dims import Dim
from dtp_jax.graph.flow import Scope, Value
from dtp_jax.graph.positions import Kept, positions, pruned
from dtp_jax.graph.rules_call import Custom, is_float


def replay(scope: Scope, kept: Kept, args: Sequence[Any]) -> list[Any]:
  """Runs a program whose arguments have already lost the elements that `kept` leaves out."""
  jaxpr = scope.jaxpr
  env = dict(zip(jaxpr.invars, args, strict=True))
  for var, const in zip(jaxpr.constvars, scope.consts, strict=True):
    env[var] = take(const, scope.values[var].dims, kept)

  def read(var: Any) -> Any:
    if isinstance(var, jex.Literal):
      return var.val
    return env[var]

  for i in scope.equations:
    eqn = jaxpr.eqns[i]
    outs = _run(eqn, scope, scope.calls[i], kept, [read(v) for v in eqn.invars])
    env.update(zip(eqn.outvars, outs, strict=True))
  return [read(var) for var in jaxpr.outvars]


def take(array: Any, dims: Sequence[Dim], kept: Kept) -> Any:
  """The elements of an array of the traced size that remain."""
  for axis, dim in enumerate(dims):
    if pruned(dim, kept):
      index = positions(dim, kept)
      array = (
        np.take(array, index, axis)
        if isinstance(array, np.ndarray)
        else jnp.take(array, index, axis)
      )
  return array


def size(dim: Dim, traced: Any, kept: Kept) -> Any:
  """The size of a dim after pruning; `traced` (perhaps symbolic) if it loses nothing."""
  return len(positions(dim, kept)) if pruned(dim, kept) else traced


def _run(eqn: Any, scope: Scope, inner: Any, kept: Kept, args: list[Any]) -> list[Any]:
  """One equation."""
  name = eqn.primitive.name
  if isinstance(inner, Custom):
    return _run_custom(inner, eqn, kept, args)
  if isinstance(inner, Scope):

    def body(*args: Any) -> list[Any]:
      return replay(inner, kept, args)

    if 'prevent_cse' in eqn.params:  # remat stays remat
      body = jax.checkpoint(
        body, prevent_cse=eqn.params['prevent_cse'], policy=eqn.params['policy']
      )
    return body(*args)
  ins = [scope.value(var) for var in eqn.invars]
  outs = [scope.values[var] for var in eqn.outvars]
  params = eqn.primitive.get_bind_params(eqn.params)
  if name in RESIZED:
    params = {**params, **RESIZED[name](eqn, ins, outs, kept, args)}
  result = eqn.primitive.bind(*args, **params)
  results = result if eqn.primitive.multiple_results else [result]
  if name in ('iota', 'random_bits'):  # made at the traced size, so that the kept are the same
    results = [take(results[0], outs[0].dims, kept)]
  return list(results)


def _run_custom(inner: Custom, eqn: Any, kept: Kept, args: list[Any]) -> list[Any]:
  """A function with its own derivative, which it keeps."""

  def body(*args: Any) -> list[Any]:
    return replay(inner.body, kept, args)

  if inner.derivative is None:
    return body(*args)
  derivative = inner.derivative
  run = _with_jvp if eqn.primitive.name == 'custom_jvp_call' else _with_vjp
  return run(
    body,
    lambda *args: replay(derivative, kept, args),
    inner.floats,
    [is_float(var) for var in eqn.outvars],
  )(*args)


def _with_jvp(
  body: Callable[..., Any],
  derivative: Callable[..., Any],
  floats: tuple[int, ...],
  float_outs: list[bool],
) -> Callable[..., Any]:
  fn = jax.custom_jvp(body)

  @fn.defjvp
  def jvp(primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    outs = body(*primals)
    results = iter(derivative(*primals, *(tangents[i] for i in floats))[sum(float_outs) :])
    return outs, [
      next(results) if is_out else _no_tangent(out)
      for out, is_out in zip(outs, float_outs, strict=True)
    ]

  return fn


def _with_vjp(
  body: Callable[..., Any],
  derivative: Callable[..., Any],
  floats: tuple[int, ...],
  float_outs: list[bool],
) -> Callable[..., Any]:
  fn = jax.custom_vjp(body)

  def forward(*args: Any) -> tuple[list[Any], tuple[Any, ...]]:
    return body(*args), args

  def backward(args: tuple[Any, ...], cotangents: Sequence[Any]) -> tuple[Any, ...]:
    given = [c for c, is_out in zip(cotangents, float_outs, strict=True) if is_out]
    results = dict(zip(floats, derivative(*args, *given), strict=True))
    return tuple(results[i] if i in results else _no_tangent(arg) for i, arg in enumerate(args))

  fn.defvjp(forward, backward)
  return fn


def _no_tangent(array: Any) -> np.ndarray:
  """What jax takes as the derivative of integers."""
  return np.zeros(jnp.shape(array), jax.dtypes.float0)


# Parameters that carry sizes.


def _sizes(value: Value, traced: Sequence[Any], kept: Kept) -> tuple[Any, ...]:
  return tuple(size(dim, n, kept) for dim, n in zip(value.dims, traced, strict=True))


def _resized(key: str) -> Callable[..., Any]:
  def update(
    eqn: Any, ins: list[Any], outs: list[Any], kept: Kept, args: list[Any]
  ) -> dict[str, Any]:
    return {key: _sizes(outs[0], eqn.outvars[0].aval.shape, kept)}

  return update


def _slice(
  eqn: Any, ins: list[Any], outs: list[Any], kept: Kept, args: list[Any]
) -> dict[str, Any]:
  """Ends move to the number of kept positions before them."""
  starts, limits = list(eqn.params['start_indices']), list(eqn.params['limit_indices'])
  for d, dim in enumerate(ins[0].dims):
    if pruned(dim, kept):
      index = positions(dim, kept)
      starts[d], limits[d] = (int(np.searchsorted(index, end)) for end in (starts[d], limits[d]))
  return {'start_indices': tuple(starts), 'limit_indices': tuple(limits)}


def _split(
  eqn: Any, ins: list[Any], outs: list[Any], kept: Kept, args: list[Any]
) -> dict[str, Any]:
  axis = eqn.params['axis']
  return {
    'sizes': tuple(
      size(out.dims[axis], n, kept) for out, n in zip(outs, eqn.params['sizes'], strict=True)
    )
  }


def _slice_sizes(
  eqn: Any, ins: list[Any], outs: list[Any], kept: Kept, args: list[Any]
) -> dict[str, Any]:
  taken = zip(ins[0].dims, eqn.params['slice_sizes'], strict=True)
  return {'slice_sizes': tuple(size(dim, n, kept) for dim, n in taken)}


def _conv(eqn: Any, ins: list[Any], outs: list[Any], kept: Kept, args: list[Any]) -> dict[str, Any]:
  numbers = eqn.params['dimension_numbers']
  features = args[0].shape[numbers.lhs_spec[1]]
  return {'feature_group_count': features // args[1].shape[numbers.rhs_spec[1]]}


RESIZED: dict[str, Callable[..., Any]] = {
  'broadcast_in_dim': _resized('shape'),
  'reshape': _resized('new_sizes'),
  'slice': _slice,
  'split': _split,
  'gather': _slice_sizes,
  'dynamic_slice': _slice_sizes,
  'conv_general_dilated': _conv,
}
