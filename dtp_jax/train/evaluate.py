"""Evaluation of the network as last trained and as it would be if it were hardened now."""

import functools
from typing import Any

import jax
import numpy as np

from dtp_jax.data import Dataset
from dtp_jax.train import mesh as meshes
from dtp_jax.train.state import TrainState
from dtp_jax.train.step import Recipe, eval_step, hard_masks, masked_params

__all__ = ['AHEAD', 'Evaluator']

# Batches that the host may be ahead of the device: each holds memory there until it is used.
AHEAD = 8


# Compiled once for all runs of a process that evaluate the same network alike.
@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _eval_step(batch, apply, task, params, batch_stats, *arguments):
  return eval_step(apply, task, params, batch_stats, batch(*arguments))


class Evaluator:
  """Evaluates a state on the held-out split of a data set; every example counts once."""

  def __init__(self, recipe: Recipe, data: Dataset, batch_size: int):
    """Compiles nothing yet."""
    self._recipe, self._data = recipe, data
    self._batch_size = meshes.padded(recipe.mesh, batch_size)
    self._masked = jax.jit(functools.partial(masked_params, recipe), static_argnames='stage')
    self._apply_masks = jax.jit(recipe.pruner.apply_masks)
    self._step = functools.partial(_eval_step, data.batch, recipe.apply, recipe.task)

  def __call__(self, state: TrainState) -> dict[str, Any]:
    """Metrics of a state on the split.

    Returns:
      loss (nats a label) and accuracy under the present masks; in the soft stage also loss_hard and
      accuracy_hard under the hard masks of the moment and gap, the present accuracy minus the hard
      one (the discretisation gap); softness, kept and
      kept_per_array of the present masks.
    """
    stage = self._recipe.stages.name(int(state.step) - 1)
    found = jax.block_until_ready(self._masked(state, stage=stage))
    present = self._mean(found['params'], state.batch_stats)
    values = {**present, **{k: float(v) for k, v in found['metrics'].items()}}
    if stage == 'soft':
      params = self._apply_masks(state.params, hard_masks(self._recipe, state))
      hard = self._mean(params, state.batch_stats)
      values |= {f'{name}_hard': value for name, value in hard.items()}
      values['gap'] = present['accuracy'] - hard['accuracy']
    values['kept_per_array'] = {k: float(v) for k, v in found['kept_per_array'].items()}
    return values

  def _mean(self, params, batch_stats):
    sums = []
    where = meshes.of_batches(self._recipe.mesh)
    for arguments in self._data.eval_batches(self._batch_size, sharding=where):
      sums.append(self._step(params, batch_stats, *arguments))
      jax.block_until_ready(sums[-AHEAD - 1 : -AHEAD])
    total = jax.tree.map(lambda *parts: float(np.sum(np.asarray(parts, np.float64))), *sums)
    n = total['count']
    return {'loss': total['loss'] / n, 'accuracy': total['correct'] / n}
