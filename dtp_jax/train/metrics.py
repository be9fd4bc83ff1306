"""Metrics as one JSON object per line, and on TensorBoard where tensorboardX is installed."""

import contextlib
import json
import math
import pathlib
from collections.abc import Iterator
from typing import Any

from dtp_jax.files import write_text
from dtp_jax.train import hosts

__all__ = ['MetricsWriter', 'read_metrics']


class MetricsWriter:
  """Appends to metrics.jsonl; a resumed run drops the lines past its checkpoint first.

  Of the processes of a job the first alone writes.
  """

  def __init__(self, folder: str | pathlib.Path, *, resume_step: int = -1):
    """Opens `folder`/metrics.jsonl and keeps its lines up to step `resume_step`; -1 keeps none."""
    self._path = pathlib.Path(folder) / 'metrics.jsonl'
    self._file = self._board = None
    if not hosts.is_first():
      return
    kept = [r for r in read_metrics(folder) if r['step'] <= resume_step]
    write_text(self._path, ''.join(json.dumps(r) + '\n' for r in kept))
    self._file = self._path.open('a')
    self._board = _summary_writer(folder, max(0, resume_step))

  def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
    """Writes one record {'kind', 'step', **values}; non-finite numbers become null."""
    if not self._file:
      return
    record = {'kind': kind, 'step': step, **{k: _plain(v) for k, v in values.items()}}
    with self._named():
      self._file.write(json.dumps(record, allow_nan=False) + '\n')
    if self._board:
      for name, value in record.items():
        if isinstance(value, int | float) and name != 'step':
          self._board.add_scalar(f'{kind}/{name}', value, step)

  def flush(self) -> None:
    """Brings everything written to the disk.

    Raises:
      OSError: it cannot be written.
    """
    if self._file:
      with self._named():
        self._file.flush()

  def close(self) -> None:
    """Closes the files."""
    if self._file:
      with contextlib.suppress(OSError):  # what a checkpoint counts on was flushed before it
        self._file.close()
    if self._board:
      self._board.close()

  @contextlib.contextmanager
  def _named(self) -> Iterator[None]:
    try:
      yield
    except OSError as error:
      raise OSError(error.errno, error.strerror, str(self._path)) from error


def read_metrics(folder: str | pathlib.Path) -> list[dict[str, Any]]:
  """The records of a run folder; none where it has not begun. A torn last line is left out."""
  path = pathlib.Path(folder) / 'metrics.jsonl'
  records = []
  for line in path.read_text().splitlines() if path.exists() else ():
    try:
      records.append(json.loads(line))
    except json.JSONDecodeError:
      break
  return records


def _plain(value):
  if isinstance(value, dict):
    return {str(k): _plain(v) for k, v in value.items()}
  if isinstance(value, str | int | type(None)):
    return value
  number = float(value)
  return number if math.isfinite(number) else None


def _summary_writer(folder, purge_step):
  try:
    import tensorboardX
  except ImportError:
    return None
  return tensorboardX.SummaryWriter(str(folder), purge_step=purge_step)
