"""Exact top-k: counted in integers, without a sort."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from dtp_jax.transport import checks

__all__ = ['hard_topk', 'ordered_bits']

_FEW = 8  # elements of a problem up to which each is compared with each
_SAMPLE = 2**12

_Bracket = tuple[Array, Array, Array, Array, Array]  # probes, low, high, how many reach each


def hard_topk(scores: ArrayLike, k: ArrayLike) -> Array:
  """The mask of the k largest scores, counted in integers, ties broken by the lower index.

  A search for the k-th largest value by counting: between two quantiles of a sample, and then by
  interpolation. Some ten passes and no sort of n elements, so that a sharded array costs scalar
  reductions only.

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
  if keys.shape[-1] <= _FEW:
    return _rank(keys) < k
  lower, upper = _quantiles(keys, k)

  def propose(i: Array, low: Array, high: Array, share: Array) -> Array:
    t = jnp.where(i == 1, upper, _between_floats(low, high, share))
    return jnp.where(i == 0, lower, t)

  # No key is above `top`: that of infinity is smaller.
  top = ~jnp.zeros_like(keys[..., :1])
  threshold, count, above = _search(keys, k, top, propose)
  kept = keys >= threshold
  exact = count == k

  def first_of_ties() -> Array:
    tied = keys == threshold
    # Where nothing is missing the search is over before it begins.
    missing = jnp.where(exact, keys.shape[-1], k - above)
    return jnp.where(exact, kept, (keys > threshold) | _first(tied, missing))

  return lax.cond(jnp.all(exact), lambda: kept, first_of_ties)


def _rank(keys: Array) -> Array:
  """How many elements of its problem come before each: larger, or equal and of lower index."""
  mine, other = jnp.expand_dims(keys, -1), jnp.expand_dims(keys, -2)
  square = (*keys.shape, keys.shape[-1])
  at_mine, at_other = (lax.broadcasted_iota(jnp.int32, square, keys.ndim - i) for i in (1, 0))
  before = (other > mine) | ((other == mine) & (at_other < at_mine))
  return jnp.sum(before, axis=-1, dtype=jnp.int32)


def _first(chosen: Array, k: Array) -> Array:
  """The mask of the first k of the chosen elements, in the order of the index."""
  n = chosen.shape[-1]
  # Ranked by a key that falls with the index, n to 1. They are few or many, and lie anywhere: it
  # is the interpolation that finds the last of them.
  index = lax.broadcasted_iota(jnp.uint32, chosen.shape, chosen.ndim - 1)
  order = jnp.where(chosen, jnp.uint32(n) - index, jnp.uint32(0))
  top = jnp.full_like(order[..., :1], n + 1)
  last, _, _ = _search(order, k, top, _between_integers)
  return chosen & (order >= last)


def _search(
  keys: Array, k: Array, top: Array, propose: Callable[..., Array]
) -> tuple[Array, Array, Array]:
  """A threshold t that k keys reach, or where none is the k-th largest key.

  Args:
    keys: (..., n), unsigned.
    k: (..., 1).
    top: (..., 1), above all keys.
    propose: a threshold to try, of the number of the probe, the bracket, and the share of its keys
      that are to be left out.

  Returns:
    t, how many keys reach it, and how many reach the end of the bracket above it: where more than k
    reach t, those that are larger than t.
  """

  def probe(carry: _Bracket) -> _Bracket:
    i, low, high, at_low, at_high = carry
    share = (at_low - k).astype(jnp.float32) / (at_low - at_high).astype(jnp.float32)
    # Every third probe bisects: no interpolation is safe against all distributions.
    middle = low + ((high - low) >> 1)
    t = jnp.where((i % 3 == 1) & (i > 1), middle, propose(i, low, high, share))
    t = jnp.where((t > low) & (t < high), t, middle)
    count = _count(keys >= t)
    enough = count >= k
    low, at_low = jnp.where(enough, t, low), jnp.where(enough, count, at_low)
    high, at_high = jnp.where(enough, high, t), jnp.where(enough, at_high, count)
    return i + 1, low, high, at_low, at_high

  def unfinished(carry: _Bracket) -> Array:
    _, low, high, at_low, _ = carry
    return jnp.any((at_low != k) & (high - low > 1) & (k > 0))

  low = jnp.zeros_like(keys[..., :1])
  n = jnp.full(low.shape, keys.shape[-1], jnp.int32)
  carry = jnp.zeros((), jnp.int32), low, top, n, jnp.zeros_like(n)
  _, low, _, count, above = lax.while_loop(unfinished, probe, carry)
  return jnp.where(k == 0, top, low), jnp.where(k == 0, 0, count), jnp.where(k == 0, 0, above)


def _between_floats(low: Array, high: Array, share: Array) -> Array:
  """The key of the float at a share of the way between those of two keys."""
  a, b = _floats(low), _floats(high)
  return ordered_bits(a + share.astype(a.dtype) * (b - a))


def _between_integers(i: Array, low: Array, high: Array, share: Array) -> Array:
  del i
  # In float32, which may lie above `high`: the search looks after that.
  return low + (share * (high - low).astype(jnp.float32)).astype(low.dtype)


def _quantiles(keys: Array, k: Array) -> tuple[Array, Array]:
  """Two keys between which the k-th largest most likely lies, from a sorted sample."""
  n = keys.shape[-1]
  step = max(1, n // _SAMPLE)
  sample = jnp.sort(keys[..., ::step], axis=-1)
  size = sample.shape[-1]
  share = 1 - k.astype(jnp.float32) / n  # of the keys below the k-th largest
  spread = 4 * jnp.sqrt(share * (1 - share) * size) + 2
  places = [jnp.clip(share * size + sign * spread, 0, size - 1) for sign in (-1, 1)]
  shape = keys[..., :1].shape
  lower, upper = (
    jnp.take_along_axis(sample, jnp.broadcast_to(p.astype(jnp.int32), shape), axis=-1)
    for p in places
  )
  return lower, upper


def ordered_bits(x: Array) -> Array:
  """Unsigned integers in the order of the floats x; -0.0 is 0.0 and NaN is below -inf."""
  unsigned = jnp.dtype(f'uint{x.dtype.itemsize * 8}')
  bits = lax.bitcast_convert_type(x, unsigned)
  sign = jnp.array(1, unsigned) << jnp.array(x.dtype.itemsize * 8 - 1, unsigned)
  bits = jnp.where(bits == sign, 0, bits)  # not x == 0, which holds for denormals on CPU
  keys = bits ^ jnp.where((bits & sign) != 0, ~jnp.zeros((), unsigned), sign)
  return jnp.where(jnp.isnan(x), 0, keys)


def _floats(keys: Array) -> Array:
  """The floats whose keys these are."""
  bits = keys.dtype.itemsize * 8
  sign = jnp.array(1, keys.dtype) << jnp.array(bits - 1, keys.dtype)
  x = keys ^ jnp.where((keys & sign) != 0, sign, ~jnp.zeros((), keys.dtype))
  return lax.bitcast_convert_type(x, jnp.dtype(f'float{bits}'))


def _count(chosen: Array) -> Array:
  return jnp.sum(chosen, axis=-1, keepdims=True, dtype=jnp.int32)
