"""AC/DC and RigL: baselines of single weights whose dropped weights are 0 and return from there."""

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from dtp_jax.budget import Budget
from dtp_jax.budget.problem import Problem
from dtp_jax.graph import Graph
from dtp_jax.methods.evidence import mean_gradient
from dtp_jax.methods.options import check_share, check_steps
from dtp_jax.methods.pruner import Moment, Pruner, as_state, at_rest, bundle, from_magnitudes
from dtp_jax.methods.registry import register
from dtp_jax.methods.restarting import with_dense_gradient
from dtp_jax.prunable import Prunable
from dtp_jax.transport import hard_topk

__all__ = ['acdc', 'rigl']

Named = dict[str, Array]


@register
def acdc(elements: Prunable, budget: Budget, *, steps: int, cycles: int = 8) -> Pruner:
  """AC/DC: sparse and dense phases in turn (Peste et al. 2021, arXiv:2106.12379).

  A sparse phase begins with the largest weights of the moment and keeps to them; the others are 0.
  In a dense phase all weights are trained, the dropped ones from 0 on. The lengths are those of the
  paper's ImageNet runs in shares of the soft stage: with 8 cycles, a dense start of 10 %, phases of
  5 % in turn, a last dense phase of 10 % and a last sparse one of 15 %, whose mask is the final
  one. With c cycles the unit is 1 / (2 c + 4) in place of 5 %.

  Momentum is set to 0 where a weight is; the paper's code resets all of it when a dense phase
  begins.

  Args:
    elements: single weights, rows of N:M or blocks.
    budget: how much a sparse phase keeps.
    steps: length of the soft stage in steps, >= 1.
    cycles: number of sparse phases, >= 1.

  Returns:
    A Pruner without scores, whose optimizer needs the masks (`Pruner.restarts`).

  Raises:
    ValueError: channels, an option out of range, or a budget that cannot be met.
  """
  _refuse_channels(elements, 'acdc')
  bounds = np.asarray(_phases(steps, cycles))

  def sparse(step: Array) -> Array:
    return jnp.sum(step >= bounds) % 2 == 1

  def rule(problem: Problem, now: Moment) -> tuple[Array, Array]:
    goes_on = sparse(now.step) & sparse(now.step - 1)
    ranking = jnp.where(goes_on, now.state, as_state(now.magnitudes))
    mask = problem.hard(ranking) | ~sparse(now.step)
    return mask.astype(now.magnitudes.dtype), ranking

  pruner = bundle(elements, budget, start=from_magnitudes, rule=rule)
  return pruner._replace(restarts=True)


@register
def rigl(
  elements: Prunable,
  budget: Budget,
  *,
  steps: int,
  drop: float = 0.3,
  every: float = 0.02,
  until: float = 0.75,
  decay: float = 0.0,
) -> Pruner:
  """RigL: drops by magnitude, grows by gradient (Evci et al. 2020, arXiv:1911.11134).

  The mask begins with the largest weights. At regular steps t the smallest of those that are kept
  are dropped, a share drop / 2 (1 + cos(pi t / T)) of them, and as many of the others return, those
  with the largest gradient of the loss; they start at 0. From T, `until` of the soft stage, on the
  mask stays.

  Differences to the paper: the gradient is that of the step before, and the weights make a step
  also where the mask moves. The paper starts from random weights under a random mask, layer by
  layer (`Budget(scope='erk')`), and moves the mask every 100 of 25,000 steps; in a soft stage of
  some hundred steps that would be every step or two, too short for a new weight to grow.

  Args:
    elements: single weights or rows of N:M; of blocks, growth is by the size of the sum of a
      block's gradients.
    budget: how much is kept, from the first step on.
    steps: length of the soft stage in steps, >= 1.
    drop: largest share of the kept weights that is dropped at once, in [0, 1].
    every: share of the soft stage between two moves of the mask, in (0, 1].
    until: share of the soft stage after which the mask stays, in (0, 1].
    decay: of the running mean of the gradient that growth goes by, in [0, 1); 0 is the paper, the
      gradient of one batch.

  Returns:
    A Pruner whose scores are that gradient, moved by its `score_optimizer`, and whose optimizer
    needs the masks (`Pruner.restarts`).

  Raises:
    ValueError: channels, an option out of range, or a budget that cannot be met.
  """
  _refuse_channels(elements, 'rigl')
  check_steps(steps)
  check_share('drop', drop, what='a share of the kept weights')
  for name, share in {'every': every, 'until': until}.items():
    check_share(name, share, '(]', 'a share of the soft stage')
  period, end = max(1, round(every * steps)), max(1, round(until * steps))

  def start(magnitudes: Named) -> tuple[Named, Named]:
    return at_rest(magnitudes)[0], from_magnitudes(magnitudes)[1]

  def rule(problem: Problem, now: Moment) -> tuple[Array, Array]:
    kept = problem.hard(now.state)
    size, gradient = lax.stop_gradient((now.magnitudes, now.scores))
    share = 0.5 * drop * (1 + jnp.cos(jnp.pi * now.step / end))
    moves = (now.step > 0) & (now.step % period == 0) & (now.step < end)
    following = lax.cond(
      moves,
      lambda: _moved(kept, size, jnp.abs(gradient), share).astype(now.state.dtype),
      lambda: now.state,
    )
    probe = now.scores - gradient  # 0, with the gradient of the masks
    return kept.astype(probe.dtype) + probe, following

  pruner = bundle(elements, budget, start=start, rule=rule)
  return pruner._replace(
    elements=with_dense_gradient(pruner.elements),
    score_optimizer=mean_gradient(decay),
    restarts=True,
  )


def _moved(kept: Array, size: Array, growth: Array, share: Array) -> Array:
  """The next mask: the smallest of those kept give way to those of the largest growth.

  What was dropped may win again at once, and then stays as it is.
  """
  number = jnp.sum(kept, axis=-1, dtype=jnp.int32)
  dropped = jnp.floor(share * number).astype(jnp.int32)
  strong = hard_topk(jnp.where(kept, size, -jnp.inf), number - dropped)
  return strong | hard_topk(jnp.where(strong, -jnp.inf, growth), dropped)


def _phases(steps: int, cycles: int) -> list[int]:
  """The steps at which a phase begins, sparse ones first; the first dense one began before."""
  check_steps(steps)
  if not isinstance(cycles, int) or cycles < 1:
    raise ValueError(f'cycles is {cycles!r}; expected a number of sparse phases >= 1.')
  units = [*range(2, 2 * cycles), 2 * cycles + 1]
  # The last phase is sparse, and has a step in the shortest soft stage.
  return [min(round(u * steps / (2 * cycles + 4)), steps - 1) for u in units]


def _refuse_channels(elements: object, name: str) -> None:
  if isinstance(elements, Graph) or getattr(elements, 'graph', None) is not None:
    raise ValueError(
      f'{name} is given channels; its paper is of single weights, whose dropped ones are 0 and '
      'return from there: expected dtp_jax.weights(params), nm or blocks. For channels take greg, '
      'gradual_magnitude or transportation.'
    )
