"""What was tried beside the default of `dtp_jax.transportation`: rows of the study alone.

Each is called as a registered method is, but is known to no registry.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from dtp_jax import methods
from dtp_jax.budget import Budget
from dtp_jax.budget.problem import Problem
from dtp_jax.graph import Graph
from dtp_jax.methods import Extra, Moment, Pruner, bundle, cubic
from dtp_jax.methods.evidence import log_importance, probed, second_moment
from dtp_jax.methods.pruner import at_rest
from dtp_jax.prunable import Masks, Params, Prunable

__all__ = ['corrected', 'dual_spartan', 'scheduled_spartan', 'variant']

Elements = Graph | Prunable
_TINY = 1e-30


def scheduled_spartan(
  elements: Elements, budget: Budget, *, steps: int, ramp: float = 0.4, deadline: float = 0.9
) -> Pruner:
  """The score of Spartan, |w| / std, under the softness schedule and keep ramp of DTP.

  An ablation: DTP without its evidence and without its logarithm.
  """

  def rule(problem: Problem, now: Moment) -> tuple[Array, Array]:
    scale = lax.stop_gradient(jnp.std(now.magnitudes))
    left = jnp.maximum(0.01, 1 - (now.step + 1) / (deadline * steps))
    return _planned(problem, now, now.magnitudes / scale, left)

  return bundle(elements, budget, start=at_rest, rule=rule, ramp=cubic(steps, ramp, initial=0.9))


def variant(
  elements: Elements,
  budget: Budget,
  *,
  steps: int,
  share: float = 0.5,
  decay: float = 0.95,
  ramp: float = 0.4,
  deadline: float = 0.9,
  initial: float = 0.9,
  power: float = 1.0,
  floor: float = 0.01,
  start: float = 1.0,
  priced: bool = True,
  derivative: float = 1.0,
  handover: float = 0.0,
  dense: float = 0.0,
) -> Pruner:
  """`methods.evidential` with what it holds fixed as options.

  Args:
    elements: what may be pruned.
    budget: how much to keep.
    steps: length of the soft stage.
    share: weight of the evidence.
    decay: of the running mean of the evidence.
    ramp: share of the soft stage in which the budget is reached.
    deadline: share of the soft stage by which the softness is at its floor.
    initial: first kept fraction.
    power: of the softness that is left.
    floor: of the softness, in units of that at rest.
    start: of the softness, in units of that at rest.
    priced: whether the evidence is per cost.
    derivative: factor of the derivative of the importance.
    handover: last share of the soft stage in which the mask moves linearly to its own hard form.
    dense: how far the gradient of the weights passes straight through the mask.

  Returns:
    A Pruner.
  """
  begin = round((1 - handover) * steps)

  def rule(problem: Problem, now: Moment) -> tuple[Array, Array]:
    prices = problem.prices(now.state) if priced else None
    importance = log_importance(now.magnitudes, lax.stop_gradient(now.scores), prices, share=share)
    fixed = lax.stop_gradient(importance)
    importance = fixed + derivative * (importance - fixed)
    left = start * jnp.maximum(0.0, 1 - (now.step + 1) / (deadline * steps)) ** power
    mask, log_odds = _planned(problem, now, importance, jnp.maximum(floor, left))
    if handover:
      mask = _handed_over(problem, mask, log_odds, now, (now.step - begin + 1) / (steps - begin))
    if dense:
      mask = mask + dense * lax.stop_gradient(1 - mask) * _grown(now.magnitudes)
    return probed(mask, now.scores), log_odds

  ramped = cubic(steps, ramp, initial=initial)
  pruner = bundle(elements, budget, start=at_rest, rule=rule, ramp=ramped)
  return pruner._replace(score_optimizer=second_moment(decay))


def dual_spartan(
  elements: Elements,
  budget: Budget,
  *,
  steps: int,
  ramp: float = 0.8,
  beta: tuple[float, float] = (1.0, 20.0),
) -> Pruner:
  """Spartan with its dual averaging: a loss of hard masks, a gradient as of soft ones.

  The derivative of the pruned weight is that of its soft form, m_s + w dm_s/dw; of channels in
  the direction of their norms.
  """
  sharpness = optax.linear_schedule(*beta, transition_steps=max(1, round(ramp * steps)))

  def rule(problem: Problem, now: Moment) -> tuple[Array, Array]:
    scaled = now.magnitudes / lax.stop_gradient(jnp.std(now.magnitudes))
    soft = problem.soft(scaled, keep=now.keep, epsilon=2 / sharpness(now.step))
    fixed, ranking = lax.stop_gradient((soft, now.magnitudes))
    hard = problem.hard(ranking, now.keep).astype(soft.dtype)
    return hard + (soft - fixed) + (fixed - hard) * _grown(now.magnitudes), ranking

  def start(magnitudes: dict[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
    return {}, magnitudes

  return bundle(elements, budget, start=start, rule=rule)


def corrected(
  elements: Elements,
  budget: Budget,
  *,
  steps: int,
  rate: float,
  normalised: bool = False,
  momentum: float = 0.9,
  decay: float = 0.95,
) -> Pruner:
  """`methods.evidential` with a correction of the log importance trained by its gradient.

  The correction descends along m dL/dm, the gradient of the log-odds with the plan's Jacobian
  m (1 - m) divided out and the mask multiplied in, by SGD with momentum; `normalised`, along that
  divided by its root mean square over all elements.
  """
  inner = methods.evidential(elements, budget, steps=steps)

  def masks(params: Params, extra: Extra, step: Any) -> tuple[Masks, dict[str, Array]]:
    scores = {k: _squared(s) for k, s in extra['scores'].items()}
    return inner.masks(params, {**extra, 'scores': scores}, step)

  def init(params: Any) -> Any:
    zeros = jax.tree.map(jnp.zeros_like, params)
    return {'evidence': zeros, 'trace': zeros, 'correction': zeros}

  def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    evidence = jax.tree.map(
      lambda i, g: decay * i + (1 - decay) * g * g, state['evidence'], updates
    )
    grads = updates
    if normalised:
      leaves = jax.tree.leaves(grads)
      mean = sum(jnp.sum(g * g) for g in leaves) / sum(g.size for g in leaves)
      grads = jax.tree.map(lambda g: g * lax.rsqrt(mean + _TINY), grads)
    trace = jax.tree.map(lambda t, g: momentum * t + g, state['trace'], grads)
    correction = jax.tree.map(lambda c, t: c - rate * t, state['correction'], trace)
    moves = jax.tree.map(
      lambda i, c, s: 0.5 * jnp.log(i + _TINY) + c - s, evidence, correction, params
    )
    return moves, {'evidence': evidence, 'trace': trace, 'correction': correction}

  moved = optax.GradientTransformation(init, update)
  return inner._replace(masks=masks, score_optimizer=moved)


def _planned(problem: Problem, now: Moment, importance: Array, left: Array) -> tuple[Array, Array]:
  """The plan of an importance at a share of the softness at rest."""
  return problem.proximal(
    importance,
    now.state,
    keep=now.keep,
    epsilon=1e2,
    memory=0.0,
    projection='exact',
    ceiling=problem.rest_softness(now.keep) * left,
  )


def _handed_over(problem: Problem, mask: Array, log_odds: Array, now: Moment, part: Array) -> Array:
  part = jnp.clip(part, 0.0, 1.0)
  hard = lax.cond(
    part > 0,
    lambda: problem.hard(log_odds, now.keep).astype(mask.dtype),
    lambda: lax.stop_gradient(mask),
  )
  return (1 - part) * mask + part * hard


def _grown(magnitudes: Array) -> Array:
  """0 with the derivative of log |w|, so that (1 + it) |w| has twice the derivative of |w|."""
  log = jnp.log(jnp.maximum(magnitudes, jnp.finfo(magnitudes.dtype).tiny ** 0.5))
  return log - lax.stop_gradient(log)


def _squared(s: Array) -> Array:
  """exp(2 s) with the derivative of s, for the probe."""
  return lax.stop_gradient(jnp.exp(2 * s)) + (s - lax.stop_gradient(s))
