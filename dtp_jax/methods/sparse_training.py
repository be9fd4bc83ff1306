"""Baselines that choose by magnitude and differ in how elements leave and return."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from dtp_jax import transport
from dtp_jax.budget import Budget
from dtp_jax.budget.problem import CountProblem, Problem
from dtp_jax.graph import Graph
from dtp_jax.methods.pruner import Moment, Pruner, bundle
from dtp_jax.methods.ramp import ramp_steps
from dtp_jax.methods.registry import register
from dtp_jax.prunable import Prunable

__all__ = ['acdc', 'greg', 'rigl']

Elements = Graph | Prunable
Named = dict[str, Array]

_PENALTY = 3.5  # a mask of exp(-3.5^2 / 2), two thousandths, counts as dropped


@register
def acdc(elements: Elements, budget: Budget, *, steps: int, phases: int = 4) -> Pruner:
  """AC/DC (Peste et al. 2021, arXiv:2106.12379): dense and sparse phases in turn.

  The soft stage is cut into phases of one length, the first dense and the last sparse. A sparse
  phase keeps the largest elements at its beginning. Dropped elements come back with the values
  they left with, decayed; the paper's come back with 0.

  Args:
    elements: what may be pruned.
    budget: how much to keep.
    steps: length of the soft stage in steps, >= `phases`.
    phases: how many, even, >= 2.

  Returns:
    A Pruner without scores.

  Raises:
    ValueError: an option out of range, or a budget that cannot be met.
  """
  if phases < 2 or phases % 2:
    raise ValueError(f'phases is {phases}; expected an even number of at least 2.')
  if steps < 1:
    raise ValueError(f'steps is {steps}; expected a soft stage of at least 1 step.')

  def rule(problem: Problem, now: Moment) -> tuple[Array, Array]:
    # In whole numbers; the soft stage ends in a sparse phase however short it is.
    sparse = jnp.minimum(now.step * phases // steps, phases - 1) % 2 == 1
    kept = problem.hard(now.state).astype(now.magnitudes.dtype)
    ranking = jnp.where(sparse, now.state, lax.stop_gradient(now.magnitudes))
    return jnp.where(sparse, kept, 1.0), ranking.astype(now.state.dtype)

  return bundle(elements, budget, start=_by_magnitude, rule=rule)


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

  return bundle(elements, budget, start=_by_magnitude, rule=rule)


@register
def rigl(
  elements: Prunable,
  budget: Budget,
  *,
  steps: int,
  moved: float = 0.3,
  updates: int = 20,
) -> Pruner:
  """RigL (Evci et al. 2020, arXiv:1911.11134): drops by magnitude and grows by gradient.

  Sparse from the first step. Every steps / updates steps the smallest part of what is kept makes
  room for as many dropped weights, those of the largest |dL/dw|; the part falls along a cosine.
  Grown weights return with the values they left with; the paper's begin at 0.

  Args:
    elements: single weights, rows or blocks.
    budget: how much to keep, a count.
    steps: length of the soft stage in steps, >= 1.
    moved: part that changes places at the first update, in [0, 1].
    updates: how many there are, >= 1.

  Returns:
    A Pruner whose scores are |w dL/dw| of the present step, moved by its `score_optimizer`.

  Raises:
    ValueError: an option out of range, a budget that cannot be met, or one that is not a count.
  """
  if not 0 <= moved <= 1 or updates < 1:
    raise ValueError(
      f'moved is {moved} and updates {updates}; expected a part in [0, 1] and at least 1.'
    )
  every = max(1, ramp_steps(steps, 1.0) // updates)

  def rule(problem: Problem, now: Moment) -> tuple[Array, Array]:
    if not isinstance(problem, CountProblem):
      raise ValueError('rigl exchanges as many weights as it drops; expected a budget of a count.')
    size, state = lax.stop_gradient(now.magnitudes), now.state
    kept = problem.hard(state)
    part = 0.5 * moved * (1 + jnp.cos(jnp.pi * now.step / steps))
    part = jnp.where((now.step > 0) & (now.step % every == 0), part, 0.0)
    stay = jnp.round(problem.k * (1 - part)).astype(jnp.int32)
    old = transport.hard_topk(jnp.where(kept, size, -1.0), stay)
    slope = now.scores / (size + jnp.finfo(size.dtype).tiny)
    # What stays ranks first, then what was not kept by its slope, then what was dropped just now.
    grown = jnp.where(kept, -1.0, slope / (1 + jnp.max(slope)))
    ranking = jnp.where(part > 0, jnp.where(old, 2.0, grown), state)
    mask = problem.hard(ranking).astype(size.dtype)
    return mask + (now.scores - lax.stop_gradient(now.scores)), ranking.astype(state.dtype)

  pruner = bundle(elements, budget, start=_by_magnitude_with_scores, rule=rule)
  return pruner._replace(score_optimizer=_latest())


def _latest() -> optax.GradientTransformation:
  """A transform under which parameters become the size of their latest gradient."""

  def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    return jax.tree.map(lambda g, s: jnp.abs(g) - s, updates, params), state

  return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _by_magnitude(magnitudes: Named) -> tuple[Named, Named]:
  """No scores; the magnitudes to rank by, in float32 or wider."""
  return {}, {
    name: lax.stop_gradient(x).astype(jnp.promote_types(x.dtype, jnp.float32))
    for name, x in magnitudes.items()
  }


def _by_magnitude_with_scores(magnitudes: Named) -> tuple[Named, Named]:
  """The same beside scores of 0."""
  ranking = _by_magnitude(magnitudes)[1]
  return {name: jnp.zeros_like(x) for name, x in ranking.items()}, ranking
