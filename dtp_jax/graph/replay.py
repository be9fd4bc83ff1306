"""Replay: running a walked program again with some atoms at their kept size.

Most primitives read their shapes from their operands; those that carry sizes as parameters get
them from the dims the walk has found. Literals and everything else stay as traced.
"""

from __future__ import annotations

from collections.abc import Sequence
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
  params = {
    **eqn.primitive.get_bind_params(eqn.params),
    **_resized(eqn, ins, outs, kept, args),
  }
  result = eqn.primitive.bind(*args, **params)
  results = result if eqn.primitive.multiple_results else [result]
  if name in ('iota', 'random_bits'):  # made at the traced size, so that the kept are the same
    results = [take(results[0], outs[0].dims, kept)]
  return list(results)


def _run_custom(inner: Custom, eqn: Any, kept: Kept, args: list[Any]) -> list[Any]:
  """A function with its own derivative, which it keeps."""
  derivative, floats = inner.derivative, inner.floats
  float_outs = [is_float(var) for var in eqn.outvars]

  def body(*args: Any) -> list[Any]:
    return replay(inner.body, kept, args)

  if derivative is None:
    return body(*args)

  def jvp(primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    outs = body(*primals)
    results = replay(derivative, kept, [*primals, *(tangents[i] for i in floats)])
    behind = iter(results[sum(float_outs) :])
    return outs, [
      next(behind) if is_out else _no_tangent(out)
      for out, is_out in zip(outs, float_outs, strict=True)
    ]

  def backward(args: tuple[Any, ...], cotangents: Sequence[Any]) -> tuple[Any, ...]:
    given = [c for c, is_out in zip(cotangents, float_outs, strict=True) if is_out]
    found = dict(zip(floats, replay(derivative, kept, [*args, *given]), strict=True))
    return tuple(found[i] if i in found else _no_tangent(arg) for i, arg in enumerate(args))

  if eqn.primitive.name == 'custom_jvp_call':
    fn = jax.custom_jvp(body)
    fn.defjvp(jvp)
  else:
    fn = jax.custom_vjp(body)
    fn.defvjp(lambda *args: (body(*args), args), backward)
  return fn(*args)


def _no_tangent(array: Any) -> np.ndarray:
  """What jax takes as the derivative of integers."""
  return np.zeros(jnp.shape(array), jax.dtypes.float0)


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
    case 'gather' | 'dynamic_slice':
      return {'slice_sizes': sizes(ins[0].dims, params['slice_sizes'])}
    case 'split':
      return {'sizes': sizes([out.dims[params['axis']] for out in outs], params['sizes'])}
    case 'slice':  # ends move to the number of kept positions before them
      starts, limits = list(params['start_indices']), list(params['limit_indices'])
      for d, dim in enumerate(ins[0].dims):
        if pruned(dim, kept):
          ends = np.searchsorted(positions(dim, kept), (starts[d], limits[d]))
          starts[d], limits[d] = map(int, ends)
      return {'start_indices': tuple(starts), 'limit_indices': tuple(limits)}
    case 'conv_general_dilated':
      numbers = params['dimension_numbers']
      features = args[0].shape[numbers.lhs_spec[1]]
      return {'feature_group_count': features // args[1].shape[numbers.rhs_spec[1]]}
    case _:
      return {}
