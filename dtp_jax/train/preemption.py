"""A notice that the machine is about to be taken away, SIGTERM, and what is made of it.

Schedulers send it some seconds before they kill. Training then writes a checkpoint at its next step
and ends with `PreemptedError`; the same command goes on from there.
"""

import contextlib
import itertools
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

__all__ = ['STATUS', 'PreemptedError', 'listening', 'noticed']

# Exit status of a preempted program: what a shell reports of one that SIGTERM ended.
STATUS = 128 + signal.SIGTERM

_notice = threading.Event()
_listening = threading.Event()
_asked = itertools.count(1)


class PreemptedError(Exception):
  """Training stopped on a notice, after a checkpoint: run again, it goes on."""


@contextlib.contextmanager
def listening(pass_on: Callable[[], None] = lambda: None) -> Iterator[None]:
  """Takes SIGTERM as a notice, where it would end the process.

  Inside of another `listening`, and in a thread other than the main one, it changes nothing. Of a
  job of several processes JAX listens by itself since `hosts.start`.

  Args:
    pass_on: called in the handler, to tell processes that this one started.
  """
  main = threading.current_thread() is threading.main_thread()
  if not main or _listening.is_set() or jax.distributed.is_initialized():
    yield
    return

  def note(*signal_and_frame):
    _notice.set()
    pass_on()

  before = signal.signal(signal.SIGTERM, note)
  _listening.set()
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before)
    _listening.clear()
    _notice.clear()


def noticed() -> bool:
  """Whether to stop now.

  Each process of a job has to ask equally often: they agree on one of these questions, one that
  none of them has asked yet, and are told together.
  """
  if jax.distributed.is_initialized():
    # Not the number of a step: it begins anew with the next run of a process.
    return multihost_utils.reached_preemption_sync_point(next(_asked))
  return _notice.is_set()
