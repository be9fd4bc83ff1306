"""Official archives and their raw files: where they lie, whether genuine, what they hold."""

import gzip
import hashlib
import math
import pathlib
import shutil
import struct
import tarfile
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any, NamedTuple

import numpy as np
import tqdm

_TIMEOUT = 60  # seconds without a byte
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
  """The official files of one data set.

  Attributes:
    members: Raw files by name (no folder), in memory.
    paths: Archives that are read in place, by their original names.
    verified: True if every byte came from an archive with the official checksum.
    files: What was read, as JSON-able {'file', 'bytes', 'sha256'}.
  """

  members: Mapping[str, bytes]
  paths: Mapping[str, pathlib.Path]
  verified: bool
  files: Sequence[Mapping[str, Any]]


def read(archives: Sequence[Archive], folder: pathlib.Path) -> Source:
  """Verifies and reads archives in `folder`, or the raw files they would unpack to.

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
  if not folder.is_dir():
    raise FileNotFoundError(f'{folder} is not a folder. Pass the folder that holds the files.')
  there = [a for a in archives if (folder / a.filename).is_file()]
  absent = [a for a in archives if a not in there]
  raw = {name: _raw_path(folder, name) for a in absent for name in (*a.members, *a.optional)}
  missing = [a for a in absent if not a.members or not all(raw[name] for name in a.members)]
  if missing:
    lines = ''.join(map(_wanted, missing))
    raise FileNotFoundError(f'{folder} lacks\n{lines}Put these files there under these names.')
  members: dict[str, bytes] = {}
  paths, files = {}, []
  for archive in there:
    path = folder / archive.filename
    files.append(_verify(path, archive))
    if archive.members:
      members |= _unpack(path, archive)
    else:
      paths[archive.filename] = path
  for path in filter(None, raw.values()):
    data = members[path.name] = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    files.append({'file': path.name, 'bytes': len(data), 'sha256': digest})
  return Source(members, paths, not absent, files)


def download(archives: Sequence[Archive], folder: pathlib.Path) -> None:
  """Downloads archives into `folder` under their original names; `read` verifies them.

  Raises:
    OSError: No network, or a file is not there.
  """
  for archive in archives:
    with (
      urllib.request.urlopen(archive.url, timeout=_TIMEOUT) as response,
      (folder / archive.filename).open('wb') as file,
      tqdm.tqdm.wrapattr(
        response, 'read', total=archive.size, desc=archive.filename, disable=None
      ) as body,
    ):
      shutil.copyfileobj(body, file)


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
      file = tar.extractfile(item) if item.isfile() and item.name in wanted else None
      if file is not None:
        members[pathlib.PurePosixPath(item.name).name] = file.read()
  return members


def _raw_path(folder: pathlib.Path, member: str) -> pathlib.Path | None:
  """Returns where a raw file lies: as unpacked in `folder`, or directly in it."""
  places = (folder / member, folder / pathlib.PurePosixPath(member).name)
  return next((path for path in places if path.is_file()), None)


def _wanted(archive: Archive) -> str:
  """The line of an error that asks for an archive."""
  raw = f', or unpacked: {", ".join(archive.members)}' if archive.members else ', not unpacked'
  return f'  {archive.filename}, {archive.size:,} bytes{raw}\n'
