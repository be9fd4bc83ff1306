"""Runs lists of runs: what is finished is skipped, and what was interrupted goes on."""

import concurrent.futures as futures
import contextlib
import functools
import multiprocessing
import os
import pathlib
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from typing import Any, NamedTuple

import jax
import ml_collections

from dtp_jax.data import load
from dtp_jax.data.loading import check_there
from dtp_jax.files import check_folder, read_json
from dtp_jax.train import folder as run_folder
from dtp_jax.train import loop, places, preemption
from dtp_jax.train import mesh as meshes
from dtp_jax.train.fields import check, check_pretrained
from dtp_jax.train.lock import locked
from dtp_jax.train.recipe import build
from dtp_jax.train.sweep import Run

__all__ = ['Outcome', 'run_all', 'run_here']


class Outcome(NamedTuple):
  """How a run ended.

  Attributes:
    name: see `dtp_jax.train.sweep.Run`.
    status: 'finished', 'skipped' (it was finished before) or 'failed'.
    reason: of a failure, one line; the traceback is in log.txt of the run's folder.
  """

  name: str
  status: str
  reason: str = ''


def run_here(runs: Iterable[Run], workdir: str | pathlib.Path) -> dict[str, dict[str, Any]]:
  """Runs one after the other in this process; run again, it goes on where it stopped.

  Args:
    runs: from `sweep.with_baselines` or `sweep.runs_of`.
    workdir: of all of them.

  Returns:
    The summary of each by its name, see `dtp_jax.train.loop.train_and_evaluate`.

  Raises:
    ValueError: a config that is refused, or a folder that belongs to a run with another one; before
      anything runs.
    FileNotFoundError, ImportError: what a config names is not there; before anything runs.
    OSError: a folder that cannot be written to; before anything runs.
    LockedError: another job works in the folder.
    DivergedError, PreemptedError, OSError: see `dtp_jax.train.loop.train_and_evaluate`.
  """
  workdir, runs = _folder(workdir), list(runs)
  # The config that was asked for first: it is refused with all of its fields, not with those alone
  # that a run made from it shares.
  asked_first = sorted(runs, key=lambda run: run.name != '.')
  finished = {run.name for run in asked_first if _finished(run, workdir)}
  for run in asked_first:
    if run.name not in finished:
      _check(run, workdir)
      # What its network cannot do is no news after hours.
      build(run.config, _load(ml_collections.FrozenConfigDict(run.config.data)))
  with locked(workdir, 'job.lock'):
    for run in runs:
      if run.name not in finished:
        _train(run, workdir)
  return {run.name: read_json(workdir / run.name / 'summary.json') for run in runs}


