"""Two-column optimal transport from scores to masks: arrays in, arrays out.

n elements with source masses a (sum a = 1) are carried to the two points of a Bernoulli target,
"drop" with mass 1 - rho and "keep" with mass rho. The share of an element's mass that goes to
"keep" is its mask m in [0, 1]. With entropic regularisation eps the n x 2 problem has one unknown,
the dual nu of the budget:

    m_i = sigmoid(l_i + nu),   l_i = 2 s_i / eps,   nu such that  sum_i a_i m_i = rho          (1)

Differentiable transportation pruning (Li et al., ICCV 2023, arXiv:2307.08483) replaces the entropy
by the Kullback-Leibler divergence to the plan of the previous training step (IPOT, Xie et al.,
arXiv:1802.04307). The log-odds z of the mask then accumulate the scores and the mask hardens by
itself; z, one float per score, is the whole state.

What the budget counts is one of two arguments of every op:

  weights: source masses a. The column sum <a, m> is linear; the last axis is one problem and
    leading axes are a batch of independent ones. None is uniform, a count.
  cost: a function of the mask (n,) of one problem: the share F(m) / F(1) of a cost that does not
    add up over the elements, such as MACs, where the counts of two groups multiply each other. It
    takes the place of the column sum in (1), and its marginal prices dF/dm that of the masses.

Scores may have any float dtype; masks and states are float32 (float64 for float64 scores).
Only budgets and orders matter: adding a constant to all scores of a problem changes nothing.
"""

from typing import Literal

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from dtp_jax.transport import checks, solve
from dtp_jax.transport.annealing import annealed
from dtp_jax.transport.columns import Share
from dtp_jax.transport.rows import annealed_rows

__all__ = [
  'Projection',
  'anneal',
  'anneal_rows',
  'deadline_gain',
  'init',
  'project',
  'proximal_step',
  'sinkhorn_step',
  'soft_topk',
  'softness',
]

Projection = Literal['sinkhorn', 'exact']


def soft_topk(
  scores: ArrayLike,
  *,
  keep: ArrayLike,
  epsilon: ArrayLike,
  weights: ArrayLike | None = None,
  cost: Share | None = None,
) -> Array:
  """Entropic transport of scores to a budget: the exact solution of equation (1).

  The derivative is the closed form dm = d (dl - <a d, dl> / <a, d>), d = m (1 - m), through a
  custom JVP, so grad, jvp, vmap, scan and jit all work; it also holds for `keep`, `epsilon` and
  `weights`.

  >>> soft_topk(jnp.array([0.1, 0.9, 0.5]), keep=1 / 3, epsilon=0.01).round(3).tolist()
  [0.0, 1.0, 0.0]

  >>> share = lambda m: (m[0] + m[1]) * m[2] / 2  # two of one layer, read by one of the next
  >>> soft_topk(jnp.array([0.1, 0.9, 0.5]), keep=0.5, epsilon=0.01, cost=share).round(3).tolist()
  [0.0, 1.0, 1.0]

  Args:
    scores: (..., n) float, higher is more worth keeping; +inf and -inf are kept first and last. A
      NaN makes all masks of its problem NaN, here and in every op that is differentiable.
    keep: rho in [0, 1], the fraction of the budget's unit to keep; a float, a traced scalar, or an
      array of the batch shape (...). Where no mask attains it, because of what a cost has beside
      the elements, the nearest mask is given.
    epsilon: softness of the mask, > 0, in units of the scores; scalar or of the batch shape.
    weights: source masses a, >= 0, of shape (n,) or (..., n); None is uniform. They are normalised
      to sum to 1 over the last axis.
    cost: instead of weights, for scores (n,): mask (n,) -> share in [0, 1], a scalar, pure,
      differentiable and increasing in every entry. The programs compiled for it are found again by
      its hash, so pass the same function, not a new lambda; it must not close over traced values.

  Returns:
    Masks (..., n) in [0, 1], monotone in the scores, with sum_i a_i m_i = keep, or cost(m) = keep.

  Raises:
    ValueError: scores empty or not float, keep outside [0, 1], epsilon <= 0, weights negative, all
      zero or of another shape, a cost that is no function or comes with weights or a batch (values
      are checked where they are not traced).
  """
  s = checks.floats('scores', scores)
  rho = checks.in_range('keep', keep, 0.0, 1.0, s)
  column = checks.column('scores', s, weights, cost)
  return solve.soft_topk(s, rho, checks.positive('epsilon', epsilon, s), column)


