"""Variables as data: a flat dict of named arrays, and a safetensors file of it."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from dtp_jax.graph.groups import key_name
from dtp_jax.graph.trace import is_array

__all__ = ['flat', 'flatten', 'nested', 'read', 'write']

# Names in the file of the types that every reader of the format knows. Arrays of the others (int4,
# more float8, complex128) are stored as their bytes along a new last axis, and the header names
# their type.
_TYPES = {
  'BOOL': 'bool', 'I8': 'int8', 'U8': 'uint8', 'I16': 'int16', 'U16': 'uint16', 'I32': 'int32',
  'U32': 'uint32', 'I64': 'int64', 'U64': 'uint64', 'F16': 'float16', 'BF16': 'bfloat16',
  'F32': 'float32', 'F64': 'float64', 'C64': 'complex64', 'F8_E4M3': 'float8_e4m3fn',
  'F8_E5M2': 'float8_e5m2',
}  # fmt: skip


def flatten(tree: Any) -> tuple[dict[str, Any], Callable[[Mapping[str, Any]], Any]]:
  """The arrays of a tree by name, and the way back.

  Args:
    tree: any pytree: nested dicts, lists, an Equinox model, an NNX state.

  Returns:
    {'params/conv1/kernel': leaf} of the arrays and ShapeDtypeStructs, in tree order, and a function
    that puts other leaves of these names into the tree; what is no array stays as it was.

  Raises:
    TypeError: a leaf is a random key.
    ValueError: two leaves would have one name, or one is named like a branch.
  """
  with_keys, treedef = jax.tree_util.tree_flatten_with_path(tree)
  names = ['/'.join(map(key_name, keys)) for keys, _ in with_keys]
  arrays: dict[str, Any] = {}
  for name, (_, leaf) in zip(names, with_keys, strict=True):
    if not is_array(leaf):
      continue
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      raise TypeError(
        f'{name!r} is a random key ({leaf.dtype}); expected numbers. Take it out of the variables '
        'and hand it over as a keyword argument.'
      )
    if name in arrays:
      raise ValueError(f'two arrays of the variables are named {name!r}; rename one of them.')
    arrays[name] = leaf
  nested(arrays)  # raises where a leaf is named like a branch

  def rebuild(given: Mapping[str, Any]) -> Any:
    leaves = [
      given[name] if is_array(leaf) else leaf
      for name, (_, leaf) in zip(names, with_keys, strict=True)
    ]
    return jax.tree.unflatten(treedef, leaves)

  return arrays, rebuild


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


def flat(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Inverse of `nested`."""
  found: dict[str, Any] = {}
  for key, value in tree.items():
    name = f'{prefix}{key}'
    found |= flat(value, f'{name}/') if isinstance(value, dict) else {name: value}
  return found


def write(path: pathlib.Path, arrays: Mapping[str, Any]) -> None:
  """Writes arrays of any numeric type of jax to a safetensors file."""
  stored, types = {}, {}
  for name, array in arrays.items():
    # The writer reads memory as it lies: rows first, and not ascontiguousarray, which drops ().
    array = np.asarray(array, order='C')
    if array.dtype.name not in _TYPES.values():
      types[name] = array.dtype.name
      as_bytes = np.frombuffer(array.tobytes(), np.uint8)
      array = as_bytes.reshape(*array.shape, array.dtype.itemsize)
    stored[name] = array
  # Not save_file: it makes files that only their owner can read.
  path.write_bytes(safetensors.numpy.save(stored, metadata=types))


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Reads what `write` wrote, or another's safetensors file.

  Raises:
    ValueError: an array of a type unknown here.
  """
  with safetensors.safe_open(path, 'np') as file:
    types = file.metadata() or {}
  arrays = {}
  for name, entry in safetensors.deserialize(path.read_bytes()):
    shape = tuple(entry['shape'])
    if name in types:
      dtype, shape = jnp.dtype(types[name]), shape[:-1]
    elif entry['dtype'] in _TYPES:
      dtype = jnp.dtype(_TYPES[entry['dtype']])
    else:
      raise ValueError(
        f'{name!r} in {path} has the type {entry["dtype"]}; expected one of {list(_TYPES)}.'
      )
    arrays[name] = np.frombuffer(entry['data'], dtype).reshape(shape)
  return arrays
