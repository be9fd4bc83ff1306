"""Many small problems of one budget at a common temperature: rows of N:M, or rows of a matrix.

    m_ri = sigmoid(kappa (s_ri - c_r)),   mean_i m_ri = rho for every row r,
    mean_ri 4 m_ri (1 - m_ri) <= S

A gain of its own for every row would be driven to its limit by two scores that nearly tie at the
threshold, and with it the factor of their derivatives. One gain for all leaves such a pair soft
among rows that are hard. The thresholds c and log kappa are solved for together by Newton's method;
where rows are short, thresholds begin between the two scores that the budget separates, from where
the first step is at most 2 in log-odds: |mean m - rho| <= mean min(m, 1 - m) <= 2 mean m (1 - m).

Rows lie along the last axis here, (n, rows), so that sums over a short row are sums of arrays.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from dtp_jax.transport.annealing import Plan, between, ends, moved
from dtp_jax.transport.columns import logit
from dtp_jax.transport.solve import MAX_LOG_ODDS, mask_of

__all__ = ['annealed_rows']

_SHORT = 16  # elements of a row whose order is found by comparing all pairs
_MARGIN = 1e-3  # relative: the ceiling is met from below
# Residuals (of the budget, relative to rho (1 - rho); log of the softness) after which one Newton
# step more is the last; and the error of the latter up to which it tells a gain.
_LAST, _ENOUGH, _TRUSTED = 5e-4, 1e-3, 5e-2
_FAR = 0.5  # log-odds that a row which is met moves by at most
_MOVES, _ITERATIONS = 20, 100  # of the gain, and of all
_GUESSED_FROM = 2**12  # rows that tell the gain of the last step


class _Search(NamedTuple):
  """Where the search is.

  Attributes:
    plan: the present one: a gain (), and for each row a threshold c, where float32 is finest, and
      what that leaves of its dual, (1, rows).
    soft, hard: log-gains known to be too soft and hard enough, or the limits, ().
    below, above: shifts of the log-odds between which the budget is met at this gain, (1, rows).
    done: whether the plan is final.
  """

  i: Array
  plan: Plan
  soft: Array
  hard: Array
  below: Array
  above: Array
  done: Array


@jax.jit
def annealed_rows(
  scores: Array, state: Array, rho: Array, least: Array, ceiling: Array
) -> tuple[Array, Array]:
  """Masks and log-odds (rows, n); kappa is the smallest >= least that meets the ceiling."""
  bottom, top = (end[0] for end in ends(scores.ravel()))
  x = jnp.clip(scores.T, bottom, top)  # a clip, not a select: NaN stays NaN
  state = lax.stop_gradient(state).astype(scores.dtype)
  plan = _solve(x, rho, state.T, top - bottom, jnp.log(least), ceiling)
  z = plan.log_odds(x)
  return mask_of(z, rho).T, lax.stop_gradient(z).T


@jax.custom_jvp
def _solve(
  scores: Array, rho: Array, state: Array, span: Array, least: Array, ceiling: Array
) -> Plan:
  tiny = jnp.finfo(scores.dtype).tiny
  eps = jnp.finfo(scores.dtype).eps
  # Below 1e-6 a mask is hard for every purpose; it keeps the logarithm finite.
  target = jnp.log(jnp.maximum(ceiling, 1e-6)) - _MARGIN
  most = jnp.maximum(least, jnp.log(MAX_LOG_ODDS / jnp.maximum(span, tiny)))
  aim, unit = logit(rho), rho * (1 - rho) + tiny
  first, last = jnp.max(scores, axis=0, keepdims=True), jnp.min(scores, axis=0, keepdims=True)

  def reach(plan: Plan) -> tuple[Array, Array]:
    return aim - plan.log_odds(first), aim - plan.log_odds(last)

  def iterate(now: _Search) -> _Search:
    plan = now.plan
    z = plan.log_odds(scores)
    m = jax.nn.sigmoid(z)
    d = m * (1 - m)
    over, slope = _mean(m) - rho, _mean(d)
    below, above = jnp.where(over > 0, now.below, 0.0), jnp.where(over > 0, 0.0, now.above)
    newton = -over / (slope + tiny)
    close = jnp.abs(over) <= _LAST * unit
    # Newton inside of the bracket, else bisection. A row that is met is at the end of its bracket
    # and only moves as far as its slope can tell: that of a hard one tells nothing.
    searched = (newton >= below) & (newton <= above) & ((now.i < _MOVES) | (now.i % 2 == 0))
    shift = jnp.where(searched, newton, 0.5 * (below + above))
    shift = jnp.where(close, jnp.where(jnp.abs(newton) <= _FAR, newton, 0.0), shift)
    met = close | (jnp.abs(shift) <= 4 * eps)
    bend = d * (1 - 2 * m)
    total = jnp.mean(slope) + tiny
    # What a shift leaves of the softness that is told to first order in it.
    untold = jnp.mean(slope * jnp.clip(shift, -1, 1) ** 2) / total
    trusted = untold <= _TRUSTED

    # The softness at the thresholds that this step aims at; then along the budget with the gain.
    tilt = _mean(bend)
    softer = jnp.log(4 * total) - target + jnp.mean(tilt * jnp.clip(shift, -1, 1)) / total
    pull = _mean(d * z) / (slope + tiny)
    by_gain = (jnp.mean(bend * z) - jnp.mean(tilt * pull)) / total
    soft = jnp.where(trusted & (softer > _ENOUGH), plan.log_gain, now.soft)
    hard = jnp.where(trusted & (softer < -_ENOUGH), plan.log_gain, now.hard)
    move = jnp.clip(-softer / jnp.where(by_gain < 0, by_gain, -1.0), -1.0, 1.0)
    aimed = between(plan.log_gain + move, soft, hard, least, most)
    enough = (jnp.abs(softer) <= _ENOUGH) & (untold <= _ENOUGH)
    enough |= (softer <= 0) & (plan.log_gain <= least) | (softer > 0) & (plan.log_gain >= most)
    enough |= (hard - soft <= 1e-4) | (now.i >= _MOVES)
    # Each change of the gain widens what rows are bracketed by: it stays once it is met, and in any
    # case in the end, when every other step is a bisection of the rows that lag behind.
    move = jnp.where(trusted & ~enough, aimed - plan.log_gain, 0.0)

    following = moved(plan, shift - pull * move, move)
    stays = jnp.abs(move) <= 0
    from_below, from_above = reach(following)
    return _Search(
      now.i + 1,
      following,
      soft,
      hard,
      jnp.where(stays, below - shift, from_below),
      jnp.where(stays, above - shift, from_above),
      jnp.all(met) & jnp.all(enough) | jnp.any(jnp.isnan(over)),
    )

  log_gain = jnp.clip(_gain_of(scores, state, least), least, most)
  start = _start(scores, state, rho, log_gain)
  plan = Plan(log_gain, start, jnp.zeros_like(start))
  search = _Search(jnp.zeros((), jnp.int32), plan, least, most, *reach(plan), jnp.array(False))
  search = lax.while_loop(lambda s: (s.i < _ITERATIONS) & ~s.done, iterate, search)
  return search.plan


@_solve.defjvp
def _solve_rule(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Plan, Plan]:
  """The gain is held: the derivative is that of the duals, which keep the budget of every row."""
  scores, ds, drho = primals[0], tangents[0], tangents[1]
  plan = _solve(*primals)
  m = jax.nn.sigmoid(plan.log_odds(scores))
  d = m * (1 - m)
  curvature = _mean(d)
  hard = curvature <= jnp.finfo(m.dtype).tiny
  spent = drho - jnp.exp(plan.log_gain) * _mean(d * ds)
  dual = jnp.where(hard, 0.0, spent / jnp.where(hard, 1.0, curvature))
  return plan, Plan(jnp.zeros_like(plan.log_gain), jnp.zeros_like(dual), dual)


def _mean(x: Array) -> Array:
  """Over every row, (1, rows)."""
  return jnp.mean(x, axis=0, keepdims=True)


def _gain_of(scores: Array, state: Array, least: Array) -> Array:
  """The log-gain of the last step, by regression of the scores on its log-odds; least at rest."""
  apart = max(1, scores.shape[1] // _GUESSED_FROM) | 1
  s, z = scores[:, ::apart], state[:, ::apart]
  s, z = s - _mean(s), z - _mean(z)
  slope = jnp.mean(s * z) / jnp.mean(z * z)
  return jnp.where(slope > 0, -jnp.log(jnp.where(slope > 0, slope, 1.0)), least)


def _start(scores: Array, state: Array, rho: Array, log_gain: Array) -> Array:
  """Thresholds to begin with, (1, rows): of short rows by their order, else those of the last step.

  Of scores that tie the places are all the last of them, so that the k-th largest score is the
  largest one whose place is k or later.
  """
  n = len(scores)
  if n > _SHORT:
    return _mean(scores) - _mean(state) * jnp.exp(-log_gain)
  rows = jnp.split(scores, n)
  places = [sum((other >= one).astype(jnp.int32) for other in rows) for one in rows]

  def at(place: Array) -> Array:
    none = jnp.full_like(rows[0], -jnp.inf)
    some = [jnp.where(p >= place, one, none) for p, one in zip(places, rows, strict=True)]
    return functools.reduce(jnp.maximum, some)

  kept = rho * n  # the budget separates these two, which are one where it cuts an element
  return 0.5 * (at(jnp.clip(jnp.ceil(kept), 1, n)) + at(jnp.clip(jnp.floor(kept) + 1, 1, n)))