def init(scores: ArrayLike) -> Array:
  """The state at rest: log-odds 0 for every score, that is the uniform plan P_0.

  Args:
    scores: (..., n) float.

  Returns:
    Zeros (..., n), float32 (float64 for float64 scores).

  Raises:
    ValueError: scores empty or not float.
  """
  return jnp.zeros_like(checks.floats('scores', scores))


def sinkhorn_step(
  log_odds: ArrayLike,
  *,
  keep: ArrayLike,
  weights: ArrayLike | None = None,
  cost: Share | None = None,
  degree: int | None = None,
) -> Array:
  """One Sinkhorn iteration, columns first and rows last, with the dual absorbed in the log-odds.

      z <- z + logit(rho) - logit(sum_i a_i sigmoid(z_i))

  Iterated, it converges to the exact projection (`project`). The two column sums are taken in the
  log domain and neither is formed by subtraction, so hard plans do not underflow. Under a cost the
  shift is divided by its degree: undamped it is a contraction for linear column sums alone.

  Args:
    log_odds: (..., n) finite float.
    keep: as in `soft_topk`.
    weights: as in `soft_topk`.
    cost: as in `soft_topk`.
    degree: with a cost, how many masks multiply each other in a term of it, >= 1.

  Returns:
    Shifted log-odds (..., n); sigmoid of them is the mask.

  Raises:
    ValueError: as `soft_topk`; a cost without a degree, or a degree without a cost.
  """
  z = checks.floats('log_odds', log_odds)
  rho = checks.in_range('keep', keep, 0.0, 1.0, z)
  column = checks.column('log_odds', z, weights, cost, degree, iterates=True)
  return solve.sinkhorn_step(z, rho, column)


def project(
  log_odds: ArrayLike,
  *,
  keep: ArrayLike,
  weights: ArrayLike | None = None,
  cost: Share | None = None,
) -> Array:
  """The shift of the log-odds that meets the budget exactly: equation (1) with l = log_odds.

  Args:
    log_odds: (..., n) finite float.
    keep: as in `soft_topk`.
    weights: as in `soft_topk`.
    cost: as in `soft_topk`.

  Returns:
    Shifted log-odds (..., n), differentiable as `soft_topk` is.

  Raises:
    ValueError: as `soft_topk`.
  """
  z = checks.floats('log_odds', log_odds)
  rho = checks.in_range('keep', keep, 0.0, 1.0, z)
  return solve.project(z, rho, checks.column('log_odds', z, weights, cost))


