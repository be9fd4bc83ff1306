"""From a walked program to its graph: groups with names, roles and costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dtp_jax.graph.cost import Polynomial, add
from dtp_jax.graph.dead import Axis
from dtp_jax.graph.dims import Atom, Dim, Product, atoms, freeze, resolve
from dtp_jax.graph.flow import Flow, Scope
from dtp_jax.graph.graph import Bare, Extent, Graph, Operator
from dtp_jax.graph.groups import ROLES, Group, Leaf, Path, Slice, group_names, module_of
from dtp_jax.graph.layers import layered
from dtp_jax.graph.positions import occurrences


@dataclass(frozen=True, eq=False)
class Traced:
  """A walked program.

  Attributes:
    scope: the program and the dims of its intermediates.
    leaf_dims: dims of the array leaves of the variables.
    out_tree: structure of the function's result.
    masked: per atom, the leaf axes whose masking makes its deletion sound.
    flow: the events of the walk.
    batches: the leading dims of inputs that hold examples, that of the batch first.
  """

  scope: Scope
  leaf_dims: tuple[tuple[Dim, ...], ...]
  out_tree: Any
  masked: dict[Atom, set[Axis]]
  flow: Flow
  batches: tuple[Dim, ...]


def assemble(fn: Callable[..., Any], leaves: tuple[Leaf, ...], traced: Traced) -> Graph:
  """Names the groups of a walked program and collects their slices and costs."""
  read = _read(traced)
  _settle_rest(traced, read)
  produced = _producers(traced)
  found: dict[Atom, list[Slice]] = {}
  for i, d, atom, index in _occurring(traced, produced):
    reads, makes = (i, d) in read.get(atom, ()), (i, d) in produced.get(atom, ())
    role = 'producer' if makes else 'consumer' if reads else 'carrier'
    masked = (i, d) in traced.masked.get(atom, ())
    found.setdefault(atom, []).append(Slice(leaves[i].path, d, role, index, masked))
  first = {atom: n for n, atom in enumerate(produced)}
  order = sorted(found, key=lambda atom: first.get(atom, len(first)))
  for atom in order:
    found[atom] = _with_biases(found[atom])
  names = group_names({a: found[a] for a in order if a.reason is None})
  examples = _examples(traced)
  operators, params = _costs(leaves, traced, names, examples or frozenset())
  macs = add(operator.macs for operator in operators)
  layers = layered(traced.scope, len(leaves), traced.flow)
  groups = {
    name: Group(
      name,
      atom.size,
      tuple(found[atom]),
      None,
      macs.without(name),
      params.without(name),
      layers.get(atom),
    )
    for atom, name in names.items()
  }
  still = [a for a in order if a.reason and not a.hidden and _stands_alone(a, leaves, traced)]
  frozen = _frozen({a: found[a] for a in still}, leaves)
  batch_size, per_example = _batch_size(traced, operators), examples is not None
  return Graph(fn, leaves, groups, frozen, operators, params, batch_size, per_example)


def _occurring(
  traced: Traced, produced: dict[Atom, dict[Axis, int]]
) -> list[tuple[int, int, Atom, np.ndarray]]:
  """Where atoms lie: (leaf, axis, atom, index), those produced first in program order."""
  places = [
    (i, d, atom, index)
    for i, dims in enumerate(traced.leaf_dims)
    for d, dim in enumerate(dims)
    for atom, index in occurrences(dim)
  ]
  last = len(traced.flow.productions)
  return sorted(places, key=lambda p: produced.get(p[2], {}).get((p[0], p[1]), last))


def _producers(traced: Traced) -> dict[Atom, dict[Axis, int]]:
  """Per atom, in the order of the program, the leaf axes that are out axes, and their rank."""
  produced: dict[Atom, dict[Axis, int]] = {}
  for rank, (makers, dim) in enumerate(traced.flow.productions):
    for atom in atoms(dim):
      for i, d in sorted(makers):
        if atom in set(atoms(traced.leaf_dims[i][d])):
          produced.setdefault(atom, {}).setdefault((i, d), rank)
  return produced


def _read(traced: Traced) -> dict[Atom, set[Axis]]:
  """Per atom, the leaf axes that are in axes: those of weights that are summed over."""
  read: dict[Atom, set[Axis]] = {}
  for contraction in traced.flow.contractions:
    for atom in atoms(contraction.dim):
      lying = ((i, d) for i, d in contraction.reads if atom in set(atoms(traced.leaf_dims[i][d])))
      read.setdefault(atom, set()).update(lying)
  return read


def _with_biases(slices: list[Slice]) -> list[Slice]:
  """Carriers that lie beside a producing kernel, in the same module, produce with it."""
  modules = {s.path[:-1] for s in slices if s.role == 'producer' and len(s.path) > 1}
  return [
    replace(s, role='producer') if s.role == 'carrier' and s.path[:-1] in modules else s
    for s in slices
  ]


def _stands_alone(atom: Atom, leaves: Sequence[Leaf], traced: Traced) -> bool:
  """Whether an axis of a parameter holds it and no group: pixels, statistics are no news."""
  dims = [
    list(atoms(d))
    for leaf, dims in zip(leaves, traced.leaf_dims, strict=True)
    if leaf.is_param
    for d in dims
  ]
  return any(atom in on and all(a.reason is not None for a in on) for on in dims)


def _frozen(found: dict[Atom, list[Slice]], leaves: Sequence[Leaf]) -> tuple[Group, ...]:
  """What must keep its size; single channels of one axis, frozen by the same, are one group."""
  states = {leaf.path for leaf in leaves if not leaf.is_param}
  groups: dict[Any, Group] = {}
  for atom, slices in found.items():
    label = _label(slices, states)
    key = (label, atom.reason) if atom.size == 1 else atom
    size = atom.size + (groups[key].size if key in groups else 0)
    groups[key] = Group(label, size, tuple(slices), atom.reason)
  return tuple(groups.values())


def _label(slices: list[Slice], states: set[Path]) -> str:
  """A frozen dim is called by the first parameter that makes it, carries it or reads it."""
  chosen = min(slices, key=lambda s: (s.path in states, ROLES.index(s.role)))
  return f'{"/".join(chosen.path)}:{chosen.axis}'


def _costs(
  leaves: Sequence[Leaf], traced: Traced, names: dict[Atom, str], batches: frozenset[Atom]
) -> tuple[tuple[Operator, ...], Polynomial]:
  """MACs per operator, with `batches` counted as one, and the parameters of the network."""
  # Run alone an operator is given a batch of any size, of which a part says nothing.
  whole = frozenset(a for a in batches if a.size == traced.batches[0].size)
  operators = []
  for op in traced.flow.operations:
    macs = Polynomial.constant(op.times) * _count(Product(op.dims), names, batches)
    name = 'activations' if op.leaf is None else module_of(leaves[op.leaf].path)
    bare = None
    if op.eqn is not None:
      extents = (tuple(_extent(d, names, whole) for d in dims) for dims in op.operands)
      bare = Bare(op.eqn, tuple(extents))
    operators.append(Operator(name, op.primitive, macs, bare))
  params = add(
    _count(Product(dims), names)
    for leaf, dims in zip(leaves, traced.leaf_dims, strict=True)
    if leaf.is_param
  )
  return tuple(operators), params


def _examples(traced: Traced) -> frozenset[Atom] | None:
  """What counts as one in the MACs: the atoms of the batch, whatever it was reshaped to.

  None where the MACs are those of the whole call: a leading axis that some product sums over, as an
  expert dispatch does, is not a batch.
  """
  summed = {a for op in traced.flow.operations for dim in op.summed for a in atoms(dim)}
  found = [frozenset(atoms(dim)) for dim in traced.batches]
  if not found or found[0] & summed:
    return None
  return frozenset().union(*(rows for rows in found if not rows & summed))


def _batch_size(traced: Traced, operators: Sequence[Operator]) -> Any:
  """The traced batch size, as far as the operators know of a batch."""
  if not any(e.batched for o in operators if o.bare for axes in o.bare.operands for e in axes):
    return 1
  return traced.batches[0].size


def _extent(dim: Dim, names: dict[Atom, str], batches: frozenset[Atom]) -> Extent:
  """The size of an axis, with what groups change in it kept apart."""
  dim = resolve(dim)
  fixed, widths = 1, []
  for factor in dim.factors if isinstance(dim, Product) else (dim,):
    count = _count(factor, names, batches)
    if count.groups:
      widths.append(count)
    else:
      fixed *= count.total
  return Extent(fixed, not batches.isdisjoint(atoms(dim)), tuple(widths))


def _count(dim: Dim, names: dict[Atom, str], batches: frozenset[Atom] = frozenset()) -> Polynomial:
  """The size of a dim as a polynomial of kept counts."""
  dim = resolve(dim)
  if isinstance(dim, Atom):
    if dim in names:
      return Polynomial.count(names[dim], dim.size)
    return Polynomial.constant(1 if dim in batches else dim.size)
  if isinstance(dim, Product):
    counts = (_count(factor, names, batches) for factor in dim.factors)
    return math.prod(counts, start=Polynomial.constant(1))
  return add(_count(part, names, batches) for part in dim.parts)


def _settle_rest(traced: Traced, read: dict[Atom, set[Axis]]) -> None:
  """A group is something that a parameter makes or carries, and a weight reads."""
  produced = {axis for makers, _ in traced.flow.productions for axis in makers}
  lies: dict[Atom, set[Axis]] = {}
  for i, dims in enumerate(traced.leaf_dims):
    for d, dim in enumerate(dims):
      for atom in atoms(dim):
        lies.setdefault(atom, set()).add((i, d))
  for atom, axes in lies.items():
    if not traced.masked.get(atom):
      freeze(atom, 'no weight reads it')
    elif axes <= read.get(atom, set()) - produced:
      freeze(atom, 'no parameter makes it')
