"""Official archives and their raw files: where they lie, whether genuine, what they hold."""

import gzip
import hashlib
import math
import pathlib
import struct
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import IO, Any, NamedTuple

import numpy as np

_OR_RAW = (
  ', or unpack it and remove the archive: raw files are accepted and recorded as unverified.'
)


class ChecksumError(ValueError):
  """A file has the name of an official archive and other contents."""


class Archive(NamedTuple):
  """One official download.

  Attributes:
    url: Where it is published.
    filename: Its original name.
    size: Its official size in bytes.
    sha256: Its official checksum.
    members: Paths of the raw files inside that are needed; () for an archive that is read in place,
      whose raw files are not accepted.
    optional: Paths of raw files that are used where present (names of the classes).
  """

  url: str
  filename: str
  size: int
  sha256: str
  members: tuple[str, ...]
  optional: tuple[str, ...] = ()


class Source(NamedTuple):
  """The raw files of one data set, in memory, or the archives too large for that.

  Attributes:
    members: File name (no folder) to contents.
    verified: True if every byte came from an archive with the official checksum.
    files: What was read, as JSON-able {'file', 'bytes', 'sha256'}.
    paths: Archives that are read in place, by their original names.
  """

  members: dict[str, bytes]
  verified: bool
  files: tuple[dict[str, Any], ...]
  paths: Mapping[str, pathlib.Path] = MappingProxyType({})


def from_paths(archives: Sequence[Archive], paths: Mapping[str, pathlib.Path]) -> Source:
  """Reads archives that lie on this machine, each verified.

  Args:
    archives: The archives to read.
    paths: Path of each archive by its url.

  Returns:
    The verified source.

  Raises:
    ChecksumError: An archive is not the official one.
  """
  members: dict[str, bytes] = {}
  files = []
  for archive in archives:
    path = pathlib.Path(paths[archive.url])
    files.append(_verify(path, archive))
    members |= _unpack(path, archive)
  return Source(members, True, tuple(files))


def from_folder(archives: Sequence[Archive], folder: pathlib.Path) -> Source:
  """Reads each archive from `folder`, or the raw files it would unpack to.

  An archive under its original name must have the official checksum. Where it is absent, its raw
  files are looked for in `folder` and in the subfolder they unpack to; they cannot be verified.

  Args:
    archives: The archives of one data set.
    folder: A folder, only read.

  Returns:
    The source; unverified as soon as one raw file was taken.

  Raises:
    FileNotFoundError: No such folder, or neither an archive nor its raw files are in it.
    ChecksumError: An archive is there but is not the official one.
  """
  _check_folder(folder)
  there = [a for a in archives if (folder / a.filename).is_file()]
  raw = [a for a in archives if a not in there]
  found = {name: _raw_path(folder, name) for a in raw for name in (*a.members, *a.optional)}
  missing = [a for a in raw if not all(found[name] for name in a.members)]
  if missing:
    lines = [f'  {a.filename}, or unpacked: {", ".join(a.members)}' for a in missing]
    raise FileNotFoundError(
      f'{folder} lacks\n' + '\n'.join(lines) + '\nPut these files there under these names.'
    )
  source = from_paths(there, {a.url: folder / a.filename for a in there})
  members, files = dict(source.members), list(source.files)
  for path in filter(None, found.values()):
    members[path.name] = path.read_bytes()
    digest = hashlib.sha256(members[path.name]).hexdigest()
    files.append({'file': path.name, 'bytes': len(members[path.name]), 'sha256': digest})
  return Source(members, not raw, tuple(files))


def packed(archives: Sequence[Archive], folder: pathlib.Path) -> Source:
  """Verifies archives in `folder` and leaves them there, to be read in place.

  Args:
    archives: The archives of one data set.
    folder: A folder, only read.

  Returns:
    The verified source; `paths` is filled, `members` is empty.

  Raises:
    FileNotFoundError: No such folder, or it lacks archives.
    ChecksumError: An archive is not the official one.
  """
  _check_folder(folder)
  missing = [a for a in archives if not (folder / a.filename).is_file()]
  if missing:
    lines = [f'  {a.filename}, {a.size:,} bytes' for a in missing]
    raise FileNotFoundError(
      f'{folder} lacks\n' + '\n'.join(lines) + '\nPut these archives there, not unpacked.'
    )
  paths = {a.filename: folder / a.filename for a in archives}
  files = tuple(_verify(paths[a.filename], a) for a in archives)
  return Source({}, True, files, paths)


def tar_names(path: pathlib.Path) -> list[str]:
  """Returns the sorted names of the files in an uncompressed tar."""
  with tarfile.open(path, 'r:') as tar:
    return sorted(item.name for item in tar if item.isfile())


def tar_files(
  tar: IO[bytes], names: Sequence[str] | None = None
) -> Iterator[tuple[str, IO[bytes]]]:
  """Yields (name, file) for files of an uncompressed tar, which is never unpacked.

  Args:
    tar: An open file that can seek.
    names: Which files, in this order; default: all, in the order they lie there.

  Yields:
    A name and its contents, to be read before the next one is asked for.
  """
  with tarfile.open(fileobj=tar, mode='r:') as archive:
    for item in archive if names is None else map(archive.getmember, names):
      file = archive.extractfile(item)
      if file is not None:  # a folder
        yield item.name, file


