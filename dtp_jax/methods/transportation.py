"""Differentiable transportation pruning (Li et al., ICCV 2023, arXiv:2307.08483)."""

import inspect
from collections.abc import Callable
from typing import Any, Literal

import jax.numpy as jnp
from jax import Array, lax

from dtp_jax import transport
from dtp_jax.budget import Budget
from dtp_jax.budget.problem import Problem
from dtp_jax.graph import Graph
from dtp_jax.methods.evidence import log_importance, probed, second_moment
from dtp_jax.methods.options import check_share, check_steps
from dtp_jax.methods.pruner import Moment, Pruner, Schedule, at_rest, bundle
from dtp_jax.methods.ramp import cubic, ramp_steps
from dtp_jax.methods.registry import register
from dtp_jax.prunable import Prunable

__all__ = ['evidential', 'proximal', 'transportation']

# The gain is also the factor of the derivative that is kept: with the softness forced to 0, a last
# fractional element would make it unbounded, and the weights diverge.
_LEFT_AT_LEAST = 0.01


@register
def transportation(
  elements: Graph | Prunable,
  budget: Budget,
  *,
  steps: int,
  preset: Literal['default', 'paper'] = 'default',
  **options: Any,
) -> Pruner:
  """DTP: soft masks by transport that anneal to hard ones.

  Args:
    elements: what may be pruned; a graph stands for all of its channels.
    budget: how much to keep.
    steps: length of the soft stage in steps, >= 1.
    preset: 'default' is `evidential`, 'paper' is `proximal`.
    **options: of that function.

  Returns:
    A Pruner with one score and one float of state per element.

  Raises:
    ValueError: an unknown preset or option, one out of range, or a budget that cannot be met.
  """
  presets: dict[str, Callable[..., Pruner]] = {'default': evidential, 'paper': proximal}
  if preset not in tuple(presets):
    raise ValueError(f"preset is {preset!r}; expected 'default' or 'paper'.")
  check_steps(steps)
  known = list(inspect.signature(presets[preset]).parameters)[3:]  # after the budget and steps
  unknown = sorted(set(options) - set(known))
  if unknown:
    raise ValueError(f'preset {preset!r} has no option {unknown[0]!r}; expected some of {known}.')
  return presets[preset](elements, budget, steps=steps, **options)


def evidential(
  elements: Graph | Prunable,
  budget: Budget,
  *,
  steps: int,
  share: float = 0.5,
  derivative: float = 0.3,
  decay: float = 0.95,
  ramp: float = 0.4,
  deadline: float = 0.9,
) -> Pruner:
  """DTP by evidence: soft masks by transport, with an exact budget and a softness that falls.

  The importance of an element is half the size of its weights and half what the loss says about it
  (`evidence.log_importance`); no score is learned by its gradient. Every step solves the entropic
  plan of the present importances for two numbers, the dual that meets the budget of the step and
  the temperature that meets its softness:

      rho_t falls from 0.9 to the budget along a cubic, over `ramp` of the soft stage,
      S_t = S_rest(rho_t) max(0.01, 1 - (t + 1) / (deadline steps))

  with S_rest the softness of the softest mask of that budget. Rows of an array that are budgets of
  their own share the temperature and have a dual each (`transport.anneal_rows`). The gradient
  reaches the weights through the mask as well, as in Spartan (arXiv:2205.14107): with log-odds in
  proportion to log |w| the masked weight of an element near the threshold is a power of w (as in
  arXiv:2110.00296). Only a part of that derivative is kept: the gain multiplies it, and whole it
  made one of eight long soft stages diverge.

  Start from a trained network. The evidence reads a large gradient as importance, which is true
  where gradients are noise about a minimum and false far away from one.

  Args:
    elements: what may be pruned; a graph stands for all of its channels.
    budget: how much to keep.
    steps: length of the soft stage in steps, >= 1.
    share: weight of the evidence, in [0, 1]; the rest is the magnitude's.
    derivative: part of the derivative through the importance that is kept, in [0, 1].
    decay: of the running mean of the evidence, in [0, 1).
    ramp: share of the soft stage in which the budget is reached, in [0, 1].
    deadline: share of the soft stage by which the mask is hard, in (0, 1].

  Returns:
    A Pruner whose scores are the evidence, moved by its `score_optimizer`.

  Raises:
    ValueError: an option out of range, or a budget that cannot be met.
  """
  check_share('share', share)
  check_share('derivative', derivative)
  check_share('deadline', deadline, '(]', 'a share of the soft stage')
  hard_at = max(1, ramp_steps(steps, deadline))

  def rule(problem: Problem, now: Moment) -> tuple[Array, Array]:
    evidence, prices = lax.stop_gradient(now.scores), problem.prices(now.state)
    left = jnp.maximum(_LEFT_AT_LEAST, 1 - (now.step + 1) / hard_at)
    importance = log_importance(now.magnitudes, evidence, prices, share=share)
    fixed = lax.stop_gradient(importance)
    mask, log_odds = problem.anneal(
      fixed + derivative * (importance - fixed),
      now.state,
      keep=now.keep,
      ceiling=problem.rest_softness(now.keep) * left,
    )
    return probed(mask, now.scores), log_odds

  pruner = bundle(elements, budget, start=at_rest, rule=rule, ramp=cubic(steps, ramp, initial=0.9))
  return pruner._replace(score_optimizer=second_moment(decay))


def proximal(
  elements: Graph | Prunable,
  budget: Budget,
  *,
  steps: int,
  epsilon: float | Schedule = 1.0,
  memory: float = 1.0,
  projection: transport.Projection = 'sinkhorn',
) -> Pruner:
  """The paper's rule: scores trained by their gradient, masks by one proximal step of the plan.

  Log-odds and scores start at rest (0), the budget is constant and there is no deadline: when the
  mask becomes hard is left to epsilon and to the step of the scores (`transport.proximal_step`).

  Args:
    elements: what may be pruned; a graph stands for all of its channels.
    budget: how much to keep.
    steps: length of the soft stage in steps, >= 1; nothing here depends on it.
    epsilon: step size of the plan, > 0; a number or a schedule of the soft step. For a mask that is
      hard after a chosen number of steps see `transport.hardening_epsilon`.
    memory: gamma in [0, 1], see `transport.proximal_step`; 1 is the paper.
    projection: 'sinkhorn', one iteration a step (the paper), or 'exact'.

  Returns:
    A Pruner with one trainable score and one float of state per element.

  Raises:
    ValueError: an option out of range, or a budget that cannot be met.
  """
  del steps

  def rule(problem: Problem, now: Moment) -> tuple[Array, Array]:
    return problem.proximal(
      now.scores,
      now.state,
      keep=now.keep,
      epsilon=epsilon(now.step) if callable(epsilon) else epsilon,
      memory=memory,
      projection=projection,
    )

  return bundle(elements, budget, start=at_rest, rule=rule)
