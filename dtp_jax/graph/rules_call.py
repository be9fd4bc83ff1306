"""Rules of the primitives that call: jit, remat and functions with derivative rules of their own.

A function with its own derivative is entered twice: its body for the value, and the jaxpr of its
derivative so that replay can keep it (a ReLU's slope at 0 is 0; that of max(x, 0) is 1/2). Within
a derivative further custom rules are entered as plain bodies, for they may call themselves. A
derivative that cannot be traced is no obstacle: whoever differentiates gets its error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dtp_jax.graph.dims import unify
from dtp_jax.graph.flow import CONSTANT, Flow, Scope, Value, call_rule, plain, sealed
from dtp_jax.graph.origins import PLAIN_CALLS


class Custom(NamedTuple):
  """Scopes of a function with its own derivative.

  Attributes:
    body: the function.
    derivative: primals and tangents to primals and tangents (jvp), or primals and cotangents to
      cotangents (vjp); None inside a derivative; where there is none, the error that says so.
    floats: which arguments can be differentiated.
  """

  body: Scope
  derivative: Scope | Exception | None
  floats: tuple[int, ...]


@call_rule(*PLAIN_CALLS)
def call(flow: Flow, eqn: Any, ins: list[Value]) -> tuple[list[Value], Any] | None:
  """Enters the body."""
  for key in ('jaxpr', 'call_jaxpr'):
    if key in eqn.params:
      return flow.walk(eqn.params[key], ins)
  return None


@call_rule('remat', 'remat2', 'checkpoint')
def remat(flow: Flow, eqn: Any, ins: list[Value]) -> tuple[list[Value], Any]:
  """Enters the body, which replay runs as a unit."""
  outs, scope = flow.walk(eqn.params['jaxpr'], [sealed(value) for value in ins])
  return [sealed(out) for out in outs], scope


@call_rule('custom_jvp_call', 'custom_vjp_call')
def custom(flow: Flow, eqn: Any, ins: list[Value]) -> tuple[list[Value], Any]:
  """Enters the body and the derivative.

  Where a primal is promised to be zero, so is its tangent; of cotangents nothing is promised.
  """
  ins = [sealed(value) for value in ins]
  outs, body = flow.walk(eqn.params['call_jaxpr'], ins)
  outs = [sealed(out) for out in outs]
  # A vjp says nothing of what its function has closed over, which stands first.
  closed_over = eqn.params.get('num_consts', 0) if eqn.primitive.name == 'custom_vjp_call' else 0
  floats = tuple(i for i, v in enumerate(eqn.invars) if i >= closed_over and is_float(v))
  float_outs = [o for o, v in zip(outs, eqn.outvars, strict=True) if is_float(v)]
  if flow.in_derivative or not floats or not float_outs:
    return outs, Custom(body, None, floats)
  if any(value.origin != CONSTANT for value in ins[:closed_over]):
    error = TypeError(f'{flow.reason(eqn)} has no derivative by the values it has closed over')
    return outs, Custom(body, error, floats)

  def jvp(args: list[Any], tangents: list[Any]) -> Any:
    return jax.jvp(_of_floats(eqn, args, floats), [args[i] for i in floats], tangents)

  def vjp(args: list[Any], cotangents: list[Any]) -> Any:
    _, pullback = jax.vjp(_of_floats(eqn, args, floats), *[args[i] for i in floats])
    return pullback(cotangents)

  structs, float_ins = [_struct(v) for v in eqn.invars], [ins[i] for i in floats]
  is_jvp = eqn.primitive.name == 'custom_jvp_call'
  given = (
    [structs[i] for i in floats] if is_jvp else [_struct(v) for v in eqn.outvars if is_float(v)]
  )
  try:
    jaxpr = jax.make_jaxpr(jvp if is_jvp else vjp)(structs, given)
  except Exception as error:  # of any type: it comes from the function's own derivative
    return outs, Custom(body, error, floats)
  if is_jvp:
    scope = _derivative(flow, eqn, jaxpr, [*ins, *float_ins], 2 * float_outs)
  else:
    unpromised = [plain(v.dims) for v in (*ins, *float_outs)]
    noted = len(flow.contractions)
    scope = _derivative(flow, eqn, jaxpr, unpromised, float_ins)
    del flow.contractions[noted:]  # nothing is known of cotangents: the forward pass decides
  return outs, Custom(body, scope, floats)


def _derivative(flow: Flow, eqn: Any, jaxpr: Any, ins: list[Value], expected: list[Value]) -> Scope:
  """Walks a derivative; its results must have the dims of what they are the derivative of."""
  flow.in_derivative = True
  results, scope = flow.walk(jaxpr, ins)
  flow.in_derivative = False
  for result, value in zip(results, expected, strict=True):
    for a, b in zip(result.dims, value.dims, strict=True):
      unify(a, b, flow.reason(eqn, ' whose derivative has other dims'))
  return scope


def _of_floats(eqn: Any, args: list[Any], floats: tuple[int, ...]) -> Callable[..., Any]:
  """The equation as a function of its float operands, returning its float results."""

  def of_floats(*values: Any) -> list[Any]:
    full = list(args)
    for i, value in zip(floats, values, strict=True):
      full[i] = value
    outs = eqn.primitive.bind(*full, **eqn.primitive.get_bind_params(eqn.params))
    return [out for out, var in zip(outs, eqn.outvars, strict=True) if is_float(var)]

  return of_floats


def is_float(var: Any) -> bool:
  """Whether a variable can be differentiated."""
  return jnp.issubdtype(var.aval.dtype, jnp.inexact)


def _struct(var: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(var.aval.shape, var.aval.dtype)