def no_download(name: str, archives: Sequence[Archive], account: str) -> FileNotFoundError:
  """Returns the error for archives that only registered users may download."""
  files = '\n'.join(f'  {a.filename}, {a.size:,} bytes, sha256 {a.sha256}' for a in archives)
  return FileNotFoundError(
    f'{name} cannot be downloaded without an account. Register at {account}, put\n{files}\n'
    f'into one folder, not unpacked, and run: python -m dtp_jax.data.prepare {name} --from FOLDER'
  )


def no_network(name: str, archives: Sequence[Archive], error: Exception) -> ConnectionError:
  """Returns the error of a failed download, which says how to do without one."""
  urls = '\n'.join(f'  {archive.url}' for archive in archives)
  return ConnectionError(
    f'The download of {name} failed: {error}\nFetch on a machine with a network\n{urls}\n'
    f'and run: python -m dtp_jax.data.prepare {name} --from FOLDER'
  )


def read_idx(name: str, data: bytes) -> np.ndarray:
  """Reads an idx file of bytes, the format of MNIST.

  Args:
    name: The file's name, for errors.
    data: Its contents: 0, 0, 8 (type uint8), the rank, the dimensions (big endian), the values.

  Returns:
    A uint8 array of the shape that the header declares.

  Raises:
    ValueError: Not an idx file of bytes, or cut short.
  """
  if len(data) < 4 or data[:3] != b'\0\0\x08':
    raise ValueError(
      f'{name} starts with {data[:4].hex(" ") or "nothing"}, an idx file of bytes with 00 00 08. '
      'Take the official file, unpacked if its name does not end in .gz.'
    )
  header = 4 + 4 * data[3]
  shape = struct.unpack_from(f'>{data[3]}I', data, 4) if len(data) >= header else ()
  expected = header + math.prod(shape)
  if len(data) != expected:
    raise ValueError(
      f'{name} has {len(data):,} bytes, its header {shape} asks for {expected:,}. '
      'It was cut short or damaged: copy it again.'
    )
  return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def read_cifar(name: str, data: bytes, label_bytes: int) -> tuple[np.ndarray, np.ndarray]:
  """Reads a file of CIFAR's binary version.

  Args:
    name: The file's name, for errors.
    data: Records of `label_bytes` labels and 3,072 bytes in channel, row, column order.
    label_bytes: 1 for CIFAR-10, 2 (coarse, fine) for CIFAR-100.

  Returns:
    Images uint8 [N, 32, 32, 3] and labels uint8 [N, label_bytes].

  Raises:
    ValueError: The size is not a whole number of records.
  """
  record = label_bytes + 3072
  if not data or len(data) % record:
    raise ValueError(
      f'{name} has {len(data):,} bytes, not a whole number of records of {record:,} bytes. '
      'It was cut short or damaged: copy it again.'
    )
  rows = np.frombuffer(data, np.uint8).reshape(-1, record)
  images = rows[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
  return np.ascontiguousarray(images), rows[:, :label_bytes]


def _check_folder(folder: pathlib.Path) -> None:
  if not folder.is_dir():
    raise FileNotFoundError(f'{folder} is not a folder. Pass the folder that holds the files.')


def _verify(path: pathlib.Path, archive: Archive) -> dict[str, Any]:
  """Returns the file's record, or raises ChecksumError."""
  with path.open('rb') as file:
    digest = hashlib.file_digest(file, 'sha256').hexdigest()
  size = path.stat().st_size
  if (size, digest) != (archive.size, archive.sha256):
    raise ChecksumError(
      f'{path} is not the official {archive.filename}:\n'
      f'  found    sha256 {digest}, {size:,} bytes\n'
      f'  expected sha256 {archive.sha256}, {archive.size:,} bytes\n'
      f'Download it again from {archive.url}{_OR_RAW if archive.members else "."}'
    )
  return {'file': archive.filename, 'bytes': size, 'sha256': digest}


def _unpack(path: pathlib.Path, archive: Archive) -> dict[str, bytes]:
  """Returns the wanted raw files of one archive by their names without folder."""
  if not archive.filename.endswith('.tar.gz'):
    return {archive.members[0]: gzip.decompress(path.read_bytes())}
  wanted = {*archive.members, *archive.optional}
  members = {}
  with tarfile.open(path, 'r:gz') as tar:
    for item in tar:
      file = tar.extractfile(item) if item.name in wanted else None
      if file is not None:
        members[pathlib.PurePosixPath(item.name).name] = file.read()
  return members


def _raw_path(folder: pathlib.Path, member: str) -> pathlib.Path | None:
  """Returns where a raw file lies: as unpacked in `folder`, or directly in it."""
  for path in (folder / member, folder / pathlib.PurePosixPath(member).name):
    if path.is_file():
      return path
  return None
