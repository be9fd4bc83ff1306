"""One transport problem of a budget: what every method asks of it, whatever is being pruned.

`CountProblem` keeps a number of elements, `CostProblem` what a cost polynomial can hold. A method
sees flat arrays and asks for soft and hard masks at a kept fraction; it never asks of what.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from dtp_jax import transport
from dtp_jax.budget import rounding, rounding_traced
from dtp_jax.budget.rounding import Cost
from dtp_jax.parts import from_parts, to_parts

__all__ = ['CostProblem', 'CountProblem', 'Problem']

_RAMP_ROUNDING = 1e-6  # a ramp ends at 1 - (1 - keep) in float32, however small keep is


class CountProblem(NamedTuple):
  """Keep k of n elements.

  Attributes:
    names: the score arrays that compete.
    shapes: their shapes.
    rows: True if every row is a problem of its own.
    n: elements of a problem.
    k: how many of them are kept.
    parts: over how many devices the arrays are split; the flat array is read part by part.
  """

  names: tuple[str, ...]
  shapes: tuple[tuple[int, ...], ...]
  rows: bool
  n: int
  k: int
  parts: int = 1

  def split_into(self, parts: int) -> 'CountProblem':
    """The problem of arrays split into parts; as a whole where one of them has no equal parts."""
    equal = all(math.prod(shape) % parts == 0 for shape in self.shapes)
    return self._replace(parts=parts if equal else 1)

  @property
  def keep(self) -> float:
    """The kept fraction, k / n."""
    return self.k / self.n

  @property
  def copies(self) -> int:
    """How many equal problems this stands for: 1, or the number of rows."""
    return math.prod(self.shapes[0][:-1]) if self.rows else 1

  @property
  def size(self) -> int:
    """Elements of all copies."""
    return self.n * self.copies

  def gather(self, arrays: Mapping[str, Array]) -> Array:
    """The arrays as (n,), or (rows, n)."""
    if self.rows:
      return arrays[self.names[0]]
    return jnp.concatenate([to_parts(arrays[n], self.parts) for n in self.names], axis=1).ravel()

  def scatter(self, flat: Array) -> dict[str, Array]:
    """{name: array of its score shape}."""
    if self.rows:
      return {self.names[0]: flat}
    sizes = [math.prod(shape) // self.parts for shape in self.shapes]
    pieces = _pieces(flat.reshape(self.parts, -1), sizes)
    named = zip(self.names, self.shapes, pieces, strict=True)
    return {name: from_parts(piece, shape) for name, shape, piece in named}

  def hard(self, ranking: Array, keep: Any = None) -> Array:
    """Exactly k of each problem; with `keep`, round(keep n), never fewer than k."""
    if keep is None:
      return transport.hard_topk(ranking, self.k)
    count = jnp.round(jnp.asarray(keep) * self.n).astype(jnp.int32)
    # At the end of a ramp the count is k itself, not what float32 makes of k / n.
    ended = jnp.asarray(keep) <= self.keep + _RAMP_ROUNDING
    count = jnp.where(ended, self.k, jnp.clip(count, self.k, self.n))
    return transport.hard_topk(ranking, count)

  def soft(self, scores: Array, *, keep: Any, epsilon: Any) -> Array:
    """`transport.soft_topk`."""
    return transport.soft_topk(scores, keep=keep, epsilon=epsilon)

  def proximal(
    self, scores: Array, state: Array, *, keep: Any, **options: Any
  ) -> tuple[Array, Array]:
    """`transport.proximal_step`."""
    return transport.proximal_step(scores, state, keep=keep, **options)

  def anneal(self, scores: Array, state: Array, *, keep: Any, ceiling: Any) -> tuple[Array, Array]:
    """`transport.anneal`; of rows, at one temperature for all of them."""
    anneal = transport.anneal_rows if self.rows else transport.anneal
    return anneal(scores, state, keep=keep, ceiling=ceiling)

  def rest_softness(self, keep: Any) -> Array:
    """Softness of the softest mask, which tells no element apart: 4 rho (1 - rho)."""
    return 4 * jnp.asarray(keep) * (1 - jnp.asarray(keep))

  def prices(self, log_odds: Array) -> None:
    """None: every element counts as one."""
    del log_odds


class CostProblem:
  """Keep the channels that a cost can hold; all groups compete.

  Attributes:
    sizes: {group: number of channels}.
    cost: the cost polynomial, or another `rounding.Cost`.
    limit: the budget in its unit.
    min_keep: channels that every group keeps.
    multiple_of: groups keep a multiple of it, or all; or {group: counts} that each may keep.
  """

  def __init__(
    self,
    sizes: Mapping[str, int],
    cost: Cost,
    limit: int,
    *,
    min_keep: int,
    multiple_of: int | rounding.Allowed,
  ):
    """Checks that the floors fit.

    Raises:
      FloorError: a limit below the cost of the floors.
    """
    self.sizes, self.cost, self.limit = dict(sizes), cost, limit
    self.min_keep, self.multiple_of = min_keep, multiple_of
    self._round(np.zeros(sum(sizes.values())), limit)

  @property
  def keep(self) -> float:
    """The share of the dense cost that is kept."""
    return self.limit / max(1, self.cost.total)

  @property
  def size(self) -> int:
    """Channels of all groups."""
    return sum(self.sizes.values())

  def gather(self, arrays: Mapping[str, Array]) -> Array:
    """The channels of all groups, (n,)."""
    return jnp.concatenate([arrays[name] for name in self.sizes])

  def scatter(self, flat: Array) -> dict[str, Array]:
    """{group: (channels,)}."""
    return dict(zip(self.sizes, _pieces(flat, tuple(self.sizes.values())), strict=True))

  def hard(self, ranking: Array, keep: Any = None) -> Array:
    """The rounding of `round_to_budget`: on the host, and traced in integers under jit."""
    keep = self.keep if keep is None else keep
    ranking = lax.stop_gradient(ranking)
    if not (isinstance(ranking, jax.core.Tracer) or isinstance(keep, jax.core.Tracer)):
      limit = self.limit if self._ended(keep) else rounding.limit_at(self.cost, keep)
      return jax.device_put(self._round(np.asarray(ranking), limit))
    limit = jnp.where(
      self._ended(keep),
      rounding_traced.as_limbs(self.limit, self.cost),
      rounding_traced.limit_at(self.cost, jnp.asarray(keep, jnp.float32)),
    )
    return rounding_traced.round_to_budget(
      ranking, self.cost, limit, self.sizes, floors=self._floors
    )

  def soft(self, scores: Array, *, keep: Any, epsilon: Any) -> Array:
    """`transport.soft_topk` under the cost."""
    return transport.soft_topk(scores, keep=keep, epsilon=epsilon, cost=self._share)

  def proximal(
    self, scores: Array, state: Array, *, keep: Any, **options: Any
  ) -> tuple[Array, Array]:
    """`transport.proximal_step` under the cost."""
    share, degree = self._share, max(1, self.cost.degree)
    return transport.proximal_step(scores, state, keep=keep, cost=share, degree=degree, **options)

  def anneal(self, scores: Array, state: Array, *, keep: Any, ceiling: Any) -> tuple[Array, Array]:
    """`transport.anneal` under the cost."""
    return transport.anneal(scores, state, keep=keep, ceiling=ceiling, cost=self._share)

  def rest_softness(self, keep: Any) -> Array:
    """Softness of the softest mask, which tells no channel apart: 4 q (1 - q).

    q is the kept fraction of channels that costs rho at uniform width.
    """
    rest = transport.project(jnp.zeros(sum(self.sizes.values())), keep=keep, cost=self._share)
    q = jax.nn.sigmoid(rest[0])
    return 4 * q * (1 - q)

  def prices(self, log_odds: Array) -> Array:
    """The gradient of the share of the cost at the mask of these log-odds, (n,)."""
    return jax.grad(self._share)(jax.nn.sigmoid(lax.stop_gradient(log_odds)))

  def _share(self, mask: Array) -> Array:
    return self.cost.fraction(self.scatter(mask))

  def _ended(self, keep: Any) -> Any:
    # A fraction that went through float32 must not move the final budget.
    return jnp.asarray(keep, jnp.float32) <= np.float32(self.keep + _RAMP_ROUNDING)

  @property
  def _floors(self) -> dict[str, Any]:
    return {'min_keep': self.min_keep, 'multiple_of': self.multiple_of}

  def _round(self, ranking: Any, limit: int) -> np.ndarray:
    masks = rounding.round_to_budget(self.scatter(ranking), self.cost, limit, **self._floors)
    return np.concatenate(list(masks.values()))


Problem: TypeAlias = CountProblem | CostProblem  # what a method is written for


def _pieces(rows: Any, sizes: Sequence[int]) -> Any:
  """The pieces of so many columns each, of an array split along its last axis."""
  if isinstance(rows, np.ndarray):
    return np.split(rows, np.cumsum(sizes)[:-1], axis=-1)
  # Not slices: the transpose of those is a sum of as many arrays of the whole size.
  return lax.split(rows, sizes, axis=rows.ndim - 1)
