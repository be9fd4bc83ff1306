"""Tracing: from any JAX function of (variables, inputs) to its channel groups."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

# For their effect: they fill RULES.
from dtp_jax.graph import (  # noqa: F401
  rules,  # pyright: ignore[reportUnusedImport]
  rules_call,  # pyright: ignore[reportUnusedImport]
  rules_gather,  # pyright: ignore[reportUnusedImport]
  rules_loop,  # pyright: ignore[reportUnusedImport]
  rules_reduce,  # pyright: ignore[reportUnusedImport]
  rules_shape,  # pyright: ignore[reportUnusedImport]
)
from dtp_jax.graph.assemble import Traced, assemble
from dtp_jax.graph.dead import FINITE, NONE, Axis, Dead, Kind, Masks
from dtp_jax.graph.dims import UNIT, Atom, Dim, atoms, freeze, is_one, unify
from dtp_jax.graph.flow import ACTIVATION, CONSTANT, WEIGHT, Contraction, Flow, Value
from dtp_jax.graph.graph import Graph
from dtp_jax.graph.groups import Leaf, Path
from dtp_jax.trees import by_path, is_array, nnx_states

TRACED = object()
_SHOWN = 8  # variables in an error


@dataclass(frozen=True, eq=False)
class Call:
  """The arguments of one call of the traced function, arrays apart from everything else.

  Attributes:
    treedef: structure of (variables, inputs, static).
    static: its leaves as they were given, with `TRACED` in the place of arrays.
    arrays: the traced leaves, in order: arrays or ShapeDtypeStructs.
  """

  treedef: Any
  static: tuple[Any, ...]
  arrays: list[Any]

  @classmethod
  def of(cls, variables: Any, inputs: tuple[Any, ...], static: dict[str, Any]) -> Call:
    """Flattens a call. Arrays are traced wherever they stand; all other leaves are static."""
    leaves, treedef = jax.tree.flatten((variables, inputs, static))
    fixed = tuple(TRACED if is_array(leaf) else leaf for leaf in leaves)
    return cls(treedef, fixed, [leaf for leaf in leaves if is_array(leaf)])

  def bind(self, fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` as a function of the traced leaves alone."""

    def of_arrays(*arrays: Any) -> Any:
      given = iter(arrays)
      leaves = [next(given) if leaf is TRACED else leaf for leaf in self.static]
      variables, inputs, static = jax.tree.unflatten(self.treedef, leaves)
      return fn(variables, *inputs, **static)

    return of_arrays


def trace(fn: Callable[..., Any], variables: Any, *inputs: Any, **static: Any) -> Graph:
  """Traces a function once, on abstract values, and finds its prunable channel groups.

  Args:
    fn: any JAX function, called as `fn(variables, *inputs, **static)`: a Linen `model.apply`, a
      function of an NNX state or an Equinox model, plain JAX. It is not edited.
    variables: its parameters and state, a pytree of arrays or `jax.ShapeDtypeStruct`s. If it is a
      dict with a 'params' entry, that entry holds the parameters; else all float and complex
      leaves are, but for those in an NNX variable that is no `nnx.Param` (statistics).
    *inputs: what it is applied to. The batch is taken to be the leading axis of the first array
      with two axes or more, or else of the first with one: flags, keys and positions may come
      before the images. MACs are counted for one example, or for the whole call where a product
      sums over that axis (`Graph.per_example`); a later array of as many rows, which meets the
      first in a product alone (the texts of a contrastive loss), has its own here.
    **static: keyword arguments. Arrays among them (random keys) are traced, the rest (flags,
      names) is fixed.

  Returns:
    The graph; `print` shows what can be pruned, and what cannot and why. Extra results that carry
    new state (Linen's `mutable=['batch_stats']`) are recognised by their paths in `variables`.

  Raises:
    TypeError: `fn` is no function.
    ValueError: there are no variables to prune.
    Exception: whatever `fn` raises when it is called so, with a note of the shapes it was given.

  Example:
    >>> import jax.numpy as jnp
    >>> mlp = lambda w, x: jnp.tanh(x @ w['in']) @ w['out']
    >>> graph = trace(mlp, {'in': jnp.ones((3, 8)), 'out': jnp.ones((8, 2))}, jnp.ones((1, 3)))
    >>> list(graph.groups), graph.macs.total
    (['in'], 40)
  """
  if not callable(fn):
    raise TypeError(
      f'fn is {fn!r}; expected a function called as fn(variables, *inputs), such as model.apply.'
    )
  call = Call.of(variables, inputs, static)
  leaves = leaves_of(variables)
  if not leaves:
    raise ValueError(
      'trace got variables without arrays: expected fn(variables, *inputs), with '
      'the parameters in the first argument'
    )
  return assemble(fn, leaves, analyze(fn, call, leaves))


def abstract(array: Any, shape: tuple[int, ...] | None = None) -> jax.ShapeDtypeStruct:
  """What a trace sees of an array, perhaps with another shape."""
  dtype = array.dtype
  if not jax.numpy.issubdtype(dtype, jax.dtypes.extended):  # keys have no other dtype
    dtype = jax.dtypes.canonicalize_dtype(dtype)  # numpy's int64 is int32 to jit
  return jax.ShapeDtypeStruct(
    array.shape if shape is None else shape,
    dtype,
    weak_type=getattr(array, 'weak_type', False),
  )