def proximal_step(
  scores: ArrayLike,
  state: ArrayLike,
  *,
  keep: ArrayLike,
  epsilon: ArrayLike,
  weights: ArrayLike | None = None,
  cost: Share | None = None,
  degree: int | None = None,
  memory: ArrayLike = 1.0,
  projection: Projection = 'sinkhorn',
  ceiling: ArrayLike | None = None,
) -> tuple[Array, Array]:
  """One Bregman proximal step of the plan: the rule of differentiable transportation pruning.

      z_t = memory z_{t-1} + 2 (s_t - <a, s_t>) / epsilon + shift,   m_t = sigmoid(z_t)

  where the shift, of all log-odds of a problem alike, is the dual of the budget. Under a cost a are
  its marginal prices dF/dm at m = 1, normalised.

  The gradient is that of the current step (z_{t-1} is stopped). With constant scores, memory 1 and
  the exact projection, t steps equal `soft_topk` at epsilon / t: the mask anneals by itself.

  Args:
    scores: (..., n) float.
    state: (..., n) log-odds z_{t-1} from `init` or from the previous step.
    keep: as in `soft_topk`; may change from step to step.
    epsilon: step size of the plan, > 0: a smaller one hardens sooner.
    weights: as in `soft_topk`.
    cost: as in `soft_topk`.
    degree: as in `sinkhorn_step`; not needed for the exact projection.
    memory: gamma in [0, 1]. 1 is the paper; below 1 the entropy is mixed in, the mask remembers
      about 1 / (1 - gamma) steps and anneals down to `soft_topk` at epsilon (1 - gamma); 0 is
      `soft_topk` of the present scores.
    projection: 'sinkhorn' is one iteration (the paper), 'exact' solves for the dual.
    ceiling: optional bound on the softness (see `softness`) of the mask, in [0, 1]. Where the step
      alone is softer, the log-odds, centred at the threshold, are multiplied by the smallest gain
      that meets it (`deadline_gain`). With a ceiling the log-odds are projected exactly before the
      step's own projection: a mask this hard can follow a changing `keep` only so.

  Returns:
    The mask (..., n) in [0, 1], differentiable in scores, and the new state (..., n), not
    differentiable.

  Raises:
    ValueError: as `sinkhorn_step`; state of another shape, epsilon <= 0, memory or ceiling outside
      [0, 1], unknown projection.
  """
  s, z = checks.floats('scores', scores), checks.floats('state', state)
  rho = checks.in_range('keep', keep, 0.0, 1.0, s)
  if z.shape != s.shape:
    raise ValueError(f'state has shape {z.shape}; expected that of scores, {s.shape}.')
  if projection not in ('sinkhorn', 'exact'):
    raise ValueError(f"projection is {projection!r}; expected 'sinkhorn' or 'exact'.")
  exact = projection == 'exact'
  column = checks.column('scores', s, weights, cost, degree, iterates=not exact)
  epsilon = checks.positive('epsilon', epsilon, s)
  memory = checks.in_range('memory', memory, 0.0, 1.0, s)
  if ceiling is not None:
    ceiling = checks.in_range('ceiling', ceiling, 0.0, 1.0, s)
  return solve.proximal_step(s, z, rho, epsilon, column, memory, ceiling, exact=exact)


def anneal(
  scores: ArrayLike,
  state: ArrayLike,
  *,
  keep: ArrayLike,
  ceiling: ArrayLike,
  epsilon: ArrayLike = 1e2,
  weights: ArrayLike | None = None,
  cost: Share | None = None,
) -> tuple[Array, Array]:
  """The entropic plan of the present scores at the temperature that a softness asks for.

      m_i = sigmoid(kappa s_i + nu),   F(m) = keep,   softness(m) <= ceiling

  with the smallest gain kappa >= 2 / epsilon: a `proximal_step` without memory and with a ceiling,
  but solved for both unknowns at once and from where the last step left them. Where they moved by
  some per cent that takes two passes over the scores. What the mask uses is off by less than 1e-3
  of keep, mostly by 1e-5, and the ceiling is met within 2e-3. Limits of the gain: see
  `deadline_gain`.

  The derivative is that of `soft_topk` with the gain held.

  Args:
    scores: (..., n) float.
    state: (..., n) log-odds of the step before, or of `init`. They are where the search begins, and
      nothing else depends on them.
    keep: as in `soft_topk`.
    ceiling: largest softness (see `softness`), in [0, 1].
    epsilon: of the softest plan, > 0.
    weights: as in `soft_topk`.
    cost: as in `soft_topk`.

  Returns:
    The mask (..., n) in [0, 1], differentiable in scores, and its log-odds (..., n), not
    differentiable.

  Raises:
    ValueError: as `soft_topk`; state of another shape, ceiling outside [0, 1].
  """
  s, z = checks.floats('scores', scores), checks.floats('state', state)
  rho = checks.in_range('keep', keep, 0.0, 1.0, s)
  if z.shape != s.shape:
    raise ValueError(f'state has shape {z.shape}; expected that of scores, {s.shape}.')
  column = checks.column('scores', s, weights, cost)
  ceiling = checks.in_range('ceiling', ceiling, 0.0, 1.0, s)
  return annealed(s, z, rho, 2 / checks.positive('epsilon', epsilon, s), ceiling, column)


