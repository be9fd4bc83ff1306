"""Exact top-k: counted in integers, without a sort."""

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from dtp_jax.transport import checks

__all__ = ['hard_topk', 'ordered_bits']


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
  x = checks.floats('scores', scores)
  dtype = jnp.result_type(k)
  if not jnp.issubdtype(dtype, jnp.integer):
    raise ValueError(f'k is {k} of dtype {dtype}; expected an integer number of elements to keep.')
  return _hard_topk(x, checks.in_range('k', k, 0, x.shape[-1], x, jnp.int32))


@jax.jit
def _hard_topk(scores: Array, k: Array) -> Array:
  keys = ordered_bits(scores)
  threshold = _kth_largest(keys, k)
  above = keys > threshold
  tied = keys == threshold
  missing = k - _count(above)
  # Among ties the lower index wins: rank them by a second key that falls with the index.
  index = lax.broadcasted_iota(jnp.uint32, keys.shape, keys.ndim - 1)
  order = jnp.where(tied, jnp.uint32(2**32 - 1) - index, jnp.uint32(0))
  return above | (tied & (order >= _kth_largest(order, missing)) & (missing > 0))


def ordered_bits(x: Array) -> Array:
  """Unsigned integers in the order of the floats x; -0.0 is 0.0 and NaN is below -inf."""
  unsigned = jnp.dtype(f'uint{x.dtype.itemsize * 8}')
  bits = lax.bitcast_convert_type(x, unsigned)
  sign = jnp.array(1, unsigned) << jnp.array(x.dtype.itemsize * 8 - 1, unsigned)
  bits = jnp.where(bits == sign, 0, bits)  # not x == 0, which holds for denormals on CPU
  keys = bits ^ jnp.where((bits & sign) != 0, ~jnp.zeros((), unsigned), sign)
  return jnp.where(jnp.isnan(x), 0, keys)


def _kth_largest(keys: Array, k: Array) -> Array:
  """The largest t with at least k keys >= t, built bit by bit; keys unsigned (..., n)."""
  bits = keys.dtype.itemsize * 8

  def set_bit(i: Array, t: Array) -> Array:
    candidate = t | (jnp.array(1, keys.dtype) << (bits - 1 - i).astype(keys.dtype))
    return jnp.where(_count(keys >= candidate) >= k, candidate, t)

  return lax.fori_loop(0, bits, set_bit, jnp.zeros_like(keys[..., :1]))


def _count(chosen: Array) -> Array:
  return jnp.sum(chosen, axis=-1, keepdims=True, dtype=jnp.int32)
