"""Many runs: dense stages are shared, finished runs skipped, failures survived."""

import concurrent.futures as futures
import contextlib
import functools
import hashlib
import json
import multiprocessing
import os
import pathlib
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections

from dtp_jax.data import load
from dtp_jax.train import folder as run_folder
from dtp_jax.train import loop
from dtp_jax.train.recipe import Config

__all__ = ['Outcome', 'Run', 'plan', 'run_all']

# What a dense run has in place of its point's own fields of pruning, which do not touch it.
_UNPRUNED = {
  'granularity': 'weights',
  'keep': 1.0,
  'count': None,
  'of': 'count',
  'scope': 'global',
  'min_keep': 1,
  'multiple_of': 1,
  'importance': 'l2',
  'exclude': (),
  'ratios': (),
}


class Run(NamedTuple):
  """One run of a sweep.

  Attributes:
    name: path of its folder below the sweep's workdir, as in 'weights/0.05/spartan/seed0'.
    config: complete, with its seed.
    fork: name of the dense run whose dense stage it starts from; None trains its own.
  """

  name: str
  config: Config
  fork: str | None


class Outcome(NamedTuple):
  """How a run ended.

  Attributes:
    name: see `Run`.
    status: 'finished', 'skipped' (it was finished before) or 'failed'.
    reason: of a failure, one line; the traceback is in log.txt of the run's folder.
  """

  name: str
  status: str
  reason: str = ''


def plan(points: Iterable[tuple[str, Config]], seeds: Sequence[int]) -> list[Run]:
  """The runs of a sweep: every point with every seed, and the dense runs they fork from.

  One dense run for each seed and each distinct set of fields outside of pruning (model, data,
  stages, optimizer): dense training for as long as the pruned runs, and the dense stage of all.

  Args:
    points: (name, config) pairs, as a config file's `get_sweep` yields them.
    seeds: of every point.

  Returns:
    Runs, every one behind the run it forks from, seed by seed.

  Raises:
    ValueError: no point, no seed, or a name that is used twice or is not a relative path.
  """
  points, seeds = list(points), list(seeds)
  if not points or not seeds:
    raise ValueError(f'the sweep has {len(points)} points and {len(seeds)} seeds; expected some.')
  runs: dict[str, Run] = {}
  for seed in seeds:
    for name, config in points:
      config = _copy(config, seed=seed, baselines=())
      fork = None
      if config.stages.dense > 0 and config.method != 'dense':
        trunk = _dense(config)
        fork = f'dense/{_digest(trunk)}/seed{seed}'
        runs.setdefault(fork, Run(fork, trunk, None))
      _add(runs, Run(f'{name}/seed{seed}', config, fork))
  return list(runs.values())


