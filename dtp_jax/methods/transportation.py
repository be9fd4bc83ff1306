"""Differentiable transportation pruning (Li et al., ICCV 2023, arXiv:2307.08483)."""

from typing import Literal

import jax.numpy as jnp
import optax

from dtp_jax import transport
from dtp_jax.budget import Budget
from dtp_jax.methods.pruner import (
  PruningMethod,
  Schedule,
  bundle,
  keep_at,
  standardised,
  total_keep,
)
from dtp_jax.prunable import Prunable

__all__ = ['cubic_ramp', 'transportation']

Preset = Literal['default', 'paper']


def transportation(
  prunable: Prunable,
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
) -> PruningMethod:
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
    prunable: the elements.
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
    A PruningMethod with one trainable score and one float of state per element.

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

  def begin(magnitudes):
    rest = {name: transport.init(x) for name, x in magnitudes.items()}
    return rest, standardised(magnitudes) if start == 'magnitude' else rest

  def rule(problem, magnitudes, scores, log_odds, step):
    del magnitudes
    rho = keep_at(problem, ramp(step), target) if ramp is not None else problem.keep
    ceiling = None
    if deadline is not None:
      left = jnp.maximum(0.0, 1 - (step + 1) / deadline)
      ceiling = problem.rest_softness(rho) * left
    return problem.proximal(
      scores,
      log_odds,
      keep=rho,
      epsilon=epsilon(step) if callable(epsilon) else epsilon,
      memory=memory,
      projection=projection,
      ceiling=ceiling,
    )

  method = bundle(prunable, budget, start=begin, rule=rule)
  target = total_keep(method.problems)
  ramp = (cubic_ramp(target, round(0.4 * steps)) if default else None) if keep == 'preset' else keep
  return method


def cubic_ramp(target: float, steps: int, *, initial: float = 0.9) -> Schedule:
  """The kept fraction from `initial` down to `target` along a cubic (Zhu & Gupta 2017).

  Args:
    target: final fraction, in [0, 1].
    steps: length of the ramp; 0 is the target from the start.
    initial: first fraction; the target where that is larger.

  Returns:
    A schedule.
  """
  if steps <= 0:
    return optax.constant_schedule(target)
  return optax.polynomial_schedule(max(initial, target), target, power=3, transition_steps=steps)
