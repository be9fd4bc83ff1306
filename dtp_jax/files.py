"""Files of every kind the project writes: each whole or not at all."""

import contextlib
import csv
import hashlib
import io
import json
import math
import pathlib
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

__all__ = [
  'CHECKSUMS',
  'check_checksums',
  'check_file',
  'check_folder',
  'read_json',
  'read_npz',
  'read_safetensors',
  'read_table',
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


def check_folder(folder: str | pathlib.Path, name: str) -> None:
  """Asks whether files can be written to a folder, which may have yet to be made; makes nothing.

  Args:
    folder: its path.
    name: what the caller calls it, as in 'workdir'.

  Raises:
    NotADirectoryError: it is a file, or would lie below one.
    OSError: nothing can be written there.
  """
  folder = pathlib.Path(folder).absolute()
  there = next(path for path in (folder, *folder.parents) if path.exists())
  if not there.is_dir():
    raise NotADirectoryError(
      f'{name} is {folder}, but {there} is a file; give the path of a folder.'
    )
  try:
    tempfile.TemporaryFile(dir=there).close()
  except OSError as error:
    raise OSError(
      f'{name} is {folder}, but nothing can be written to {there} ({error.strerror}); give the '
      'path of a folder that you may write to.'
    ) from error


def check_file(path: str | pathlib.Path, name: str) -> None:
  """`check_folder` of the folder of a file; IsADirectoryError where the path is a folder's."""
  path = pathlib.Path(path)
  if path.is_dir():
    raise IsADirectoryError(f'{name} is {path}, a folder; give the path of a file.')
  check_folder(path.absolute().parent, f'the folder of {name}')


def write_bytes(path: pathlib.Path, content: bytes) -> None:
  """Writes a file whole or not at all: beside its place first, then renamed into it."""
  temporary = path.with_name(path.name + '.tmp')
  try:
    temporary.write_bytes(content)
    temporary.replace(path)
  except OSError:  # a full disk, a folder in its place
    with contextlib.suppress(OSError):
      temporary.unlink()
    raise


def write_text(path: pathlib.Path, content: str) -> None:
  """`write_bytes` of UTF-8 text."""
  write_bytes(path, content.encode())


def read_json(path: pathlib.Path) -> Any:
  """The content of a JSON file.

  Raises:
    ValueError: it is not JSON; with its path.
  """
  try:
    return json.loads(path.read_text())
  except ValueError as error:  # no JSON, or no text
    raise ValueError(
      f'{path} is not JSON ({error}): it was cut short or edited. Write it anew.'
    ) from error


def write_json(path: pathlib.Path, content: Any) -> None:
  """Writes a JSON file, indented and sorted."""
  write_text(path, json.dumps(content, indent=2, sort_keys=True) + '\n')


def read_table(
  path: pathlib.Path, columns: Sequence[str], *, others: bool = False
) -> list[dict[str, str]]:
  """The lines of a CSV file as {column: text}.

  Args:
    path: of the file.
    columns: that it has, in this order.
    others: whether it may have them in any order, and others too.

  Raises:
    ValueError: no CSV file, one with other columns, or one that was cut short.
  """
  try:
    with path.open(newline='', encoding='utf-8') as file:
      reader = csv.DictReader(file)
      found = list(reader.fieldnames or ())
      if not set(columns) <= set(found) if others else list(columns) != found:
        raise ValueError(f'it has the columns {found}; expected {list(columns)}')
      lines = []
      for line in reader:
        if None in line or None in line.values():  # what DictReader makes of too many and too few
          raise ValueError(f'line {reader.line_num} has not {len(found)} cells')
        lines.append(line)
  except (ValueError, csv.Error) as error:
    raise ValueError(f'{path} is not the CSV file expected: {error}.') from error
  if not path.read_bytes().endswith(b'\n'):
    raise ValueError(f'{path} was cut short: its last line has no end. Take that line out of it.')
  return lines


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


def read_npz(path: pathlib.Path, at_most: int) -> dict[str, np.ndarray]:
  """The arrays of an .npz file, in memory; what is a pickle in there is never loaded.

  Args:
    path: of the file.
    at_most: bytes that all arrays together may have, as their headers say, before any is read: a
      small file can unpack to more than a machine has.

  Raises:
    ValueError: no .npz file, a damaged one, one that holds objects, or larger arrays.
  """
  try:
    with zipfile.ZipFile(path) as archive:
      total = sum(_declared_bytes(archive, name) for name in archive.namelist())
      if total > at_most:
        raise ValueError(f'its arrays have {total:,} bytes, expected at most {at_most:,}')
      with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)
  except (ValueError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
    raise ValueError(
      f'{path} cannot be read as plain arrays: {error}. It is damaged or not what training wrote: '
      'take it from where it was made.'
    ) from error


def _declared_bytes(archive: zipfile.ZipFile, name: str) -> int:
  """The bytes of one array of an .npz file by its header, whatever follows it."""
  with archive.open(name) as member:
    if np.lib.format.read_magic(member) != (1, 0):  # whose headers have 64 KiB at most
      raise ValueError(f'{name} is of another version of the format')
    shape, _, dtype = np.lib.format.read_array_header_1_0(member)
  if dtype.hasobject:
    raise ValueError(f'{name} holds Python objects, which only a pickle can')
  return math.prod(shape) * dtype.itemsize


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
    ValueError: not a safetensors file, one whose header does not fit what follows, or an array of a
      type unknown here.
  """
  try:
    with safetensors.safe_open(path, 'np') as file:
      types = file.metadata() or {}
    entries = safetensors.deserialize(path.read_bytes())
    return {name: _as_array(path, name, entry, types.get(name)) for name, entry in entries}
  except safetensors.SafetensorError as error:
    raise ValueError(
      f'{path} cannot be read as safetensors: {error}. It was cut short or changed: take it from '
      'where it was made.'
    ) from error


def _as_array(
  path: pathlib.Path, name: str, entry: Mapping[str, Any], stored: str | None
) -> np.ndarray:
  """An entry in its type; `stored` names that of an array that lies there as bytes."""
  dtype = _numeric(stored or _TYPES.get(entry['dtype'], ''))
  if dtype is None:
    raise ValueError(
      f'{name!r} in {path} has the type {stored or entry["dtype"]}; expected one of {list(_TYPES)}.'
    )
  shape = tuple(entry['shape'][:-1] if stored else entry['shape'])
  if len(entry['data']) != math.prod(shape) * dtype.itemsize:
    raise ValueError(
      f'{name!r} in {path} has {len(entry["data"])} bytes; expected {dtype.name}{list(shape)}. It '
      'was changed: take it from where it was made.'
    )
  return np.frombuffer(entry['data'], dtype).reshape(shape)


def _numeric(name: str) -> Any:
  """The type of numbers of that name, or None."""
  try:
    dtype = jnp.dtype(name)
  except TypeError:
    return None
  return dtype if name == 'bool' or jnp.issubdtype(dtype, jnp.number) else None
