"""Which values the numbers of a config may have: asked for before anything is read or written."""

import math
from typing import Any

__all__ = ['check_ranges']

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


def check_ranges(config: Any) -> None:
  """Refuses a config with a number out of range, or without one of them.

  Raises:
    ValueError: names the field, its value and what it may be.
  """
  for name, (low, high) in _RANGES.items():
    value: Any = config
    for field in name.split('.'):
      if field not in value:
        raise ValueError(f'the config has no field {name!r}; start from configs/default.py.')
      value = value[field]
    if not (low <= value <= high and math.isfinite(value)):
      allowed = f'>= {low}' if high == _MORE else f'in [{low}, {high}]'
      raise ValueError(f'{name} is {value}; expected a finite number {allowed}.')
