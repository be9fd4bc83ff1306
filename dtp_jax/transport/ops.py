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

In every function the last axis is one transport problem and leading axes are a batch of independent
ones. Scores may have any float dtype; masks and states are float32 (float64 for float64 scores).
Only budgets and orders matter: adding a constant to all scores of a problem changes nothing.
"""

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

__all__ = [
  'Projection',
  'deadline_gain',
  'hard_topk',
  'init',
  'project',
  'proximal_step',
  'root',
  'sinkhorn_step',
  'soft_topk',
  'softness',
]

Projection = Literal['sinkhorn', 'exact']

_INFINITY_GAP = 100.0  # an infinite score lies this many eps beyond the last finite one
_MAX_LOG_ODDS = 2.0**24  # where gains stop: float32 no longer separates larger log-odds
_SOFTNESS_TOLERANCE = 1e-3  # relative, of the ceiling that deadline_gain meets


def soft_topk(
  scores: ArrayLike, *, keep: ArrayLike, epsilon: ArrayLike, weights: ArrayLike | None = None
) -> Array:
  """Entropic transport of scores to a budget: the exact solution of equation (1).

  The derivative is the closed form dm = d (dl - <a d, dl> / <a, d>), d = m (1 - m), through a
  custom JVP, so grad, jvp, vmap, scan and jit all work; it also holds for `keep`, `epsilon` and
  `weights`.

  >>> soft_topk(jnp.array([0.1, 0.9, 0.5]), keep=1 / 3, epsilon=0.01).round(3).tolist()
  [0.0, 1.0, 0.0]

  Args:
    scores: (..., n) float, higher is more worth keeping; +inf and -inf are kept first and last.
    keep: rho in [0, 1], the fraction of the source mass to keep; a float, a traced scalar, or an
      array of the batch shape (...).
    epsilon: softness of the mask, > 0, in units of the scores; scalar or of the batch shape.
    weights: source masses a, >= 0, of shape (n,) or (..., n); None is uniform. They are normalised
      to sum to 1 over the last axis.

  Returns:
    Masks (..., n) in [0, 1] with sum_i a_i m_i = keep, monotone in the scores.

  Raises:
    ValueError: scores empty or not float, keep outside [0, 1], epsilon <= 0, weights negative, all
      zero or of another shape (values are checked where they are not traced).
  """
  scores, keep, weights = _checked(scores, keep, weights)
  return _soft_topk(scores, keep, _checked_epsilon(epsilon, scores), weights)


def init(scores: ArrayLike) -> Array:
  """The state at rest: log-odds 0 for every score, that is the uniform plan P_0.

  Args:
    scores: (..., n) float.

  Returns:
    Zeros (..., n), float32 (float64 for float64 scores).

  Raises:
    ValueError: scores empty or not float.
  """
  scores = _checked_scores(scores)
  return jnp.zeros(scores.shape, _state_dtype(scores))


def sinkhorn_step(
  log_odds: ArrayLike, *, keep: ArrayLike, weights: ArrayLike | None = None
) -> Array:
  """One Sinkhorn iteration, columns first and rows last, with the dual absorbed in the log-odds.

      z <- z + logit(rho) - logit(sum_i a_i sigmoid(z_i))

  Iterated, it converges to the exact projection (`project`). The two column sums are taken in the
  log domain and neither is formed by subtraction, so hard plans do not underflow.

  Args:
    log_odds: (..., n) finite float.
    keep: as in `soft_topk`.
    weights: as in `soft_topk`.

  Returns:
    Shifted log-odds (..., n); sigmoid of them is the mask.

  Raises:
    ValueError: as `soft_topk`.
  """
  log_odds, keep, weights = _checked(log_odds, keep, weights, 'log_odds')
  return _sinkhorn_step(log_odds, keep, weights)


def project(log_odds: ArrayLike, *, keep: ArrayLike, weights: ArrayLike | None = None) -> Array:
  """The shift of the log-odds that meets the budget exactly: equation (1) with l = log_odds.

  Args:
    log_odds: (..., n) finite float.
    keep: as in `soft_topk`.
    weights: as in `soft_topk`.

  Returns:
    Shifted log-odds (..., n), differentiable as `soft_topk` is.

  Raises:
    ValueError: as `soft_topk`.
  """
  log_odds, keep, weights = _checked(log_odds, keep, weights, 'log_odds')
  return _project(log_odds, keep, weights)


def proximal_step(
  scores: ArrayLike,
  state: ArrayLike,
  *,
  keep: ArrayLike,
  epsilon: ArrayLike,
  weights: ArrayLike | None = None,
  memory: ArrayLike = 1.0,
  projection: Projection = 'sinkhorn',
  ceiling: ArrayLike | None = None,
) -> tuple[Array, Array]:
  """One Bregman proximal step of the plan: the rule of differentiable transportation pruning.

      z_t = memory z_{t-1} + 2 (s_t - <a, s_t>) / epsilon + shift,   m_t = sigmoid(z_t)

  where the shift, of all log-odds of a problem alike, is the dual of the budget.

  The gradient is that of the current step (z_{t-1} is stopped). With constant scores, memory 1 and
  the exact projection, t steps equal `soft_topk` at epsilon / t: the mask anneals by itself.

  Args:
    scores: (..., n) float.
    state: (..., n) log-odds z_{t-1} from `init` or from the previous step.
    keep: as in `soft_topk`; may change from step to step.
    epsilon: step size of the plan, > 0: a smaller one hardens sooner.
    weights: as in `soft_topk`.
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
    ValueError: as `soft_topk`; state of another shape, memory outside [0, 1], unknown projection.
  """
  scores, keep, weights = _checked(scores, keep, weights)
  state = jnp.asarray(state)
  if state.shape != scores.shape:
    raise ValueError(f'state has shape {state.shape}; expected that of scores, {scores.shape}.')
  if projection not in ('sinkhorn', 'exact'):
    raise ValueError(f"projection is {projection!r}; expected 'sinkhorn' or 'exact'.")
  _check_range('memory', memory, 0.0, 1.0)
  if ceiling is not None:
    _check_range('ceiling', ceiling, 0.0, 1.0)
    ceiling = _per_problem('ceiling', ceiling, scores)
  memory = _per_problem('memory', memory, scores)
  epsilon = _checked_epsilon(epsilon, scores)
  return _proximal_step(scores, state, keep, epsilon, weights, memory, ceiling, projection)


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

  Returns:
    kappa of shape (...), not differentiable.

  Raises:
    ValueError: as `soft_topk`; ceiling outside [0, 1].
  """
  log_odds, keep, weights = _checked(log_odds, keep, weights, 'log_odds')
  _check_range('ceiling', ceiling, 0.0, 1.0)
  ceiling = _per_problem('ceiling', ceiling, log_odds)
  return _deadline_gain(log_odds, keep, weights, ceiling)[..., 0]


