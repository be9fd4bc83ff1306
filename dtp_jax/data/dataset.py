"""What a run asks of a data set, and the kind that lies on the device as a whole."""

import abc
import dataclasses
import functools
from collections.abc import Callable, Generator
from typing import Any, ClassVar

import jax
import numpy as np
from jax.sharding import NamedSharding

from dtp_jax.data import order, placing

__all__ = ['Arguments', 'Dataset', 'Resident']

Arguments = Generator[tuple[Any, ...], None, None]


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset(abc.ABC):
  """A data set; neither a step nor the loop around it knows where its images lie.

  Its batches are tuples of arguments, which the step hands to `batch`, a pure function. They depend
  on seed and step alone: the step number is the checkpoint of the data.

  Attributes:
    name: Its name.
    train: The training split, 'image' and 'label' of N examples.
    held_out: The same of the split that is evaluated: the test split, or training images held out
      instead of it.
    num_classes: Labels lie in [0, num_classes).
    mean: Mean of each channel over all training images, in [0, 1] units.
    std: Standard deviation of each channel over all training images, in [0, 1] units.
    verified: Whether it came from archives with the official checksum; True for mnist_mini, which
      comes with an installed package.
    batch: Turns one tuple of arguments into the batch, inside of a jitted step: 'image' uint8
      [B, H, W, C], 'label' int32 [B] and, in evaluation, 'mask' bool [B].
  """

  name: str
  train: Any
  held_out: Any
  num_classes: int
  mean: tuple[float, ...]
  std: tuple[float, ...]
  verified: bool
  batch: ClassVar[Callable[..., dict[str, jax.Array]]]

  @property
  @abc.abstractmethod
  def image_shape(self) -> tuple[int, ...]:
    """(H, W, C) of the images that a network gets."""

  @property
  @abc.abstractmethod
  def examples(self) -> int:
    """Number of training examples."""

  @abc.abstractmethod
  def sample(self, count: int) -> np.ndarray:
    """The first held-out images, uint8 [count, H, W, C], fewer where there are fewer."""

  @abc.abstractmethod
  def train_batches(
    self, size: int, *, seed: int, step: int = 0, sharding: NamedSharding | None = None
  ) -> Arguments:
    """Endless training batches, in the order of `order.train_indices`; to be closed.

    Args:
      size: B, >= 1.
      seed: of the order, in [0, 2**64).
      step: number of the first batch, >= 0.
      sharding: of the batches; each process makes its own rows alone. None is one device.

    Raises:
      ValueError: at the first batch, an argument out of range.
    """

  @abc.abstractmethod
  def eval_batches(self, size: int, *, sharding: NamedSharding | None = None) -> Arguments:
    """Batches of one size that hold every held-out example once, the last filled up and masked."""


class Resident(Dataset):
  """A data set that every device holds as a whole; only indices travel.

  Its splits are {'image': uint8 [N, H, W, C], 'label': int32 [N]} in numpy.
  """

  @property
  def image_shape(self) -> tuple[int, ...]:
    """(H, W, C) of the images that a network gets."""
    return self.train['image'].shape[1:]

  @property
  def examples(self) -> int:
    """Number of training examples."""
    return len(self.train['label'])

  def sample(self, count: int) -> np.ndarray:
    """The first held-out images, uint8 [count, H, W, C], fewer where there are fewer."""
    return self.held_out['image'][:count]

  @staticmethod
  def batch(data: Any, index: Any, mask: Any = None) -> dict[str, Any]:
    """The examples at `index` [B] of `data`, and their mask if there is one."""
    batch = {name: values[index] for name, values in data.items()}
    return batch if mask is None else {**batch, 'mask': mask}

  def train_batches(
    self, size: int, *, seed: int, step: int = 0, sharding: NamedSharding | None = None
  ) -> Arguments:
    """Yields (split, index)."""
    mine = placing.rows(size, sharding)
    for index in order.train_indices(self.examples, size, seed=seed, step=step):
      yield self._on_devices(sharding)['train'], placing.place(index[mine], size, sharding)

  def eval_batches(self, size: int, *, sharding: NamedSharding | None = None) -> Arguments:
    """Yields (split, index, mask)."""
    mine = placing.rows(size, sharding)
    for index, mask in order.eval_indices(len(self.held_out['label']), size):
      local = placing.place((index[mine], mask[mine]), size, sharding)
      yield self._on_devices(sharding)['held_out'], *local

  def _on_devices(self, sharding: NamedSharding | None) -> dict[str, dict[str, jax.Array]]:
    """Both splits on every device, sent once for all runs."""
    if sharding not in self._sent:
      splits = {'train': self.train, 'held_out': self.held_out}
      self._sent[sharding] = placing.place_whole(splits, sharding)
    return self._sent[sharding]

  @functools.cached_property
  def _sent(self) -> dict[NamedSharding | None, Any]:
    return {}
