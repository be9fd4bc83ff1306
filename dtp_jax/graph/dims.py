"""The algebra of dims: atoms, products and concatenations of atoms, unified as a trace runs.

A dim of an intermediate is an `Atom` (one axis of channels, tokens, batch), a `Product` of dims
(what a flatten makes) or a `Concat` of dims (what a concatenation makes). Two dims that must mean
the same are unified: an atom binds to the other side, products and concatenations are refined
until their parts line up, and what cannot be lined up is frozen. Unification only ever merges and
refines, so the order in which equations are read does not matter for soundness.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

# An int, or jax.export's symbolic dimension: only ==, % and // are asked of it.
Size: TypeAlias = Any


class Atom:
  """An indivisible dim, until a reshape or a slice divides it.

  Attributes:
    size: number of elements.
    reason: why it must keep its size; None while it may be pruned.
    hidden: frozen by its very nature (a conv window): left out of the report.
    batch: the batch axis, by which MACs are divided.
  """

  __slots__ = ('batch', 'bound', 'hidden', 'reason', 'size')

  def __init__(
    self, size: Size, reason: str | None = None, hidden: bool = False, batch: bool = False
  ):
    self.size = size
    self.reason = reason
    self.hidden = hidden
    self.batch = batch
    self.bound: Dim | None = None

  def divided(self, size: Size, reason: str) -> Atom:
    """A part of this atom, frozen if it is, or if there is nothing in it to choose from."""
    if self.reason is None and is_one(size):
      return Atom(size, f'{reason}: a single channel')
    return Atom(size, self.reason, self.hidden, self.batch)


@dataclass(frozen=True, eq=False)
class Product:
  """A dim that runs over all combinations of its factors, the first one slowest."""

  factors: tuple[Dim, ...]

  @property
  def size(self) -> Size:
    """The product of the factors' sizes."""
    return math.prod(factor.size for factor in self.factors)


@dataclass(frozen=True, eq=False)
class Concat:
  """A dim that runs over its parts one after the other."""

  parts: tuple[Dim, ...]

  @property
  def size(self) -> Size:
    """The sum of the parts' sizes."""
    return sum(part.size for part in self.parts)


Dim: TypeAlias = Atom | Product | Concat
UNIT = Product(())


def resolve(dim: Dim) -> Dim:
  """The dim in terms of unbound atoms, nested products and concatenations flattened."""
  if isinstance(dim, Atom):
    if dim.bound is None:
      return dim
    dim.bound = resolve(dim.bound)
    return dim.bound
  if isinstance(dim, Product):
    factors = _flat(dim.factors)
    return factors[0] if len(factors) == 1 else Product(tuple(factors))
  parts: list[Dim] = []
  for part in map(resolve, dim.parts):
    parts += part.parts if isinstance(part, Concat) else [part]
  return parts[0] if len(parts) == 1 else Concat(tuple(parts))


def atoms(dim: Dim) -> Iterator[Atom]:
  """The unbound atoms a dim is made of, in order, repeats included."""
  dim = resolve(dim)
  if isinstance(dim, Atom):
    yield dim
  else:
    for child in dim.factors if isinstance(dim, Product) else dim.parts:
      yield from atoms(child)


def frozen(dim: Dim) -> bool:
  """Whether every atom of the dim must keep its size."""
  return all(atom.reason is not None for atom in atoms(dim))


def freeze(dim: Dim, reason: str, hidden: bool = False) -> None:
  """Makes every atom of the dim keep its size; the first reason given stays."""
  for atom in atoms(dim):
    if atom.reason is None:
      atom.reason, atom.hidden = reason, hidden


def unify(a: Dim, b: Dim, reason: str = 'dims that do not line up') -> None:
  """Makes two dims of one size mean the same; freezes both, for `reason`, where it cannot."""
  a, b = resolve(a), resolve(b)
  if a is b:
    return
  if isinstance(a, Atom):
    _bind(a, b)
  elif isinstance(b, Atom):
    _bind(b, a)
  elif isinstance(a, Product) and isinstance(b, Product):
    aligned = _align_products(list(a.factors), list(b.factors), reason)
    if not aligned:
      freeze(a, reason)
      freeze(b, reason)
  else:
    _unify_parts(a, b, reason)


