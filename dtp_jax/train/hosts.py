"""Several processes as one job: JAX's own runtime connects them, and they end together.

Every process takes every step and sees the same numbers. What is written to a run folder is written
by the first alone, but for checkpoints, of which Orbax lets each process write its part: the folder
lies on a disk that all of them share.
"""

import contextlib
import os
import sys
import traceback
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from dtp_jax.train import preemption

__all__ = ['check_same', 'ending_together', 'is_first', 'start', 'wait']

_REPORT_SECONDS = 3600  # that the others wait at the end for the first, which exports and reports


def start(
  coordinator: str | None,
  num_processes: int | None = None,
  process_id: int | None = None,
  *,
  lost_after: int = 60,
) -> None:
  """Makes this process a part of a job; before anything asks JAX for a device.

  Args:
    coordinator: HOST:PORT of the first process; 'auto' where JAX finds the others by itself, as on
      Cloud TPU, GKE, SLURM and Open MPI; None for a process alone.
    num_processes: of the job; None leaves it to JAX.
    process_id: of this process, in [0, num_processes); None leaves it to JAX.
    lost_after: seconds of silence after which a process is lost and the others end; where its
      connection breaks they notice at once.

  Raises:
    ValueError: no coordinator for several processes, or what JAX cannot find out.
  """
  if coordinator is None:
    if (num_processes or 1) != 1 or process_id:
      raise ValueError(
        f'num_processes is {num_processes} and process_id {process_id} without a coordinator; give '
        '--coordinator=HOST:PORT of process 0 to all of them, or auto.'
      )
    return
  address = None if coordinator == 'auto' else coordinator
  try:
    jax.distributed.initialize(
      address,
      num_processes,
      process_id,
      heartbeat_timeout_seconds=lost_after,
      shutdown_timeout_seconds=_REPORT_SECONDS,
    )
  except (ValueError, TypeError) as error:
    raise ValueError(
      f'coordinator is {coordinator!r}, num_processes {num_processes}, process_id {process_id}: '
      f'{error} Give --coordinator=HOST:PORT, --num_processes and --process_id; JAX finds them by '
      'itself (auto) on Cloud TPU, GKE, SLURM and Open MPI alone.'
    ) from error


def is_first() -> bool:
  """Whether this process is the one that writes."""
  return jax.process_index() == 0


def wait(name: str) -> None:
  """Waits until every process has come to the place `name`."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def check_same(what: str, arrays: Mapping[str, np.ndarray]) -> None:
  """Holds the processes of a job to the same arrays, bit for bit; each has to call it.

  Args:
    what: how the error names them.
    arrays: {name: array on the host}, the same names everywhere.

  Raises:
    RuntimeError: one of them differs, in every process.
  """
  if jax.process_count() == 1:
    return
  mine = [zlib.crc32(np.ascontiguousarray(array)) for array in arrays.values()]
  everyone: Any = multihost_utils.process_allgather(np.asarray(mine, np.uint32))
  same = np.all(everyone == everyone[:1], axis=0)
  if differing := [name for name, agrees in zip(arrays, same, strict=True) if not agrees]:
    raise RuntimeError(
      f'the processes of this job have different {what}, of {differing[0]!r} to begin with. Their '
      'machines or versions differ: use the same on all hosts, and start anew.'
    )


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
  """Ends a process of a job at once where it fails: the others would wait for it, and it for them.

  A process alone raises as ever, and so do those that were preempted, which end together anyway.
  """
  try:
    yield
  except BaseException as error:
    preempted = isinstance(error, SystemExit) and error.code == preemption.STATUS
    if preempted or jax.process_count() == 1:
      raise
    place = f'process {jax.process_index()} of {jax.process_count()}'
    if isinstance(error, SystemExit):
      print(f'{place} ends: {error}', file=sys.stderr)
    else:
      traceback.print_exc()
    if isinstance(error, jax.errors.JaxRuntimeError):
      print(
        f'{place} ends: one of the others was lost. Start all of them again with the same '
        '--workdir: the run goes on from its last checkpoint.',
        file=sys.stderr,
      )
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)  # no exit handlers: they wait for the processes that are gone
