"""Prepares a data set once: `python -m dtp_jax.data.prepare NAME [--from FOLDER]`.

Without --from, the official archives are downloaded. Everything is written into a temporary folder
that is renamed when complete, so that an interrupted run leaves no data set at all.
"""

import argparse
import contextlib
import gc
import os
import pathlib
import signal
import socket
import sys
import tempfile
import types
import urllib.parse
import urllib.request
from collections.abc import Sequence
from typing import NoReturn

import tensorflow_datasets as tfds

from dtp_jax.data import archives, builders, store

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


def prepare(
  name: str,
  folder: str | os.PathLike[str] | None = None,
  data_dir: str | os.PathLike[str] | None = None,
) -> store.Status:
  """Prepares one data set, unless it is there already.

  Args:
    name: A key of `builders.BUILDERS`.
    folder: Where the official files lie; None downloads them.
    data_dir: The folder of all data sets; default as in `store.root`.

  Returns:
    The status of the prepared data set.

  Raises:
    ValueError: No such name; a damaged file; or present in a format that needs TensorFlow.
    archives.ChecksumError: An archive is not the official one.
    FileNotFoundError: `folder` lacks files, or is None for a set without a public download.
    ConnectionError: The download failed.
  """
  found = store.status(name, data_dir)
  if found.prepared:
    store.check_readable(found)
    return found
  cls = builders.BUILDERS[name]
  source = None
  if folder is not None:
    source = cls.source(pathlib.Path(folder).expanduser())
  elif cls.account:
    raise archives.no_download(name, cls.archives(), cls.account)
  else:
    _check_network(name, cls.archives())
  root = store.root(data_dir)
  root.mkdir(parents=True, exist_ok=True)
  config = tfds.download.DownloadConfig(try_download_gcs=False, force_checksums_validation=True)
  try:
    # The downloads go with this folder, complete or not: half an archive is never met again.
    with tempfile.TemporaryDirectory(
      prefix='incomplete.', dir=root, ignore_cleanup_errors=True
    ) as scratch:
      builder = cls(source=source, data_dir=root)
      try:
        builder.download_and_prepare(download_dir=scratch, download_config=config)
      except KeyboardInterrupt:
        signal.alarm(0)  # it has arrived: nothing may disturb what is cleaned up now
        raise
  finally:
    with contextlib.suppress(OSError):  # Not empty, or never made: both are well.
      found.path.parent.rmdir()
  return store.status(name, data_dir)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line; returns its exit status: 0, 1 failed, 2 wrong usage, 128 + signal."""
  parser = _parser()
  args = parser.parse_args(argv)
  try:
    store.check_name(args.name, builders.BUILDERS)
    before = store.status(args.name, args.data_dir)
    tfds.display_progress_bar(sys.stderr.isatty())
    with _termination_cleans_up():
      after = prepare(args.name, args.folder, args.data_dir)
  except (ValueError, OSError) as error:
    if args.name not in builders.BUILDERS:
      parser.error(str(error))
    print(f'error: {error}', file=sys.stderr)
    return 1
  except KeyboardInterrupt as error:
    print('interrupted: nothing was kept.', file=sys.stderr)
    return 128 + (signal.SIGTERM if isinstance(error, _Terminated) else signal.SIGINT)
  origin = 'official checksums' if after.verified else 'UNVERIFIED raw files'
  if before.prepared:
    print(f'{args.name} is already prepared: {after.path} ({origin})')
    print('Remove that folder to prepare it again.')
  else:
    print(f'{args.name} prepared: {after.path} ({origin})')
  return 0


def run(argv: Sequence[str] | None = None) -> NoReturn:
  """Runs the command line and leaves the process."""
  status = main(argv)
  sys.stdout.flush()
  sys.stderr.flush()
  if status > 128:
    # Everything is cleaned up; Python would still wait for a download thread of TFDS to finish.
    os._exit(status)
  sys.exit(status)


def _check_network(name: str, official: Sequence[archives.Archive]) -> None:
  """Raises ConnectionError at once where no host can be found; TFDS retries for minutes."""
  proxies = urllib.request.getproxies()
  for url in {urllib.parse.urlsplit(archive.url) for archive in official}:
    if {url.scheme, 'all'} & set(proxies):  # The proxy looks names up.
      continue
    try:
      socket.getaddrinfo(url.hostname, None)
    except OSError as error:
      raise archives.no_network(name, official, error) from error


def _parser() -> argparse.ArgumentParser:
  """Returns the command line's parser."""
  parser = argparse.ArgumentParser(
    prog='python -m dtp_jax.data.prepare',
    description='Prepares a data set for TensorFlow Datasets, without TensorFlow.',
    epilog=_EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('name', metavar='NAME', help=', '.join(builders.BUILDERS))
  parser.add_argument(
    '--from', dest='folder', metavar='FOLDER', help='take the official files from FOLDER (offline)'
  )
  parser.add_argument(
    '--data_dir',
    metavar='DIR',
    help='folder of all data sets (default: $TFDS_DATA_DIR or ~/tensorflow_datasets)',
  )
  return parser


_AGAIN = 1  # second; TFDS removes what it has half written in far less


class _Terminated(KeyboardInterrupt):
  """SIGTERM, as an exception."""


@contextlib.contextmanager
def _termination_cleans_up():
  """Turns SIGINT and SIGTERM into exceptions for the duration, so that temporary folders go.

  An exception is lost where the signal meets a finaliser, say: it is raised again every second
  until it arrives.
  """
  raised: list[type[KeyboardInterrupt]] = []

  def stop(signum: int, frame: types.FrameType | None) -> None:
    if signum != signal.SIGALRM:
      raised.append(_Terminated if signum == signal.SIGTERM else KeyboardInterrupt)
    # Python drops what is raised inside a callback of its garbage collector (jax has one): wait.
    collecting = frame is not None and any(
      frame.f_code is getattr(callback, '__code__', None) for callback in gc.callbacks
    )
    signal.setitimer(signal.ITIMER_REAL, 0.01 if collecting else _AGAIN)
    if not collecting:
      raise raised[-1]

  signals = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
  previous = {number: signal.signal(number, stop) for number in signals}
  try:
    yield
  finally:
    signal.alarm(0)
    for number, handler in previous.items():
      signal.signal(number, handler)


if __name__ == '__main__':
  run()