def cut(dim: Dim, at: Size, reason: str) -> tuple[Dim, Dim] | None:
  """Divides a dim into its first `at` elements and the rest; None if its structure forbids it."""
  dim = resolve(dim)
  if isinstance(dim, Atom):
    head, tail = dim.divided(at, reason), dim.divided(dim.size - at, reason)
    dim.bound = Concat((head, tail))
    return head, tail
  if isinstance(dim, Product):
    return _cut_product(dim.factors[0], Product(dim.factors[1:]), at, reason)
  before: list[Dim] = []
  for i, part in enumerate(dim.parts):
    if at == 0:
      return Concat(tuple(before)), Concat(dim.parts[i:])
    if at < part.size:
      halves = cut(part, at, reason)
      if halves is None:
        return None
      return Concat((*before, halves[0])), Concat((halves[1], *dim.parts[i + 1 :]))
    before.append(part)
    at = at - part.size
  return None


def _cut_product(major: Dim, minor: Dim, at: Size, reason: str) -> tuple[Dim, Dim] | None:
  """Cuts between elements of the major factor, or inside one: then the minor factor is cut, too."""
  before, inside = at // minor.size, at % minor.size
  if is_none(inside):
    halves = cut(major, before, reason)
    return halves and (Product((halves[0], minor)), Product((halves[1], minor)))
  after = major.size - before - 1
  if is_none(after) and is_none(before):
    return cut(minor, inside, reason)
  bounds = [n for n, part in ((before, before), (before + 1, after)) if not is_none(part)]
  majors, minors = segments(major, bounds, reason), cut(minor, inside, reason)
  if majors is None or minors is None:
    return None
  head = [] if is_none(before) else [Product((majors[0], minor))]
  tail = [] if is_none(after) else [Product((majors[-1], minor))]
  return Concat((*head, minors[0])), Concat((minors[1], *tail))


def segments(dim: Dim, bounds: Sequence[Size], reason: str) -> list[Dim] | None:
  """Divides a dim at increasing interior `bounds`; None (nothing said) if one does not fit."""
  pieces, start = [], 0
  for bound in bounds:
    halves = cut(dim, bound - start, reason)
    if halves is None:
      return None
    pieces.append(halves[0])
    dim, start = halves[1], bound
  return [*pieces, dim]


def is_one(size: Size) -> bool:
  """Whether a size is the number 1 (a symbolic size never is)."""
  return isinstance(size, int | np.integer) and size == 1


def is_none(size: Size) -> bool:
  """Whether a size is the number 0 (a symbolic size never is)."""
  return isinstance(size, int | np.integer) and size == 0


def _bind(atom: Atom, dim: Dim) -> None:
  """Lets `atom` stand for `dim`; a frozen atom and the batch atom are the ones that stay."""
  if isinstance(dim, Atom):
    keeps = (atom.batch, atom.reason is not None) > (dim.batch, dim.reason is not None)
    if keeps:
      atom, dim = dim, atom
  if atom.reason is not None:
    freeze(dim, atom.reason, atom.hidden)
  atom.bound = dim


def _align_products(a: list[Dim], b: list[Dim], reason: str) -> bool:
  """Unifies two products from their fastest factors, splitting atoms; False if that fails."""
  while True:
    a, b = _flat(a), _flat(b)  # anew: unifying one may have refined another
    if not a or not b:
      return not a and not b
    x, y = a.pop(), b.pop()
    if x.size == y.size:
      unify(x, y, reason)
      continue
    if x.size % y.size:
      a, b, x, y = b, a, y, x  # the larger one is split
    if x.size % y.size:
      return False
    major = x.divided(x.size // y.size, reason) if isinstance(x, Atom) else Atom(x.size // y.size)
    unify(x, Product((major, y)), reason)
    a.append(major)


def _flat(factors: Sequence[Dim]) -> list[Dim]:
  """The factors resolved, those of nested products among them, those of size 1 left out."""
  flat: list[Dim] = []
  for factor in map(resolve, factors):
    flat += factor.factors if isinstance(factor, Product) else [factor]
  return [factor for factor in flat if not is_one(factor.size)]


def _unify_parts(a: Dim, b: Dim, reason: str) -> None:
  """Unifies two dims one of which is a concatenation, by cutting the other at its bounds."""
  if not isinstance(a, Concat):
    a, b = b, a
  assert isinstance(a, Concat)
  first = a.parts[0]
  bound = first.size
  if isinstance(b, Concat) and b.parts[0].size < bound:
    a, b, bound = b, a, b.parts[0].size
    first = a.parts[0]
  halves = cut(b, bound, reason) if bound < b.size else None
  if halves is None:
    freeze(a, reason)
    freeze(b, reason)
    return
  unify(first, halves[0], reason)
  unify(Concat(a.parts[1:]), halves[1], reason)
