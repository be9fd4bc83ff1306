"""Budgets: how much to keep, in exact integers, and which elements compete for it."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

import jax.numpy as jnp
from jax import Array

from dtp_jax.prunable import Prunable

__all__ = ['Budget', 'Problem', 'Scope', 'gather', 'problems', 'scatter']

Scope = Literal['global', 'layer', 'erk', 'row']


@dataclasses.dataclass(frozen=True)
class Budget:
  """How much of a network to keep.

  Attributes:
    keep: a float in [0, 1] is the fraction of the prunable elements to keep, rounded to the nearest
      integer count; an int is the count itself.
    scope: which elements compete. 'global': all of them. 'layer': the same fraction of every score
      array. 'erk': per array, the fraction proportional to the Erdos-Renyi-kernel density (RigL,
      arXiv:1911.11134), full arrays capped. 'row': the same count in every row of every array, as
      for N:M sparsity. The counts add up to the requested total exactly in the first three.
  """

  keep: float | int
  scope: Scope = 'global'

  def __post_init__(self):
    """Raises ValueError on a keep or a scope out of range."""
    if isinstance(self.keep, bool) or not isinstance(self.keep, int | float):
      raise ValueError(f'keep is {self.keep!r}; expected a fraction (float) or a count (int).')
    high = math.inf if isinstance(self.keep, int) else 1.0
    if not 0 <= self.keep <= high:
      raise ValueError(f'keep is {self.keep}; expected a fraction in [0, 1] or a count >= 0.')
    if self.scope not in get_args(Scope):
      raise ValueError(f'scope is {self.scope!r}; expected one of {get_args(Scope)}.')

  def count(self, n: int) -> int:
    """The requested number out of n elements, in exact integers.

    Raises:
      ValueError: a count larger than n.
    """
    if isinstance(self.keep, float):
      return round(self.keep * n)
    if self.keep > n:
      raise ValueError(f'keep is {self.keep} elements; expected at most the {n} there are.')
    return self.keep


class Problem(NamedTuple):
  """One transport problem, or a batch of equal ones (rows).

  Attributes:
    names: the score arrays that compete.
    shapes: their shapes.
    rows: True if every row is a problem of its own.
    n: elements of a problem.
    k: how many of them are kept.
  """

  names: tuple[str, ...]
  shapes: tuple[tuple[int, ...], ...]
  rows: bool
  n: int
  k: int

  @property
  def keep(self) -> float:
    """The kept fraction, k / n."""
    return self.k / self.n

  @property
  def copies(self) -> int:
    """How many equal problems this stands for: 1, or the number of rows."""
    return math.prod(self.shapes[0][:-1]) if self.rows else 1


def problems(prunable: Prunable, budget: Budget) -> tuple[Problem, ...]:
  """The transport problems of a budget.

  Raises:
    ValueError: a budget that cannot be met: a count above the number of elements, or for 'row' a
      fraction that is not a whole number of elements in every row.
  """
  shapes = prunable.shapes
  sizes = {name: math.prod(shape) for name, shape in shapes.items()}
  total = sum(sizes.values())
  if budget.scope == 'row':
    return tuple(_row_problem(name, shape, budget) for name, shape in shapes.items())
  k = budget.count(total)
  if budget.scope == 'global':
    return (Problem(tuple(shapes), tuple(shapes.values()), False, total, k),)
  density = prunable.density if budget.scope == 'erk' else dict.fromkeys(sizes, 1.0)
  counts = _apportion(k, _quotas(k, sizes, density), sizes)
  return tuple(Problem((n,), (shapes[n],), False, sizes[n], counts[n]) for n in shapes)


def gather(problem: Problem, arrays: Mapping[str, Array]) -> Array:
  """The arrays of a problem as (n,), or (rows, n)."""
  if problem.rows:
    return arrays[problem.names[0]]
  return jnp.concatenate([arrays[name].ravel() for name in problem.names])


def scatter(problem: Problem, flat: Array) -> dict[str, Array]:
  """The inverse of `gather`: {name: array of its score shape}."""
  if problem.rows:
    return {problem.names[0]: flat}
  arrays, start = {}, 0
  for name, shape in zip(problem.names, problem.shapes, strict=True):
    stop = start + math.prod(shape)
    arrays[name] = flat[start:stop].reshape(shape)
    start = stop
  return arrays


def _row_problem(name, shape, budget):
  n = shape[-1]
  k = budget.count(n)
  if isinstance(budget.keep, float) and abs(budget.keep * n - k) > 1e-6:
    raise ValueError(
      f'keep is {budget.keep} of rows of {n} ({name}): {budget.keep * n:g} elements; expected a '
      'whole number, as in keep=0.5 for 2:4.'
    )
  return Problem((name,), (shape,), True, n, k)


def _quotas(k, sizes, density):
  """Real-valued counts proportional to density x size with sum k; full arrays are capped."""
  full: set[str] = set()
  while True:
    free = k - sum(sizes[n] for n in full)
    weight = sum(density[n] * sizes[n] for n in sizes if n not in full)
    scale = free / weight if weight else 0.0
    over = {n for n in sizes if n not in full and scale * density[n] > 1}
    if not over:
      return {n: sizes[n] if n in full else scale * density[n] * sizes[n] for n in sizes}
    full |= over


def _apportion(k, quotas, sizes):
  """Integers nearest to the quotas with sum k exactly: largest remainders first."""
  counts = {n: min(math.floor(q + 1e-9), sizes[n]) for n, q in quotas.items()}
  remainders = sorted(counts, key=lambda n: counts[n] - quotas[n])  # stable: ties in order
  for name in remainders[: k - sum(counts.values())]:
    counts[name] += 1
  return counts
