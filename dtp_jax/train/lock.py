"""One job in a folder: a lock that the operating system drops with the process that holds it.

flock holds on local disks, and between hosts on NFS, where it is a lock of the server. Where a
mount keeps it on one host alone (NFS with local_lock, gcsfuse), jobs of other hosts are not seen.
"""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import socket
import sys
from collections.abc import Iterator
from typing import Any, TextIO

import jax

__all__ = ['LockedError', 'locked']

_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class LockedError(RuntimeError):
  """Another process works in the folder."""


@contextlib.contextmanager
def locked(folder: pathlib.Path, name: str) -> Iterator[None]:
  """Holds the file `name` in `folder`, which says by its host and process id who does.

  One that a killed process left is taken over, and said so. Of a job of several processes the first
  holds it for all. The file goes away at the end.

  Args:
    folder: created where it is missing.
    name: of the file.

  Raises:
    LockedError: another process holds it; the message says which.
    OSError: the folder cannot be written.
  """
  if jax.distributed.is_initialized() and jax.process_index() != 0:
    yield
    return
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / name
  with _held(path) as file:
    left = file.read()
    if left:
      print(f'{path} was left by {_spelled(left)}, which is gone: taken over.', file=sys.stderr)
    file.seek(0)
    file.truncate()
    json.dump({'host': socket.gethostname(), 'pid': os.getpid()}, file)
    file.flush()
    try:
      yield
    finally:
      path.unlink(missing_ok=True)  # while it is held: whoever waits for it looks for a new one


def _held(path: pathlib.Path) -> TextIO:
  """The file, opened and held."""
  while True:
    file = path.open('a+')
    file.seek(0)
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      with file:
        holder = _spelled(file.read())
      raise LockedError(
        f'{path.parent} is at work: {holder} holds {path.name}. Wait for it or stop it, or give '
        'another folder.'
      ) from None
    except OSError as error:
      if error.errno not in _UNSUPPORTED:
        file.close()
        raise
      print(f'{path}: {error}. Nothing keeps a second job out of this folder.', file=sys.stderr)
      return file
    if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
      return file
    file.close()  # its holder removed it in between


def _spelled(content: str) -> str:
  try:
    holder: Any = json.loads(content)
    return f'process {holder["pid"]} of host {holder["host"]}'
  except (ValueError, KeyError, TypeError):
    return 'a process that has not yet said its name'
