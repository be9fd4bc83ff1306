"""The baselines every result is measured against, behind the same interface."""

import dataclasses
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from dtp_jax.budget import Budget
from dtp_jax.budget.problem import Problem
from dtp_jax.graph import Graph
from dtp_jax.methods.pruner import (
  Moment,
  Pruner,
  as_state,
  bundle,
  from_magnitudes,
  standardised,
)
from dtp_jax.methods.ramp import cubic, ramp_steps
from dtp_jax.methods.registry import register
from dtp_jax.prunable import Prunable

__all__ = [
  'dense',
  'gradual_magnitude',
  'greg',
  'magnitude',
  'pdp',
  'random',
  'spartan',
  'straight_through',
]

Elements = Graph | Prunable
Named = dict[str, Array]

_PENALTY = 3.5  # a mask of exp(-3.5^2 / 2), two thousandths, counts as dropped


@register
def dense(elements: Elements, budget: Budget | None = None) -> Pruner:
  """Keeps everything, whatever the budget, in whose unit it is accounted: every table's first row.

  Args:
    elements: what stays whole.
    budget: gives the unit; None counts elements.

  Returns:
    A Pruner.
  """
  whole = Budget(1.0) if budget is None else dataclasses.replace(budget, keep=1.0)
  return bundle(elements, whole, start=from_magnitudes, rule=_everything)


@register
def magnitude(elements: Elements, budget: Budget) -> Pruner:
  """One-shot magnitude: the largest when the stage begins, fixed from then on.

  Args:
    elements: what may be pruned.
    budget: how much to keep.

  Returns:
    A Pruner without scores.
  """
  return bundle(elements, budget, start=from_magnitudes, rule=_ranked_once)


@register
def random(elements: Elements, budget: Budget, *, seed: int = 0) -> Pruner:
  """A random choice, fixed when the stage begins.

  Args:
    elements: what may be pruned.
    budget: how much to keep.
    seed: of the choice.

  Returns:
    A Pruner without scores.
  """

  def start(magnitudes: Named) -> tuple[Named, Named]:
    key = jax.random.key(seed)

    def draw(name: str, x: Array) -> Array:
      return jax.random.uniform(jax.random.fold_in(key, zlib.crc32(name.encode())), x.shape)

    return {}, {name: draw(name, x) for name, x in magnitudes.items()}

  return bundle(elements, budget, start=start, rule=_ranked_once)


@register
def gradual_magnitude(
  elements: Elements, budget: Budget, *, steps: int, ramp: float = 0.8
) -> Pruner:
  """Gradual magnitude (Zhu & Gupta 2017, arXiv:1710.01878): what is kept falls along a cubic.

  Args:
    elements: what may be pruned.
    budget: how much to keep.
    steps: length of the soft stage in steps, >= 1.
    ramp: share of it until the budget is reached, in [0, 1].

  Returns:
    A Pruner without scores; the mask is the hard top-k of the present magnitudes, so weights may
    return.

  Raises:
    ValueError: an option out of range, or a budget that cannot be met.
  """

  def rule(problem: Problem, now: Moment) -> tuple[Array, Array]:
    mask = problem.hard(now.magnitudes, now.keep)
    return mask.astype(now.magnitudes.dtype), as_state(now.magnitudes)

  way = cubic(steps, ramp, initial=1.0)
  return bundle(elements, budget, start=from_magnitudes, rule=rule, ramp=way)


@register
def spartan(
  elements: Elements,
  budget: Budget,
  *,
  steps: int,
  ramp: float = 0.8,
  beta: tuple[float, float] = (1.0, 20.0),
) -> Pruner:
  """Spartan's mask (Tai et al. 2022, arXiv:2205.14107): soft top-k of the weights' own magnitudes.

  The mask is the exact entropic plan with log-odds beta |w| / std(|w|) and beta ramped linearly;
  the gradient reaches the weights through the mask as well. Only the mask is Spartan's: its dual
  averaging (hard weights forward, dense ones updated) is not part of this baseline.

  Args:
    elements: what may be pruned.
    budget: how much to keep.
    steps: length of the soft stage in steps, >= 1.
    ramp: share of it until beta is at its end, in [0, 1].
    beta: sharpness at the start and at the end of the ramp, > 0.

  Returns:
    A Pruner without scores.

  Raises:
    ValueError: an option out of range, or a budget that cannot be met.
  """
  if np.shape(beta) != (2,) or min(beta) <= 0:
    raise ValueError(f'beta is {beta}; expected two numbers > 0.')
  sharpness = optax.linear_schedule(*beta, transition_steps=max(1, ramp_steps(steps, ramp)))

  def rule(problem: Problem, now: Moment) -> tuple[Array, Array]:
    scale = lax.stop_gradient(jnp.std(now.magnitudes, axis=-1, keepdims=True))
    scaled = now.magnitudes / (scale + jnp.finfo(now.magnitudes.dtype).tiny)
    mask = problem.soft(scaled, keep=now.keep, epsilon=2 / sharpness(now.step))
    return mask, as_state(now.magnitudes)

  return bundle(elements, budget, start=from_magnitudes, rule=rule)