def hard_topk(scores: ArrayLike, k: ArrayLike) -> Array:
  """The mask of the k largest scores, counted in integers, ties broken by the lower index.

  A search over the bits of the k-th largest value: 32 counting passes and no sort, so that a
  sharded array costs scalar reductions only.

  >>> hard_topk(jnp.array([1.0, 3.0, 3.0, 2.0]), k=1).tolist()
  [False, True, False, False]

  Args:
    scores: (..., n) float; NaN ranks last, -0.0 ties with 0.0. n < 2^31.
    k: how many to keep, 0 <= k <= n; an int, a traced integer scalar, or an integer array of the
      batch shape (...).

  Returns:
    Boolean (..., n) with exactly k True per problem.

  Raises:
    ValueError: scores empty or not float, k not an integer or outside [0, n].
  """
  scores = _checked_scores(scores)
  dtype = jnp.result_type(k)
  if not jnp.issubdtype(dtype, jnp.integer):
    raise ValueError(f'k is {k} of dtype {dtype}; expected an integer number of elements to keep.')
  _check_range('k', k, 0, scores.shape[-1])
  return _hard_topk(scores, _per_problem('k', k, scores, jnp.int32))


# Solvers. Everything below works on (..., n) arrays with per-problem values of shape (..., 1), and
# source masses `a` of shape (..., n) or (1, ..., 1), so that no rank is ever promoted.


@jax.jit
def _soft_topk(scores, rho, epsilon, a):
  return _mask(_project(_increments(scores, epsilon, a), rho, a), rho)


