"""Numbers on dims: which positions of a dim are left when atoms keep some of their elements."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np

from dtp_jax.graph.dims import Atom, Concat, Dim, Product, Size, atoms, resolve

Kept: TypeAlias = Mapping[Atom, np.ndarray]


def pruned(dim: Dim, kept: Kept) -> bool:
  """Whether any atom of the dim loses elements."""
  return any(atom in kept for atom in atoms(dim))


def positions(dim: Dim, kept: Kept) -> np.ndarray:
  """Positions of the dim that remain, increasing. `kept` names only atoms that lose elements."""
  dim = resolve(dim)
  if isinstance(dim, Atom):
    return kept[dim] if dim in kept else np.arange(dim.size)
  if isinstance(dim, Product):
    result = np.zeros(1, int)
    for factor in dim.factors:
      result = (result[:, None] * factor.size + positions(factor, kept)[None, :]).ravel()
    return result
  offsets = np.cumsum([0, *(part.size for part in dim.parts)])
  return np.concatenate([o + positions(p, kept) for o, p in zip(offsets, dim.parts, strict=False)])


def count(dim: Dim, kept: Kept) -> Size:
  """How many positions of the dim remain; symbolic where a factor that loses none is."""
  dim = resolve(dim)
  if isinstance(dim, Atom):
    return len(kept[dim]) if dim in kept else dim.size
  if isinstance(dim, Product):
    return math.prod(count(factor, kept) for factor in dim.factors)
  return sum(count(part, kept) for part in dim.parts)


def occurrences(dim: Dim) -> list[tuple[Atom, np.ndarray]]:
  """Per atom in the dim, which of its elements each position belongs to (-1: to none).

  Returns:
    Pairs (atom, index) with index of shape (dim.size,), one per occurrence: an atom that occurs
    twice in one dim gives two pairs, merged into one where they do not overlap.
  """
  dim = resolve(dim)
  if isinstance(dim, Atom):
    return [(dim, np.arange(dim.size))]
  found: list[tuple[Atom, np.ndarray]] = []
  if isinstance(dim, Product):
    place, stride = np.arange(dim.size), dim.size
    for factor in dim.factors:
      stride //= factor.size
      digit = place // stride % factor.size
      found += [(atom, index[digit]) for atom, index in occurrences(factor)]
    return found
  start = 0
  for part in dim.parts:
    for atom, index in occurrences(part):
      spread = np.full(dim.size, -1)
      spread[start : start + part.size] = index
      found.append((atom, spread))
    start += part.size
  return _merged(found)


def _merged(found: list[tuple[Atom, np.ndarray]]) -> list[tuple[Atom, np.ndarray]]:
  merged: list[tuple[Atom, np.ndarray]] = []
  for atom, index in found:
    for i, (other, seen) in enumerate(merged):
      if other is atom and not np.any((seen >= 0) & (index >= 0)):
        merged[i] = (atom, np.maximum(seen, index))
        break
    else:
      merged.append((atom, index))
  return merged


def decode(dim: Dim, keep: np.ndarray, kept: dict[Atom, np.ndarray]) -> str | None:
  """Inverse of `positions`: what its atoms must keep for the dim to keep the positions `keep`.

  Args:
    dim: the dim.
    keep: increasing positions, shape (k,).
    kept: filled in, for the atoms that lose elements.

  Returns:
    None, or why no choice of kept elements leaves exactly these positions.
  """
  dim = resolve(dim)
  if len(keep) == dim.size and not pruned(dim, kept):
    return None
  if isinstance(dim, Atom):
    if dim.reason is not None and len(keep) < dim.size:
      return f'is frozen: {dim.reason}'
    if dim in kept and not np.array_equal(kept[dim], keep):
      return 'would keep different channels in two places'
    kept[dim] = keep
    return None
  if isinstance(dim, Concat):
    children, start = [], 0
    for part in dim.parts:
      inside = keep[(keep >= start) & (keep < start + part.size)]
      children.append((part, inside - start))
      start += part.size
  else:
    digits = np.unravel_index(keep, [f.size for f in dim.factors])
    children = [(f, np.unique(d)) for f, d in zip(dim.factors, digits, strict=True)]
    if np.prod([len(d) for _, d in children]) != len(keep):
      return 'would keep channels that do not form a product'
  for child, inside in children:
    problem = decode(child, inside, kept)
    if problem:
      return problem
  return None