@register
def straight_through(
  elements: Elements, budget: Budget, *, steps: int, ramp: float = 0.8
) -> Pruner:
  """Straight-through top-k on learned scores (as in movement pruning, arXiv:2005.07683).

  The forward mask is hard and the gradient passes to the scores as if it were the scores
  themselves. Scores start at the standardised magnitudes; what is kept falls along a cubic.

  Args:
    elements: what may be pruned.
    budget: how much to keep.
    steps: length of the soft stage in steps, >= 1.
    ramp: share of it until the budget is reached, in [0, 1].

  Returns:
    A Pruner with one trainable score per element.

  Raises:
    ValueError: an option out of range, or a budget that cannot be met.
  """

  def start(magnitudes: Named) -> tuple[Named, Named]:
    scores = standardised(magnitudes)
    return scores, scores

  def rule(problem: Problem, now: Moment) -> tuple[Array, Array]:
    fixed = lax.stop_gradient(now.scores)
    hard = problem.hard(fixed, now.keep).astype(fixed.dtype)
    return hard + (now.scores - fixed), as_state(now.scores)  # the bracket is exactly 0

  return bundle(elements, budget, start=start, rule=rule, ramp=cubic(steps, ramp, initial=1.0))


@register
def greg(elements: Elements, budget: Budget, *, steps: int, ramp: float = 0.9) -> Pruner:
  """Growing regularization (GReg-1, Wang et al. 2021, arXiv:2012.09243), as a mask.

  The elements to drop are the smallest when the stage begins. An L2 penalty that grows in
  proportion to the step u shrinks a weight by exp(-c u^2 / 2); here that factor is their mask, the
  same for all of them, and the loss sees every weight times its mask.

  Args:
    elements: what may be pruned; GReg takes channels at given widths, by their L1 norms.
    budget: how much to keep.
    steps: length of the soft stage in steps, >= 1.
    ramp: share of it until a dropped element has shrunk to two thousandths, in (0, 1].

  Returns:
    A Pruner without scores.

  Raises:
    ValueError: an option out of range, or a budget that cannot be met.
  """
  length = max(1, ramp_steps(steps, ramp))

  def rule(problem: Problem, now: Moment) -> tuple[Array, Array]:
    shrunk = jnp.exp(-0.5 * jnp.square(_PENALTY * (now.step + 1) / length))
    return jnp.where(problem.hard(now.state), 1.0, shrunk).astype(now.state.dtype), now.state

  return bundle(elements, budget, start=from_magnitudes, rule=rule)


@register
def pdp(
  elements: Elements,
  budget: Budget,
  *,
  steps: int,
  ramp: float = 0.8,
  temperature: float = 0.1,
) -> Pruner:
  """Parameter-free differentiable pruning (Cho et al. 2023, arXiv:2305.11203).

  m = sigmoid((w^2 - t^2) / tau) with t halfway between the smallest kept and the largest pruned
  magnitude; the kept fraction falls along a cubic.

  Args:
    elements: what may be pruned.
    budget: how much to keep.
    steps: length of the soft stage in steps, >= 1.
    ramp: share of it until the budget is reached, in [0, 1].
    temperature: tau in units of t^2, > 0. The paper's is absolute; in units of the threshold the
      derivative near it, 2 w^2 / tau, is the same at all sizes of weights and all budgets.

  Returns:
    A Pruner without scores.

  Raises:
    ValueError: an option out of range, or a budget that cannot be met.
  """
  if temperature <= 0:
    raise ValueError(f'temperature is {temperature}; expected a number > 0.')

  def rule(problem: Problem, now: Moment) -> tuple[Array, Array]:
    if problem.keep == 1:  # no threshold lies below a layer that stays whole
      return jnp.ones_like(now.magnitudes), as_state(now.magnitudes)
    fixed = lax.stop_gradient(now.magnitudes)
    kept = problem.hard(fixed, now.keep)
    smallest = jnp.min(fixed, axis=-1, keepdims=True, where=kept, initial=jnp.inf)
    largest = jnp.max(fixed, axis=-1, keepdims=True, where=~kept, initial=0.0)
    threshold = jnp.where(jnp.isinf(smallest), largest, 0.5 * (smallest + largest))
    tau = temperature * threshold**2 + jnp.finfo(threshold.dtype).tiny
    mask = jax.nn.sigmoid((now.magnitudes**2 - threshold**2) / tau)
    return mask, as_state(now.magnitudes)

  way = cubic(steps, ramp, initial=1.0)
  return bundle(elements, budget, start=from_magnitudes, rule=rule, ramp=way)


def _ranked_once(problem: Problem, now: Moment) -> tuple[Array, Array]:
  return problem.hard(now.state).astype(now.state.dtype), now.state


def _everything(problem: Problem, now: Moment) -> tuple[Array, Array]:
  del problem
  return jnp.ones_like(now.state), now.state
