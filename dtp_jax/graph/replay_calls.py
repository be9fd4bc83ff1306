"""Replay of equations that call: they stay what they are, their bodies run on kept channels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from dtp_jax.graph.flow import Scope
from dtp_jax.graph.rules_call import Custom, is_float
from dtp_jax.graph.rules_loop import Cond, Scan, While, scan_counts

# Runs a scope on arrays that have lost what is dead.
Run: TypeAlias = Callable[[Scope, Sequence[Any]], list[Any]]


def run_call(call: Any, eqn: Any, args: list[Any], run: Run) -> list[Any]:
  """The results of an equation for which a call rule has entered scopes.

  Args:
    call: what the rule has returned.
    eqn: the equation.
    args: its operands on kept channels.
    run: runs a scope.
  """
  match call:
    case Custom():
      return _custom(call, eqn, args, run)
    case Scan():
      return _scan(call, eqn, args, run)
    case While():
      return _while(call, eqn, args, run)
    case Cond():
      branches = [_bound(run, scope) for scope in call.branches]
      return jax.lax.switch(args[0], branches, *args[1:])
    case _:
      return _remat(call, eqn, args, run)


def _bound(run: Run, scope: Scope) -> Callable[..., list[Any]]:
  """A scope as a function."""
  return lambda *args: run(scope, args)


def _remat(scope: Scope, eqn: Any, args: list[Any], run: Run) -> list[Any]:
  """A checkpointed function."""
  prevent_cse, policy = eqn.params['prevent_cse'], eqn.params['policy']
  return jax.checkpoint(_bound(run, scope), prevent_cse=prevent_cse, policy=policy)(*args)


def _scan(call: Scan, eqn: Any, args: list[Any], run: Run) -> list[Any]:
  """A scan with a smaller body."""
  first, carried = scan_counts(eqn)
  consts, carry, xs = args[:first], args[first : first + carried], args[first + carried :]

  def body(carry: list[Any], xs: list[Any]) -> tuple[list[Any], list[Any]]:
    outs = run(call.body, [*consts, *carry, *xs])
    return outs[:carried], outs[carried:]

  options = {key: eqn.params[key] for key in ('length', 'reverse', 'unroll')}
  carry, ys = jax.lax.scan(body, carry, xs, **options)
  return [*carry, *ys]


def _while(call: While, eqn: Any, args: list[Any], run: Run) -> list[Any]:
  """A while loop with a smaller body."""
  first = eqn.params['cond_nconsts']
  behind = first + eqn.params['body_nconsts']
  return jax.lax.while_loop(
    lambda carry: run(call.test, [*args[:first], *carry])[0],
    lambda carry: run(call.body, [*args[first:behind], *carry]),
    args[behind:],
  )


def _custom(inner: Custom, eqn: Any, args: list[Any], run: Run) -> list[Any]:
  """A function with its own derivative, which it keeps."""
  derivative, floats = inner.derivative, inner.floats
  float_outs = [is_float(var) for var in eqn.outvars]
  body = _bound(run, inner.body)
  if derivative is None:
    return body(*args)
  if isinstance(derivative, Exception):
    return _underivable(body, derivative)(*args)

  def jvp(primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    outs = body(*primals)
    results = run(derivative, [*primals, *(tangents[i] for i in floats)])
    behind = iter(results[sum(float_outs) :])
    return outs, [
      next(behind) if is_out else _no_tangent(out)
      for out, is_out in zip(outs, float_outs, strict=True)
    ]

  def backward(args: tuple[Any, ...], cotangents: Sequence[Any]) -> tuple[Any, ...]:
    given = [c for c, is_out in zip(cotangents, float_outs, strict=True) if is_out]
    found = dict(zip(floats, run(derivative, [*args, *given]), strict=True))
    return tuple(found[i] if i in found else _no_tangent(arg) for i, arg in enumerate(args))

  if eqn.primitive.name == 'custom_jvp_call':
    fn = jax.custom_jvp(body)
    fn.defjvp(jvp)
  else:
    fn = jax.custom_vjp(body)
    fn.defvjp(lambda *args: (body(*args), args), backward)
  return fn(*args)


def _underivable(body: Callable[..., list[Any]], error: Exception) -> Callable[..., list[Any]]:
  """A function that raises an error when it is differentiated."""

  def refuse(*_: Any) -> Any:
    raise error

  fn = jax.custom_vjp(body)
  fn.defvjp(refuse, refuse)
  return fn


def _no_tangent(array: Any) -> Any:
  """What jax takes as the derivative by integers; and zeros, by what was closed over."""
  if jnp.issubdtype(jnp.result_type(array), jnp.inexact):
    return jnp.zeros_like(array)
  return np.zeros(jnp.shape(array), jax.dtypes.float0)
