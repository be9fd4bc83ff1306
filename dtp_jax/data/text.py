"""Text that every machine has: the source of Python's standard library, byte by byte.

It is read where it is installed, below `sysconfig.get_path('stdlib')`: nothing is downloaded and
nothing is copied into this project. Its licence is the Python Software Foundation's (PSF-2.0, file
LICENSE of every installation, or `license()` at Python's prompt), which allows use of every kind.

It is as old as the Python that runs: numbers of two versions are near each other and not the same,
so tables name the version. Of one version every machine has the same files, but for what a
distributor leaves out or adds.
"""

import hashlib
import os
import pathlib
import sysconfig
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dtp_jax.data.dataset import OnDevice, Task
from dtp_jax.data.order import check_range

__all__ = ['HELD_OUT_WINDOWS', 'Text', 'next_token', 'python_stdlib', 'windows']

HELD_OUT_WINDOWS = 512  # at most, evenly spread: an evaluation takes seconds
_HELD_OUT = 0.05  # of the files
# Tests are as long as all the rest; character maps are nearly alike, so that one in training gives
# away another that is held out; pydoc_data is a manual, no program; packages are not Python's own.
_NOT_READ = frozenset(
  {'test', 'tests', 'idle_test', 'encodings', 'pydoc_data', 'site-packages', 'dist-packages'}
)
_OF_THIS_MACHINE = ('_sysconfigdata', 'sitecustomize', 'usercustomize')  # beginnings of names


class Text(OnDevice):
  """Windows of a text, {'tokens': integers [N, T + 1]}, whose every next token is asked for."""

  measure = 'bits_per_byte'

  @property
  def example(self) -> jax.ShapeDtypeStruct:
    """T tokens."""
    return jax.ShapeDtypeStruct((1, self.train['tokens'].shape[1] - 1), jnp.int32)

  def task(self, options: Mapping[str, Any]) -> Task:
    """`next_token`, which has no options."""
    del options
    return next_token

  def inputs(self, count: int) -> jax.Array:
    """The first T tokens of each, int32 [count, T]."""
    return jnp.asarray(self.held_out['tokens'][:count, :-1], jnp.int32)

  def about(self) -> dict[str, Any]:
    """What a token is."""
    return {'input': 'the bytes of a text as integers'}


def next_token(
  key: jax.Array, batch: Mapping[str, jax.Array], train: bool
) -> tuple[jax.Array, jax.Array]:
  """(tokens, those that follow), int32 [B, T] each, of 'tokens' [B, T + 1]."""
  del key, train
  tokens = batch['tokens'].astype(jnp.int32)
  return tokens[:, :-1], tokens[:, 1:]


def python_stdlib(
  window: int, folder: pathlib.Path | None = None
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
  """The training and the held-out split of the source files.

  A file is held out as a whole, one in twenty, by the hash of its path: which ones are held out
  depends on no other file. Of those, `HELD_OUT_WINDOWS` windows are kept.

  Args:
    window: bytes that are predicted in each example, in [1, 2**20).
    folder: of the library; default: that of the Python that runs.

  Returns:
    Two splits {'tokens': uint8 [N, window + 1]}, see `windows`.

  Raises:
    ValueError: the window is out of range, or longer than all files of a split.
    FileNotFoundError: no source file there, as where the library is a zip archive.
  """
  check_range('data.window', window, 1, 2**20)
  folder = pathlib.Path(sysconfig.get_path('stdlib')) if folder is None else folder
  parts: dict[bool, list[bytes]] = {False: [], True: []}
  for path in _sources(folder):
    parts[_held_out(path)].append((folder / path).read_bytes())
  if not any(parts.values()):
    raise FileNotFoundError(
      f'{folder} holds no source file of the standard library; python_stdlib needs a Python whose '
      'library lies there as .py files.'
    )
  train, held_out = (windows(b'\0'.join(parts[which]), window) for which in (False, True))
  count = min(HELD_OUT_WINDOWS, len(held_out))
  spread = np.arange(count) * len(held_out) // count
  return {'tokens': train}, {'tokens': held_out[spread]}


def windows(text: bytes, window: int) -> np.ndarray:
  """Cuts a text so that every byte but the first is predicted once.

  Args:
    text: N bytes or more of it, N = n window + 1; what is left over is dropped.
    window: bytes predicted in each.

  Returns:
    uint8 [n, window + 1]; the last byte of a window is the first of the next.

  Raises:
    ValueError: the text is shorter than one window.
  """
  count = (len(text) - 1) // window
  if count < 1:
    raise ValueError(f'data.window is {window}, of a text of {len(text)} bytes; expected fewer.')
  starts = np.arange(count)[:, None] * window
  return np.frombuffer(text, np.uint8)[starts + np.arange(window + 1)]


def _sources(folder: pathlib.Path) -> list[str]:
  """Paths below the folder, with slashes, sorted."""
  found = []
  for place, folders, files in os.walk(folder):
    folders[:] = [name for name in folders if name not in _NOT_READ]  # not walked either
    found += [
      (pathlib.Path(place) / name).relative_to(folder).as_posix()
      for name in files
      if name.endswith('.py') and not name.startswith(_OF_THIS_MACHINE)
    ]
  return sorted(found)


def _held_out(path: str) -> bool:
  """Whether a file is held out: drawn by the hash of its path."""
  word = int.from_bytes(hashlib.sha256(path.encode()).digest()[:8])
  return word < _HELD_OUT * 2**64
