"""Which runs: every point of a sweep with every seed, or a config and its baselines.

Both are lists of runs that fork from shared dense ones; `runner` runs them.
"""

import hashlib
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import ml_collections

from dtp_jax.train.recipe import Config

__all__ = ['Run', 'runs_of', 'with_baselines']

# What a dense run has in place of its point's own fields of pruning, which do not touch it.
_UNPRUNED = {
  'granularity': 'weights',
  'keep': 1.0,
  'count': None,
  'of': 'count',
  'scope': 'global',
  'min_keep': 1,
  'multiple_of': '1',
  'importance': 'l2',
  'exclude': (),
  'ratios': (),
}


class Run(NamedTuple):
  """One run of a sweep.

  Attributes:
    name: path of its folder below the sweep's workdir, as in 'weights/0.05/spartan/seed0'; '.' is
      the workdir itself.
    config: complete, with its seed.
    fork: name of the dense run whose dense stage it starts from; None trains its own.
  """

  name: str
  config: Config
  fork: str | None


def runs_of(points: Iterable[tuple[str, Config]], seeds: Sequence[int]) -> list[Run]:
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
      trunk = _dense(config)
      _add(runs, f'{name}/seed{seed}', config, f'dense/{_digest(trunk)}/seed{seed}', trunk)
  return list(runs.values())


def with_baselines(config: Config) -> list[Run]:
  """The runs of one config: its own, its baselines and the dense run that all of them fork from.

  A baseline is the config with the fields of `config.rows[name]` changed, or with the method
  `name`. The config's own run lies in the workdir itself and the others in baselines/NAME; the
  dense one is the row 'dense' as well. Without baselines there is one run, which trains its own
  dense stage.

  Args:
    config: of the main run.

  Returns:
    Runs, every one behind the run it forks from.

  Raises:
    ValueError: a baseline that changes what dense training depends on.
  """
  if not config.baselines:
    return [Run('.', config, None)]
  trunk, place = _dense(config), 'baselines/dense'
  runs: dict[str, Run] = {}
  _add(runs, '.', config, place, trunk)
  for name in config.baselines:
    fields = config.rows.get(name, {'method': name})
    baseline = _copy(_copy(config, **fields), row=name, baselines=())
    if _digest(_dense(baseline)) != _digest(trunk):
      raise ValueError(
        f'rows.{name} changes a field that dense training depends on, and baselines share its '
        'dense network; change that field of the whole config, or make it a point of get_sweep.'
      )
    if baseline.method != 'dense' or place not in runs:
      _add(runs, f'baselines/{name}', baseline, place, trunk)
  return list(runs.values())


def _copy(config, **fields) -> Config:
  copy = config.copy_and_resolve_references()  # ConfigDict(config) would share what is nested
  copy.update(fields)
  return copy


def _dense(config):
  """The dense run of a point: trained on without masks for as long as the pruned ones."""
  trunk = _copy(config, method='dense', row='dense', baselines=(), imports=())
  trunk.methods = trunk.rows = ml_collections.ConfigDict()
  trunk.optimizer.score_learning_rate = 0.0
  trunk.prune.update({k: v for k, v in _UNPRUNED.items() if k in trunk.prune})
  return trunk


def _digest(config) -> str:
  """Eight digits for everything in a config but its seed."""
  fields = json.loads(config.to_json_best_effort())
  del fields['seed']
  return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:8]


def _add(runs: dict[str, Run], name: str, config: Config, place: str, trunk: Config) -> None:
  """Adds a run, and in front of it the dense run at `place` where it forks from that."""
  path = pathlib.PurePosixPath(name)
  if path.is_absolute() or '..' in path.parts or name in runs:
    raise ValueError(f'{name!r} is used twice, or is no relative path; see get_sweep.')
  fork = place if config.stages.dense > 0 and config.method != 'dense' else None
  if fork:
    runs.setdefault(fork, Run(fork, trunk, None))
  runs[name] = Run(name, config, fork)