@jax.jit
def _sinkhorn_step(z, rho, a):
  log_keep = jax.nn.logsumexp(jax.nn.log_sigmoid(z), b=a, axis=-1, keepdims=True)
  log_drop = jax.nn.logsumexp(jax.nn.log_sigmoid(-z), b=a, axis=-1, keepdims=True)
  return z + _logit(rho) - (log_keep - log_drop)


@jax.jit
def _project(z, rho, a):
  return z + _dual(z, rho, a)


@functools.partial(jax.jit, static_argnames='projection')
def _proximal_step(scores, state, rho, epsilon, a, memory, ceiling, projection):
  z = lax.stop_gradient(state).astype(_state_dtype(scores))
  # The dual, the mean of z, does not fade: it would bias the budget of every Sinkhorn step.
  dual = jnp.sum(a * z, axis=-1, keepdims=True)
  z = memory * z + (1 - memory) * dual + _increments(scores, epsilon, a)
  if ceiling is not None:
    # Projected here and below: float32 resolves the dual only near the threshold.
    z = _project(_deadline_gain(z, rho, a, ceiling) * z, rho, a)
  step = _project if projection == 'exact' else _sinkhorn_step
  z = step(z, rho, a)
  return _mask(z, rho), lax.stop_gradient(z)


@jax.jit
def _deadline_gain(z, rho, a, ceiling):
  z, rho, a = lax.stop_gradient((z, rho, a))
  z = _project(z, rho, a)  # centred at the threshold: the dual hardly moves with the gain
  # Below 1e-6 a mask is hard for every purpose; it keeps the logarithm finite.
  target = jnp.log(jnp.maximum(ceiling, 1e-6)) - _SOFTNESS_TOLERANCE

  def excess(log_gain):
    gain = jnp.exp(log_gain)
    m = jax.nn.sigmoid(_project(gain * z, rho, a))
    d = m * (1 - m)
    s = jnp.mean(4 * d, axis=-1, keepdims=True)
    pull = jnp.sum(a * d * z, axis=-1, keepdims=True) / jnp.sum(a * d, axis=-1, keepdims=True)
    slope = gain * jnp.mean(4 * d * (1 - 2 * m) * (z - pull), axis=-1, keepdims=True) / s
    return target - jnp.log(s), -slope

  largest = jnp.max(jnp.abs(z), axis=-1, keepdims=True)
  zero = jnp.zeros_like(largest)
  hi = jnp.log(_MAX_LOG_ODDS / jnp.clip(largest, 1.0, _MAX_LOG_ODDS))
  log_gain = root(excess, zero, zero, hi, residual=_SOFTNESS_TOLERANCE, iterations=48)
  soft_enough = jnp.mean(4 * jax.nn.sigmoid(z) * jax.nn.sigmoid(-z), axis=-1, keepdims=True)
  return jnp.where(soft_enough <= ceiling, 1.0, jnp.exp(log_gain)).astype(z.dtype)


@jax.custom_jvp
def _dual(z, rho, a):
  """Nu with sum a sigmoid(z + nu) = rho, for z (..., n), rho (..., 1); returns (..., 1)."""
  target = _logit(rho)

  def gap(nu):
    # In logits the gap is nearly linear in nu; both columns are summed, none subtracted.
    m, w = jax.nn.sigmoid(z + nu), jax.nn.sigmoid(-z - nu)
    kept = jnp.sum(a * m, axis=-1, keepdims=True)
    dropped = jnp.sum(a * w, axis=-1, keepdims=True)
    slope = jnp.sum(a * m * w, axis=-1, keepdims=True) / (kept * dropped)
    return jnp.log(kept) - jnp.log(dropped) - target, slope

  # sigmoid(z + nu) <= rho everywhere at the lower end and >= rho at the upper one.
  lo = target - jnp.max(z, axis=-1, keepdims=True)
  hi = target - jnp.min(z, axis=-1, keepdims=True)
  guess = target - jnp.sum(a * z, axis=-1, keepdims=True)
  iterations = 4 * jnp.finfo(z.dtype).nmant // 2 + 16  # enough for bisection alone
  return root(gap, guess, lo, hi, residual=float(4 * jnp.finfo(z.dtype).eps), iterations=iterations)