def anneal_rows(
  scores: ArrayLike,
  state: ArrayLike,
  *,
  keep: ArrayLike,
  ceiling: ArrayLike,
  epsilon: ArrayLike = 1e2,
) -> tuple[Array, Array]:
  """The entropic plans of many rows at one temperature: the budget of each, the softness of all.

      m_ri = sigmoid(kappa (s_ri - c_r)),   mean_i m_ri = keep,   softness of all m <= ceiling

  with the smallest gain kappa >= 2 / epsilon. Under `anneal`, rows that are problems of their own
  have a gain each, and where two scores all but tie at the threshold of a short row it grows
  without bound, with the derivative. Here such a row stays soft beside others that are hard. What a
  row uses is off by less than 1e-3 of keep once a run goes on from its own state; the ceiling is
  met within some per cent.

  The derivative is that of `soft_topk` with the gain held.

  Args:
    scores: (rows, n) float. Up to n = 16, the search begins at the order of each row.
    state: (rows, n) log-odds of the step before, or of `init`. They are where the search begins,
      and nothing else depends on them.
    keep: fraction of every row, in [0, 1]; one number.
    ceiling: largest mean softness, in [0, 1]; one number.
    epsilon: of the softest plan, > 0; one number.

  Returns:
    The mask (rows, n) in [0, 1], differentiable in scores, and its log-odds (rows, n), not
    differentiable.

  Raises:
    ValueError: not floats (rows, n), state of another shape, an argument out of range.
  """
  s, z = checks.floats('scores', scores), checks.floats('state', state)
  if s.ndim != 2:
    raise ValueError(f'scores has shape {s.shape}; expected (rows, n).')
  if z.shape != s.shape:
    raise ValueError(f'state has shape {z.shape}; expected that of scores, {s.shape}.')
  rho = checks.in_range('keep', keep, 0.0, 1.0, s[0])[0]
  ceiling = checks.in_range('ceiling', ceiling, 0.0, 1.0, s[0])[0]
  least = 2 / checks.positive('epsilon', epsilon, s[0])[0]
  return annealed_rows(s, z, rho, least, ceiling)


def softness(mask: ArrayLike) -> Array:
  """S = mean of 4 m (1 - m) over the last axis: 0 for a hard mask, 1 for one of halves.

  Args:
    mask: (..., n) in [0, 1].

  Returns:
    S of shape (...), in [0, 1].
  """
  m = jnp.asarray(mask)
  return jnp.mean(4 * m * (1 - m), axis=-1)


def deadline_gain(
  log_odds: ArrayLike,
  *,
  keep: ArrayLike,
  ceiling: ArrayLike,
  weights: ArrayLike | None = None,
  cost: Share | None = None,
) -> Array:
  """The smallest gain kappa >= 1 with softness(project(kappa * log_odds)) <= ceiling.

  Safeguarded Newton on log kappa with the dual solved again inside; the ceiling is met from below
  within a relative 2e-3. No gain separates elements that tie at the threshold, nor hardens the last
  element where keep * n is not an integer: gains stop where a log-odds would exceed 2^24. With
  unequal weights the softness can rise with the gain before it falls; the gain then meets the
  ceiling, but a smaller one may as well.

  Args:
    log_odds: (..., n) finite float.
    keep: as in `soft_topk`.
    ceiling: largest allowed softness, in [0, 1]; scalar or of the batch shape.
    weights: as in `soft_topk`.
    cost: as in `soft_topk`.

  Returns:
    kappa of shape (...), not differentiable.

  Raises:
    ValueError: as `soft_topk`; ceiling outside [0, 1].
  """
  z = checks.floats('log_odds', log_odds)
  rho = checks.in_range('keep', keep, 0.0, 1.0, z)
  ceiling = checks.in_range('ceiling', ceiling, 0.0, 1.0, z)
  column = checks.column('log_odds', z, weights, cost)
  return solve.deadline_gain(z, rho, ceiling, column)[..., 0]
