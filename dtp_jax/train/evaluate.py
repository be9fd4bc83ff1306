"""Evaluation of the network as last trained and as it would be if it were hardened now."""

import functools
from typing import Any

import jax
import numpy as np

from dtp_jax.data.pipeline import eval_batches
from dtp_jax.train.state import TrainState
from dtp_jax.train.step import Batch, Recipe, eval_step, masked_params, resident

__all__ = ['Evaluator']


# Compiled once for all runs of a process that evaluate the same network alike.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _resident_eval_step(apply, preprocess, params, batch_stats, data, index, mask):
  return eval_step(apply, preprocess, params, batch_stats, {**resident(data, index), 'mask': mask})


class Evaluator:
  """Evaluates a state on a held-out split; every example counts once."""

  def __init__(self, recipe: Recipe, split: Batch, batch_size: int):
    """Places the split on the device and compiles nothing yet."""
    self._data = jax.tree.map(jax.numpy.asarray, split)
    self._batch_size = batch_size
    self._masked = jax.jit(functools.partial(masked_params, recipe))
    self._stages = recipe.stages

    self._step = functools.partial(_resident_eval_step, recipe.apply, recipe.preprocess)

  def __call__(self, state: TrainState) -> dict[str, Any]:
    """Metrics of a state on the split.

    Returns:
      loss and accuracy under the present masks; in the soft stage also accuracy_hard under the hard
      masks of the moment and gap, present minus hard (the discretisation gap); softness, kept and
      kept_per_array of the present masks.
    """
    found = jax.block_until_ready(self._masked(state))
    present = self._mean(found['params'], state.batch_stats)
    values = {**present, **{k: float(v) for k, v in found['metrics'].items()}}
    if self._stages.is_soft(int(state.step) - 1):
      hard = self._mean(found['params_hard'], state.batch_stats)
      values['accuracy_hard'] = hard['accuracy']
      values['gap'] = present['accuracy'] - hard['accuracy']
    values['kept_per_array'] = {k: float(v) for k, v in found['kept_per_array'].items()}
    return values

  def _mean(self, params, batch_stats):
    n = len(self._data['label'])
    sums = [
      self._step(params, batch_stats, self._data, index, mask)
      for index, mask in eval_batches(n, self._batch_size)
    ]
    total = jax.tree.map(lambda *parts: float(np.sum(np.asarray(parts, np.float64))), *sums)
    return {'loss': total['loss'] / n, 'accuracy': total['correct'] / n}