def run_all(
  runs: Sequence[Run],
  workdir: str | pathlib.Path,
  *,
  processes: int = 1,
  report: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
  """Runs a plan in processes of its own; run again, it goes on where it stopped.

  Each process takes one GPU if there are any (CUDA_VISIBLE_DEVICES), else an equal share of the
  CPU cores. What was compiled is kept in `workdir`/compiled for the runs of other seeds.

  Args:
    runs: from `plan`.
    workdir: of the whole sweep; a run has its folder below it.
    processes: how many runs at a time, >= 1.
    report: called with every outcome as it comes.

  Returns:
    The outcomes, in the order of `runs`. A run that fails takes down only those that fork from it.

  Raises:
    ValueError: `processes` < 1, or a folder that belongs to a run with another config.
  """
  if processes < 1:
    raise ValueError(f'processes is {processes}; expected at least 1.')
  workdir = pathlib.Path(workdir).absolute()
  outcomes = {run.name: Outcome(run.name, 'skipped') for run in runs if _finished(run, workdir)}
  waiting = [run for run in runs if run.name not in outcomes]
  for outcome in outcomes.values():
    report(outcome)
  context = multiprocessing.get_context('spawn')  # a fork of a process with JAX's threads hangs
  places = context.Queue()
  for index in range(processes):
    places.put((index, processes))
  pool = futures.ProcessPoolExecutor(processes, context, _settle, (places, workdir))
  try:
    going: dict[futures.Future, Run] = {}
    while waiting or going:
      ready = {run.name for run in waiting if run.fork is None or run.fork in outcomes}
      for run in waiting:
        if run.name in ready:
          going[pool.submit(_attempt, run, workdir, _obstacle(run, outcomes))] = run
      waiting = [run for run in waiting if run.name not in ready]
      done, _ = futures.wait(going, return_when=futures.FIRST_COMPLETED)
      for future in done:
        outcome = future.result()
        outcomes[going.pop(future).name] = outcome
        report(outcome)
  finally:
    pool.shutdown(cancel_futures=True)  # an interrupt ends the runs under way, not the whole list
  return [outcomes[run.name] for run in runs]


def _attempt(run: Run, workdir: pathlib.Path, obstacle: str) -> Outcome:
  """One run, in a worker process; its output goes to log.txt."""
  if obstacle:
    return Outcome(run.name, 'failed', obstacle)
  place = workdir / run.name
  place.mkdir(parents=True, exist_ok=True)
  with (place / 'log.txt').open('a') as log, contextlib.redirect_stderr(log):
    try:
      data = _load(ml_collections.FrozenConfigDict(run.config.data))
      fork = None if run.fork is None else workdir / run.fork
      loop.train_and_evaluate(run.config, place, data=data, fork=fork)
    except Exception as error:  # any failure is this run's alone
      traceback.print_exc(file=log)
      return Outcome(run.name, 'failed', f'{type(error).__name__}: {str(error).splitlines()[0]}')
    finally:
      jax.clear_caches()  # hundreds of runs in a process: their programs are on the disk
  return Outcome(run.name, 'finished')


@functools.lru_cache(maxsize=1)
def _load(data):
  return load(data)


def _settle(places: Any, workdir: pathlib.Path) -> None:
  """Gives a new worker its device, before JAX looks for one."""
  index, count = places.get()
  gpus = _gpus()
  if gpus and count > 1:
    os.environ['CUDA_VISIBLE_DEVICES'] = gpus[index % len(gpus)]
  elif count > 1 and hasattr(os, 'sched_setaffinity'):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[index::count] or cores)
  jax.config.update('jax_compilation_cache_dir', str(workdir / 'compiled'))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


def _gpus() -> list[str]:
  """The NVIDIA GPUs this process may use, by the names CUDA_VISIBLE_DEVICES takes."""
  visible = os.environ.get('CUDA_VISIBLE_DEVICES')
  if visible is not None:
    return [name for name in visible.split(',') if name]
  numbers = (path.name.removeprefix('nvidia') for path in pathlib.Path('/dev').glob('nvidia*'))
  return sorted((n for n in numbers if n.isdigit()), key=int)


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


def _copy(config, **fields) -> Config:
  copy = config.copy_and_resolve_references()  # ConfigDict(config) would share what is nested
  copy.update(fields)
  return copy


def _dense(config):
  """The dense run of a point: trained on without masks for as long as the pruned ones."""
  trunk = _copy(config, method='dense', row='dense')
  trunk.methods = trunk.rows = ml_collections.ConfigDict()
  trunk.optimizer.score_learning_rate = 0.0
  trunk.prune.update({k: v for k, v in _UNPRUNED.items() if k in trunk.prune})
  return trunk


def _digest(config) -> str:
  """Eight digits for everything in a config but its seed."""
  fields = json.loads(config.to_json_best_effort())
  del fields['seed']
  return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:8]


def _add(runs, run):
  path = pathlib.PurePosixPath(run.name)
  if path.is_absolute() or '..' in path.parts or run.name in runs:
    raise ValueError(f'{run.name!r} is used twice, or is no relative path; see get_sweep.')
  runs[run.name] = run
