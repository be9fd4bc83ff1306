"""The baselines every result is measured against, behind the same interface."""

import zlib

import jax
import jax.numpy as jnp
from jax import Array, lax

from dtp_jax.budget import Budget
from dtp_jax.methods.pruner import PruningMethod, bundle, keep_at, standardised, total_keep
from dtp_jax.methods.transportation import cubic_ramp
from dtp_jax.prunable import Prunable

__all__ = [
  'dense',
  'gradual_magnitude',
  'magnitude',
  'pdp',
  'random',
  'spartan',
  'straight_through',
]


def dense(prunable: Prunable) -> PruningMethod:
  """Keeps everything: the row every table starts with."""
  rule = lambda problem, magnitudes, scores, state, step: (jnp.ones_like(state), state)
  return bundle(prunable, Budget(1.0), start=_from_magnitudes, rule=rule)


def magnitude(prunable: Prunable, budget: Budget) -> PruningMethod:
  """One-shot magnitude: the k largest when the stage begins, fixed from then on."""
  return bundle(prunable, budget, start=_from_magnitudes, rule=_ranked_once)


def random(prunable: Prunable, budget: Budget, *, seed: int = 0) -> PruningMethod:
  """A random choice of k elements, fixed when the stage begins."""

  def start(magnitudes):
    key = jax.random.key(seed)

    def draw(name, x):
      return jax.random.uniform(jax.random.fold_in(key, zlib.crc32(name.encode())), x.shape)

    return {}, {name: draw(name, x) for name, x in magnitudes.items()}

  return bundle(prunable, budget, start=start, rule=_ranked_once)


def gradual_magnitude(prunable: Prunable, budget: Budget, *, steps: int) -> PruningMethod:
  """Gradual magnitude (Zhu & Gupta 2017, arXiv:1710.01878): the count falls along a cubic.

  Args:
    prunable: the elements.
    budget: how much to keep.
    steps: length of the ramp in soft steps.

  Returns:
    A PruningMethod; the mask is the hard top-k of the present magnitudes, so weights may return.
  """

  def rule(problem, magnitudes, scores, state, step):
    del scores, state
    mask = problem.hard(magnitudes, keep_at(problem, ramp(step), target))
    return mask.astype(magnitudes.dtype), _state(magnitudes)

  method = bundle(prunable, budget, start=_from_magnitudes, rule=rule)
  target = total_keep(method.problems)
  ramp = cubic_ramp(target, steps, initial=1.0)
  return method


def spartan(
  prunable: Prunable,
  budget: Budget,
  *,
  steps: int,
  beta: tuple[float, float] = (1.0, 20.0),
) -> PruningMethod:
  """Spartan's mask (Tai et al. 2022, arXiv:2205.14107): soft top-k of the weights' own magnitudes.

  The mask is the exact entropic plan with log-odds beta |w| / std(|w|) and beta ramped linearly;
  the gradient reaches the weights through the mask as well. Only the mask is Spartan's: its dual
  averaging (hard weights forward, dense ones updated) is not part of this baseline.

  Args:
    prunable: the elements.
    budget: how much to keep.
    steps: length of the ramp in soft steps, >= 1.
    beta: sharpness at the start and at the end of the ramp, > 0.

  Returns:
    A PruningMethod without scores.

  Raises:
    ValueError: beta not positive.
  """
  if min(beta) <= 0:
    raise ValueError(f'beta is {beta}; expected two numbers > 0.')

  def rule(problem, magnitudes, scores, state, step):
    del scores, state
    sharpness = beta[0] + (beta[1] - beta[0]) * jnp.minimum(1.0, step / steps)
    scale = lax.stop_gradient(jnp.std(magnitudes, axis=-1, keepdims=True))
    scaled = magnitudes / (scale + jnp.finfo(magnitudes.dtype).tiny)
    mask = problem.soft(scaled, keep=problem.keep, epsilon=2 / sharpness)
    return mask, _state(magnitudes)

  return bundle(prunable, budget, start=_from_magnitudes, rule=rule)


def straight_through(prunable: Prunable, budget: Budget, *, steps: int) -> PruningMethod:
  """Straight-through top-k on learned scores (as in movement pruning, arXiv:2005.07683).

  The forward mask is hard and the gradient passes to the scores as if it were the scores
  themselves. Scores start at the standardised magnitudes; the count falls along a cubic.

  Args:
    prunable: the elements.
    budget: how much to keep.
    steps: length of the ramp in soft steps.

  Returns:
    A PruningMethod with one trainable score per element.
  """

  def start(magnitudes):
    scores = standardised(magnitudes)
    return scores, scores

  def rule(problem, magnitudes, scores, state, step):
    del magnitudes, state
    hard = problem.hard(lax.stop_gradient(scores), keep_at(problem, ramp(step), target)).astype(
      scores.dtype
    )
    return hard + (scores - lax.stop_gradient(scores)), _state(scores)  # the bracket is exactly 0

  method = bundle(prunable, budget, start=start, rule=rule)
  target = total_keep(method.problems)
  ramp = cubic_ramp(target, steps, initial=1.0)
  return method


def pdp(
  prunable: Prunable, budget: Budget, *, steps: int, temperature: float = 0.01
) -> PruningMethod:
  """Parameter-free differentiable pruning (Cho et al. 2023, arXiv:2305.11203).

  m = sigmoid((w^2 - t^2) / tau) with t halfway between the smallest kept and the largest pruned
  magnitude; the kept fraction falls along a cubic.

  Args:
    prunable: the elements.
    budget: how much to keep.
    steps: length of the ramp in soft steps.
    temperature: tau in units of the mean of w^2, > 0 (ours: the paper's is absolute).

  Returns:
    A PruningMethod without scores.

  Raises:
    ValueError: temperature not positive.
  """
  if temperature <= 0:
    raise ValueError(f'temperature is {temperature}; expected a number > 0.')

  def rule(problem, magnitudes, scores, state, step):
    del scores, state
    if problem.keep == 1:  # no threshold lies below a layer that stays whole
      return jnp.ones_like(magnitudes), _state(magnitudes)
    fixed = lax.stop_gradient(magnitudes)
    kept = problem.hard(fixed, keep_at(problem, ramp(step), target))
    smallest = jnp.min(fixed, axis=-1, keepdims=True, where=kept, initial=jnp.inf)
    largest = jnp.max(fixed, axis=-1, keepdims=True, where=~kept, initial=0.0)
    threshold = jnp.where(jnp.isinf(smallest), largest, 0.5 * (smallest + largest))
    tau = temperature * jnp.mean(fixed**2, axis=-1, keepdims=True)
    tau = tau + jnp.finfo(tau.dtype).tiny
    return jax.nn.sigmoid((magnitudes**2 - threshold**2) / tau), _state(magnitudes)

  method = bundle(prunable, budget, start=_from_magnitudes, rule=rule)
  target = total_keep(method.problems)
  ramp = cubic_ramp(target, steps, initial=1.0)
  return method


def _from_magnitudes(magnitudes):
  return {}, {name: _state(x) for name, x in magnitudes.items()}


def _state(ranking: Array) -> Array:
  """The ranking to harden by, as the float32 state (float64 stays)."""
  return lax.stop_gradient(ranking).astype(jnp.promote_types(ranking.dtype, jnp.float32))


def _ranked_once(problem, magnitudes, scores, state, step):
  del magnitudes, scores, step
  return problem.hard(state).astype(state.dtype), state