def leaves_of(variables: Any) -> tuple[Leaf, ...]:
  """The array leaves of the variables with their paths, in tree order."""
  named_params = isinstance(variables, Mapping) and 'params' in variables
  states = nnx_states(variables)
  leaves = []
  for path, leaf in by_path(variables)[0]:
    if is_array(leaf):
      inexact = bool(jax.numpy.issubdtype(leaf.dtype, jax.numpy.inexact))
      is_state = any(path[: len(state)] == state for state in states)
      is_param = path[0] == 'params' if named_params else inexact and not is_state
      leaves.append(Leaf(path, tuple(leaf.shape), leaf.dtype, is_param))
  return tuple(leaves)


def analyze(
  fn: Callable[..., Any], call: Call, leaves: Sequence[Leaf], given: Masks = NONE
) -> Traced:
  """Traces a call on abstract values and settles which atoms must be frozen.

  Args:
    fn: the function.
    call: its arguments.
    leaves: the arrays of its variables.
    given: parameter axes that are masked anyway, and so do not count as a choice.
  """
  structs = [abstract(a) for a in call.arrays]
  try:
    closed, out = jax.make_jaxpr(call.bind(fn), return_shape=True)(*structs)
  except Exception as error:  # of any type: it comes from the function
    error.add_note(_given(leaves, structs))
    raise
  ins = list(_arguments(call, structs, leaves))
  flow = Flow()
  outs, scope = flow.walk(closed, ins)
  leaf_dims = tuple(value.dims for value in ins[: len(leaves)])
  paths, out_tree = by_path(out)
  state = {leaf.path: dims for leaf, dims in zip(leaves, leaf_dims, strict=True)}
  for (path, _), value in zip(paths, outs, strict=True):
    _settle_output(path, value, state)
  masked = _settle_contractions(flow.contractions, leaf_dims, given)
  return Traced(scope, leaf_dims, out_tree, masked, flow, _batches(ins[len(leaves) :]))


def _given(leaves: Sequence[Leaf], structs: Sequence[Any]) -> str:
  """A note for an error of the traced function."""
  shown = [f'{"/".join(leaf.path)} {list(leaf.shape)}' for leaf in leaves]
  shown = [*shown[:_SHOWN], '...'] if len(shown) > _SHOWN else shown
  inputs = ', '.join(f'{s.dtype}{list(s.shape)}' for s in structs[len(leaves) :])
  return (
    f'fn(variables, *inputs) was traced with the variables {", ".join(shown)} and the inputs '
    f'{inputs or "none"}; expected that it runs so. Call it once with the same arguments.'
  )


def _arguments(call: Call, structs: Sequence[Any], leaves: Sequence[Leaf]) -> Iterator[Value]:
  """The values of the traced arguments: variables first, then inputs and traced keywords."""
  for i, leaf in enumerate(leaves):
    dims = tuple(UNIT if is_one(size) else Atom(size) for size in leaf.shape)
    zero = (Dead(Kind.ZERO, frozenset([(i, d)])) for d in range(len(dims)))
    yield (
      Value(dims, tuple(zero), WEIGHT)
      if leaf.is_param
      else Value(dims, (FINITE,) * len(dims), CONSTANT)
    )
  first = batched([struct.shape for struct in structs[len(leaves) :]])
  for i, struct in enumerate(structs[len(leaves) :]):
    dims = tuple(
      UNIT if is_one(size) else Atom(size, 'an input', batch=i == first and d == 0)
      for d, size in enumerate(struct.shape)
    )
    yield Value(dims, (FINITE,) * len(dims), ACTIVATION)


def _batches(inputs: Sequence[Value]) -> tuple[Dim, ...]:
  """The leading dims of the inputs that have as many rows as the batch, the batch's own first."""
  first = batched([tuple(dim.size for dim in value.dims) for value in inputs])
  if first is None:
    return ()
  batch, axes = inputs[first].dims[0], len(inputs[first].dims)
  others = (v for i, v in enumerate(inputs) if i != first and len(v.dims) >= min(2, axes))
  alike = (v.dims[0] for v in others if axes > 1 and v.dims[0].size == batch.size)
  return (batch, *alike)


def batched(shapes: Sequence[tuple[Any, ...]]) -> int | None:
  """Which of the inputs has the batch along its leading axis."""
  ranked = ((min(len(shape), 2), -i) for i, shape in enumerate(shapes) if shape)
  best = max(ranked, default=None)
  return None if best is None else -best[1]


def _settle_output(path: tuple[str, ...], value: Value, state: dict[Path, tuple[Dim, ...]]) -> None:
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


def _settle_contractions(
  contractions: Sequence[Contraction], leaf_dims: Sequence[tuple[Dim, ...]], given: Masks
) -> dict[Atom, set[Axis]]:
  """The parameter axes on which each atom is masked; those summed over without one freeze.

  What has to be masked is settled first. It may be enough for a contraction that has a choice,
  which else takes what it prefers.
  """
  choices: list[tuple[Atom, list[Masks]]] = []
  for contraction in contractions:
    for atom in set(atoms(contraction.dim)):
      options = [_lying(atom, masks, leaf_dims) for masks in contraction.options]
      options = [found for found in options if found is not None]
      if not options:
        freeze(atom, contraction.reason)
      choices.append((atom, options))
  masked: dict[Atom, set[Axis]] = {}
  for atom, options in sorted(choices, key=lambda choice: len(choice[1])):
    if options:
      settled = masked.setdefault(atom, set())
      enough = (masks for masks in options if masks <= settled | given)
      settled |= next(enough, options[0])
  return masked


def _lying(atom: Atom, masks: Masks, leaf_dims: Sequence[tuple[Dim, ...]]) -> Masks | None:
  """Those of the masks that lie on an atom; None if there are masks, but on others only."""
  lying = frozenset((i, d) for i, d in masks if atom in set(atoms(leaf_dims[i][d])))
  return lying if lying or not masks else None
