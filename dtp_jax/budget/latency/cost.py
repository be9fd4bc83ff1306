"""What a network costs in time: measured curves of its operators, interpolated in their widths.

A curve holds the nanoseconds of an operator on a grid of widths. Between the knots it is
multilinear, so that a cost is exact in integers on the host and differentiable on soft masks. Noise
is no reason for a wider operator to cost less: rounding to a budget needs costs that rise with
every count. So a curve is what was measured made monotone, midway between its running maximum from
below and its running minimum from above, and rises by at least 1 ns a knot. (The maximum alone
would carry one disturbed measurement to all larger widths in full.) A width that takes far longer
than a wider one, for a kernel that does not suit it, counts as little more than the wider one: no
narrower network needs it, see `LatencyTable.rising`.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dtp_jax.graph.cost import Polynomial, kept_shares, soft_terms

__all__ = ['Curve', 'LatencyCost', 'Term']

Counts = Mapping[str, int]

_NOISE = 4  # a quarter above what a wider operator takes: what is more is no noise, but slow


@dataclass(frozen=True, eq=False)
class Curve:
  """Nanoseconds of an operator over its widths.

  Attributes:
    knots: per width, increasing integers >= 1, the last one the full width.
    measured: integers of shape (knots of the first width, knots of the second, ...).
  """

  knots: tuple[tuple[int, ...], ...]
  measured: np.ndarray

  def __post_init__(self):
    """Raises ValueError on knots or nanoseconds that are no curve."""
    for knots in self.knots:
      if not knots or knots[0] < 1 or any(a >= b for a, b in itertools.pairwise(knots)):
        raise ValueError(f'knots are {knots}; expected increasing widths from 1 on.')
    shape = tuple(map(len, self.knots))
    if self.measured.shape != shape or self.measured.dtype.kind not in 'iu':
      raise ValueError(
        f'measured is {self.measured.dtype} of shape {self.measured.shape}; expected integers of '
        f'shape {shape}, one per grid point.'
      )
    if np.any(self.measured < 0):
      raise ValueError(f'measured has {self.measured.min()} ns; expected no negative time.')

  @cached_property
  def grid(self) -> tuple[tuple[int, ...], ...]:
    """The knots with 0 before them."""
    return tuple((0, *knots) for knots in self.knots)

  @cached_property
  def values(self) -> np.ndarray:
    """Nanoseconds on `grid`: the measured ones made to rise, 0 where nothing is kept."""
    measured = np.maximum(self.measured.astype(np.int64), 1)
    if not self.knots:
      return measured
    steps = np.add.reduce(np.indices(measured.shape))
    below = measured - steps
    for axis in range(below.ndim):
      below = np.flip(np.minimum.accumulate(np.flip(below, axis), axis), axis)
    above = np.minimum(measured - steps, below + below // _NOISE)
    for axis in range(above.ndim):
      above = np.maximum.accumulate(above, axis)
    rising = np.maximum((above + below) // 2 + steps, 1 + steps)
    return np.pad(rising, [(1, 0)] * rising.ndim)

  @property
  def full(self) -> int:
    """Nanoseconds at full width."""
    return int(self.values[(-1,) * len(self.knots)])

  @cached_property
  def unsmoothed(self) -> np.ndarray:
    """Nanoseconds on `grid` as they were measured, 0 where nothing is kept."""
    return np.pad(self.measured, [(1, 0)] * self.measured.ndim)

  def at(self, widths: Sequence[int], values: np.ndarray | None = None) -> tuple[int, int]:
    """The exact interpolated nanoseconds at integer widths, as numerator and denominator.

    Args:
      widths: one for each axis of the grid.
      values: on the grid; None is `self.values`.
    """
    values = self.values if values is None else values
    sides = []
    for width, grid in zip(widths, self.grid, strict=True):
      cell = min(bisect.bisect_right(grid, width) - 1, len(grid) - 2)
      low, high = grid[cell], grid[cell + 1]
      sides.append(((cell, high - width), (cell + 1, width - low)))
    value = 0
    for corner in itertools.product(*sides):
      share = math.prod(weight for _, weight in corner)
      value += share * int(values[tuple(place for place, _ in corner)])
    return value, math.prod(low[1] + high[1] for low, high in sides)

  @cached_property
  def gaps(self) -> int:
    """A number that every denominator of `at` divides."""
    return math.prod(math.lcm(*(b - a for a, b in itertools.pairwise(g))) for g in self.grid)

  @cached_property
  def elasticity(self) -> tuple[float, ...]:
    """Per width, by how many per cent at most the time rises when the width rises by one per cent.

    In a cell w df/dw / f is a ratio of multilinear functions, so it is largest in a corner.
    """
    found = []
    for axis, grid in enumerate(self.grid):
      values = np.moveaxis(self.values, axis, 0).reshape(len(grid), -1).astype(float)
      slopes = np.diff(values, axis=0) / np.diff(grid)[:, None]
      ends = np.concatenate([slopes, slopes]) * np.asarray((*grid[:-1], *grid[1:]))[:, None]
      at_ends = np.concatenate([values[:-1], values[1:]])
      ratios = np.divide(ends, at_ends, out=np.zeros_like(ends), where=at_ends > 0)
      found.append(float(ratios.max()))
    return tuple(found)


class Term(NamedTuple):
  """An operator of a network: its curve, and its widths as polynomials of kept counts."""

  curve: Curve
  widths: tuple[Polynomial, ...]


class LatencyCost:
  """Nanoseconds of all operators of a network; see `dtp_jax.budget.rounding.Cost`.

  Attributes:
    terms: the operators.
    sizes: {group: channels in the dense network}.
  """

  def __init__(self, terms: Sequence[Term], sizes: Mapping[str, int]):
    """A cost of `terms` over the groups `sizes`."""
    self.terms, self.sizes = tuple(terms), dict(sizes)
    self._unit = math.lcm(*(term.curve.gaps for term in self.terms))
    self._groups = [sorted({g for w in term.widths for g in w.groups}) for term in self.terms]
    # A term's value per counts of its groups: rounding asks thousands of times, and each time
    # changes the count of one group.
    self._known: list[dict[tuple[int, ...], int]] = [{} for _ in self.terms]

  @cached_property
  def total(self) -> int:
    """Nanoseconds of the dense network: the sum of its operators."""
    return self.at({})

  @cached_property
  def degree(self) -> int:
    """An integer that bounds the elasticity of the cost, as the degree of a polynomial does.

    Where a measured curve is steeper than proportional it is more than the number of widths.
    """
    bounds = [
      sum(e * w.degree for e, w in zip(term.curve.elasticity, term.widths, strict=True))
      for term in self.terms
    ]
    return max(1, math.ceil(max(bounds, default=1) - 1e-9))

  def at(self, counts: Counts) -> int:
    """Nanoseconds when groups keep `counts` channels: the interpolated sum, rounded up.

    Args:
      counts: {group: number kept}, integers in [0, size]; a group left out keeps all. Groups that
        this cost does not depend on are ignored.

    Raises:
      ValueError: a count is not an integer in [0, size].
    """
    kept = {name: counts.get(name, n) for name, n in self.sizes.items()}
    value = 0
    for term, groups, known in zip(self.terms, self._groups, self._known, strict=True):
      key = tuple([kept[name] for name in groups])
      if key not in known:  # a key that is known was checked
        numerator, denominator = term.curve.at([width.at(kept) for width in term.widths])
        known[key] = numerator * (self._unit // denominator)
      value += known[key]
    return -(-value // self._unit)

  def fraction(self, masks: Mapping[str, jax.Array]) -> jax.Array:
    """The differentiable share of the total time that soft masks keep; sum(m) stands for a count.

    Args:
      masks: {group: mask of shape (n,), entries in [0, 1]}; a group left out keeps all.

    Returns:
      A scalar, float32 or wider: at(counts) / total at 0-1 masks, but for the 1 ns of rounding.

    Raises:
      ValueError: a mask does not have its group's shape.
    """
    kept = kept_shares({name: masks[name] for name in self.sizes if name in masks}, self.sizes)
    if not kept:
      return jnp.ones(())
    widths = [width for term in self.terms for width in term.widths]  # equal ones occur repeatedly
    owner = np.repeat(np.arange(len(widths)), [len(width.terms) for width in widths])
    terms = soft_terms(widths, self.sizes, kept)
    values = jnp.zeros(len(widths), terms.dtype).at[owner].add(terms)
    constant = sum(term.curve.full for term in self.terms if not term.widths)
    share = jnp.asarray(constant / max(self.total, 1), terms.dtype)
    return sum((block.share(values) for block in self._blocks), share)

  @cached_property
  def _blocks(self) -> list[_Block]:
    """The terms by their number of widths, so that each block is a handful of array operations."""
    starts = np.cumsum([0, *(len(term.widths) for term in self.terms)])
    blocks = []
    for rank in sorted({len(term.widths) for term in self.terms} - {0}):
      chosen = [i for i, term in enumerate(self.terms) if len(term.widths) == rank]
      rows = np.asarray([np.arange(starts[i], starts[i] + rank) for i in chosen])
      blocks.append(_Block.of([self.terms[i].curve for i in chosen], rows, max(self.total, 1)))
    return blocks


class _Block(NamedTuple):
  """Curves of one number of widths, padded to one number of cells per width.

  With 0 at width 0, a multilinear curve is the sum over all cells of its mixed difference there
  times the parts of that cell that the widths fill: no search for the cell, and a derivative.

  Attributes:
    rows: which width each curve reads, (curves, rank).
    low: left end of every cell, (curves, rank, cells).
    gap: its length.
    most: 1, the part of a cell that can be filled; infinite for the last one, so that rounding at
      full width does not hide the slope.
    rises: mixed differences as a share of the total, (curves, cells, ..., cells).
  """

  rows: np.ndarray
  low: np.ndarray
  gap: np.ndarray
  most: np.ndarray
  rises: np.ndarray

  @classmethod
  def of(cls, curves: Sequence[Curve], rows: np.ndarray, total: int) -> _Block:
    cells = max(len(knots) for curve in curves for knots in curve.knots)
    shape = (*rows.shape, cells)
    low, gap, most = np.zeros(shape), np.ones(shape), np.ones(shape)
    rises = np.zeros((len(rows), *(cells,) * rows.shape[1]))
    for i, curve in enumerate(curves):
      rise = curve.values / total
      for k, grid in enumerate(curve.grid):
        low[i, k, : len(grid) - 1] = grid[:-1]
        gap[i, k, : len(grid) - 1] = np.diff(grid)
        most[i, k, len(grid) - 2] = np.inf
        rise = np.diff(rise, axis=k)
      rises[(i, *map(slice, rise.shape))] = rise
    return cls(rows, low, gap, most, rises)

  def share(self, widths: jax.Array) -> jax.Array:
    """The interpolated sum of the curves at `widths` (variables,)."""
    low, gap, most, value = (jnp.asarray(a, widths.dtype) for a in self[1:])
    filled = jnp.clip((widths[self.rows][..., None] - low) / gap, 0, most)
    for k in reversed(range(self.rows.shape[1])):
      value = jnp.einsum('n...c,nc->n...', value, filled[:, k], precision='highest')
    return jnp.sum(value)
