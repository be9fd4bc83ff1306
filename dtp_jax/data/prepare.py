"""Prepares a data set once: `python -m dtp_jax.data.prepare NAME [--from FOLDER]`.

Without --from, the official archives are downloaded into a temporary folder. The records are
written into a temporary folder too, which is renamed when complete: an interrupted run leaves no
data set at all. One that is killed may leave a folder named incomplete.*, to be removed by hand.
"""

import argparse
import contextlib
import difflib
import os
import pathlib
import signal
import sys
import tempfile
import urllib.error
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import tensorflow_datasets as tfds

from dtp_jax.data import archives
from dtp_jax.data.builders import BUILDERS, PROVENANCE
from dtp_jax.files import check_folder, read_json

__all__ = ['Status', 'check_name', 'main', 'prepare', 'root', 'status']

_EPILOG = """\
--from FOLDER takes, for each official archive,
  the archive itself under its original name; a wrong checksum is refused; or
  the raw files it unpacks to (train-images-idx3-ubyte, ...; data_batch_1.bin, ...; train.bin, ...),
  which cannot be verified: the data set is recorded as unverified.
imagenet2012 has no public download: --from FOLDER with its two archives, not unpacked
(ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar; https://image-net.org/download-images).

examples:
  python -m dtp_jax.data.prepare cifar10
  python -m dtp_jax.data.prepare mnist --from ~/Downloads --data_dir /data/tfds
"""


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

  def check_readable(self) -> None:
    """Raises ValueError if the prepared records cannot be read without TensorFlow."""
    if self.file_format != 'array_record':
      raise ValueError(
        f'{self.path} was prepared as {self.file_format}, which cannot be read without '
        'TensorFlow; expected array_record. Prepare it in another folder with --data_dir, or '
        'remove this one.'
      )


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
  check_name(name, BUILDERS)
  path = root(data_dir) / name / str(BUILDERS[name].VERSION)
  info = path / 'dataset_info.json'
  if not info.is_file():
    return Status(path, False, '', False)
  file_format = read_json(info).get('fileFormat', 'tfrecord')
  record = path / PROVENANCE
  return Status(path, True, file_format, not record.is_file() or read_json(record)['verified'])


def prepare(
  name: str,
  folder: str | os.PathLike[str] | None = None,
  data_dir: str | os.PathLike[str] | None = None,
) -> Status:
  """Prepares one data set, unless it is there already.

  Args:
    name: A key of `builders.BUILDERS`.
    folder: Where the official files lie; None downloads them.
    data_dir: The folder of all data sets; default as in `root`.

  Returns:
    The status of the prepared data set.

  Raises:
    ValueError: No such name; a damaged file; or present in a format that needs TensorFlow.
    archives.ChecksumError: An archive is not the official one.
    FileNotFoundError: `folder` lacks files, or is None for a set without a public download.
    ConnectionError: The download failed.
    OSError: `data_dir` cannot be written to.
  """
  found = status(name, data_dir)
  if found.prepared:
    found.check_readable()
    return found
  check_folder(root(data_dir), 'data_dir')
  with tempfile.TemporaryDirectory() as scratch:
    if folder is None:
      folder = _download(name, pathlib.Path(scratch))
    source = archives.read(BUILDERS[name].archives(), pathlib.Path(folder).expanduser())
    found.path.parent.mkdir(parents=True, exist_ok=True)
    try:
      builder = BUILDERS[name](source=source, data_dir=root(data_dir))
      builder.download_and_prepare(download_dir=scratch)  # TFDS leaves an empty folder there
    finally:
      with contextlib.suppress(OSError):  # not empty: all went well
        found.path.parent.rmdir()
  return status(name, data_dir)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line; returns its exit status: 0, 1 failed, 2 wrong usage, 130 interrupted."""
  parser = _parser()
  args = parser.parse_args(argv)
  try:
    check_name(args.name, BUILDERS)
  except ValueError as error:
    parser.error(str(error))
  tfds.display_progress_bar(sys.stderr.isatty())
  try:
    before = status(args.name, args.data_dir)
    after = prepare(args.name, args.folder, args.data_dir)
  except (ValueError, OSError) as error:
    print(f'error: {error}', file=sys.stderr)
    return 1
  except KeyboardInterrupt:
    print('interrupted: nothing was kept.', file=sys.stderr)
    return 128 + signal.SIGINT
  origin = 'official checksums' if after.verified else 'UNVERIFIED raw files'
  if before.prepared:
    print(f'{args.name} is already prepared: {after.path} ({origin})')
    print('Remove that folder to prepare it again.')
  else:
    print(f'{args.name} prepared: {after.path} ({origin})')
  return 0


def _download(name: str, folder: pathlib.Path) -> pathlib.Path:
  """Downloads the archives of a data set, unverified, into `folder`, which is returned."""
  official = BUILDERS[name].archives()
  again = f'run: python -m dtp_jax.data.prepare {name} --from FOLDER'
  if account := BUILDERS[name].account:
    files = '\n'.join(f'  {a.filename}, {a.size:,} bytes, sha256 {a.sha256}' for a in official)
    raise FileNotFoundError(
      f'{name} cannot be downloaded without an account. Register at {account}, put\n{files}\n'
      f'into one folder, not unpacked, and {again}'
    )
  try:
    archives.download(official, folder)
  except OSError as error:
    if isinstance(error, urllib.error.HTTPError):
      error.close()  # it holds the connection
    urls = '\n'.join(f'  {archive.url}' for archive in official)
    raise ConnectionError(
      f'The download of {name} failed: {error}\nFetch on a machine with a network\n{urls}\n'
      f'and {again}'
    ) from error
  return folder


def _parser() -> argparse.ArgumentParser:
  """Returns the command line's parser."""
  parser = argparse.ArgumentParser(
    prog='python -m dtp_jax.data.prepare',
    description='Prepares a data set for TensorFlow Datasets, without TensorFlow.',
    epilog=_EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('name', metavar='NAME', help=', '.join(BUILDERS))
  parser.add_argument(
    '--from', dest='folder', metavar='FOLDER', help='take the official files from FOLDER (offline)'
  )
  parser.add_argument(
    '--data_dir',
    metavar='DIR',
    help='folder of all data sets (default: $TFDS_DATA_DIR or ~/tensorflow_datasets)',
  )
  return parser


if __name__ == '__main__':
  sys.exit(main())
