"""A plan of the present scores with a given budget and a given softness, solved for both at once.

    m_i = sigmoid(z_i),   z_i = kappa (s_i - c) + nu,   F(m) = rho,   mean_i 4 m_i (1 - m_i) <= S

Two numbers move little from step to step: the dual nu and the gain kappa (an inverse temperature).
They are solved for together, by Newton's method on (log kappa, nu), from where the last step left
them, which its log-odds tell. An iteration is one pass that sums the mask and its softness; the
four slopes are those of a sample where there are many elements. c is only where float32 is finest:
the threshold, which the centre follows.

Shapes are those of `solve`: scores (..., n), everything per problem (..., 1).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from dtp_jax.transport.columns import Column, logit
from dtp_jax.transport.solve import MAX_LOG_ODDS, finite_range, mask_of, rate

__all__ = ['Plan', 'annealed', 'between', 'ends', 'moved']

_MARGIN = 1e-3  # relative: the ceiling is met from below
# Residuals (logit of the budget, log of the softness) after which one step more is the last: Newton
# squares them, or with the slopes of a sample divides them by 30 and more.
_LAST = {'all': (3e-4, 3e-3), 'sampled': (2e-3, 4e-3)}
# Shifts of the log-odds up to which the softness found here tells of that at the budget, for a step
# and for a bound.
_NEAR, _CLOSE = 0.5, 0.01
_GUESSED_FROM = 2**14  # elements that tell where the last step left the plan
# Of the gain; and of all, which leaves enough for bisection alone to bring home the budget.
_MOVES, _ITERATIONS = 70, 110


class Plan(NamedTuple):
  """Log kappa, c and nu, which broadcast against scores."""

  log_gain: Array
  centre: Array
  dual: Array

  def log_odds(self, scores: Array) -> Array:
    """Z, of the shape of the scores."""
    return jnp.exp(self.log_gain) * (scores - self.centre) + self.dual


class _Search(NamedTuple):
  """Where the search is, and between what.

  Attributes:
    plan: the present one.
    soft, hard: log-gains known to be too soft and hard enough, or the limits.
    below, above: shifts of the log-odds between which the budget is met at the present gain.
    last: size of the last shift at this gain.
    done: whether the plan is final.
  """

  i: Array
  plan: Plan
  soft: Array
  hard: Array
  below: Array
  above: Array
  last: Array
  done: Array


@jax.jit
def annealed(
  scores: Array, state: Array, rho: Array, least: Array, ceiling: Array, column: Column
) -> tuple[Array, Array]:
  """The mask and its log-odds; kappa is the smallest >= least whose softness is <= ceiling."""
  bottom, top = ends(scores)
  scores = jnp.clip(scores, bottom, top)  # a clip, not a select: NaN stays NaN
  state = lax.stop_gradient(state).astype(scores.dtype)
  plan = _solve(scores, rho, column, state, bottom, top, jnp.log(least), ceiling)
  z = plan.log_odds(scores)
  return mask_of(z, rho), lax.stop_gradient(z)


@jax.custom_jvp
def _solve(
  scores: Array,
  rho: Array,
  column: Column,
  state: Array,
  bottom: Array,
  top: Array,
  least: Array,
  ceiling: Array,
) -> Plan:
  rho, least, ceiling = (jnp.broadcast_to(x, bottom.shape) for x in (rho, least, ceiling))
  thin = column.thinning(scores.shape[-1])
  sample, few = scores[..., ::thin], column.thinned(thin)
  tolerance = _LAST['all' if thin == 1 else 'sampled']
  # Below 1e-6 a mask is hard for every purpose; it keeps the logarithm finite.
  target = jnp.log(jnp.maximum(ceiling, 1e-6)) - _MARGIN
  aim, tiny = logit(rho), jnp.finfo(scores.dtype).tiny
  low, high = column.reach(rho)

  def reach(plan: Plan) -> tuple[Array, Array]:
    return low - plan.log_odds(top), high - plan.log_odds(bottom)

  def iterate(now: _Search) -> _Search:
    plan = now.plan
    m = jax.nn.sigmoid(plan.log_odds(scores))
    share = column.share(m)
    over = logit(share) - aim
    softer = jnp.log(4 * jnp.mean(m - m * m, axis=-1, keepdims=True) + tiny) - target
    z = plan.log_odds(sample)
    m = jax.nn.sigmoid(z)
    d = m * (1 - m)
    bend = d * (1 - 2 * m)
    odds = jnp.maximum(share * (1 - share), tiny**0.5)
    by_dual, by_gain = rate(few, m, d), rate(few, m, d * z)
    total = jnp.mean(d, axis=-1, keepdims=True) + tiny
    softer_dual = jnp.mean(bend, axis=-1, keepdims=True) / total
    softer_gain = jnp.mean(bend * z, axis=-1, keepdims=True) / total

    # At the present gain: the shift that meets the budget, and the softness there.
    below = jnp.where(over > 0, now.below, 0.0)
    above = jnp.where(over > 0, 0.0, now.above)
    newton = -over * odds / by_dual
    pays = (newton >= below) & (newton <= above) & (2 * jnp.abs(newton) <= now.last)
    shift = jnp.where(pays, newton, 0.5 * (below + above))
    narrow = above - below
    near = pays & (jnp.abs(shift) < _NEAR) | (narrow < 0.1)
    softer = softer + softer_dual * shift
    # Along the budget: the gain that meets the ceiling, never below `least`.
    some = by_dual > tiny
    pull = jnp.where(some, by_gain / jnp.where(some, by_dual, 1.0), 0.0)
    slope = softer_gain - softer_dual * pull
    known = near & (jnp.abs(shift) < _CLOSE) & (jnp.abs(softer) > tolerance[1])
    soft = jnp.where(known & (softer > 0), plan.log_gain, now.soft)
    hard = jnp.where(known & (softer < 0), plan.log_gain, now.hard)
    move = jnp.clip(-softer / jnp.where(slope < 0, slope, -1.0), -1.0, 1.0)
    aimed = between(plan.log_gain + move, soft, hard, least, most)
    move = jnp.where(near & (now.i < _MOVES), aimed - plan.log_gain, 0.0)

    met = (jnp.abs(over) <= tolerance[0]) & (jnp.abs(shift) <= 0.5 * _CLOSE)
    met |= jnp.abs(shift) <= 4 * jnp.finfo(scores.dtype).eps  # no closer in this precision
    enough = jnp.abs(softer) <= tolerance[1]
    enough |= (softer <= 0) & (plan.log_gain <= least) | (softer > 0) & (plan.log_gain >= most)
    enough |= (hard - soft <= 1e-4) | (now.i >= _MOVES)
    following = moved(plan, shift - pull * move, move)
    stays = move == 0
    from_below, from_above = reach(following)
    return _Search(
      now.i + 1,
      jax.tree.map(lambda new, old: jnp.where(now.done, old, new), following, plan),
      soft,
      hard,
      jnp.where(stays, below - shift, from_below),
      jnp.where(stays, above - shift, from_above),
      jnp.where(stays, jnp.abs(shift), jnp.inf),
      now.done | met & enough | jnp.isnan(over),
    )

  apart = max(1, scores.shape[-1] // _GUESSED_FROM) | 1
  plan = _guess(scores[..., ::apart], state[..., ::apart], rho, least)
  most = jnp.maximum(least, jnp.log(MAX_LOG_ODDS / jnp.maximum(top - bottom, tiny)))
  centre = jnp.clip(plan.centre, bottom, top)
  plan = plan._replace(log_gain=jnp.clip(plan.log_gain, least, most), centre=centre)
  infinite = jnp.full_like(least, jnp.inf)
  search = _Search(
    jnp.zeros((), jnp.int32),
    plan,
    least,
    most,
    *reach(plan),
    infinite,
    jnp.zeros(least.shape, bool),
  )
  search = lax.while_loop(lambda s: (s.i < _ITERATIONS) & ~jnp.all(s.done), iterate, search)
  return search.plan


@_solve.defjvp
def _solve_rule(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Plan, Plan]:
  """The gain is held: the derivative is that of the dual alone, as in `solve`."""
  scores, _, column, *_ = primals
  ds, drho, dcolumn, *_ = tangents
  plan = _solve(*primals)
  m = jax.nn.sigmoid(plan.log_odds(scores))
  d = m * (1 - m)
  dz = jnp.exp(plan.log_gain) * ds
  _, spent = jax.jvp(lambda column, m: column.share(m), (column, m), (dcolumn, d * dz))
  curvature = rate(column, m, d)
  hard = curvature <= jnp.finfo(m.dtype).tiny
  dual = jnp.where(hard, 0.0, (drho - spent) / jnp.where(hard, 1.0, curvature))
  return plan, Plan(jnp.zeros_like(dual), jnp.zeros_like(dual), dual)


def ends(scores: Array) -> tuple[Array, Array]:
  """Where scores are clipped, (..., 1): infinite ones come this far behind the last finite one."""
  bottom, top = finite_range(lax.stop_gradient(scores))
  gap = 10 * (top - bottom) + 1
  return bottom - gap, top + gap


def between(aimed: Array, soft: Array, hard: Array, least: Array, most: Array) -> Array:
  """The log-gain aimed at, or half way between those known to be too soft and hard enough."""
  middle = 0.5 * (soft + hard)
  aimed = jnp.where((aimed <= soft) & (soft > least), middle, jnp.maximum(aimed, soft))
  return jnp.where((aimed >= hard) & (hard < most), middle, jnp.minimum(aimed, hard))


def moved(plan: Plan, shift: Array, move: Array) -> Plan:
  """The plan whose log-odds are exp(move) z + shift, but for the order of `move`; centred again."""
  gain = jnp.exp(plan.log_gain + move)
  dual = plan.dual * jnp.exp(move) + shift
  centre = plan.centre - dual / gain
  return Plan(plan.log_gain + move, centre, dual + gain * (centre - plan.centre))


def _guess(scores: Array, state: Array, rho: Array, least: Array) -> Plan:
  """The plan that the last log-odds came from, by regression of the scores on them."""

  def mean(x: Array) -> Array:
    return jnp.mean(x, axis=-1, keepdims=True)

  at, was = mean(scores), mean(state)
  # Not of the log-odds on the scores: it is the scores that have moved.
  slope = mean((scores - at) * (state - was)) / mean((state - was) ** 2)
  warm = (slope > 0) & (slope < 2 * jnp.exp(-least))
  centre = jnp.where(warm, at - was * slope, at)
  log_gain = jnp.where(warm, -jnp.log(jnp.where(warm, slope, 1.0)), least)
  return Plan(log_gain, centre, jnp.where(warm, 0.0, logit(rho)))
