"""What a network costs, as a polynomial of the number of channels each group keeps.

An operator's MACs and a parameter's size are products of dims, and a dim is a number, a group's
channel count, or sums and products of such: so every cost is a polynomial with non-negative
integer coefficients in the counts n_g, monotone in each of them. It is evaluated in
exact integers on the host, or in floating point on soft masks, where sum(m_g) stands for n_g.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np

# A monomial: the names of the groups whose counts are multiplied, sorted, with repeats.
Monomial = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Polynomial:
  """sum over terms of coefficient * product of the kept counts of the groups in the term.

  Attributes:
    terms: {sorted group names, repeats allowed: integer coefficient}; () is the constant.
    sizes: {group: channels in the dense network}, for every group named in `terms`.
  """

  terms: Mapping[Monomial, int]
  sizes: Mapping[str, int] = field(default_factory=dict)

  @classmethod
  def constant(cls, value: int) -> Polynomial:
    """A cost that no group changes."""
    return cls({(): int(value)})

  @classmethod
  def count(cls, name: str, size: int) -> Polynomial:
    """The kept count of one group of `size` channels."""
    return cls({(name,): 1}, {name: int(size)})

  def __add__(self, other: Polynomial) -> Polynomial:
    return add([self, other])

  def __mul__(self, other: Polynomial) -> Polynomial:
    terms: dict[Monomial, int] = {}
    for a, ca in self.terms.items():
      for b, cb in other.terms.items():
        monomial = tuple(sorted(a + b))
        terms[monomial] = terms.get(monomial, 0) + ca * cb
    return Polynomial(terms, {**self.sizes, **other.sizes})

  @cached_property
  def groups(self) -> tuple[str, ...]:
    """Names of the groups the cost depends on, sorted."""
    return tuple(sorted({name for monomial in self.terms for name in monomial}))

  @cached_property
  def degree(self) -> int:
    """Largest number of counts multiplied in a term; a Sinkhorn shift is divided by it."""
    return max((len(monomial) for monomial in self.terms), default=0)

  @cached_property
  def total(self) -> int:
    """The cost of the dense network."""
    return self.at({})

  def at(self, counts: Mapping[str, int]) -> int:
    """The exact cost when groups keep `counts` channels.

    Args:
      counts: {group: number kept}, integers in [0, size]; a group left out keeps all. Groups that
        this cost does not depend on are ignored.

    Returns:
      The cost, a Python int.

    Raises:
      ValueError: a count is not an integer in [0, size].
    """
    numbers = {
      name: _checked(name, counts.get(name, size), size) for name, size in self.sizes.items()
    }
    cost = 0
    for monomial, coefficient in self.terms.items():
      for name in monomial:
        coefficient *= numbers[name]
      cost += coefficient
    return cost

  def without(self, name: str) -> int:
    """The cost that hangs on a group: what the dense network would save if it were gone."""
    return self.total - self.at({name: 0}) if name in self.sizes else 0

  def fraction(self, masks: Mapping[str, jax.Array]) -> jax.Array:
    """F(m) / F(1), the differentiable share of the cost that soft masks keep.

    Args:
      masks: {group: mask of shape (n,), entries in [0, 1]}; a group left out keeps all.

    Returns:
      A scalar in [0, 1], float32 or wider. Scaled by F(1) inside, so nothing overflows.

    Raises:
      ValueError: a mask does not have its group's shape.
    """
    kept = kept_shares({name: masks[name] for name in self.groups if name in masks}, self.sizes)
    if not kept:
      return jnp.ones(())
    return jnp.sum(soft_terms([self], self.sizes, kept, max(self.total, 1)))

  def soft(self, masks: Mapping[str, jax.Array]) -> jax.Array:
    """F(m): the cost under soft masks, differentiable. See `fraction`, which is this over F(1)."""
    share = self.fraction(masks)
    return share * jnp.asarray(float(self.total), share.dtype)


def add(costs: Iterable[Polynomial]) -> Polynomial:
  """The sum of many costs."""
  terms: dict[Monomial, int] = {}
  sizes: dict[str, int] = {}
  for cost in costs:
    sizes.update(cost.sizes)
    for monomial, coefficient in cost.terms.items():
      terms[monomial] = terms.get(monomial, 0) + coefficient
  return Polynomial(terms, sizes)


def counts_of(hard: Mapping[str, jax.Array | np.ndarray]) -> dict[str, int]:
  """Kept channels per group of hard masks {group: (n,) of 0 and 1}, in exact integers."""
  return {name: int(np.count_nonzero(np.asarray(mask))) for name, mask in hard.items()}


def check_shape(name: str, shape: tuple[int, ...], size: int) -> None:
  """Raises ValueError unless `shape` is that of a mask of a group of `size` channels."""
  if tuple(shape) != (size,):
    raise ValueError(
      f'the mask of group {name!r} has shape {tuple(shape)}; expected ({size},), one entry per '
      'channel'
    )


def kept_shares(masks: Mapping[str, jax.Array], sizes: Mapping[str, int]) -> dict[str, jax.Array]:
  """{group: mean of its mask}, in float32 or the wider type of all.

  Raises:
    ValueError: a mask without one entry for each channel of its group.
  """
  for name, mask in masks.items():
    check_shape(name, jnp.shape(mask), sizes[name])
  arrays = {name: jnp.asarray(mask) for name, mask in masks.items()}
  dtype = jnp.result_type(jnp.float32, *arrays.values())
  return {name: jnp.mean(array.astype(dtype)) for name, array in arrays.items()}


def soft_terms(
  costs: Iterable[Polynomial],
  sizes: Mapping[str, int],
  kept: Mapping[str, jax.Array],
  scale: int = 1,
) -> jax.Array:
  """Every term of some costs, over `scale`, one cost after the other: a few array operations.

  Args:
    costs: polynomials.
    sizes: {group: channels in the dense network}.
    kept: {group: share of its channels that is kept}, as from `kept_shares`, of one type and not
      empty; groups left out keep all.
    scale: what the terms are divided by, in double precision.

  Returns:
    An array of shape (terms of all costs,).
  """
  terms = [(monomial, n) for cost in costs for monomial, n in cost.terms.items()]
  full = [n * math.prod(float(sizes[name]) for name in monomial) / scale for monomial, n in terms]
  place = {name: i for i, name in enumerate(kept)}
  shares = jnp.stack([*kept.values(), jnp.ones_like(next(iter(kept.values())))])  # the last: all
  values = jnp.asarray(full, shares.dtype)
  for k in range(max((len(monomial) for monomial, _ in terms), default=0)):
    column = [place.get(m[k], len(place)) if k < len(m) else len(place) for m, _ in terms]
    values = values * shares[np.asarray(column)]
  return values


def _checked(name: str, count: int, size: int) -> int:
  if int(count) != count or not 0 <= count <= size:
    raise ValueError(
      f'group {name!r} cannot keep {count} channels: expected an integer in [0, {size}]'
    )
  return int(count)
