"""Orbax checkpoints: every collection an item of its own, JSON beside them, no pickle.

Orbax makes a checkpoint appear whole or not at all. It does not see every flipped bit in what it
reads back: digests of all arrays lie beside them, computed where the arrays are.
"""

import contextlib
import dataclasses
import json
import pathlib
import shutil
import sys
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from dtp_jax.train import hosts
from dtp_jax.train.state import TrainState
from dtp_jax.trees import paths

__all__ = ['Checkpoints', 'DamagedError']

# Item on disk: attribute of the state.
_ITEMS = {
  'params': 'params',
  'scores': 'scores',
  'transport': 'transport',
  'batch_stats': 'batch_stats',
  'optimizer': 'opt_state',
  'rngs': 'rngs',
}


class DamagedError(ValueError):
  """A checkpoint that cannot be read, or is not what was saved."""


class _Manager(ocp.CheckpointManager):
  """One that leaves notices of preemption to the loop: asked here they would be missed there."""

  def reached_preemption(self, step: int) -> bool:
    return False


class Checkpoints:
  """The checkpoints of one run folder.

  The items params, scores, transport, batch_stats and optimizer can be restored each by itself;
  'position' is JSON: the step, where the data stands, and the digests.
  """

  def __init__(
    self,
    folder: str | pathlib.Path,
    *,
    keep: int = 2,
    always: Iterable[int] = (),
    read_only: bool = False,
  ):
    """Opens or creates `folder`; keeps the latest `keep` steps and those in `always`.

    What killed writers left behind is removed. With `read_only` the folder stays as it is, for
    `restore` alone: another run may be writing.
    """
    self._folder = pathlib.Path(folder).absolute()
    policy = policies.AnyPreservationPolicy(
      [policies.LatestN(keep), policies.CustomSteps(sorted(set(always)))]
    )
    # Not its own read_only, which warns of itself at each opening: what is never saved is not
    # deleted either.
    options = ocp.CheckpointManagerOptions(
      preservation_policy=policy,
      cleanup_tmp_directories=not read_only,
      create=not read_only,
    )
    self._manager = _Manager(self._folder, options=options)

  @property
  def latest(self) -> int | None:
    """The last complete step, or None."""
    return self._manager.latest_step()

  def path(self, step: int) -> pathlib.Path:
    """The folder of a step."""
    return self._folder / str(step)

  def save(self, state: TrainState, position: dict[str, Any]) -> None:
    """Writes the state in the background; an existing step is left as it is.

    Raises:
      OSError: this checkpoint, or the one before in the background, could not be written.
    """
    step = int(state.step)
    if step in self._manager.all_steps():
      return
    position = {'step': step, **position}
    position['digests'] = {**_digests(_trees(state)), 'position': _digest_of_json(position)}
    where = ocp.args.JsonSave(position)
    items = {name: ocp.args.StandardSave(tree) for name, tree in _trees(state).items()}
    with self._writing():
      written = self._manager.save(step, args=ocp.args.Composite(**items, position=where))
    if not written:
      raise OSError(f'checkpoint {self.path(step)} was not written; is the folder writable?')

  def restore(self, like: TrainState, step: int) -> tuple[TrainState, dict[str, Any]]:
    """The state at a step, shaped and placed as `like` (may be abstract), and its position.

    Raises:
      FileNotFoundError: no such checkpoint.
      DamagedError: it cannot be read, or not all of it is what was saved.
    """
    if step not in self._manager.all_steps():
      there = sorted(self._manager.all_steps())
      raise FileNotFoundError(f'no checkpoint of step {step} in {self._folder}; there are {there}.')
    items = {
      name: ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, tree))
      for name, tree in _trees(like).items()
    }
    args = ocp.args.Composite(**items, position=ocp.args.JsonRestore())
    try:
      found = self._manager.restore(step, args=args)
      position, restored = found['position'], {_ITEMS[name]: found[name] for name in items}
      digests = position.pop('digests')
    except Exception as error:  # files, JSON, compression: each tells of damage in its own way
      raise DamagedError(
        f'checkpoint {self.path(step)} cannot be read: {_reason(error)}'
      ) from error
    state = dataclasses.replace(like, step=jnp.asarray(step, like.step.dtype), **restored)
    # Orbax brings random keys back to where they were saved, which this process may not have.
    placed = jax.tree.map(lambda leaf, wanted: jax.device_put(leaf, wanted.sharding), state, like)
    now = {**_digests(_trees(placed)), 'position': _digest_of_json(position)}
    if differing := sorted(name for name in now if now[name] != digests.get(name)):
      raise DamagedError(
        f'checkpoint {self.path(step)} is damaged: {len(differing)} of {len(now)} arrays are not '
        f'what was saved, as {differing[0]!r}.'
      )
    return placed, position

  def restore_latest(self, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """The state at the last step that is intact; what is damaged is said and set aside.

    Raises:
      FileNotFoundError: no checkpoint at all.
      DamagedError: none is intact; all are left where they are.
    """
    damaged: dict[int, DamagedError] = {}
    for step in sorted(self._manager.all_steps(), reverse=True):
      try:
        found = self.restore(like, step)
      except DamagedError as error:
        # What one process cannot read another may: they would wait for each other.
        if jax.process_count() > 1 and error.__cause__ is not None:
          raise DamagedError(
            f'{error} Move it elsewhere and start all processes again: the run goes on from the '
            'step before.'
          ) from error
        damaged[step] = error
      else:
        self._set_aside(damaged, step)
        return found
    if not damaged:
      raise FileNotFoundError(f'no checkpoint in {self._folder}.')
    told = '\n'.join(f'  {error}' for error in damaged.values())
    raise DamagedError(
      f'no checkpoint in {self._folder} is intact:\n{told}\n'
      'Move the folder elsewhere to begin anew.'
    )

  def close(self) -> None:
    """Waits for what is being written.

    Raises:
      OSError: it could not be written.
    """
    with self._writing():
      try:
        self._manager.wait_until_finished()
      finally:
        self._manager.close()  # raises the same error again

  def unwritten(self, error: BaseException) -> OSError:
    """What to say where a checkpoint, or a file beside them, could not be written."""
    steps = [int(path.name) for path in self._folder.iterdir() if path.name.isdigit()]
    last = f'the last complete one is {self.path(max(steps))}' if steps else 'there is none yet'
    return OSError(
      f'a checkpoint or its metrics could not be written to {self._folder}: {_reason(error)}; '
      f'{last}. Make room or mend the disk: the same command goes on from there.'
    )

  def _set_aside(self, damaged: dict[int, DamagedError], good: int) -> None:
    """Moves damaged checkpoints out of the way of those to come, into a folder beside them."""
    if not damaged:
      return
    if hosts.is_first():
      place = self._folder.with_name(f'{self._folder.name}.damaged')
      place.mkdir(exist_ok=True)
      for step, error in damaged.items():
        shutil.rmtree(place / str(step), ignore_errors=True)
        self.path(step).replace(place / str(step))
        print(
          f'{error} It was moved to {place}; going on from step {good}.',
          file=sys.stderr,
        )
    hosts.wait('damaged')
    self._manager.reload()

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    """Says what is left where writing fails, as on a full disk."""
    try:
      yield
    except (OSError, ValueError, RuntimeError) as error:
      if isinstance(error, jax.errors.JaxRuntimeError):
        raise  # of the devices or of another process
      raise self.unwritten(error) from error


def _trees(state):
  """The items with something in them: Orbax refuses empty trees."""
  trees = {name: getattr(state, attribute) for name, attribute in _ITEMS.items()}
  return {name: tree for name, tree in trees.items() if jax.tree.leaves(tree)}


def _digests(trees) -> dict[str, int]:
  """A number of 32 bits for each array, by path; the same wherever the array lies."""
  return {name: int(digest) for name, digest in jax.device_get(_digest_all(trees)).items()}


@jax.jit
def _digest_all(trees):
  return {name: _digest(leaf) for name, leaf in paths(trees).items()}


def _digest(x: jax.Array) -> jax.Array:
  """Sum of all words, each times an odd number of its own: a single flipped bit always shows."""
  if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
    x = jax.random.key_data(x)
  if x.dtype == bool:
    x = x.astype(jnp.uint8)
  word = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
  words = jax.lax.bitcast_convert_type(x, word).astype(jnp.uint32)
  # The index axis by axis, not of a flat copy: a split array stays where it is.
  index, stride = jnp.zeros(words.shape, jnp.uint32), 1
  for axis in reversed(range(words.ndim)):
    place = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    index, stride = index + place * jnp.uint32(stride % 2**32), stride * words.shape[axis]
  odd = (index * jnp.uint32(2654435761)) | jnp.uint32(1)
  return jnp.sum(words * odd, dtype=jnp.uint32)


def _digest_of_json(content) -> int:
  return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _reason(error: BaseException) -> str:
  """The first line of an error."""
  told = str(error).splitlines() or ['']
  return f'{type(error).__name__}: {told[0][:300]}'
