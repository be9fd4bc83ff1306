"""Shrinking: deleting dead channels, and the smaller function that goes with what is left."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from dtp_jax.graph.assemble import Traced
from dtp_jax.graph.dead import Masks
from dtp_jax.graph.dims import Atom
from dtp_jax.graph.graph import Graph, check_leaf
from dtp_jax.graph.groups import Path
from dtp_jax.graph.positions import decode
from dtp_jax.graph.replay import replay
from dtp_jax.graph.trace import Call, abstract, analyze
from dtp_jax.trees import by_path, is_array


@dataclass(frozen=True, eq=False)
class Slim:
  """A smaller dense network.

  Attributes:
    variables: the traced variables without the dead channels, parameters and state alike.
    kept: {group: increasing indices of the channels kept}, for every group.
    apply: the traced function for these variables: same signature, same results. Differentiable,
      jit-able, at any batch size and with any keyword arguments. What it runs is the original
      function, traced anew for every new combination of shapes and static arguments (compiled and
      cached), with each group at its kept size.
  """

  variables: Any
  kept: Mapping[str, np.ndarray]
  apply: Callable[..., Any]


Norms = Literal['exact', 'refit']


def shrink(
  graph: Graph,
  variables: Any,
  hard: Mapping[str, Any],
  min_keep: int = 1,
  norms: Norms = 'exact',
) -> Slim:
  """Deletes every slice of the dead channels.

  A norm over pruned channels (LayerNorm and RMSNorm over the width of a transformer's stream)
  divides by the number of channels of the dense network, and in two passes it also counts the dead.
  With norms='exact' it goes on doing so, and the slim network computes what the masked one does:
  for networks that are used as they are, by `Slim.apply` or an export. With norms='refit' it is a
  plain norm of the kept channels, that of the same module with smaller sizes: for networks that are
  trained further and whose module is built anew with the kept width. `difference` tells by how much
  such a network, not yet trained, differs from the masked one.

  Args:
    graph: from `trace`.
    variables: a tree like the traced one: arrays, or ShapeDtypeStructs for the shapes alone.
    hard: {group: (n,) array of 0 and 1 or bool}; groups left out keep all channels.
    min_keep: channels a group keeps at least; where `hard` keeps fewer, the first dead ones by
      index stay alive. `Slim.kept` tells.
    norms: 'exact' or 'refit'. The latter concerns every reduction over pruned channels: it leaves
      the dead out, and where a sum is divided by its count, so does the count.

  Returns:
    The slim network. Its output is that of `graph.fn` on `graph.apply_masks(variables, hard)`,
    with norms='refit' up to the norms.

  Raises:
    ValueError: the graph has no prunable group (with its report), an unknown group, a mask that
      is not 0 and 1 or of another shape, variables unlike the traced ones, unknown norms, or a
      min_keep that is no integer >= 0.
    TypeError: no graph, or no masks by group.
  """
  if not isinstance(graph, Graph) or not isinstance(hard, Mapping):
    raise TypeError(
      f'the graph is a {type(graph).__name__} and the masks are a {type(hard).__name__}; expected '
      'what dtp_jax.trace returns, and {group: mask}.'
    )
  if norms not in get_args(Norms):
    raise ValueError(f'norms is {norms!r}; expected one of {get_args(Norms)}.')
  if not isinstance(min_keep, int | np.integer) or min_keep < 0:
    raise ValueError(f'min_keep is {min_keep!r}; expected a number of channels, an integer >= 0.')
  if not graph.groups:
    raise ValueError(f'nothing to shrink: the graph has no prunable group\n{graph}')
  for name, mask in hard.items():
    graph.check_mask(name, np.shape(mask))
  kept = {
    name: _kept(name, hard.get(name, np.ones(size)), min_keep) for name, size in graph.sizes.items()
  }
  slim = leaf_positions(graph, kept)
  return Slim(_deleted(graph, variables, slim), kept, _Apply(graph, slim, norms == 'refit'))


def difference(graph: Graph, variables: Any, slim: Slim, *inputs: Any, **static: Any) -> float:
  """How far a slim network is from the masked one: by rounding, unless its norms are refitted.

  Args:
    graph: from `trace`.
    variables: the dense variables that `slim` was made from.
    slim: from `shrink`, not trained since.
    *inputs: what both are applied to.
    **static: keyword arguments of both.

  Returns:
    The largest absolute difference of their results over the largest absolute result.
  """
  masks = {name: jnp.zeros(graph.sizes[name]).at[kept].set(1.0) for name, kept in slim.kept.items()}
  expected = graph.fn(graph.apply_masks(variables, masks), *inputs, **static)
  result = slim.apply(slim.variables, *inputs, **static)
  pairs = [
    (np.asarray(a, float), np.asarray(b, float))
    for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True)
  ]
  largest = max(float(np.max(np.abs(b))) for _, b in pairs)
  return max(float(np.max(np.abs(a - b))) for a, b in pairs) / largest


def _kept(name: str, mask: Any, min_keep: int) -> np.ndarray:
  mask = np.asarray(mask)
  if not np.all((mask == 0) | (mask == 1)):
    soft = mask[(mask != 0) & (mask != 1)][0]
    raise ValueError(
      f'the mask of group {name!r} has the entry {soft}; expected 0 and 1 only: harden it first'
    )
  alive = np.flatnonzero(mask)
  missing = max(0, min(min_keep, len(mask)) - len(alive))
  return np.sort(np.concatenate([alive, np.flatnonzero(mask == 0)[:missing]])).astype(int)


def leaf_positions(
  graph: Graph, kept: Mapping[str, np.ndarray]
) -> dict[Path, dict[int, np.ndarray]]:
  """{path: {axis: increasing positions that stay}} of the arrays that lose any of {group: kept}."""
  alive: dict[Path, dict[int, np.ndarray]] = {}
  for name, channels in kept.items():
    group = graph.groups[name]
    if len(channels) == group.size:
      continue
    for s in group.slices:
      stays = (s.index < 0) | np.isin(s.index, channels)
      axes = alive.setdefault(s.path, {})
      axes[s.axis] = stays & axes.get(s.axis, np.ones_like(stays))
  return {
    path: {axis: np.flatnonzero(stays) for axis, stays in axes.items()}
    for path, axes in alive.items()
  }


def _deleted(graph: Graph, variables: Any, slim: Mapping[Path, Mapping[int, np.ndarray]]) -> Any:
  """The variables without what died."""
  flat, treedef = by_path(variables)
  _check_shapes({p: tuple(leaf.shape) for p, leaf in flat if is_array(leaf)}, graph.shapes)
  leaves = []
  for path, leaf in flat:
    for axis, index in slim.get(path, {}).items():
      if isinstance(leaf, jax.ShapeDtypeStruct):
        shape = (*leaf.shape[:axis], len(index), *leaf.shape[axis + 1 :])
        leaf = jax.ShapeDtypeStruct(shape, leaf.dtype)
      else:
        leaf = _taken(leaf, index, axis)
    leaves.append(leaf)
  return jax.tree.unflatten(treedef, leaves)


def _taken(leaf: Any, index: np.ndarray, axis: int) -> Any:
  """Entries of one array along one axis: on the host where it is there, for nothing to compile."""
  if isinstance(leaf, Tracer) or not getattr(leaf, 'is_fully_addressable', True):
    return jnp.take(leaf, index, axis)
  taken = np.take(np.asarray(leaf), index, axis)
  # Not jnp.asarray, which compiles a program for each shape.
  return jax.device_put(taken) if isinstance(leaf, jax.Array) else taken


def _check_shapes(
  got: Mapping[Path, tuple[Any, ...]], expected: Mapping[Path, tuple[Any, ...]]
) -> None:
  for path in (*expected, *got):
    check_leaf(path, got.get(path), expected.get(path))


@dataclass(eq=False)
class _Apply:
  """The slim function: compiled programs, one per combination of shapes and static arguments."""

  graph: Graph
  slim: Mapping[Path, Mapping[int, np.ndarray]]
  refit: bool
  programs: dict[Any, tuple[Callable[..., Any], Any]] = field(default_factory=dict)

  def __call__(self, variables: Any, *inputs: Any, **static: Any) -> Any:
    call = Call.of(variables, inputs, static)
    arrays = call.arrays
    avals = tuple((a.shape, a.dtype, getattr(a, 'weak_type', False)) for a in arrays)
    key = (call.treedef, call.static, avals)
    try:
      known = key in self.programs
    except TypeError as error:
      raise TypeError(
        f'a static argument of slim.apply is neither an array nor hashable: {error}'
      ) from error
    if not known:
      self.programs[key] = self._program(call)
    run, out_tree = self.programs[key]
    return jax.tree.unflatten(out_tree, run(*arrays))

  def _program(self, call: Call) -> tuple[Callable[..., Any], Any]:
    """Traces the original function at its own size and settles what each atom keeps."""
    leaves = self.graph.leaves
    arrays = call.arrays
    shapes = {
      leaf.path: tuple(
        len(self.slim.get(leaf.path, {}).get(d, range(n))) for d, n in enumerate(leaf.shape)
      )
      for leaf in leaves
    }
    _check_shapes(
      {leaf.path: tuple(a.shape) for leaf, a in zip(leaves, arrays, strict=False)}, shapes
    )
    structs = [abstract(a, leaf.shape) for leaf, a in zip(leaves, arrays, strict=False)]
    structs += [abstract(a) for a in arrays[len(leaves) :]]
    place = {leaf.path: i for i, leaf in enumerate(leaves)}
    slices = (s for group in self.graph.groups.values() for s in group.masked)
    given = frozenset((place[s.path], s.axis) for s in slices)
    traced = analyze(self.graph.fn, replace(call, arrays=structs), leaves, given)
    kept = self._kept_atoms(traced, given)

    @jax.jit
    def run(*arrays: Any) -> list[Any]:
      return replay(traced.scope, kept, arrays, self.refit)

    return run, traced.out_tree

  def _kept_atoms(self, traced: Traced, given: Masks) -> dict[Atom, np.ndarray]:
    """What each atom of a new trace keeps, from what each array has kept."""
    leaves, kept = self.graph.leaves, {}
    for _ in range(2):  # the second pass checks axes that were read before an atom was decided
      for leaf, dims in zip(leaves, traced.leaf_dims, strict=True):
        for d, dim in enumerate(dims):
          keep = self.slim.get(leaf.path, {}).get(d, np.arange(leaf.shape[d]))
          problem = decode(dim, keep, kept)
          if problem:
            raise ValueError(f'{"/".join(leaf.path)}:{d} {problem}. {_ADVICE}')
    for atom in kept:
      for i, d in traced.masked.get(atom, set()) - given:
        raise ValueError(f'{"/".join(leaves[i].path)}:{d} reads a pruned group. {_ADVICE}')
    return kept


_ADVICE = (
  'The function couples channels here in a way it did not when the graph was traced; '
  'trace it with these arguments'
)
