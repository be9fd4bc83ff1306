"""Orbax checkpoints: every collection an item of its own, JSON beside them, no pickle."""

import dataclasses
import pathlib
from collections.abc import Iterable
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from dtp_jax.train.state import TrainState

__all__ = ['Checkpoints']

# Item on disk: attribute of the state.
_ITEMS = {
  'params': 'params',
  'scores': 'scores',
  'transport': 'transport',
  'batch_stats': 'batch_stats',
  'optimizer': 'opt_state',
  'rngs': 'rngs',
}


class Checkpoints:
  """The checkpoints of one run folder.

  The items params, scores, transport, batch_stats and optimizer can be restored each by itself;
  'position' is JSON: the step and where the data stands.
  """

  def __init__(self, folder: str | pathlib.Path, *, keep: int = 2, always: Iterable[int] = ()):
    """Opens or creates `folder`; keeps the latest `keep` steps and those in `always`."""
    self._folder = pathlib.Path(folder).absolute()
    policy = policies.AnyPreservationPolicy(
      [policies.LatestN(keep), policies.CustomSteps(sorted(set(always)))]
    )
    options = ocp.CheckpointManagerOptions(preservation_policy=policy)
    self._manager = ocp.CheckpointManager(self._folder, options=options)

  @property
  def latest(self) -> int | None:
    """The last complete step, or None."""
    return self._manager.latest_step()

  def path(self, step: int) -> pathlib.Path:
    """The folder of a step."""
    return self._folder / str(step)

  def save(self, state: TrainState, position: dict[str, Any]) -> None:
    """Writes the state in the background; an existing step is left as it is."""
    step = int(state.step)
    if step in self._manager.all_steps():
      return
    where = ocp.args.JsonSave({'step': step, **position})
    items = {name: ocp.args.StandardSave(tree) for name, tree in _trees(state).items()}
    if not self._manager.save(step, args=ocp.args.Composite(**items, position=where)):
      raise RuntimeError(f'checkpoint {self.path(step)} was not written; is the folder writable?')

  def restore(self, like: TrainState, step: int | None = None) -> tuple[TrainState, dict[str, Any]]:
    """The state at a step (default: the latest), shaped and placed as `like` (may be abstract).

    Raises:
      FileNotFoundError: no such checkpoint.
    """
    step = self.latest if step is None else step
    if step is None or step not in self._manager.all_steps():
      there = sorted(self._manager.all_steps())
      raise FileNotFoundError(f'no checkpoint of step {step} in {self._folder}; there are {there}.')
    items = {
      name: ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, tree))
      for name, tree in _trees(like).items()
    }
    args = ocp.args.Composite(**items, position=ocp.args.JsonRestore())
    found = self._manager.restore(step, args=args)
    restored = {_ITEMS[name]: found[name] for name in items}
    state = dataclasses.replace(like, step=jax.numpy.asarray(step, like.step.dtype), **restored)
    # Orbax brings random keys back to where they were saved, which this process may not have.
    placed = jax.tree.map(lambda leaf, wanted: jax.device_put(leaf, wanted.sharding), state, like)
    return placed, found['position']

  def close(self) -> None:
    """Waits for what is being written."""
    self._manager.wait_until_finished()
    self._manager.close()


def _trees(state):
  """The items with something in them: Orbax refuses empty trees."""
  trees = {name: getattr(state, attribute) for name, attribute in _ITEMS.items()}
  return {name: tree for name, tree in trees.items() if jax.tree.leaves(tree)}
