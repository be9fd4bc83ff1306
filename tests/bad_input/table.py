"""What every wrong input is held to: its error's type, what the message names, and the files."""

import contextlib
import pathlib
import runpy
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import pytest
from absl import app, flags

from dtp_jax.train.flags import parse_flags

_PARSERS = {
  name: {'flags_parser': parse_flags}
  for name in (
    'experiments.train',
    'experiments.sweep',
    'experiments.bench.latency_table',
    'experiments.bench.streamed_data',
  )
}


UNWRITABLE = pathlib.Path('/proc/out')  # to everyone, root too


class Case(NamedTuple):
  """One wrong input.

  Attributes:
    call: folder of the case -> what goes wrong.
    error: exactly the documented type, or SystemExit of a command.
    words: what the message says, the value and the remedy among it.
    files: {path in the folder: content}, there before the call.
  """

  call: Callable[[pathlib.Path], Any]
  error: type[BaseException]
  words: tuple[str, ...]
  files: Mapping[str, bytes | str] = {}


def assert_refused(case: Case, place: pathlib.Path) -> None:
  """Makes the call: the error is the one expected, and the folder is as before."""
  for name, content in case.files.items():
    path = place / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
  before = _listing(place)
  with pytest.raises(case.error) as raised:
    case.call(place)
  assert raised.type is case.error, repr(raised.value)
  message = '\n'.join([str(raised.value), *getattr(raised.value, '__notes__', ())])
  assert all(word in message for word in case.words), message
  assert 'Traceback' not in message
  assert _listing(place) == before


def script(module: str, *arguments: Any) -> None:
  """Runs `python -m module`, one that reads its arguments without absl, in this process."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sys, 'argv', [module, *map(str, arguments)])
    patch.delitem(sys.modules, module, raising=False)
    runpy.run_module(module, run_name='__main__')


def command(module: str, *arguments: Any) -> None:
  """Runs the command `python -m module` in this process; what it exits with is raised."""
  argv = [module, *map(str, arguments)]
  with _own_flags(), pytest.MonkeyPatch.context() as patch:
    patch.setattr(sys, 'argv', argv)  # ml_collections looks there
    for name in ('config_config', module):  # every config file's name there; what others imported
      patch.delitem(sys.modules, name, raising=False)
    main = runpy.run_module(module)['main']
    app.run(main, argv, **_PARSERS.get(module, {}))


@contextlib.contextmanager
def _own_flags() -> Iterator[None]:
  """Flags that are defined inside are gone outside: every command defines its own."""
  defined, there = flags.FLAGS, {}
  imported = ('config', 'workdir', 'out', 'title', 'timed', 'check', 'write')  # by other tests
  for name in imported:
    if name in defined:
      there[name] = defined[name]
      delattr(defined, name)
  before = set(defined)
  try:
    yield
  finally:
    for name in set(defined) - before:
      delattr(defined, name)
    for name, flag in there.items():
      defined[name] = flag


def _listing(place: pathlib.Path) -> dict[str, bytes | None]:
  """Every file below a folder with its content, every folder with None."""
  return {str(p): p.read_bytes() if p.is_file() else None for p in sorted(place.rglob('*'))}
