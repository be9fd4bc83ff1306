"""Tracing: from any JAX function of (variables, inputs) to its channel groups."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from dtp_jax.cost import Polynomial, add
from dtp_jax.graph import rules, rules_call, rules_reduce, rules_shape  # noqa: F401  (fill RULES)
from dtp_jax.graph.dims import UNIT, Atom, Dim, Product, atoms, freeze, occurrences, resolve, unify
from dtp_jax.graph.flow import Axis, Contraction, Flow, Scope, Value, is_one
from dtp_jax.graph.groups import (
  ROLES,
  Graph,
  Group,
  Leaf,
  Operator,
  Slice,
  group_names,
  key_name,
  module_of,
)


@dataclass(frozen=True, eq=False)
class Call:
  """The arguments of one call of the traced function, arrays apart from everything else.

  Attributes:
    treedef: structure of (variables, inputs, static).
    leaves: arrays or ShapeDtypeStructs where `is_array`, anything else as it was given.
    is_array: which leaves are traced.
  """

  treedef: Any
  leaves: tuple[Any, ...]
  is_array: tuple[bool, ...]

  @classmethod
  def of(cls, variables: Any, inputs: tuple, static: dict) -> Call:
    """Flattens a call. Arrays are traced wherever they stand; all other leaves are static."""
    leaves, treedef = jax.tree.flatten((variables, inputs, static))
    return cls(treedef, tuple(leaves), tuple(map(is_array, leaves)))

  @property
  def arrays(self) -> list[Any]:
    """The traced leaves, in order."""
    return [leaf for leaf, traced in zip(self.leaves, self.is_array, strict=True) if traced]

  def bind(self, fn: Callable) -> Callable:
    """`fn` as a function of the traced leaves alone."""
    def of_arrays(*arrays: Any) -> Any:
      given = iter(arrays)
      leaves = [next(given) if traced else leaf
                for leaf, traced in zip(self.leaves, self.is_array, strict=True)]
      variables, inputs, static = jax.tree.unflatten(self.treedef, leaves)
      return fn(variables, *inputs, **static)
    return of_arrays


@dataclass(frozen=True, eq=False)
class Traced:
  """A walked program.

  Attributes:
    scope: the program and the dims of its intermediates.
    leaf_dims: dims of the array leaves of the variables.
    out_tree: structure of the function's result.
    masked: per atom, the leaf axes whose masking makes its deletion sound.
    flow: the events of the walk.
  """

  scope: Scope
  leaf_dims: tuple[tuple[Dim, ...], ...]
  out_tree: Any
  masked: dict[Atom, set[Axis]]
  flow: Flow


def trace(fn: Callable, variables: Any, *inputs: Any, **static: Any) -> Graph:
  """Traces a function once, on abstract values, and finds its prunable channel groups.

  Args:
    fn: any JAX function, called as `fn(variables, *inputs, **static)`: a Linen `model.apply`, a
      function of an NNX state or an Equinox model, plain JAX. It is not edited.
    variables: its parameters and state, a pytree of arrays or `jax.ShapeDtypeStruct`s. If it is a
      dict with a 'params' entry, that entry holds the parameters; else all float leaves are.
    *inputs: what it is applied to. The leading axis of the first array is taken to be the batch;
      MACs are counted for one example.
    **static: keyword arguments. Arrays among them (random keys) are traced, the rest (flags,
      names) is fixed.

  Returns:
    The graph; `print` shows what can be pruned, and what cannot and why. Extra results that carry
    new state (Linen's `mutable=['batch_stats']`) are recognised by their paths in `variables`.

  Raises:
    ValueError: there are no variables to prune.

  Example:
    >>> import jax.numpy as jnp
    >>> mlp = lambda w, x: jnp.tanh(x @ w['in']) @ w['out']
    >>> graph = trace(mlp, {'in': jnp.ones((3, 8)), 'out': jnp.ones((8, 2))}, jnp.ones((1, 3)))
    >>> list(graph.groups), graph.macs.total
    (['in'], 40)
  """
  call = Call.of(variables, inputs, static)
  leaves = leaves_of(variables)
  if not leaves:
    raise ValueError('trace got variables without arrays: expected fn(variables, *inputs), with '
                     'the parameters in the first argument')
  traced = analyze(fn, call, leaves)
  _settle_rest(traced)
  return _graph(fn, leaves, traced)


def is_array(leaf: Any) -> bool:
  """Whether a leaf is traced: arrays, keys and ShapeDtypeStructs, not Python numbers."""
  return isinstance(leaf, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct)


def leaves_of(variables: Any) -> tuple[Leaf, ...]:
  """The array leaves of the variables with their paths, in tree order."""
  named_params = isinstance(variables, Mapping) and 'params' in variables
  leaves = []
  for keys, leaf in jax.tree_util.tree_flatten_with_path(variables)[0]:
    if is_array(leaf):
      path = tuple(map(key_name, keys))
      is_param = path[0] == 'params' if named_params else jax.numpy.issubdtype(
          leaf.dtype, jax.numpy.floating)
      leaves.append(Leaf(path, tuple(leaf.shape), leaf.dtype, bool(is_param)))
  return tuple(leaves)


def analyze(fn: Callable, call: Call, leaves: Sequence[Leaf]) -> Traced:
  """Traces a call on abstract values and settles which atoms must be frozen."""
  structs = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in call.arrays]
  closed, out = jax.make_jaxpr(call.bind(fn), return_shape=True)(*structs)
  ins = list(_arguments(call, structs, leaves))
  flow = Flow()
  outs, scope = flow.walk(closed, ins)
  leaf_dims = tuple(value.dims for value in ins[:len(leaves)])
  paths, out_tree = jax.tree_util.tree_flatten_with_path(out)
  state = {leaf.path: dims for leaf, dims in zip(leaves, leaf_dims, strict=True)}
  for (keys, _), value in zip(paths, outs, strict=True):
    _settle_output(tuple(map(key_name, keys)), value, state)
  masked: dict[Atom, set[Axis]] = {}
  for contraction in flow.contractions:
    _settle_contraction(contraction, leaf_dims, masked)
  return Traced(scope, leaf_dims, out_tree, masked, flow)


def _arguments(call: Call, structs: Sequence[Any], leaves: Sequence[Leaf]) -> Iterator[Value]:
  """The values of the traced arguments: variables first, then inputs and traced keywords."""
  for i, leaf in enumerate(leaves):
    dims = tuple(UNIT if is_one(size) else Atom(size) for size in leaf.shape)
    zeroed = tuple(frozenset([(i, d)]) if leaf.is_param else frozenset()
                   for d in range(len(dims)))
    yield Value(dims, zeroed, True)
  for i, struct in enumerate(structs[len(leaves):]):
    dims = tuple(UNIT if is_one(size) else Atom(size, 'an input', batch=i == 0 and d == 0)
                 for d, size in enumerate(struct.shape))
    yield Value(dims, (frozenset(),) * len(dims))


def _settle_output(path: tuple[str, ...], value: Value, state: dict) -> None:
  """An output is frozen, unless it is the new state of a variable: then it has that one's dims."""
  for skip in range(len(path)):
    dims = state.get(path[skip:])
    named = not all(key.isdigit() for key in path[skip:])  # positions alone name no variable
    if named and dims is not None and [d.size for d in dims] == [d.size for d in value.dims]:
      for a, b in zip(value.dims, dims, strict=True):
        unify(a, b, 'a new state whose dims do not line up with the old')
      return
  for dim in value.dims:
    freeze(dim, 'an output')


def _settle_contraction(contraction: Contraction, leaf_dims: Sequence[tuple[Dim, ...]],
                        masked: dict[Atom, set[Axis]]) -> None:
  """Every atom summed over is masked on a parameter axis, or freezes."""
  for atom in set(atoms(contraction.dim)):
    axes = {(i, d) for i, d in contraction.zeroed if atom in set(atoms(leaf_dims[i][d]))}
    if axes:
      masked.setdefault(atom, set()).update(axes)
    else:
      freeze(atom, contraction.reason)


def _settle_rest(traced: Traced) -> None:
  """A group is something that a parameter makes or carries, and a weight reads."""
  produced = {axis for zeroed, _ in traced.flow.productions for axis in zeroed}
  lies: dict[Atom, set[Axis]] = {}
  for i, dims in enumerate(traced.leaf_dims):
    for d, dim in enumerate(dims):
      for atom in atoms(dim):
        lies.setdefault(atom, set()).add((i, d))
  for atom, axes in lies.items():
    if atom not in traced.masked:
      freeze(atom, 'no weight reads it')
    elif axes <= traced.masked[atom] - produced:
      freeze(atom, 'no parameter makes it')


def _graph(fn: Callable, leaves: tuple[Leaf, ...], traced: Traced) -> Graph:
  """Names the groups and collects their slices and costs."""
  produced = _producers(traced)
  found: dict[Atom, list[Slice]] = {}
  for i, d, atom, index in _occurring(traced, produced):
    role = ('consumer' if (i, d) in traced.masked.get(atom, ()) else
            'producer' if (i, d) in produced.get(atom, ()) else 'carrier')
    found.setdefault(atom, []).append(Slice(leaves[i].path, d, role, index))
  first = {atom: n for n, atom in enumerate(produced)}
  order = sorted(found, key=lambda atom: first.get(atom, len(first)))
  for atom in order:
    found[atom] = _with_biases(found[atom])
  names = group_names({a: found[a] for a in order if a.reason is None})
  operators, params = _costs(leaves, traced, names)
  macs = add(operator.macs for operator in operators)
  groups = {name: Group(name, atom.size, tuple(found[atom]), None, macs.without(name),
                        params.without(name)) for atom, name in names.items()}
  still = tuple(Group(_label(found[a]), a.size, tuple(found[a]), a.reason)
                for a in order if a.reason is not None and not a.hidden)
  return Graph(fn, leaves, groups, still, operators, params)


def _occurring(traced: Traced, produced: dict[Atom, dict[Axis, int]]
               ) -> list[tuple[int, int, Atom, np.ndarray]]:
  """Where atoms lie: (leaf, axis, atom, index), those produced first in program order."""
  places = [(i, d, atom, index) for i, dims in enumerate(traced.leaf_dims)
            for d, dim in enumerate(dims) for atom, index in occurrences(dim)]
  last = len(traced.flow.productions)
  return sorted(places, key=lambda p: produced.get(p[2], {}).get((p[0], p[1]), last))


def _producers(traced: Traced) -> dict[Atom, dict[Axis, int]]:
  """Per atom, in the order of the program, the leaf axes that are out axes, and their rank."""
  produced: dict[Atom, dict[Axis, int]] = {}
  for rank, (zeroed, dim) in enumerate(traced.flow.productions):
    for atom in atoms(dim):
      for i, d in sorted(zeroed):
        if atom in set(atoms(traced.leaf_dims[i][d])):
          produced.setdefault(atom, {}).setdefault((i, d), rank)
  return produced


def _with_biases(slices: list[Slice]) -> list[Slice]:
  """Carriers that lie beside a producing kernel, in the same module, produce with it."""
  modules = {s.path[:-1] for s in slices if s.role == 'producer' and len(s.path) > 1}
  return [replace(s, role='producer') if s.role == 'carrier' and s.path[:-1] in modules else s
          for s in slices]


def _label(slices: list[Slice]) -> str:
  """A frozen dim is called by the first axis that makes it, carries it or reads it."""
  chosen = min(slices, key=lambda s: ROLES.index(s.role))
  return f'{"/".join(chosen.path)}:{chosen.axis}'


def _costs(leaves: Sequence[Leaf], traced: Traced, names: dict[Atom, str]
           ) -> tuple[tuple[Operator, ...], Polynomial]:
  """MACs per operator, for one example, and the parameters of the network."""
  # A leading axis that some product sums over is not a batch: MACs are then those of the call.
  summed = {a for op in traced.flow.operations for dim in op.summed for a in atoms(dim)}
  per_example = not any(atom.batch for atom in summed)
  operators = []
  for op in traced.flow.operations:
    macs = Polynomial.constant(op.times) * _count(Product(op.dims), names, per_example)
    name = 'activations' if op.leaf is None else module_of(leaves[op.leaf].path)
    operators.append(Operator(name, op.primitive, macs))
  params = add(_count(Product(dims), names) for leaf, dims in
               zip(leaves, traced.leaf_dims, strict=True) if leaf.is_param)
  return tuple(operators), params


def _count(dim: Dim, names: dict[Atom, str], per_example: bool = False) -> Polynomial:
  """The size of a dim as a polynomial of kept counts."""
  dim = resolve(dim)
  if isinstance(dim, Atom):
    if dim in names:
      return Polynomial.count(names[dim], dim.size)
    return Polynomial.constant(1 if dim.batch and per_example else dim.size)
  if isinstance(dim, Product):
    result = Polynomial.constant(1)
    for factor in dim.factors:
      result = result * _count(factor, names, per_example)
    return result
  return add(_count(part, names, per_example) for part in dim.parts)
