"""Names of what lies in a pytree: paths of leaves, and trees from named leaves."""

import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

__all__ = [
  'by_path',
  'finite',
  'flat',
  'flatten',
  'is_array',
  'key_data',
  'key_name',
  'nested',
  'nnx_states',
  'path_name',
  'paths',
]


def key_name(key: Any) -> str:
  """The plain name of one step of a tree path."""
  for attribute in ('key', 'name', 'idx'):
    if hasattr(key, attribute):
      return str(getattr(key, attribute))
  return str(key)


def is_array(leaf: Any) -> bool:
  """Whether a leaf is traced: arrays, keys and ShapeDtypeStructs, not Python numbers."""
  return isinstance(leaf, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct)


def key_data(leaf: Any) -> Any:
  """The numbers of random keys (or their shape, of a ShapeDtypeStruct); other leaves themselves."""
  if not _is_key(leaf):
    return leaf
  if isinstance(leaf, jax.ShapeDtypeStruct):
    return jax.eval_shape(jax.random.key_data, leaf)
  return jax.random.key_data(leaf)


def _is_key(leaf: Any) -> bool:
  return is_array(leaf) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _keys_like(leaf: Any, data: Any) -> Any:
  """Random keys of the same kind as a leaf, of numbers."""
  kinds = []  # a ShapeDtypeStruct tells its own inside of a trace alone
  jax.eval_shape(lambda keys: kinds.append(jax.random.key_impl(keys)), leaf)
  return jax.random.wrap_key_data(data, impl=kinds[0])


def by_path(tree: Any) -> tuple[list[tuple[tuple[str, ...], Any]], Any]:
  """The leaves of a pytree with their paths, (('params', 'conv1', 'kernel'), leaf); its treedef."""
  leaves, treedef = jax.tree_util.tree_flatten_with_path(tree)
  return [(tuple(map(key_name, keys)), leaf) for keys, leaf in leaves], treedef


def nnx_states(tree: Any) -> set[tuple[str, ...]]:
  """The paths of NNX variables in a tree that are no `nnx.Param`: statistics, random state."""
  nnx = sys.modules.get('flax.nnx')  # without it there are none
  if nnx is None:
    return set()
  is_variable = lambda node: isinstance(node, nnx.Variable)
  nodes = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_variable)[0]
  return {
    tuple(map(key_name, keys))
    for keys, node in nodes
    if is_variable(node) and not isinstance(node, nnx.Param)
  }


def path_name(keys: Any) -> str:
  """The path of a leaf as one name, 'params/conv1/kernel'."""
  return '/'.join(map(key_name, keys))


def paths(params: Any) -> dict[str, Array]:
  """The leaves of a pytree keyed by path, as in {'Conv_0/kernel': array}."""
  return {'/'.join(path): leaf for path, leaf in by_path(params)[0]}


def finite(tree: Any) -> Array:
  """Whether no number in the arrays of a tree is NaN or infinite, a boolean scalar."""
  return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


def flatten(tree: Any) -> tuple[dict[str, Any], Callable[[Mapping[str, Any]], Any]]:
  """The arrays of a tree by name, and the way back.

  Args:
    tree: any pytree: nested dicts, lists, an Equinox model, an NNX state.

  Returns:
    {'params/conv1/kernel': leaf} of the arrays and ShapeDtypeStructs, in tree order, random keys by
    their data; and a function that puts other leaves of these names into the tree, where keys are
    keys again. What is no array stays as it was.

  Raises:
    ValueError: two leaves would have one name, or one is named like a branch.
  """
  leaves, treedef = by_path(tree)
  named = [('/'.join(path), leaf) for path, leaf in leaves]
  arrays: dict[str, Any] = {}
  for name, leaf in named:
    if not is_array(leaf):
      continue
    if name in arrays:
      raise ValueError(f'two arrays of the variables are named {name!r}; rename one of them.')
    arrays[name] = key_data(leaf)
  nested(arrays)  # raises where a leaf is named like a branch

  def rebuild(given: Mapping[str, Any]) -> Any:
    return jax.tree.unflatten(treedef, [_chosen(given, name, leaf) for name, leaf in named])

  return arrays, rebuild


def _chosen(given: Mapping[str, Any], name: str, leaf: Any) -> Any:
  """What takes the place of a leaf."""
  if not is_array(leaf):
    return leaf
  return _keys_like(leaf, given[name]) if _is_key(leaf) else given[name]


def nested(arrays: Mapping[str, Any]) -> dict[str, Any]:
  """Nested dicts of arrays by name: 'params/conv1/kernel' is at ['params']['conv1']['kernel'].

  Raises:
    ValueError: a name continues another, as 'a/b' does 'a'.
  """
  tree: dict[str, Any] = {}
  for name, array in arrays.items():
    *branches, last = name.split('/')
    place = tree
    for branch in branches:
      place = place.setdefault(branch, {})
      if not isinstance(place, dict):
        raise ValueError(f'{name!r} continues the name of another array; rename one of them.')
    if last in place:
      raise ValueError(f'another array continues the name {name!r}; rename one of them.')
    place[last] = array
  return tree


def flat(tree: Mapping[str, Any], prefix: str = '', separator: str = '/') -> dict[str, Any]:
  """Inverse of `nested`."""
  found: dict[str, Any] = {}
  for key, value in tree.items():
    name = f'{prefix}{key}'
    inside = isinstance(value, dict)
    found |= flat(value, f'{name}{separator}', separator) if inside else {name: value}
  return found
