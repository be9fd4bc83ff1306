"""Files of every kind the project writes: each whole or not at all."""

import hashlib
import io
import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

__all__ = [
  'CHECKSUMS',
  'check_checksums',
  'read_json',
  'read_safetensors',
  'write_bytes',
  'write_checksums',
  'write_json',
  'write_npz',
  'write_safetensors',
  'write_text',
]

# Names in the file of the types that every reader of the format knows. Arrays of the others (int4,
# more float8, complex128) are stored as their bytes along a new last axis, and the header names
# their type.
_TYPES = {
  'BOOL': 'bool', 'I8': 'int8', 'U8': 'uint8', 'I16': 'int16', 'U16': 'uint16', 'I32': 'int32',
  'U32': 'uint32', 'I64': 'int64', 'U64': 'uint64', 'F16': 'float16', 'BF16': 'bfloat16',
  'F32': 'float32', 'F64': 'float64', 'C64': 'complex64', 'F8_E4M3': 'float8_e4m3fn',
  'F8_E5M2': 'float8_e5m2',
}  # fmt: skip


def write_bytes(path: pathlib.Path, content: bytes) -> None:
  """Writes a file whole or not at all: beside its place first, then renamed into it."""
  temporary = path.with_name(path.name + '.tmp')
  temporary.write_bytes(content)
  temporary.replace(path)


def write_text(path: pathlib.Path, content: str) -> None:
  """`write_bytes` of UTF-8 text."""
  write_bytes(path, content.encode())


def read_json(path: pathlib.Path) -> Any:
  """The content of a JSON file."""
  return json.loads(path.read_text())


def write_json(path: pathlib.Path, content: Any) -> None:
  """Writes a JSON file, indented and sorted."""
  write_text(path, json.dumps(content, indent=2, sort_keys=True) + '\n')


CHECKSUMS = 'SHA256SUMS'


def write_checksums(folder: pathlib.Path) -> None:
  """Writes SHA256SUMS of the files of a folder, as `sha256sum -c` reads it."""
  files = sorted(path for path in folder.iterdir() if path.name != CHECKSUMS)
  lines = [f'{_sha256(path)}  {path.name}\n' for path in files]
  write_text(folder / CHECKSUMS, ''.join(lines))


def check_checksums(folder: pathlib.Path, needed: Iterable[str]) -> None:
  """Compares the files of a folder with its SHA256SUMS.

  Args:
    folder: that `write_checksums` wrote to.
    needed: names that must be among them.

  Raises:
    ValueError: a file is missing, damaged or not listed; it is named.
  """
  path = folder / CHECKSUMS
  content = path.read_text(errors='replace') if path.exists() else ''
  listed = {name: digest for digest, _, name in (x.partition('  ') for x in content.splitlines())}
  for name in (*needed, *listed):
    file = folder / name
    # A name is one of this folder, whatever the list says.
    found = _sha256(file) if file.name == name and file.is_file() else None
    if found is None or found != listed.get(name):
      state = 'missing' if found is None else 'damaged'
      raise ValueError(
        f'{file} is {state}: its sha256 is {found}, and {listed.get(name)} in {CHECKSUMS}. Copy '
        'the folder again from where it was intact, or write it anew.'
      )


def _sha256(path: pathlib.Path) -> str:
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def write_npz(path: pathlib.Path, arrays: Mapping[str, Any]) -> None:
  """Writes arrays {name: array} to a compressed .npz file; never a pickle."""
  buffer = io.BytesIO()
  np.savez_compressed(buffer, allow_pickle=False, **arrays)
  write_bytes(path, buffer.getvalue())


def write_safetensors(path: pathlib.Path, arrays: Mapping[str, Any]) -> None:
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
  write_bytes(path, safetensors.numpy.save(stored, metadata=types))


def read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Reads what `write_safetensors` wrote, or another's safetensors file.

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
