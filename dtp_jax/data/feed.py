"""How batches get to a jitted step: gathered from a data set on the device, or sent one ahead.

A feed yields tuples of arguments, which the step hands to `feed.batch`, a pure function. Neither
the step nor the loop around it knows where the data lie.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from dtp_jax.data import pipeline

__all__ = ['Feed', 'Resident', 'Streaming']


class Feed(Protocol):
  """What the training loop and the evaluation ask for."""

  @property
  def batch(self) -> Callable[..., dict[str, jax.Array]]:
    """Turns one tuple of arguments into the batch, inside of a jitted step; equal for equal kinds.

    A batch is 'image' uint8 (B, H, W, C), 'label' int32 (B,) and, in evaluation, 'mask' bool (B,).
    """
    ...

  def train(self, step: int) -> Iterator[tuple[Any, ...]]:
    """Endless arguments of the training batches from batch `step` on; to be closed."""
    ...

  def evaluation(self) -> Iterator[tuple[Any, ...]]:
    """Arguments that cover every held-out example once, the last batch filled up and masked."""
    ...


class Resident:
  """A data set on the device; only indices travel."""

  def __init__(
    self,
    train: Mapping[str, np.ndarray],
    test: Mapping[str, np.ndarray],
    *,
    batch_size: int,
    eval_batch_size: int,
    seed: int,
  ):
    """Places both splits on the device.

    Args:
      train: 'image' uint8 [N, H, W, C] and 'label' int32 [N].
      test: the same for the held-out split.
      batch_size: in training.
      eval_batch_size: in evaluation.
      seed: of the order.
    """
    self._train, self._test = (jax.tree.map(jnp.asarray, dict(split)) for split in (train, test))
    self._sizes, self._seed = (batch_size, eval_batch_size), seed

  @staticmethod
  def batch(data: Mapping[str, jax.Array], index: jax.Array, mask: Any = None) -> dict[str, Any]:
    """The examples at `index` (B,) of `data`, and their mask if there is one."""
    batch = {name: values[index] for name, values in data.items()}
    return batch if mask is None else {**batch, 'mask': mask}

  def train(self, step: int) -> Iterator[tuple[Any, ...]]:
    """Yields (data, index)."""
    examples = len(self._train['label'])
    for index in pipeline.IndexStream(examples, self._sizes[0], seed=self._seed, step=step):
      yield self._train, index

  def evaluation(self) -> Iterator[tuple[Any, ...]]:
    """Yields (data, index, mask)."""
    for index, mask in pipeline.eval_batches(len(self._test['label']), self._sizes[1]):
      yield self._test, index, mask


class Streaming:
  """A data set that is decoded on the host while the device works."""

  def __init__(
    self, train: Any, test: Any, options: Any, *, batch_size: int, eval_batch_size: int, seed: int
  ):
    """Starts nothing yet.

    Args:
      train: `stream.Records` of the training split.
      test: the same of the held-out split.
      options: `stream.Options`.
      batch_size: in training.
      eval_batch_size: in evaluation.
      seed: of order and crops.
    """
    self._train, self._test, self._options = train, test, options
    self._sizes, self._seed = (batch_size, eval_batch_size), seed

  @staticmethod
  def batch(batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The batch itself."""
    return batch

  def train(self, step: int) -> Iterator[tuple[Any, ...]]:
    """Yields (batch,)."""
    from dtp_jax.data import stream  # Grain takes a second to import

    sizes, seed = self._sizes, self._seed
    yield from _one_ahead(stream.train(self._train, sizes[0], self._options, seed=seed, step=step))

  def evaluation(self) -> Iterator[tuple[Any, ...]]:
    """Yields (batch,)."""
    from dtp_jax.data import stream

    yield from _one_ahead(stream.evaluate(self._test, self._sizes[1], self._options))


def _one_ahead(batches: Any) -> Iterator[tuple[Any, ...]]:
  """Sends each batch to the device while the one before is at work."""
  with contextlib.closing(batches):
    sent = jax.device_put(next(batches))
    for batch in batches:
      following = jax.device_put(batch)
      yield (sent,)
      sent = following
    yield (sent,)
