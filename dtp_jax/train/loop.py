"""The training loop: checkpoints, metrics and progress wrapped around one jitted step."""

import contextlib
import dataclasses
import errno
import math
import pathlib
import time
from typing import Any

import jax
import numpy as np
import tqdm

from dtp_jax.data import Dataset, load
from dtp_jax.files import read_json, write_json, write_npz
from dtp_jax.graph import Graph
from dtp_jax.graph.cost import counts_of
from dtp_jax.train import calls, hosts, preemption
from dtp_jax.train import folder as run_folder
from dtp_jax.train import mesh as meshes
from dtp_jax.train.checkpoint import Checkpoints
from dtp_jax.train.evaluate import AHEAD, Evaluator
from dtp_jax.train.lock import locked
from dtp_jax.train.metrics import MetricsWriter, read_metrics
from dtp_jax.train.recipe import Config, build
from dtp_jax.train.stages import Stages
from dtp_jax.train.state import TrainState
from dtp_jax.train.step import Recipe, enter_stage, hard_masks, train_step
from dtp_jax.trees import finite, paths

__all__ = ['DivergedError', 'train_and_evaluate']


_finite = jax.jit(finite)
_DISK = (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EFBIG, errno.EIO)


class DivergedError(RuntimeError):
  """The loss or a weight became NaN or infinite."""


def train_and_evaluate(
  config: Config,
  workdir: str | pathlib.Path,
  *,
  data: Dataset | None = None,
  fork: str | pathlib.Path | None = None,
) -> dict[str, Any]:
  """Trains dense, prunes, fine-tunes and evaluates; run again, it resumes where it stopped.

  SIGTERM is taken as a notice that the machine will be taken away, see `dtp_jax.train.preemption`.

  Args:
    config: see configs/default.py for every field.
    workdir: run folder; config.json, environment.json, metrics.jsonl, checkpoints/, masks.npz,
      pruned.npz and summary.json are written there.
    data: the data set, where it is loaded already; default: the one that `config.data` names.
    fork: run folder to take the end of the dense stage from, instead of training it again. Its
      config must agree in everything that shapes the dense stage.

  Returns:
    The summary: accuracies, requested and achieved count, seconds, stages.

  Raises:
    ValueError: a config out of range, or a workdir of another config.
    FileNotFoundError: data that is not prepared, or a fork without its checkpoint.
    DivergedError: NaN or infinite loss; the message names step, stage and last good checkpoint.
    DamagedError: no checkpoint of the run is intact; of several the last intact one is used, after
      the others were named on stderr and moved to checkpoints.damaged.
    LockedError: another process trains in the folder.
    PreemptedError: on SIGTERM, after a checkpoint.
    OSError: the folder cannot be written; the checkpoints in it are intact.
  """
  data = load(config.data) if data is None else data
  recipe, create = build(config, data)
  workdir = pathlib.Path(workdir).absolute()  # nothing is written for a config that is refused
  with locked(workdir, 'run.lock'), preemption.listening():
    return _train_and_evaluate(config, workdir, data, fork, recipe, create)


def _train_and_evaluate(
  config, workdir: pathlib.Path, data, fork, recipe: Recipe, create
) -> dict[str, Any]:
  run_folder.open_run(config, workdir)
  stages = recipe.stages
  checkpoints = Checkpoints(workdir / 'checkpoints', always=(stages.soft_start, stages.total))
  with contextlib.closing(checkpoints):
    seconds = 0.0
    if checkpoints.latest is not None:
      state, position = checkpoints.restore_latest(_template(recipe, create))
      seconds = position['seconds']
    elif fork is not None:
      state = _fork(fork, create, stages, data)
    else:
      state = create()
    run = _Run(config, workdir, recipe, data, checkpoints, seconds)
    try:
      with contextlib.closing(run):
        state = run.until_done(state)
    except OSError as error:
      if error.errno not in _DISK:  # one of ours, which says it all, has none
        raise
      raise checkpoints.unwritten(error) from error
  return _summarise(config, workdir, recipe, state, run)


