"""What the configs of the paper's grid share: rows, budgets, recipes, the points of a sweep.

A config names its budgets: {(granularity, budget): kept fractions}. 'ratios' maps each fraction to
pairs (pattern, kept fraction of a layer); the others are global budgets, and for single weights
also 'uniform' and 'erk'. Fractions of channels are of MACs ('macs', 'ratios') or of parameters.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

from configs import default
from configs.arguments import parse
from dtp_jax import methods

__all__ = [
  'Budgets',
  'channels_rows',
  'cifar',
  'fill',
  'imagenet',
  'points',
  'read',
  'rows_of',
  'runlocal',
  'weights_rows',
]

Budgets = Mapping[tuple[str, str], Collection[float]]

_OF_WEIGHTS_ALONE = ('acdc', 'rigl')
# Random stands at uniform width instead.
_NOT_FOR_CHANNELS = ('dense', 'random', 'lamp', *_OF_WEIGHTS_ALONE)
# The rule of the paper alone: scores trained by their gradient, no ramp, no deadline.
_PAPER = {'method': 'transportation', 'methods': {'transportation': {'preset': 'paper'}}}
_FIELDS = {
  ('channels', 'macs'): {'granularity': 'channels', 'of': 'macs'},
  ('channels', 'params'): {'granularity': 'channels', 'of': 'params'},
  ('channels', 'ratios'): {'granularity': 'channels', 'of': 'count', 'scope': 'layer'},
  ('weights', 'params'): {'granularity': 'weights', 'of': 'count'},
  ('weights', 'ratios'): {'granularity': 'weights', 'of': 'count', 'scope': 'layer'},
  ('weights', 'uniform'): {'granularity': 'weights', 'of': 'count', 'scope': 'layer'},
  ('weights', 'erk'): {'granularity': 'weights', 'of': 'count', 'scope': 'erk'},
}


def weights_rows() -> dict[str, dict]:
  """Every registered method, {row: the config fields it changes}."""
  rows = {name: {'method': name} for name in methods.METHODS if name != 'dense'}
  return rows | {'paper': _PAPER}


def channels_rows() -> dict[str, dict]:
  """Every registered method that fits channels under one budget.

  Random and L1 stand at uniform width: a random global choice only loses by its widths.
  """
  uniform = {'scope': 'layer', 'importance': 'l1'}
  fitting = [name for name in methods.METHODS if name not in _NOT_FOR_CHANNELS]
  rows = {name: {'method': name, 'prune': {'scope': 'global'}} for name in fitting}
  return rows | {
    'paper': {**_PAPER, 'prune': {'scope': 'global'}},
    'l1_uniform': {'method': 'magnitude', 'prune': dict(uniform)},
    'random_uniform': {'method': 'random', 'prune': dict(uniform)},
  }


def rows_of(granularity: str, budget: str) -> dict[str, dict]:
  """The rows of a cell; where the widths are given, one-shot magnitude is L1."""
  if granularity == 'weights':
    return weights_rows()
  if budget != 'ratios':
    return channels_rows()
  fitting = {name: row for name, row in weights_rows().items() if name not in _OF_WEIGHTS_ALONE}
  return fitting | {'magnitude': {'method': 'magnitude', 'prune': {'importance': 'l1'}}}


def read(arg: str, budgets: Budgets, **more: Any) -> SimpleNamespace:
  """The arguments of a config of the grid: granularity, budget, keep, method, and `more`.

  Args:
    arg: see `arguments.parse`. What is not given is '' or 0.
    budgets: of the config.
    **more: further names, as in `arguments.parse`.

  Returns:
    The values, and `cells`: the (granularity, budget) pairs that they leave.

  Raises:
    ValueError: as `arguments.parse`, or no pair is left.
  """
  granularities, kinds = (('', *dict.fromkeys(names)) for names in zip(*budgets, strict=True))
  rows = ('', *channels_rows() | weights_rows())
  choice = parse(arg, granularity=granularities, budget=kinds, keep=0.0, method=rows, **more)
  asked = (choice.granularity, choice.budget)
  choice.cells = [
    cell for cell in budgets if all(a in ('', b) for a, b in zip(asked, cell, strict=True))
  ]
  if not choice.cells:
    raise ValueError(
      f'granularity={asked[0]},budget={asked[1]} is not in this config; expected one of '
      f'{", ".join(f"granularity={g},budget={b}" for g, b in budgets)}.'
    )
  return choice


def fill(config: Any, choice: SimpleNamespace, budgets: Budgets) -> Any:
  """Sets budget, method and baselines of a config: the first cell and budget that are left.

  Raises:
    ValueError: a method that does not fit the cell, or a fraction without published ratios.
  """
  cell = choice.cells[0]
  keep = choice.keep or next(iter(budgets[cell]))
  rows, row = rows_of(*cell), choice.method or 'transportation'
  if row not in rows:
    raise ValueError(f'method={row} does not fit {"/".join(cell)}; expected one of {list(rows)}.')
  config.prune.update({**_FIELDS[cell], 'keep': keep})
  if cell[1] == 'ratios':
    config.prune.ratios = _ratios(budgets[cell], keep)
  config.optimizer.score_learning_rate = 1e-2 if cell[0] == 'channels' else 1e-3
  uniform = '_uniform' if cell[0] == 'channels' and cell[1] != 'ratios' else ''
  compared = ('l1_uniform' if uniform else 'magnitude', f'random{uniform}')
  config.baselines = ('dense', *compared)
  config.rows.update(rows)
  if choice.method:
    config.update({**rows[row], 'row': row, 'baselines': ()})
  return config


def points(get_config: Callable[[str], Any], budgets: Budgets, arg: str) -> Iterator[Any]:
  """Yields (name, config) of every method at every budget that the arguments leave.

  Args:
    get_config: of the config file.
    budgets: of the config file.
    arg: of get_sweep; what the grid does not know of is passed on to `get_config`.
  """
  ours = ('granularity', 'budget', 'keep', 'method')
  parts = [part for part in arg.split(',') if part]
  passed = [part for part in parts if part.partition('=')[0] not in ours]
  choice = read(','.join(part for part in parts if part not in passed), budgets)
  for granularity, budget in choice.cells:
    keeps = [choice.keep] if choice.keep else budgets[granularity, budget]
    for keep in keeps:
      for row in [choice.method] if choice.method else rows_of(granularity, budget):
        names = f'granularity={granularity},budget={budget},keep={keep},method={row}'
        yield f'{granularity}/{budget}/{keep}/{row}', get_config(','.join([names, *passed]))


def cifar(batch_size: int) -> Any:
  """GReg's recipe for CIFAR (Wang et al. 2021), with a soft stage in front of its fine-tuning.

  200 dense epochs at 0.1, a tenth at 100 and 150; then the masks are learned in 60 epochs at 0.01,
  which is where fine-tuning begins: 120 epochs, a tenth at 60 and 90. The length of the soft stage
  is ours.
  """
  config = default.get_config()
  config.data.update({'crop_padding': 4, 'flip': True, 'batch_size': batch_size})
  config.stages.update({'dense': 200.0, 'soft': 60.0, 'hard': 120.0})
  config.optimizer.steps = (0.5, 0.75)
  config.optimizer.prune_steps = (120 / 180, 150 / 180)
  config.eval_every = 10.0
  return _greg(config, 5e-4)


def imagenet(pretrained: str) -> Any:
  """GReg's recipe for ImageNet, with a soft stage in front of its fine-tuning.

  From torchvision's weights: 30 epochs at 0.01 in which the masks are learned (the length is ours),
  then 90 epochs of fine-tuning, a tenth at 30, 60 and 75. Without them 90 dense epochs at 0.1 come
  first, a tenth at 30 and 60.
  """
  config = default.get_config()
  config.pretrained = pretrained
  config.data.update({'name': 'imagenet2012', 'crop_padding': 0, 'flip': True, 'batch_size': 256})
  config.data.eval_batch_size = 250  # divides the 50,000 held-out images
  config.stages.update({'dense': 0.0 if pretrained else 90.0, 'soft': 30.0, 'hard': 90.0})
  config.optimizer.steps = (1 / 3, 2 / 3)
  config.optimizer.prune_steps = (60 / 120, 90 / 120, 105 / 120)
  config.eval_every = 5.0
  return _greg(config, 1e-4)


def runlocal(config: Any, **model: Any) -> Any:
  """A few steps of a smaller network of the same kind, on digits that need no preparation."""
  config.model.update(model)
  config.data.update({'name': 'mnist_mini', 'batch_size': 64, 'crop_padding': 2, 'flip': False})
  config.stages.update(dict.fromkeys(('dense', 'soft', 'hard'), 0.05))
  config.eval_every = 0.05
  return config


def _greg(config, weight_decay):
  config.optimizer.update({
    'learning_rate': 0.1, 'prune_learning_rate': 0.01, 'schedule': 'steps', 'warmup': 0.0,
    'momentum': 0.9, 'nesterov': False, 'weight_decay': weight_decay, 'label_smoothing': 0.0,
  })  # fmt: skip
  return config


def _ratios(published, keep):
  if keep not in published:
    raise ValueError(f'keep={keep} has no published ratios; expected one of {list(published)}.')
  return published[keep]
