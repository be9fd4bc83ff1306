"""The solver: the dual of any increasing column sum, its derivative, steps and gains.

Log-odds z are (..., n) and values per problem (..., 1), so that no rank is ever promoted. Arguments
were checked by the public ops.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

from dtp_jax.transport.columns import Column, logit

__all__ = [
  'MAX_LOG_ODDS',
  'deadline_gain',
  'finite_range',
  'mask_of',
  'project',
  'proximal_step',
  'rate',
  'sinkhorn_step',
  'soft_topk',
]

_INFINITY_GAP = 100.0  # an infinite score lies this many eps beyond the last finite one
MAX_LOG_ODDS = 2.0**24  # where gains stop: float32 no longer separates larger log-odds
_SOFTNESS_TOLERANCE = 1e-3  # relative, of the ceiling that deadline_gain meets

_Carry = tuple[Array, Array, Array, Array, Array, Array]  # iteration, x, lo, hi, last step, done


@jax.jit
def soft_topk(scores: Array, rho: Array, epsilon: Array, column: Column) -> Array:
  """The entropic plan of the scores."""
  return mask_of(project(_increments(scores, epsilon, column), rho, column), rho)


@jax.jit
def sinkhorn_step(z: Array, rho: Array, column: Column) -> Array:
  """One Sinkhorn iteration, columns first and rows last."""
  return z + column.shift(z, rho)


@jax.jit
def project(z: Array, rho: Array, column: Column) -> Array:
  """The shifted z whose mask uses rho."""
  return z + _dual(z, rho, column)


@functools.partial(jax.jit, static_argnames='exact')
def proximal_step(
  scores: Array,
  state: Array,
  rho: Array,
  epsilon: Array,
  column: Column,
  memory: Array,
  ceiling: Array | None,
  exact: bool,
) -> tuple[Array, Array]:
  """One proximal step: the mask, and the log-odds that are the next state."""
  z = lax.stop_gradient(state).astype(scores.dtype)
  # The dual, the mean of z, does not fade: it would bias the budget of every Sinkhorn step.
  z = memory * z + (1 - memory) * column.mean(z) + _increments(scores, epsilon, column)
  if ceiling is not None:
    # Projected here and below: float32 resolves the dual only near the threshold.
    z = project(deadline_gain(z, rho, ceiling, column) * z, rho, column)
  z = (project if exact else sinkhorn_step)(z, rho, column)
  return mask_of(z, rho), lax.stop_gradient(z)


@jax.jit
def deadline_gain(z: Array, rho: Array, ceiling: Array, column: Column) -> Array:
  """The smallest gain >= 1 of z under which the softness is at most the ceiling, (..., 1)."""
  z, rho, ceiling, column = lax.stop_gradient((z, rho, ceiling, column))
  z = project(z, rho, column)  # centred at the threshold: the dual hardly moves with the gain
  # Below 1e-6 a mask is hard for every purpose; it keeps the logarithm finite.
  target = jnp.log(jnp.maximum(ceiling, 1e-6)) - _SOFTNESS_TOLERANCE

  def excess(log_gain: Array) -> tuple[Array, Array]:
    gain = jnp.exp(log_gain)
    m = jax.nn.sigmoid(project(gain * z, rho, column))
    d = m * (1 - m)
    s = jnp.mean(4 * d, axis=-1, keepdims=True)
    pull = rate(column, m, d * z) / rate(column, m, d)
    slope = gain * jnp.mean(4 * d * (1 - 2 * m) * (z - pull), axis=-1, keepdims=True) / s
    return target - jnp.log(s), -slope

  largest = jnp.max(jnp.abs(z), axis=-1, keepdims=True)
  zero = jnp.zeros_like(largest)
  hi = jnp.log(MAX_LOG_ODDS / jnp.clip(largest, 1.0, MAX_LOG_ODDS))
  log_gain = _root(excess, zero, zero, hi, residual=_SOFTNESS_TOLERANCE, iterations=48)
  soft_enough = jnp.mean(4 * jax.nn.sigmoid(z) * jax.nn.sigmoid(-z), axis=-1, keepdims=True)
  return jnp.where(soft_enough <= ceiling, 1.0, jnp.exp(log_gain)).astype(z.dtype)


@jax.custom_jvp
def _dual(z: Array, rho: Array, column: Column) -> Array:
  """Nu with F(sigmoid(z + nu)) = rho, (..., 1): no sort, O(n) an iteration."""
  target = column.target(rho)

  def gap(nu: Array) -> tuple[Array, Array]:
    level, slope = column.level(z + nu)
    return level - target, slope

  low, high = column.reach(rho)
  lo = low - jnp.max(z, axis=-1, keepdims=True)
  hi = high - jnp.min(z, axis=-1, keepdims=True)
  guess = logit(rho) - column.mean(z)
  info = jnp.finfo(z.dtype)
  iterations = 2 * info.nmant + 16  # enough for bisection alone
  return _root(gap, guess, lo, hi, residual=float(4 * info.eps), iterations=iterations)


@_dual.defjvp
def _dual_rule(
  primals: tuple[Array, Array, Column], tangents: tuple[Array, Array, Column]
) -> tuple[Array, Array]:
  """d/dt of F(sigmoid(z + nu)) = rho, with d = m (1 - m) and the marginal prices a = dF/dm.

      dnu = (drho - <a d, dz> - dF) / <a, d>

  where dF is the change of the column sum itself. Where the plan is hard nu is undefined: take 0.
  """
  z, rho, column = primals
  dz, drho, dcolumn = tangents
  nu = _dual(z, rho, column)
  m = jax.nn.sigmoid(z + nu)
  d = m * (1 - m)
  _, spent = jax.jvp(_share, (column, m), (dcolumn, d * dz))
  curvature = rate(column, m, d)
  hard = curvature <= jnp.finfo(z.dtype).tiny
  return nu, jnp.where(hard, 0.0, (drho - spent) / jnp.where(hard, 1.0, curvature))


def _root(
  f: Callable[[Array], tuple[Array, Array]],
  x: Array,
  lo: Array,
  hi: Array,
  *,
  residual: float,
  iterations: int,
) -> Array:
  """Root of increasing f (value, slope) in [lo, hi]: Newton, bisection where it does not pay.

  It stops where |f| <= residual, or where x has converged to rounding, for every problem of the
  batch; `iterations` bounds it where f jumps.
  """
  eps = jnp.finfo(x.dtype).eps

  def unfinished(carry: _Carry) -> Array:
    i, _, _, _, _, done = carry
    return (i < iterations) & ~jnp.all(done)

  def iterate(carry: _Carry) -> _Carry:
    i, x, lo, hi, last, done = carry
    value, slope = f(x)
    lo, hi = jnp.where(value < 0, x, lo), jnp.where(value < 0, hi, x)
    newton = -value / slope
    # Newton must stay inside the bracket and halve its step, else bisect.
    pays = (x + newton > lo) & (x + newton < hi) & (2 * jnp.abs(newton) <= jnp.abs(last))
    step = jnp.where(pays, newton, 0.5 * (lo + hi) - x)
    met = done | (jnp.abs(value) <= residual)
    x = jnp.where(met, x, x + step)
    return i + 1, x, lo, hi, step, met | (jnp.abs(step) <= eps * jnp.maximum(1.0, jnp.abs(x)))

  x = jnp.clip(x, lo, hi)
  carry = (jnp.zeros((), jnp.int32), x, lo, hi, hi - lo, jnp.zeros(x.shape, bool))
  return lax.while_loop(unfinished, iterate, carry)[1]


def _share(column: Column, mask: Array) -> Array:
  return column.share(mask)


def rate(column: Column, mask: Array, tangent: Array) -> Array:
  """<dF/dm, tangent>: the change of the column sum along a change of the mask."""
  return jax.jvp(column.share, (mask,), (tangent,))[1]


def finite_range(scores: Array) -> tuple[Array, Array]:
  """The smallest and the largest of the finite scores; 0 where there is none."""

  def careful() -> tuple[Array, Array]:
    finite = ~jnp.isinf(scores)
    top = jnp.max(scores, axis=-1, keepdims=True, where=finite, initial=-jnp.inf)
    bottom = jnp.min(scores, axis=-1, keepdims=True, where=finite, initial=jnp.inf)
    return jnp.where(jnp.isinf(bottom), 0.0, bottom), jnp.where(jnp.isinf(top), 0.0, top)

  # The test of every element costs more than the two ends, which seldom are infinite.
  bottom = jnp.min(scores, axis=-1, keepdims=True)
  top = jnp.max(scores, axis=-1, keepdims=True)
  infinite = jnp.any(jnp.isinf(bottom) | jnp.isinf(top))
  return lax.cond(infinite, careful, lambda: (bottom, top))


def _increments(scores: Array, epsilon: Array, column: Column) -> Array:
  """2 (s - <a, s>) / eps: centred, so that no step depends on a constant added to all scores."""
  bottom, top = finite_range(lax.stop_gradient(scores))
  gap = _INFINITY_GAP * epsilon
  s = jnp.clip(scores, bottom - gap, top + gap)
  return 2 * (s - column.mean(s)) / epsilon


def mask_of(z: Array, rho: Array) -> Array:
  """Sigmoid(z), exactly 0 or 1 where the budget is nothing or everything."""
  # A clip, not a select: NaN stays NaN.
  return jnp.clip(jax.nn.sigmoid(z), (rho >= 1).astype(z.dtype), (rho > 0).astype(z.dtype))
