"""Argument checks of the ops. Values are checked where they are concrete, before any tracing.

Each check names the argument, its value and what is allowed, and returns the argument as the solver
takes it: floats of at least float32, per-problem values of shape (..., 1), a `Column`.
"""

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from dtp_jax.transport.columns import Column, Linear, Priced, Share

__all__ = ['column', 'floats', 'in_range', 'positive']


def floats(name: str, scores: ArrayLike) -> Array:
  """Scores or log-odds (..., n), in float32 or wider."""
  try:
    x = jnp.asarray(scores)
  except (TypeError, ValueError):
    raise ValueError(f'{name} is {scores!r}; expected an array of floats.') from None
  if not jnp.issubdtype(x.dtype, jnp.floating):
    raise ValueError(f'{name} has dtype {x.dtype}; expected floats, such as float32.')
  if x.ndim == 0 or x.size == 0:
    raise ValueError(f'{name} has shape {x.shape}; expected (..., n) with at least 1 element.')
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def in_range(
  name: str,
  value: ArrayLike,
  low: float,
  high: float,
  scores: Array,
  dtype: DTypeLike | None = None,
) -> Array:
  """A number in [low, high], one for all problems of `scores` or one each, as (..., 1)."""
  known = _concrete(name, value)
  if known is not None and not np.all((known >= low) & (known <= high)):
    raise ValueError(f'{name} is {value}; expected a number in [{low}, {high}].')
  return _per_problem(name, value, scores, dtype)


def positive(name: str, value: ArrayLike, scores: Array) -> Array:
  """A finite number > 0, one for all problems of `scores` or one each, as (..., 1)."""
  known = _concrete(name, value)
  if known is not None and not np.all(_positive(known)):
    raise ValueError(f'{name} is {value}; expected a finite number > 0.')
  return _per_problem(name, value, scores, None)


def column(
  name: str,
  scores: Array,
  weights: ArrayLike | None,
  cost: Share | None,
  degree: int | None = None,
  *,
  iterates: bool = False,
) -> Column:
  """The column sum of the problems of `scores`.

  Args:
    name: what the caller calls the scores.
    scores: (..., n) from `floats`.
    weights: source masses, or None for uniform ones.
    cost: the share of the budget as a function of the mask, instead of weights.
    degree: of the cost.
    iterates: whether a Sinkhorn iteration is asked for, which needs the degree.
  """
  if cost is None:
    if degree is not None:
      raise ValueError(f'degree is {degree} without a cost; leave it out for a sum of weights.')
    return Linear(_masses(weights, scores))
  if weights is not None:
    raise ValueError(
      'weights and cost are both given; expected one of them, masses of a linear sum or a cost.'
    )
  if not callable(cost) or not _hashable(cost):
    raise ValueError(
      f'cost is {cost!r}; expected a function (hashable) from a mask (n,) to the share it uses.'
    )
  if scores.ndim != 1:
    raise ValueError(
      f'{name} has shape {scores.shape}; expected one problem (n,) under a cost: jax.vmap for more.'
    )
  if degree is None and not iterates:
    return Priced(cost, 1)
  if isinstance(degree, bool) or not isinstance(degree, int | np.integer) or degree < 1:
    raise ValueError(
      f'degree is {degree!r}; expected an integer >= 1, how many masks multiply each other in a '
      'term of the cost: a Sinkhorn iteration is damped by it.'
    )
  return Priced(cost, int(degree))


def _masses(weights: ArrayLike | None, scores: Array) -> Array:
  """Weights normalised to sum to 1, of the rank of the scores."""
  n = scores.shape[-1]
  if weights is None:
    return jnp.full((1,) * scores.ndim, 1 / n, scores.dtype)
  known = _concrete('weights', weights)  # before jnp.asarray, which makes a tracer of it inside jit
  a = jnp.asarray(weights, scores.dtype)
  if a.shape not in ((n,), scores.shape):
    raise ValueError(
      f'weights has shape {a.shape}; expected ({n},) or that of scores, {scores.shape}.'
    )
  if known is not None and not (np.all(known >= 0) and np.all(_positive(known.sum(-1)))):
    raise ValueError(
      f'weights has smallest value {known.min()} and sums from {known.sum(-1).min()} to '
      f'{known.sum(-1).max()}; expected masses >= 0 with a finite positive sum.'
    )
  a = a.reshape((1,) * (scores.ndim - a.ndim) + a.shape)
  return a / jnp.sum(a, axis=-1, keepdims=True)


def _per_problem(name: str, value: ArrayLike, scores: Array, dtype: DTypeLike | None) -> Array:
  """A scalar or an array of the batch shape, as (..., 1)."""
  x = jnp.asarray(value, dtype or scores.dtype)
  batch = scores.shape[:-1]
  if x.shape not in ((), batch):
    raise ValueError(f'{name} has shape {x.shape}; expected a scalar or the batch shape {batch}.')
  return x.reshape((x.shape or (1,) * len(batch)) + (1,))


def _positive(value: np.ndarray) -> np.ndarray:
  return (value > 0) & np.isfinite(value)


def _hashable(value: object) -> bool:
  try:
    hash(value)
  except TypeError:
    return False
  return True


def _concrete(name: str, value: ArrayLike) -> np.ndarray | None:
  if isinstance(value, jax.core.Tracer):
    return None
  known = np.asarray(value)
  if not jnp.issubdtype(known.dtype, jnp.number):
    raise ValueError(f'{name} is {value!r}; expected numbers.')
  return known
