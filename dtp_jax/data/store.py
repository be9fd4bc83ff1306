"""Where prepared data sets lie, whether they are there and whether their source was verified."""

import difflib
import json
import os
import pathlib
from collections.abc import Iterable
from typing import NamedTuple

from dtp_jax.data import builders


class Status(NamedTuple):
  """What is known about a prepared data set without reading its records.

  Attributes:
    path: Its folder, there or not.
    prepared: Whether it is there, complete.
    file_format: The format of its record files; '' where it is not prepared.
    verified: Whether it came from archives with the official checksum.
  """

  path: pathlib.Path
  prepared: bool
  file_format: str
  verified: bool


def check_name(name: str, known: Iterable[str]) -> None:
  """Raises ValueError unless `name` is one of `known`; suggests the nearest."""
  known = sorted(known)
  if name not in known:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f' Did you mean {near[0]!r}?' if near else ''
    raise ValueError(f'No data set {name!r}.{hint} There are: {", ".join(known)}.')


def root(data_dir: str | os.PathLike[str] | None = None) -> pathlib.Path:
  """Returns the folder of all data sets: `data_dir`, else $TFDS_DATA_DIR, else the TFDS default."""
  chosen = data_dir or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
  return pathlib.Path(chosen).expanduser().absolute()


def status(name: str, data_dir: str | os.PathLike[str] | None = None) -> Status:
  """Looks up a data set.

  Args:
    name: A key of `builders.BUILDERS`.
    data_dir: The folder of all data sets; default as in `root`.

  Returns:
    Its status. A data set without a provenance record was prepared by a stock TFDS builder, which
    refuses wrong checksums, and counts as verified.

  Raises:
    ValueError: No such name.
  """
  check_name(name, builders.BUILDERS)
  path = root(data_dir) / name / str(builders.BUILDERS[name].VERSION)
  info = path / 'dataset_info.json'
  if not info.is_file():
    return Status(path, False, '', False)
  file_format = json.loads(info.read_text()).get('fileFormat', 'tfrecord')
  record = path / builders.PROVENANCE
  verified = not record.is_file() or bool(json.loads(record.read_text())['verified'])
  return Status(path, True, file_format, verified)


def check_readable(found: Status) -> None:
  """Raises ValueError if the prepared records cannot be read without TensorFlow."""
  if found.file_format != 'array_record':
    raise ValueError(
      f'{found.path} was prepared as {found.file_format}, which cannot be read without TensorFlow; '
      'expected array_record. Prepare it in another folder with --data_dir, or remove this one.'
    )