@_dual.defjvp
def _dual_jvp(primals, tangents):
  # d/dt of sum a sigmoid(z + nu) = rho; where the plan is hard the price is undefined: take 0.
  z, rho, a = primals
  dz, drho, da = tangents
  nu = _dual(z, rho, a)
  m = jax.nn.sigmoid(z + nu)
  d = m * (1 - m)
  curvature = jnp.sum(a * d, axis=-1, keepdims=True)
  rate = drho - jnp.sum(a * d * dz + da * m, axis=-1, keepdims=True)
  hard = curvature <= jnp.finfo(z.dtype).tiny
  return nu, jnp.where(hard, 0.0, rate / jnp.where(hard, 1.0, curvature))


def root(
  f: Callable[[Array], tuple[Array, Array]],
  x: Array,
  lo: Array,
  hi: Array,
  *,
  residual: float,
  iterations: int,
) -> Array:
  """Root of increasing f (value, slope) in [lo, hi]: Newton, bisection where it does not pay.

  It stops where |f| <= residual, or where x has converged to rounding, for every problem of the
  batch; `iterations` bounds it where f jumps.
  """
  eps = jnp.finfo(x.dtype).eps

  def unfinished(carry):
    i, _, _, _, _, done = carry
    return (i < iterations) & ~jnp.all(done)

  def iterate(carry):
    i, x, lo, hi, last, done = carry
    value, slope = f(x)
    lo, hi = jnp.where(value < 0, x, lo), jnp.where(value < 0, hi, x)
    newton = -value / slope
    # Newton must stay inside the bracket and halve its step, else bisect.
    pays = (x + newton > lo) & (x + newton < hi) & (2 * jnp.abs(newton) <= jnp.abs(last))
    step = jnp.where(pays, newton, 0.5 * (lo + hi) - x)
    met = done | (jnp.abs(value) <= residual)
    x = jnp.where(met, x, x + step)
    return i + 1, x, lo, hi, step, met | (jnp.abs(step) <= eps * jnp.maximum(1.0, jnp.abs(x)))

  x = jnp.clip(x, lo, hi)
  carry = (0, x, lo, hi, hi - lo, jnp.zeros(x.shape, bool))
  return lax.while_loop(unfinished, iterate, carry)[1]


@jax.jit
def _hard_topk(scores, k):
  keys = _ordered_bits(scores.astype(_state_dtype(scores)))
  threshold = _kth_largest(keys, k)
  above = keys > threshold
  tied = keys == threshold
  missing = k - _count(above)
  # Among ties the lower index wins: rank them by a second key that falls with the index.
  index = lax.broadcasted_iota(jnp.uint32, keys.shape, keys.ndim - 1)
  order = jnp.where(tied, jnp.uint32(2**32 - 1) - index, jnp.uint32(0))
  return above | (tied & (order >= _kth_largest(order, missing)) & (missing > 0))


def _ordered_bits(x):
  """Unsigned integers in the order of the floats x; -0.0 is 0.0 and NaN is below -inf."""
  unsigned = jnp.dtype(f'uint{x.dtype.itemsize * 8}')
  bits = lax.bitcast_convert_type(x, unsigned)
  sign = jnp.array(1, unsigned) << jnp.array(x.dtype.itemsize * 8 - 1, unsigned)
  bits = jnp.where(bits == sign, 0, bits)  # not x == 0, which holds for denormals on CPU
  keys = bits ^ jnp.where((bits & sign) != 0, ~jnp.zeros((), unsigned), sign)
  return jnp.where(jnp.isnan(x), 0, keys)


def _kth_largest(keys, k):
  """The largest t with at least k keys >= t, built bit by bit; keys unsigned (..., n)."""
  bits = keys.dtype.itemsize * 8

  def set_bit(i, t):
    candidate = t | (jnp.array(1, keys.dtype) << (bits - 1 - i).astype(keys.dtype))
    return jnp.where(_count(keys >= candidate) >= k, candidate, t)

  return lax.fori_loop(0, bits, set_bit, jnp.zeros_like(keys[..., :1]))


def _count(chosen):
  return jnp.sum(chosen, axis=-1, keepdims=True, dtype=jnp.int32)