def run_all(
  runs: Sequence[Run],
  workdir: str | pathlib.Path,
  *,
  processes: int | None = None,
  report: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
  """Runs in processes of their own; run again, it goes on where it stopped.

  Each process has a share of this host's devices to itself, see `dtp_jax.train.places`, and the
  compilation cache of this one. They end with this one however it ends. On SIGTERM each writes a
  checkpoint of its run, see `dtp_jax.train.preemption`.

  Args:
    runs: from `sweep.runs_of`.
    workdir: of the whole sweep; a run has its folder below it.
    processes: how many runs at a time, >= 1. Default: one for each device of this host, or for each
      group of as many as the largest `config.mesh` asks for.
    report: called with every outcome as it comes.

  Returns:
    The outcomes, in the order of `runs`. A run that fails takes down only those that fork from it.

  Raises:
    ValueError: `processes` that the devices do not allow, a config that `fields.check` refuses, a
      folder that belongs to a run with another one, or a process that is one of a job of several;
      before anything runs.
    FileNotFoundError, ImportError: what a config names is not there; before anything runs.
    OSError: a folder that cannot be written to; before anything runs.
    LockedError: another job works in the folder.
    PreemptedError: on SIGTERM, when the runs under way have their checkpoints.
    ChildProcessError: one of the processes was killed.
  """
  if jax.distributed.is_initialized():
    raise ValueError(
      f'this is process {jax.process_index()} of a job of {jax.process_count()}, and a sweep '
      'starts processes of its own; start one on each host, alone, with a part of the points and a '
      'workdir of its own: experiments.report takes all of their folders.'
    )
  workdir = _folder(workdir)
  waiting = [run for run in runs if not _finished(run, workdir)]
  for run in waiting:
    _check(run, workdir)
  named: set[Any] = {ml_collections.FrozenConfigDict(run.config.data) for run in waiting}
  for data in named:
    check_there(data)  # once, and not by each run
  needed = max((meshes.needed(run.config.mesh) for run in waiting), default=1)
  found = places.find(needed, processes)
  with locked(workdir, 'job.lock'), preemption.listening(_pass_on):
    return _run_all(runs, workdir, found, report)


def _run_all(
  runs, workdir: pathlib.Path, found: list[places.Place | None], report
) -> list[Outcome]:
  outcomes = {run.name: Outcome(run.name, 'skipped') for run in runs if _finished(run, workdir)}
  waiting = [run for run in runs if run.name not in outcomes]
  for outcome in outcomes.values():
    report(outcome)
  context = multiprocessing.get_context('spawn')  # a fork of a process with JAX's threads hangs
  free = context.Queue()
  free.cancel_join_thread()  # at the end this process waits for nobody to take the places left
  for place in found:
    free.put(place)
  pool = futures.ProcessPoolExecutor(len(found), context, _settle, (free, _cache()))
  try:
    going: dict[futures.Future, Run] = {}
    while waiting or going:
      ready = {run.name for run in waiting if run.fork is None or run.fork in outcomes}
      for run in waiting:
        if run.name in ready:
          going[pool.submit(_attempt, run, workdir, _obstacle(run, outcomes))] = run
      waiting = [run for run in waiting if run.name not in ready]
      if preemption.noticed():
        _pass_on()  # to those too that were only being started
        raise _preempted(outcomes, runs)
      done, _ = futures.wait(going, return_when=futures.FIRST_COMPLETED)
      for future in done:
        outcome = future.result()
        outcomes[going.pop(future).name] = outcome
        report(outcome)
  except BrokenProcessPool as error:
    if preemption.noticed():  # so were they, and have ended
      raise _preempted(outcomes, runs) from error
    raise ChildProcessError(
      'one of the processes was killed; where memory is short, as by the system: run fewer at a '
      'time (--processes). The same command goes on from the last checkpoints.'
    ) from error
  finally:
    pool.shutdown(cancel_futures=True)  # an interrupt ends the runs under way, not the whole list
  return [outcomes[run.name] for run in runs]


def _folder(workdir: str | pathlib.Path) -> pathlib.Path:
  """The absolute path of a folder that files can be written to."""
  check_folder(workdir, 'workdir')
  return pathlib.Path(workdir).absolute()


def _check(run: Run, workdir: pathlib.Path) -> None:
  check(run.config)
  if not (workdir / run.name / 'config.json').exists():  # later it goes on without them
    check_pretrained(run.config)


def _preempted(outcomes, runs) -> preemption.PreemptedError:
  return preemption.PreemptedError(
    f'preempted (SIGTERM) with {len(outcomes)} of {len(runs)} runs done; the same command goes '
    'on with the others.'
  )


def _pass_on() -> None:
  """Tells the processes of a sweep what this one was told; those without a run end at once."""
  for process in multiprocessing.active_children():
    process.terminate()


def _attempt(run: Run, workdir: pathlib.Path, obstacle: str) -> Outcome:
  """One run, in a worker process; its output goes to log.txt."""
  if obstacle:
    return Outcome(run.name, 'failed', obstacle)
  place = workdir / run.name
  place.mkdir(parents=True, exist_ok=True)
  with (place / 'log.txt').open('a') as log, contextlib.redirect_stderr(log):
    try:
      _train(run, workdir)
    except preemption.PreemptedError as error:
      print(error, file=log, flush=True)
      os._exit(preemption.STATUS)  # and with it the pool: no other run begins here
    except Exception as error:  # any failure is this run's alone
      traceback.print_exc(file=log)
      return Outcome(run.name, 'failed', f'{type(error).__name__}: {str(error).splitlines()[0]}')
    finally:
      jax.clear_caches()  # hundreds of runs in a process: their programs are on the disk
  return Outcome(run.name, 'finished')


def _train(run: Run, workdir: pathlib.Path) -> None:
  data = _load(ml_collections.FrozenConfigDict(run.config.data))
  fork = None if run.fork is None else workdir / run.fork
  loop.train_and_evaluate(run.config, workdir / run.name, data=data, fork=fork)


@functools.lru_cache(maxsize=1)
def _load(data):
  return load(data)


def _cache() -> dict[str, Any]:
  """The compilation cache of this process, as settings of JAX."""
  names = ('jax_compilation_cache_dir', 'jax_persistent_cache_min_compile_time_secs')
  return {name: jax.config.values[name] for name in names}


def _settle(free: Any, cache: dict[str, Any]) -> None:
  """Gives a new worker its place and the compilation cache.

  It ends when the process that started it is gone.
  """
  threading.Thread(target=_end_with_parent, daemon=True).start()
  places.settle(free.get())
  for name, value in cache.items():
    jax.config.update(name, value)


def _end_with_parent() -> None:
  """Ends this process when its parent was killed: a new sweep is to find the folders free."""
  parent = multiprocessing.parent_process()
  if parent is not None:
    connection.wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGKILL)


def _obstacle(run, outcomes):
  """Why a run cannot begin, or nothing."""
  if run.fork is None or outcomes[run.fork].status != 'failed':
    return ''
  return f'the run it forks from failed: {run.fork}'


def _finished(run: Run, workdir: pathlib.Path) -> bool:
  """Whether the run is done; raises if its folder belongs to another config."""
  place = workdir / run.name
  if not (place / 'config.json').exists():
    return False
  run_folder.check_config(run.config, place)
  return (place / 'summary.json').exists()
