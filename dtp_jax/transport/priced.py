"""Transport under a price list: the column sum is any increasing cost of the mask.

For a parameter, MAC or latency budget the share of the budget that a soft mask uses is not the mean
of the mask but F(m) / F(1), a polynomial of the masks of all groups. The plan keeps its form,
m = sigmoid(z + nu), and nu is fixed by F(m) = rho F(1); the source masses of the derivative are the
marginal costs a = dF/dm. These are the ops of `dtp_jax.transport` with `cost` in place of
`weights`, for one problem at a time.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from dtp_jax.transport import Projection, root

__all__ = ['deadline_gain', 'project', 'proximal_step', 'sinkhorn_step', 'soft_topk']

Share = Callable[[Array], Array]  # mask (n,) -> F(m) / F(1), increasing in every entry

_REACH = 40.0  # sigmoid(+-40) is 1 and nothing in float32
_MAX_LOG_ODDS = 2.0**24


def project(log_odds: ArrayLike, *, keep: ArrayLike, cost: Share) -> Array:
  """The shift of the log-odds whose mask costs `keep` of the total.

  Safeguarded Newton on the dual; its derivative in closed form, as in `transport.project`:
  dnu = (drho - <a d, dz>) / <a, d> with d = m (1 - m) and a = dF/dm.

  Args:
    log_odds: (n,) finite float.
    keep: rho, share of the total cost, a float or a traced scalar. One that no mask attains (below
      the cost of what cannot be pruned) gives the nearest mask.
    cost: mask (n,) -> share in [0, 1], pure, differentiable and increasing in every entry. It must
      not close over traced values.

  Returns:
    Shifted log-odds (n,).
  """
  z = jnp.asarray(log_odds)
  return z + _dual(cost, z, jnp.asarray(keep, z.dtype))


def sinkhorn_step(log_odds: ArrayLike, *, keep: ArrayLike, cost: Share, degree: int) -> Array:
  """One Sinkhorn iteration, damped by the degree of the cost.

  The undamped shift is a contraction for a linear column sum alone: for a cost of degree 2 it
  overshoots and can lose the whole budget.

  Args:
    log_odds: (n,) finite float.
    keep: as in `project`.
    cost: as in `project`.
    degree: how many counts multiply each other in a term of the cost, >= 1.

  Returns:
    Shifted log-odds (n,).
  """
  z = jnp.asarray(log_odds)
  share = cost(jax.nn.sigmoid(z))
  return z + (_logit(jnp.asarray(keep, z.dtype)) - _logit(share)) / max(1, degree)


def soft_topk(scores: ArrayLike, *, keep: ArrayLike, epsilon: ArrayLike, cost: Share) -> Array:
  """`transport.soft_topk` under a cost: masks (n,) with F(m) = keep F(1)."""
  return jax.nn.sigmoid(project(_increments(scores, epsilon), keep=keep, cost=cost))


def proximal_step(
  scores: ArrayLike,
  state: ArrayLike,
  *,
  keep: ArrayLike,
  epsilon: ArrayLike,
  cost: Share,
  degree: int = 1,
  memory: ArrayLike = 1.0,
  projection: Projection = 'exact',
  ceiling: ArrayLike | None = None,
) -> tuple[Array, Array]:
  """`transport.proximal_step` under a cost.

  Args:
    scores: (n,) float.
    state: (n,) log-odds of the previous step.
    keep: as in `project`.
    epsilon: step size of the plan, > 0.
    cost: as in `project`.
    degree: as in `sinkhorn_step`.
    memory: gamma in [0, 1]; 1 is the paper.
    projection: 'exact', or one damped 'sinkhorn' iteration.
    ceiling: optional bound on the softness of the mask.

  Returns:
    The mask (n,), differentiable in scores, and the new state (n,).
  """
  z = lax.stop_gradient(jnp.asarray(state))
  z = memory * z + (1 - memory) * jnp.mean(z) + _increments(scores, epsilon)
  if ceiling is not None:
    z = project(deadline_gain(z, keep=keep, ceiling=ceiling, cost=cost) * z, keep=keep, cost=cost)
  if projection == 'exact':
    z = project(z, keep=keep, cost=cost)
  else:
    z = sinkhorn_step(z, keep=keep, cost=cost, degree=degree)
  return jax.nn.sigmoid(z), lax.stop_gradient(z)


def deadline_gain(
  log_odds: ArrayLike, *, keep: ArrayLike, ceiling: ArrayLike, cost: Share
) -> Array:
  """`transport.deadline_gain` under a cost: a scalar >= 1, not differentiable."""
  z, keep = lax.stop_gradient((jnp.asarray(log_odds), jnp.asarray(keep)))
  z = project(z, keep=keep, cost=cost)
  target = jnp.log(jnp.maximum(lax.stop_gradient(ceiling), 1e-6)) - 1e-3

  def log_softness(log_gain):
    m = jax.nn.sigmoid(project(jnp.exp(log_gain) * z, keep=keep, cost=cost))
    return jnp.log(jnp.mean(4 * m * (1 - m)))

  def excess(log_gain):
    value, slope = jax.jvp(log_softness, (log_gain,), (jnp.ones_like(log_gain),))
    return target - value, -slope

  zero = jnp.zeros((), z.dtype)
  largest = jnp.max(jnp.abs(z))
  hi = jnp.log(_MAX_LOG_ODDS / jnp.clip(largest, 1.0, _MAX_LOG_ODDS))
  log_gain = root(excess, zero, zero, hi, residual=1e-3, iterations=48)
  hard_enough = jnp.mean(4 * jax.nn.sigmoid(z) * jax.nn.sigmoid(-z)) <= ceiling
  return jnp.where(hard_enough, 1.0, jnp.exp(log_gain)).astype(z.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _dual(cost: Share, z, rho):
  """Nu with cost(sigmoid(z + nu)) = rho, a scalar."""
  target = jnp.log(jnp.maximum(rho, jnp.finfo(z.dtype).tiny))

  def gap(nu):
    m = jax.nn.sigmoid(z + nu)
    share, prices = jax.value_and_grad(cost)(m)
    return jnp.log(share) - target, jnp.sum(prices * m * (1 - m)) / share

  lo, hi = -jnp.max(z) - _REACH, -jnp.min(z) + _REACH
  iterations = 2 * jnp.finfo(z.dtype).nmant + 16
  residual = float(4 * jnp.finfo(z.dtype).eps)
  guess = jnp.log(rho) - jnp.log1p(-jnp.minimum(rho, 0.999)) - jnp.mean(z)
  return root(
    gap, jnp.where(jnp.isfinite(guess), guess, lo), lo, hi, residual=residual, iterations=iterations
  )


@_dual.defjvp
def _dual_jvp(cost, primals, tangents):
  z, rho = primals
  dz, drho = tangents
  nu = _dual(cost, z, rho)
  m = jax.nn.sigmoid(z + nu)
  d = m * (1 - m) * jax.grad(cost)(m)
  curvature = jnp.sum(d)
  hard = curvature <= jnp.finfo(z.dtype).tiny
  return nu, jnp.where(hard, 0.0, (drho - jnp.sum(d * dz)) / jnp.where(hard, 1.0, curvature))


def _increments(scores, epsilon):
  s = jnp.asarray(scores)
  s = s.astype(jnp.promote_types(s.dtype, jnp.float32))
  return 2 * (s - jnp.mean(s)) / epsilon


def _logit(share):
  info = jnp.finfo(share.dtype)
  share = jnp.clip(share, info.tiny, 1 - info.epsneg)
  return jnp.log(share) - jnp.log1p(-share)
