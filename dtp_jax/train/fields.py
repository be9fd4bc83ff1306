"""What a config may say: asked before anything is read, trained or written."""

import importlib
import math
import pathlib
from typing import Any

from dtp_jax import methods
from dtp_jax.budget import Budget
from dtp_jax.budget.latency.table import LatencyTable

__all__ = ['build_budget', 'check', 'check_pretrained']

_MORE = math.inf
# Smallest and largest value of each field, both among the allowed ones; none may be infinite.
_RANGES: dict[str, tuple[float, float]] = {
  'seed': (0, 2**32 - 1),
  'data.batch_size': (1, _MORE),
  'data.eval_batch_size': (1, _MORE),
  'data.crop_padding': (0, _MORE),
  'stages.dense': (0, _MORE),
  'stages.soft': (0, _MORE),
  'stages.hard': (0, _MORE),
  'steps_per_call': (1, _MORE),
  'accumulate': (1, _MORE),
  'optimizer.learning_rate': (0, _MORE),
  'optimizer.prune_learning_rate': (0, _MORE),
  'optimizer.score_learning_rate': (0, _MORE),
  'optimizer.warmup': (0, 1),
  'optimizer.momentum': (0, 1),
  'optimizer.weight_decay': (0, _MORE),
  'optimizer.label_smoothing': (0, 1),
  'log_every': (1, _MORE),
  'eval_every': (0, _MORE),
}


def check(config: Any) -> None:
  """Refuses what can be told to be wrong without data and devices: in a moment, nothing is written.

  Raises:
    ValueError: a number out of range, an unknown method, or a budget that is none.
    FileNotFoundError: a file that the config names.
    ImportError: a module of `config.imports` that is not there.
  """
  _check_ranges(config)
  for module in config.get('imports', ()):
    _import(module)  # registers methods
  methods.options_of(config.method)
  prune, measured = config.prune, config.prune.of.endswith('.json')
  _budget(prune, 'macs' if measured else prune.of)
  if measured and not pathlib.Path(prune.of).is_file():
    raise FileNotFoundError(
      f'prune.of is {prune.of!r}, which is no file; expected a latency table, as '
      f'LatencyTable.measure(graph).save({prune.of!r}) writes it.'
    )


def check_pretrained(config: Any) -> None:
  """Raises FileNotFoundError where a run is to start from weights that are not there."""
  pretrained = config.get('pretrained')
  if pretrained and not pathlib.Path(pretrained).is_file():
    raise FileNotFoundError(
      f'pretrained is {pretrained!r}, which is no file; expected the path of a state dict, or '
      "pretrained='' to start from random weights."
    )


def _import(module: str) -> None:
  try:
    importlib.import_module(module)
  except ImportError as error:
    raise ImportError(
      f'imports has {module!r}: {error}. Expected the name of a module that Python finds: in an '
      'installed package, or below the folder of the command or one on PYTHONPATH.'
    ) from error


def build_budget(config: Any) -> Budget:
  """The budget of `config.prune`: `ratios`, else `count`, else `keep`."""
  of = config.prune.of
  return _budget(config.prune, LatencyTable.load(of) if of.endswith('.json') else of)


def _budget(prune: Any, of: Any) -> Budget:
  keep = dict(prune.ratios) or (prune.keep if prune.count is None else prune.count)
  multiple: Any = int(prune.multiple_of) if prune.multiple_of.isdigit() else prune.multiple_of
  return Budget(keep, of, prune.scope, min_keep=prune.min_keep, multiple_of=multiple)


def _check_ranges(config: Any) -> None:
  """Raises ValueError where a number is out of range, or missing."""
  for name, (low, high) in _RANGES.items():
    value: Any = config
    for field in name.split('.'):
      if field not in value:
        raise ValueError(f'the config has no field {name!r}; start from configs/default.py.')
      value = value[field]
    if not (low <= value <= high and math.isfinite(value)):
      allowed = f'>= {low}' if high == _MORE else f'in [{low}, {high}]'
      raise ValueError(f'{name} is {value}; expected a finite number {allowed}.')
