"""`rounding.round_to_budget` as traced operations: the same channels, without a call of the host.

A training step that rounds at every step must not wait for the host, nor can a program that calls
it be kept on the disk. Costs exceed what int32 holds and JAX has no int64 by default, so they are
counted in limbs: digits to the base 2^12, least first, in uint32, along the last axis.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from dtp_jax.budget.rounding import PARTS, Cost, Widths
from dtp_jax.graph.cost import Polynomial
from dtp_jax.transport.hard import ordered_bits

__all__ = ['as_limbs', 'limit_at', 'round_to_budget']

_BITS = 12  # a limb times a count below 2^20, with a carry, stays within 32 bits
_MARGIN = 1e-5  # relative: float32 does not evaluate a share of the cost more wrongly than this
_DIGIT = 2**_BITS - 1


def round_to_budget(
  ranking: Array, cost: Cost, limit: Array, sizes: Mapping[str, int], *, floors: Mapping[str, int]
) -> Array:
  """The channels that `rounding.round_to_budget` keeps.

  They are the same where the cost is a polynomial. Any other cost (a latency table's) is evaluated
  in float32 with a margin of 1e-5: never above the limit, at most that much of it left unused.

  Args:
    ranking: (n,) floats, the groups one after the other.
    cost: see `rounding.Cost`.
    limit: from `limit_at` or `as_limbs`; at least the cost of the floors.
    sizes: {group: channels}, each below 2^20.
    floors: min_keep and multiple_of.

  Returns:
    Boolean (n,).
  """
  groups, n = len(sizes), len(ranking)
  widths = Widths(sizes, **floors)
  size = jnp.asarray(list(sizes.values()), jnp.int32)
  least = jnp.asarray([widths.above(name, widths.min_keep) for name in sizes], jnp.int32)
  keys = ordered_bits(jnp.where(jnp.isnan(ranking), -jnp.inf, ranking))
  order = jnp.argsort(~keys, stable=True)
  owner = jnp.asarray(np.repeat(np.arange(groups), list(sizes.values())), jnp.int32)[order]
  # How many of its group are not ranked below a channel: its own place from 1 on.
  grouped = jnp.argsort(owner, stable=True)
  place = jnp.asarray(np.concatenate([np.arange(1, k + 1) for k in sizes.values()]), jnp.int32)
  place = jnp.zeros(n, jnp.int32).at[grouped].set(place)
  multiple = widths.multiple_of

  def of_prefix(length: Array) -> Array:
    taken = jnp.zeros(groups, jnp.int32).at[owner].add(jnp.arange(n) < length)
    return jnp.maximum(least, jnp.where(taken >= size, size, taken // multiple * multiple))

  def halve(_: Any, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
    low, high = bounds  # the prefix of `low` fits, that of `high` does not
    middle = (low + high) // 2
    fitting = fits(cost, sizes, of_prefix(middle), limit)
    return jnp.where(fitting, middle, low), jnp.where(fitting, high, middle)

  bounds = jnp.asarray(0, jnp.int32), jnp.asarray(n + 1, jnp.int32)
  longest, _ = lax.fori_loop(0, (n + 1).bit_length(), halve, bounds)

  def wanted(counts: Array, still_open: Array) -> Array:
    return still_open[owner] & (place > counts[owner])

  def fill(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    counts, still_open, candidates = carry
    group = owner[jnp.argmax(candidates)]  # of the best-ranked channel that is left
    wider = jnp.minimum(size[group], -(-(counts[group] + 1) // multiple) * multiple)
    following = counts.at[group].set(wider)
    fitting = fits(cost, sizes, following, limit)
    counts = jnp.where(fitting, following, counts)
    still_open = still_open.at[group].set(fitting)
    return counts, still_open, wanted(counts, still_open)

  counts, still_open = of_prefix(longest), jnp.ones(groups, bool)
  carry = counts, still_open, wanted(counts, still_open)
  counts, _, _ = lax.while_loop(lambda carry: jnp.any(carry[2]), fill, carry)
  return jnp.zeros(n, bool).at[order].set(place <= counts[owner])


def limit_at(cost: Cost, keep: Array) -> Array:
  """The limit of a kept fraction, in limbs: `rounding.limit_at`."""
  parts = jnp.floor(jnp.clip(keep, 0, 1) * PARTS).astype(jnp.uint32)
  total = as_limbs(cost.total, cost)
  low, high = parts & _DIGIT, parts >> _BITS
  zero = jnp.zeros(1, jnp.uint32)
  product = jnp.concatenate([_times(total, low, 2), zero])
  product = product + jnp.concatenate([zero, _times(total, high, 2)])
  return _carried(product)[2:-1]


def as_limbs(value: int, cost: Cost) -> Array:
  """An integer in as many limbs as the total of a cost has; the total where it is larger."""
  return jnp.asarray(_digits(min(value, cost.total), _length(cost.total)), jnp.uint32)


def fits(cost: Cost, sizes: Mapping[str, int], counts: Array, limit: Array) -> Array:
  """Whether a cost at counts (groups,) int32 is within a limit, in limbs."""
  if isinstance(cost, Polynomial):
    return _at_most(_polynomial(cost, sizes, counts), limit)
  masks = {
    name: (jnp.arange(size) < counts[i]).astype(jnp.float32)
    for i, (name, size) in enumerate(sizes.items())
  }
  bases = jnp.asarray([float(2 ** (_BITS * i)) / max(cost.total, 1) for i in range(len(limit))])
  return cost.fraction(masks) <= jnp.sum(bases * limit) * (1 - _MARGIN)


def _polynomial(cost: Polynomial, sizes: Mapping[str, int], counts: Array) -> Array:
  """The exact cost in limbs."""
  place = {name: i for i, name in enumerate(sizes)}
  coefficients, factors = [], []
  for monomial, coefficient in cost.terms.items():
    for name in monomial:  # groups that are not pruned keep all
      coefficient *= 1 if name in place else cost.sizes[name]
    factors.append([place[name] for name in monomial if name in place])
    coefficients.append(_digits(coefficient, _length(cost.total)))
  values = jnp.asarray(np.reshape(coefficients, (len(factors), _length(cost.total))), jnp.uint32)
  counts = jnp.concatenate([counts, jnp.ones(1, counts.dtype)]).astype(jnp.uint32)
  for k in range(max(map(len, factors), default=0)):
    column = [found[k] if k < len(found) else len(sizes) for found in factors]
    values = _times(values, counts[np.asarray(column)])
  return _carried(jnp.sum(values, axis=0, dtype=jnp.uint32))


def _length(total: int) -> int:
  return max(1, -(-total.bit_length() // _BITS))


def _digits(value: int, length: int) -> list[int]:
  return [value >> (_BITS * i) & _DIGIT for i in range(length)]


def _times(limbs: Array, count: Array, more: int = 0) -> Array:
  """Limbs (..., L) times a count (...) below 2^20, with `more` limbs to hold it."""
  product = limbs * count[..., None]
  return _carried(jnp.pad(product, [(0, 0)] * (limbs.ndim - 1) + [(0, more)]))


def _carried(limbs: Array) -> Array:
  digits, carry = [], jnp.zeros_like(limbs[..., 0])
  for i in range(limbs.shape[-1]):
    value = limbs[..., i] + carry
    digits.append(value & _DIGIT)
    carry = value >> _BITS
  return jnp.stack(digits, axis=-1)


def _at_most(a: Array, b: Array) -> Array:
  found = jnp.asarray(True)
  for x, y in zip(a, b, strict=True):  # the last digit that differs decides
    found = jnp.where(x == y, found, x < y)
  return found
