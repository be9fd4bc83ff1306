"""A decoder on the source of Python's standard library, pruned to 50 and 25 % of its parameters.

Rotary positions, RMS norms, grouped queries, a gated MLP and a tied embedding (see
`dtp_jax.models.Decoder`), predicting the next byte of files that every machine has: nothing is
downloaded, see `dtp_jax.data.text` for what is read, what is held out and the licence. What goes,
under one exact budget of parameters: channels of the residual stream, key heads with their query
heads, and units of every MLP. The channels inside a head stay: they could go too, but at uniform
width they would shrink attention once more than the rest.

The rows of a budget start from one dense network: ours, L1 and random channels at uniform width.
Beside them stands a small dense network of as many parameters, trained from the start for as many
steps as dense, soft and hard stage have together (its own table: it is another network).

Paper: Li et al., Differentiable Transportation Pruning, ICCV 2023 (our default).
Command: python -m experiments.sweep --config=configs/text_decoder.py --workdir=runs/text_decoder
           --seeds=3
         python -m experiments.report runs/text_decoder --out=FOLDER --timed   (tokens per second)
         python -m experiments.train --config=configs/text_decoder.py:keep=0.25
           --workdir=runs/text_decoder_slim   (the slim model)
Hardware: one CPU core. Time and expected result: an hour for all; the table of docs/decoders.md.
"""

from collections.abc import Iterator
from typing import Any

from configs import default
from configs.arguments import parse

BUDGETS = (0.5, 0.25)  # of the parameters
STAGES = {'dense': 0.05, 'soft': 0.015, 'hard': 0.03}  # an epoch is about 4,700 steps
FULL = {'width': 128, 'depth': 4, 'heads': 8, 'kv_heads': 4, 'head_width': 16, 'hidden': 256}
SMALL = {  # of as many parameters as a budget leaves, to 0.5 % of them: 310,552 and 155,200
  0.5: {'width': 88, 'heads': 6, 'kv_heads': 3, 'hidden': 176},
  0.25: {'width': 64, 'heads': 4, 'kv_heads': 2, 'hidden': 116},
}
ROWS = {
  'transportation': {'method': 'transportation'},
  'l1_uniform': {'method': 'magnitude', 'prune': {'scope': 'layer', 'importance': 'l1'}},
  'random_uniform': {'method': 'random', 'prune': {'scope': 'layer', 'importance': 'l1'}},
}


def get_config(arg: str = '') -> Any:
  """One budget with its baselines; `small` is the dense network of its size instead."""
  choice = parse(arg, keep=BUDGETS[0], small=False)
  config = default.get_config()
  config.baselines = ('dense', 'l1_uniform', 'random_uniform')
  config.rows.update({name: ROWS[name] for name in config.baselines if name in ROWS})
  config.prune.granularity = 'channels'
  config.prune.of = 'params'
  config.prune.keep = choice.keep
  config.prune.exclude = ('*/query:[23]', '*/value')  # query heads go with their key head
  config.model.update({'name': 'decoder', **FULL})
  config.data.update({'name': 'python_stdlib', 'window': 128, 'batch_size': 16})
  config.data.eval_batch_size = 32
  config.stages.update(STAGES)
  config.optimizer.update({
    'name': 'adamw', 'learning_rate': 3e-3, 'prune_learning_rate': 2e-3, 'weight_decay': 0.1,
    'clip_norm': 1.0,
  })  # fmt: skip
  config.eval_every = 100.0  # at the ends of the stages only
  if choice.small:
    if choice.keep not in SMALL:
      raise ValueError(f'keep={choice.keep} has no small network; expected one of {BUDGETS}.')
    config.model.update(SMALL[choice.keep])
    config.update({'method': 'dense', 'row': 'dense', 'baselines': ()})
    config.stages.update({'dense': sum(STAGES.values()), 'soft': 0.0, 'hard': 0.0})
  if choice.runlocal:
    config.model.update({'width': 16, 'depth': 2, 'hidden': 24})
    config.data.update({'window': 32, 'batch_size': 4})
    config.stages.update({name: 1e-4 * (length > 0) for name, length in config.stages.items()})
  return config


def get_sweep(arg: str = '') -> Iterator[tuple[str, Any]]:
  """Every row at every budget, and the small dense networks; `keep=` leaves one budget."""
  choice = parse(arg, keep=0.0)
  local = ',runlocal' * choice.runlocal
  for keep in (choice.keep,) if choice.keep else BUDGETS:
    for row, fields in ROWS.items():
      config = get_config(f'keep={keep}{local}')
      config.update({**fields, 'row': row})
      yield f'{keep}/{row}', config
    yield f'{keep}/small', get_config(f'keep={keep},small{local}')
