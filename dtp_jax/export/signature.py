"""How an exported program is called: with plain trees of arrays, and which axes are the batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.export
import numpy as np

from dtp_jax.graph.trace import batched
from dtp_jax.trees import by_path, flatten, is_array, key_data, key_name

__all__ = ['Signature', 'plain', 'taken']

_SIMPLE = (bool, int, float, complex, str)
_CONTAINERS = (dict, list, tuple, type(None))  # those that a program can be saved with


@dataclass(frozen=True, eq=False)
class Signature:
  """The inputs of a program, and what is the batch in them.

  Attributes:
    inputs: the example inputs: a tuple of trees, arrays on the host in the types that jit gives
      them, everything else as it was given.
    batch: examples in them; None where no array has an axis for a batch.
    batched: names of the arrays that have the batch along their leading axis, which the program
      takes at any size; none where it takes the shapes of `inputs` alone.
    each: whether the program runs the function on one example at a time, under vmap: functions that
      cannot be traced with a batch of unknown size can be with a batch of one.
  """

  inputs: tuple[Any, ...]
  batch: int | None
  batched: frozenset[str]
  each: bool = False

  @classmethod
  def attempts(cls, inputs: tuple[Any, ...]) -> list[Signature]:
    """The signatures that example inputs may have, from the most general to their own shapes.

    The batch is found as `dtp_jax.trace` finds it: the leading axis of the first array with two
    axes, or else with one. Every other array whose leading axis is as long is taken to have it as
    well, and where that fails, none.

    Raises:
      TypeError: an input is a shape without values.
    """
    leaves = {'/'.join(path): leaf for path, leaf in by_path(inputs)[0] if is_array(leaf)}
    for name, leaf in leaves.items():
      if isinstance(leaf, jax.ShapeDtypeStruct):
        raise TypeError(f'input {name} is {leaf!r}; expected values, to check the export with.')
    arrays, rebuild = flatten(inputs)
    given = rebuild({name: _on_host(array) for name, array in arrays.items()})
    first = batched([leaf.shape for leaf in leaves.values()])
    if first is None:
      return [cls(given, None, frozenset())]
    batch = list(leaves.values())[first].shape[0]
    every = frozenset(name for name, leaf in leaves.items() if leaf.shape[:1] == (batch,))
    alone = frozenset([list(leaves)[first]])
    general = [
      cls(given, batch, names, each)
      for names in dict.fromkeys((every, alone))
      for each in (False, True)
      if batch
    ]
    return [*general, cls(given, batch, frozenset())]

  def as_given(self) -> Signature:
    """The signature of the inputs' own shapes."""
    return Signature(self.inputs, self.batch, frozenset())

  @property
  def fixed(self) -> dict[str, str]:
    """{name: value as text} of the inputs that are no arrays, as the program has them inside."""
    leaves = by_path(self.inputs)[0]
    return {'/'.join(path): repr(leaf) for path, leaf in leaves if not is_array(leaf)}

  @property
  def structs(self) -> tuple[Any, ...]:
    """What the program takes: plain trees of ShapeDtypeStructs, 'batch' in place of its size."""
    (symbol,) = jax.export.symbolic_shape('batch')
    structs = {}
    for name, array in flatten(self.inputs)[0].items():
      rows = (symbol,) if name in self.batched else array.shape[:1]
      structs[name] = jax.ShapeDtypeStruct((*rows, *array.shape[1:]), array.dtype)
    given = taken(self.inputs, self.fixed)
    paths, treedef = by_path(given)
    return jax.tree.unflatten(treedef, [structs['/'.join(path)] for path, _ in paths])

  @property
  def names(self) -> list[str]:
    """A name for each array of `structs`: 'input_0', or 'input_0_image' for one inside a dict."""
    return ['_'.join(['input', *path]) for path, _ in by_path(self.structs)[0]]

  def resized(self, batch: int) -> tuple[Any, ...]:
    """The inputs at another batch size: their examples in turn."""
    arrays, rebuild = flatten(self.inputs)
    assert self.batch is not None
    turn = np.arange(batch) % self.batch
    rows = {name: np.take(a, turn, 0) if name in self.batched else a for name, a in arrays.items()}
    return rebuild(rows)

  def plainly(self, fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn(*inputs)` as a function of arrays like `structs`, with a plain result."""
    rebuild = flatten(self.inputs)[1]
    return lambda *given: plain(fn(*rebuild(flatten(given)[0])))

  def program(self, fn: Callable[..., Any]) -> Callable[..., Any]:
    """`plainly`, and under vmap where every example is run by itself."""
    if not self.each:
      return self.plainly(fn)
    rebuild = flatten(self.inputs)[1]

    def one(arrays: Mapping[str, Any]) -> Any:
      rows = {name: a[None] if name in self.batched else a for name, a in arrays.items()}
      return jax.tree.map(lambda a: a[0], plain(fn(*rebuild(rows))))

    def run(*given: Any) -> Any:
      arrays = flatten(given)[0]
      axes = {name: 0 if name in self.batched else None for name in arrays}
      return jax.vmap(one, in_axes=(axes,))(arrays)

    return run


def taken(inputs: tuple[Any, ...], fixed: Mapping[str, str]) -> tuple[Any, ...]:
  """What a program takes of inputs: plain trees, None in the place of what is fixed in it.

  Args:
    inputs: as the function takes them.
    fixed: as `Signature.fixed` of the program.

  Raises:
    ValueError: a number, flag or word of the inputs is not the one in the program.
  """
  leaves, treedef = by_path(inputs)
  for path, leaf in leaves:
    name = '/'.join(path)
    if name in fixed and isinstance(leaf, _SIMPLE) and repr(leaf) != fixed[name]:
      raise ValueError(
        f'input {name} is {leaf!r}; expected {fixed[name]}, with which the program was exported. '
        'Export it anew with another value, or as an array.'
      )
  kept = [None if '/'.join(path) in fixed else leaf for path, leaf in leaves]
  return tuple(map(plain, jax.tree.unflatten(treedef, kept)))


def plain(tree: Any) -> Any:
  """A tree of dicts, lists and tuples: containers of other kinds become dicts, keys their data.

  Raises:
    ValueError: two parts of a container would have one name.
  """
  within = lambda node: node is not tree
  parts, treedef = jax.tree_util.tree_flatten_with_path(tree, is_leaf=within)
  if len(parts) == 1 and not parts[0][0]:
    return key_data(tree)
  made = [(key_name(path[0]), plain(part)) for path, part in parts]
  if type(tree) in _CONTAINERS:
    return jax.tree.unflatten(treedef, [part for _, part in made])
  named = dict(made)
  if len(named) < len(made):
    raise ValueError(f'a {type(tree).__name__} has two parts of one name among {list(named)}.')
  return named


def _on_host(array: Any) -> np.ndarray:
  return np.asarray(array, jax.dtypes.canonicalize_dtype(array.dtype))