class _Run:
  """The host side of one run."""

  def __init__(self, config, workdir, recipe: Recipe, data, checkpoints, seconds: float):
    self._config, self._stages, self._checkpoints = config, recipe.stages, checkpoints
    self._recipe, self._data = recipe, data
    self._evaluate = Evaluator(recipe, data, config.data.eval_batch_size)
    latest = checkpoints.latest
    # Killed before its first checkpoint, a run evaluates step 0 again.
    self._metrics = MetricsWriter(workdir, resume_step=-1 if latest is None else latest)
    self._pending: list[tuple[int, Any]] = []  # calls: first step, stacked metrics
    self._seconds, self._began = seconds, time.monotonic()
    self._eval_steps = _eval_steps(config, self._stages, data.examples)
    self._per_call = config.steps_per_call
    self._ahead = max(1, AHEAD // self._per_call)

  @property
  def measure(self) -> str:
    """What runs on this data are compared by."""
    return self._data.measure

  @property
  def seconds(self) -> float:
    """Seconds spent on this run, earlier sessions included."""
    return self._seconds + time.monotonic() - self._began

  def _compiled(self, state):
    """The steps of a call: what they give back lies where `state` does, or no next would fit."""

    def steps(stage, state, fixed, moving):
      def step(state, *arguments):
        return train_step(self._recipe, state, self._data.batch(*arguments), stage=stage)

      return calls.take(step, state, fixed, moving)

    where = meshes.of_state(self._recipe.mesh, state)
    return jax.jit(steps, static_argnums=0, donate_argnums=1, out_shardings=(where, None))

  def until_done(self, state: TrainState) -> TrainState:
    """Takes the steps that are left."""
    begin, batch = int(state.step), self._config.data.batch_size
    bar = tqdm.tqdm(
      initial=begin * batch,
      total=self._stages.total * batch,
      unit='example',
      unit_scale=True,
      disable=None if hosts.is_first() else True,
    )
    take_steps, where = self._compiled(state), meshes.of_batches(self._recipe.mesh)
    batches = self._data.train_batches(batch, seed=self._config.seed, step=begin, sharding=where)
    with bar, contextlib.closing(batches):
      if self._checkpoints.latest is None:
        self._measure(state)
      for step, count in calls.plan(begin, self._stages.total, self._per_call, self._eval_steps):
        if preemption.noticed():
          self._stop(state, step, bar)
        stage = self._stages.name(step)
        state = enter_stage(self._recipe, state, step)
        arguments = calls.share([next(batches) for _ in range(count)])
        state, metrics = take_steps(stage, state, *arguments)
        self._pending.append((step, metrics))
        jax.block_until_ready(self._pending[-self._ahead - 1 : -self._ahead])
        bar.update(count * batch)
        step += count
        evaluate = step in self._eval_steps
        if evaluate or step - self._pending[0][0] >= self._config.log_every:
          self._flush(bar)
        if evaluate:
          self._measure(state)
          self._save(state, step)
    return state

  def close(self):
    self._metrics.close()

  def _measure(self, state):
    values = self._evaluate(state)
    stage = self._stages.name(max(0, int(state.step) - 1))
    self._metrics.write('test', int(state.step), {'stage': stage, **values})

  def _save(self, state, step: int):
    """Writes a checkpoint, and before it the metrics up to it."""
    if not _finite((state.params, state.batch_stats)):
      raise DivergedError(
        self._diverged(step, self._stages.name(step - 1), 'a weight is not finite')
      )
    self._metrics.flush()
    self._checkpoints.save(state, {'data': {'step': step}, 'seconds': self.seconds})

  def _stop(self, state, step: int, bar):
    """Ends the run after `step` steps, to go on another time."""
    self._flush(bar)
    self._save(state, step)
    raise preemption.PreemptedError(
      f'preempted (SIGTERM) after step {step} of {self._stages.total}; the same command goes on '
      f'from {self._checkpoints.path(step)}.'
    )

  def _flush(self, bar):
    """Fetches the metrics of the steps since the last flush: one wait for the device, not each."""
    stage, metrics = '', {}
    for step, metrics in _each(jax.device_get(self._pending)):
      stage = self._stages.name(step - 1)
      self._metrics.write('train', step, {'stage': stage, **metrics})
      if not (math.isfinite(metrics['loss']) or self._recipe.skip_nonfinite):
        raise DivergedError(self._diverged(step, stage, f'loss is {metrics["loss"]}'))
    if not self._pending:
      return
    self._pending.clear()
    shown = {name: f'{metrics[name]:.3f}' for name in ('loss', 'softness', 'kept')}
    bar.set_description(stage)
    bar.set_postfix(shown)

  def _diverged(self, step, stage, what):
    latest = self._checkpoints.latest
    last = 'there is no checkpoint yet'
    if latest is not None:
      last = f'the last good checkpoint is {self._checkpoints.path(latest)} (step {latest})'
    return (
      f'{what} at step {step} of the {stage} stage; {last}. Lower the learning rate '
      '(optimizer.learning_rate dense, optimizer.prune_learning_rate after) and start anew; if it '
      "is single batches, on_nan='skip' leaves their updates out."
    )


def _each(pending):
  """(number of steps taken, metrics) of every step of calls (first step, stacked metrics)."""
  for first, stacked in pending:
    for i in range(len(stacked['loss'])):
      yield first + i + 1, {name: values[i] for name, values in stacked.items()}


def _eval_steps(config, stages: Stages, examples: int) -> set[int]:
  """Every `eval_every` epochs and at the end of each stage."""
  every = max(1, round(config.eval_every * examples / config.data.batch_size))
  bounds = {stages.soft_start, stages.hard_start, stages.total}
  return set(range(every, stages.total, every)) | {b for b in bounds if b > 0}


def _template(recipe: Recipe, create) -> TrainState:
  return meshes.template(recipe.mesh, jax.eval_shape(create))


def _fork(source, create, stages: Stages, data) -> TrainState:
  """A state with weights, statistics and weight optimizer of the end of another's dense stage."""
  config = run_folder.read_config(source)
  recipe, donor_of = build(config, data)
  if recipe.stages.soft_start != stages.soft_start:
    raise ValueError(
      f'{source} has a dense stage of {recipe.stages.dense} steps; expected {stages.dense}.'
    )
  checkpoints = Checkpoints(pathlib.Path(source) / 'checkpoints', read_only=True)
  with contextlib.closing(checkpoints):
    donor, _ = checkpoints.restore(_template(recipe, donor_of), stages.soft_start)
  state = create({'params': donor.params, 'batch_stats': donor.batch_stats})
  opt_state = {**state.opt_state, 'params': donor.opt_state['params']}
  return dataclasses.replace(state, step=donor.step, opt_state=opt_state)


def _summarise(config, workdir, recipe: Recipe, state: TrainState, run: _Run) -> dict[str, Any]:
  """The summary of a finished run, which the first process writes: see `_write_summary`."""
  hard = jax.device_get(hard_masks(recipe, state))
  hosts.check_same('hard masks', hard)
  params, batch_stats = meshes.whole(recipe.mesh, (state.params, state.batch_stats))
  params = jax.jit(recipe.pruner.apply_masks)(params, hard)
  pruned = jax.device_get(paths({'params': params, 'batch_stats': batch_stats}))
  # Rerunning a finished run changes nothing: its time is that of the first time.
  if hosts.is_first() and not (workdir / 'summary.json').exists():
    _write_summary(config, workdir, recipe, run.measure, run.seconds, hard, pruned)
  hosts.wait('summary')
  return read_json(workdir / 'summary.json')


def _write_summary(
  config, workdir, recipe: Recipe, measure: str, seconds: float, hard, pruned
) -> None:
  """Writes masks.npz, pruned.npz and, last, summary.json."""
  write_npz(workdir / 'masks.npz', hard)
  write_npz(workdir / 'pruned.npz', pruned)
  every = read_metrics(workdir)
  records = [r for r in every if r['kind'] == 'test']
  by_step = {r['step']: r for r in records}
  final = records[-1]
  summary = {
    'row': config.row or config.method,
    'method': config.method,
    'seed': config.seed,
    'stages': recipe.stages._asdict(),
    'dense_accuracy': by_step.get(recipe.stages.soft_start, {}).get('accuracy'),
    'accuracy': final.get('accuracy_hard', final['accuracy']),
    'loss': final.get('loss_hard', final['loss']),
    'measure': measure,
    'gap': by_step.get(recipe.stages.hard_start, {}).get('gap'),
    **recipe.pruner.resolved.account(hard)._asdict(),
    'parameters': sum(int(w.size) for k, w in pruned.items() if k.startswith('params/')),
    **_sizes(recipe.pruner.elements.graph, hard, pruned),
    'kept_per_array': {name: float(np.mean(mask)) for name, mask in hard.items()},
    'skipped_steps': sum(int(r.get('skipped', 0)) for r in every),
    'seconds': round(seconds, 1),
  }
  write_json(workdir / 'summary.json', summary)


def _sizes(graph: Graph | None, hard, pruned) -> dict[str, Any]:
  """Parameters left; of channels also {group: [dense, kept]} and {unit: [kept, dense]} of costs."""
  if graph is None:  # of single weights those are left that are not zero
    left = sum(int(np.count_nonzero(w)) for k, w in pruned.items() if k.startswith('params/'))
    return {'parameters_left': left, 'widths': None, 'costs': {}}
  counts, units = counts_of(hard), {'params': graph.params, 'macs': graph.macs}
  return {
    'parameters_left': graph.params.at(counts),
    'widths': {name: [mask.size, counts[name]] for name, mask in hard.items()},
    'costs': {unit: [cost.at(counts), cost.total] for unit, cost in units.items()},
  }