def _increments(scores, epsilon, a):
  """2 (s - <a, s>) / eps: centred, so that no step depends on a constant added to all scores."""
  s = scores.astype(_state_dtype(scores))
  finite = ~jnp.isinf(s)
  some = jnp.any(finite, axis=-1, keepdims=True)
  top = jnp.max(s, axis=-1, keepdims=True, where=finite, initial=-jnp.inf)
  bottom = jnp.min(s, axis=-1, keepdims=True, where=finite, initial=jnp.inf)
  top, bottom = jnp.where(some, top, 0.0), jnp.where(some, bottom, 0.0)
  gap = _INFINITY_GAP * epsilon
  s = jnp.where(finite, s, jnp.where(s > 0, top + gap, bottom - gap))
  return 2 * (s - jnp.sum(a * s, axis=-1, keepdims=True)) / epsilon


def _mask(z, rho):
  """Sigmoid(z), exactly 0 or 1 where the budget is nothing or everything."""
  # A clip, not a select: NaN stays NaN.
  return jnp.clip(jax.nn.sigmoid(z), (rho >= 1).astype(z.dtype), (rho > 0).astype(z.dtype))


def _logit(rho):
  """Logit of rho held inside (0, 1), so that states stay finite at keep 0 and 1."""
  info = jnp.finfo(rho.dtype)
  rho = jnp.clip(rho, info.tiny, 1 - info.epsneg)
  return jnp.log(rho) - jnp.log1p(-rho)


def _state_dtype(scores):
  return jnp.promote_types(scores.dtype, jnp.float32)


# Argument checks. Values are checked where they are concrete, that is before anything is traced.


def _checked(scores, keep, weights, name='scores'):
  scores = _checked_scores(scores, name)
  _check_range('keep', keep, 0.0, 1.0)
  return scores, _per_problem('keep', keep, scores), _checked_weights(weights, scores)


def _checked_scores(scores, name='scores'):
  scores = jnp.asarray(scores)
  if not jnp.issubdtype(scores.dtype, jnp.floating):
    raise ValueError(f'{name} has dtype {scores.dtype}; expected floats, such as float32.')
  if scores.ndim == 0 or scores.size == 0:
    raise ValueError(f'{name} has shape {scores.shape}; expected (..., n) with at least 1 element.')
  return scores


def _checked_epsilon(epsilon, scores):
  value = _concrete(epsilon)
  if value is not None and not np.all(_positive(value)):
    raise ValueError(f'epsilon is {epsilon}; expected a finite number > 0.')
  return _per_problem('epsilon', epsilon, scores)


def _checked_weights(weights, scores):
  dtype, n = _state_dtype(scores), scores.shape[-1]
  if weights is None:
    return jnp.full((1,) * scores.ndim, 1 / n, dtype)
  value = _concrete(weights)  # before jnp.asarray, which makes a tracer of it inside jit
  weights = jnp.asarray(weights, dtype)
  if weights.shape not in ((n,), scores.shape):
    raise ValueError(
      f'weights has shape {weights.shape}; expected ({n},) or that of scores, {scores.shape}.'
    )
  if value is not None and not (np.all(value >= 0) and np.all(_positive(value.sum(-1)))):
    raise ValueError(
      f'weights has smallest value {value.min()} and sums from {value.sum(-1).min()} to '
      f'{value.sum(-1).max()}; expected masses >= 0 with a finite positive sum.'
    )
  weights = weights.reshape((1,) * (scores.ndim - weights.ndim) + weights.shape)
  return weights / jnp.sum(weights, axis=-1, keepdims=True)


def _positive(value):
  return (value > 0) & np.isfinite(value)


def _check_range(name, value, low, high):
  concrete = _concrete(value)
  if concrete is not None and not np.all((concrete >= low) & (concrete <= high)):
    raise ValueError(f'{name} is {value}; expected a number in [{low}, {high}].')


def _per_problem(name, value, scores, dtype=None):
  """A scalar or an array of the batch shape, as (..., 1)."""
  value = jnp.asarray(value, dtype or _state_dtype(scores))
  batch = scores.shape[:-1]
  if value.shape not in ((), batch):
    raise ValueError(
      f'{name} has shape {value.shape}; expected a scalar or the batch shape {batch}.'
    )
  return value.reshape((value.shape or (1,) * len(batch)) + (1,))


def _concrete(value):
  return None if isinstance(value, jax.core.Tracer) else np.asarray(value)
