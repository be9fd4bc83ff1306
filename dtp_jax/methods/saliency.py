"""Gradual pruning by other rankings than the magnitude: baselines with a hard top-k every step."""

import jax.numpy as jnp
import optax
from jax import Array, lax

from dtp_jax.budget import Budget
from dtp_jax.budget.problem import Problem
from dtp_jax.graph import Graph
from dtp_jax.methods.baselines import gradual_magnitude
from dtp_jax.methods.evidence import first_moment, log_importance, probed, second_moment
from dtp_jax.methods.options import check_share
from dtp_jax.methods.pruner import Moment, Pruner, Schedule, at_rest, bundle
from dtp_jax.methods.ramp import ramp_steps
from dtp_jax.methods.registry import register
from dtp_jax.prunable import Params, Prunable, channels

__all__ = ['fisher', 'lamp', 'taylor']

Named = dict[str, Array]


@register
def lamp(elements: Graph | Prunable, budget: Budget, *, steps: int, ramp: float = 0.8) -> Pruner:
  """Gradual magnitude by LAMP scores (Lee et al. 2021, arXiv:2010.07611).

  The square of a weight over the sum of the squares of those of its array that are not smaller:
  one global ranking that no array leaves empty-handed.

  Args:
    elements: what may be pruned; a graph stands for all of its channels.
    budget: how much to keep.
    steps: length of the soft stage in steps, >= 1.
    ramp: share of it until the budget is reached, in [0, 1].

  Returns:
    A Pruner without scores.

  Raises:
    ValueError: an option out of range, or a budget that cannot be met.
  """
  elements = channels(elements) if isinstance(elements, Graph) else elements

  def magnitude(params: Params) -> Named:
    return {name: _lamp_scores(x) for name, x in elements.magnitude(params).items()}

  ranked = elements._replace(magnitude=magnitude)
  pruner = gradual_magnitude(ranked, budget, steps=steps, ramp=ramp)
  return pruner._replace(elements=elements)


@register
def fisher(
  elements: Graph | Prunable,
  budget: Budget,
  *,
  steps: int,
  decay: float = 0.95,
  wait: float = 0.1,
) -> Pruner:
  """Gradual pruning by evidence alone: the hard top-k of I / a (`evidence.log_importance`).

  On single weights this is what JaxPruner calls Adam-Fisher saliency (arXiv:2304.14082), on
  channels close to Group Fisher (arXiv:2108.00708). An element that was dropped has no evidence
  and does not return.

  Args:
    elements: what may be pruned; a graph stands for all of its channels.
    budget: how much to keep.
    steps: length of the soft stage in steps, >= 1.
    decay: of the running mean of the evidence, in [0, 1).
    wait: share of the soft stage that only gathers evidence, in [0, 1).

  Returns:
    A Pruner whose scores are the evidence, moved by its `score_optimizer`.

  Raises:
    ValueError: an option out of range, or a budget that cannot be met.
  """
  return _by_saliency(elements, budget, steps, second_moment(decay), wait)


@register
def taylor(
  elements: Graph | Prunable,
  budget: Budget,
  *,
  steps: int,
  decay: float = 0.95,
  wait: float = 0.1,
) -> Pruner:
  """Gradual pruning by the first-order saliency E|m dL/dm| per cost (arXiv:1906.10771).

  For a single weight |w dL/dw|. An element that was dropped has no saliency and does not return.

  Args:
    elements: what may be pruned; a graph stands for all of its channels.
    budget: how much to keep.
    steps: length of the soft stage in steps, >= 1.
    decay: of the running mean, in [0, 1).
    wait: share of the soft stage that only gathers the saliency, in [0, 1).

  Returns:
    A Pruner whose scores are the saliency, moved by its `score_optimizer`.

  Raises:
    ValueError: an option out of range, or a budget that cannot be met.
  """
  return _by_saliency(elements, budget, steps, first_moment(decay), wait)


def _by_saliency(
  elements: Graph | Prunable,
  budget: Budget,
  steps: int,
  gathered: optax.GradientTransformation,
  wait: float,
) -> Pruner:
  """The hard top-k of what `gathered` makes of the probe's gradient, per cost."""
  check_share('wait', wait, '[)', 'a share of the soft stage')
  begin = ramp_steps(steps, wait)

  def rule(problem: Problem, now: Moment) -> tuple[Array, Array]:
    size, evidence = lax.stop_gradient((now.magnitudes, now.scores))
    ranking = log_importance(size, evidence, problem.prices(now.state), share=1.0)
    mask = problem.hard(ranking, now.keep).astype(now.scores.dtype)
    return probed(mask, now.scores), ranking.astype(now.state.dtype)

  def way(target: float) -> Schedule:
    return optax.polynomial_schedule(1.0, target, 3, max(1, steps - begin), begin)

  pruner = bundle(elements, budget, start=at_rest, rule=rule, ramp=way)
  return pruner._replace(score_optimizer=gathered)


def _lamp_scores(x: Array) -> Array:
  squares = jnp.square(x.ravel())
  order = jnp.argsort(squares)
  rest = jnp.cumsum(squares[order][::-1])[::-1]  # itself and what is larger
  scores = squares[order] / jnp.maximum(rest, jnp.finfo(x.dtype).tiny)
  return jnp.zeros_like(squares).at[order].set(scores).reshape(x.shape)
