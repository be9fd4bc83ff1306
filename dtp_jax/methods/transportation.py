"""Differentiable transportation pruning (Li et al., ICCV 2023, arXiv:2307.08483)."""

from typing import Literal

import jax.numpy as jnp
from jax import Array

from dtp_jax import transport
from dtp_jax.budget import Budget
from dtp_jax.budget.problem import Problem
from dtp_jax.graph import Graph
from dtp_jax.methods.pruner import Moment, Pruner, Schedule, bundle, standardised
from dtp_jax.methods.ramp import cubic
from dtp_jax.methods.registry import register
from dtp_jax.prunable import Prunable

__all__ = ['transportation']

Preset = Literal['default', 'paper']


@register
def transportation(
  elements: Graph | Prunable,
  budget: Budget,
  *,
  steps: int,
  preset: Preset = 'default',
  epsilon: float | Schedule = 1.0,
  memory: float = 1.0,
  projection: transport.Projection = 'sinkhorn',
  start: Literal['preset', 'rest', 'magnitude'] = 'preset',
  keep: Literal['preset'] | Schedule | None = 'preset',
  deadline: Literal['preset'] | int | None = 'preset',
) -> Pruner:
  """DTP: trainable scores become soft masks by transport and anneal to hard ones.

  Every step of the soft stage takes one proximal step of the plan (`transport.proximal_step`).
  Scores start at rest (0); the prior, if any, is in the log-odds of the first plan.

  Two presets fill in what is not given. 'default': log-odds started at the weight magnitudes
  (standardised per array), the kept fraction ramped down from 0.9 along a cubic over 40 % of the
  soft stage, hard by 90 % of it. 'paper': the pure rule, log-odds at rest, constant budget, no
  deadline; when it becomes hard is left to epsilon and the score step.

  The annealed exact soft top-k on the present scores is `memory=0, projection='exact'` with an
  epsilon schedule.

  Args:
    elements: what may be pruned; a graph stands for all of its channels.
    budget: how much to keep.
    steps: length of the soft stage in steps, >= 1.
    preset: see above.
    epsilon: step size of the plan, > 0; a number or a schedule of the soft step.
    memory: gamma in [0, 1], see `transport.proximal_step`; 1 is the paper.
    projection: 'sinkhorn', one iteration a step (the paper), or 'exact'.
    start: log-odds of the first plan, 'rest' or 'magnitude'.
    keep: schedule of the overall kept fraction by soft step, any optax schedule; None keeps it at
      the budget from the start. It should end at the budget: the hard mask is exact regardless.
    deadline: soft steps until the mask is hard, >= 1: the softness is held under that of the
      softest mask of the present budget (4 rho (1 - rho) for a count), times 1 - step / deadline,
      and the budget is then met exactly at every step. None is the pure rule.

  Returns:
    A Pruner with one trainable score and one float of state per element.

  Raises:
    ValueError: an option out of its range.
  """
  if steps < 1:
    raise ValueError(f'steps is {steps}; expected a soft stage of at least 1 step.')
  if preset not in ('default', 'paper'):
    raise ValueError(f"preset is {preset!r}; expected 'default' or 'paper'.")
  default = preset == 'default'
  if start == 'preset':
    start = 'magnitude' if default else 'rest'
  if start not in ('rest', 'magnitude'):
    raise ValueError(f"start is {start!r}; expected 'rest' or 'magnitude'.")
  if deadline == 'preset':
    deadline = max(1, round(0.9 * steps)) if default else None
  if deadline is not None and deadline < 1:
    raise ValueError(f'deadline is {deadline}; expected at least 1 step, or None.')

  def begin(magnitudes: dict[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
    rest = {name: transport.init(x) for name, x in magnitudes.items()}
    return rest, standardised(magnitudes) if start == 'magnitude' else rest

  def rule(problem: Problem, now: Moment) -> tuple[Array, Array]:
    ceiling = None
    if deadline is not None:
      left = jnp.maximum(0.0, 1 - (now.step + 1) / deadline)
      ceiling = problem.rest_softness(now.keep) * left
    return problem.proximal(
      now.scores,
      now.state,
      keep=now.keep,
      epsilon=epsilon(now.step) if callable(epsilon) else epsilon,
      memory=memory,
      projection=projection,
      ceiling=ceiling,
    )

  if keep == 'preset':
    ramp = cubic(steps, 0.4, initial=0.9) if default else None
  else:
    ramp = None if keep is None else lambda target: keep
  return bundle(elements, budget, start=begin, rule=rule, ramp=ramp)
