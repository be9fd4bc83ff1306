"""What a run asks of a data set, and the kinds that lie on the device as a whole."""

import abc
import dataclasses
import functools
from collections.abc import Callable, Generator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from dtp_jax.data import order, placing
from dtp_jax.data.images import Classification, normalise

__all__ = ['Arguments', 'Dataset', 'Images', 'OnDevice', 'Resident', 'Task']

Arguments = Generator[tuple[Any, ...], None, None]

# (key, batch, whether it is training) -> (what the network reads, integer labels of its logits).
# Pure, and hashable: equal ones compile once.
Task = Callable[[jax.Array, Mapping[str, jax.Array], bool], tuple[jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset(abc.ABC):
  """A data set; neither a step nor the loop around it knows what its examples are and where.

  Its batches are tuples of arguments, which the step hands to `batch` and what that returns to the
  task, both pure functions. They depend on seed and step alone: the step number is the checkpoint
  of the data.

  Attributes:
    name: Its name.
    train: The training split of N examples.
    held_out: The same of the split that is evaluated: the test split, or training examples held
      out instead of it.
    num_classes: Labels lie in [0, num_classes).
    verified: Whether it came from archives with the official checksum; True for what comes with an
      installed package.
    measure: What runs on it are compared by, a key of `dtp_jax.report.measure.MEASURES`.
    batch: Turns one tuple of arguments into the batch, inside of a jitted step: arrays [B, ...]
      by name and, in evaluation, 'mask' bool [B].
  """

  name: str
  train: Any
  held_out: Any
  num_classes: int
  verified: bool = dataclasses.field(kw_only=True)
  measure: ClassVar[str] = 'accuracy'
  batch: ClassVar[Callable[..., dict[str, jax.Array]]]

  @property
  @abc.abstractmethod
  def example(self) -> jax.ShapeDtypeStruct:
    """What a network reads of one example, (1, ...)."""

  @property
  @abc.abstractmethod
  def examples(self) -> int:
    """Number of training examples."""

  @abc.abstractmethod
  def task(self, options: Mapping[str, Any]) -> Task:
    """What is asked of a batch, under the options of `config.data` that the data set has."""

  @abc.abstractmethod
  def inputs(self, count: int) -> jax.Array:
    """The first held-out examples as a network reads them, fewer where there are fewer."""

  @abc.abstractmethod
  def about(self) -> dict[str, Any]:
    """How inputs are made of what was recorded, for those who run an exported network."""

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


@dataclasses.dataclass(frozen=True, eq=False)
class Images(Dataset):
  """Images to be classified: batches of 'image' uint8 [B, H, W, C] and 'label' int32 [B].

  Attributes:
    mean: Mean of each channel over all training images, in [0, 1] units.
    std: Standard deviation of each channel over all training images, in [0, 1] units.
  """

  mean: tuple[float, ...]
  std: tuple[float, ...]

  @property
  @abc.abstractmethod
  def image_shape(self) -> tuple[int, ...]:
    """(H, W, C) of the images that a network gets."""

  @abc.abstractmethod
  def sample(self, count: int) -> np.ndarray:
    """The first held-out images, uint8 [count, H, W, C], fewer where there are fewer."""

  @property
  def example(self) -> jax.ShapeDtypeStruct:
    """One float image."""
    return jax.ShapeDtypeStruct((1, *self.image_shape), jnp.float32)

  def task(self, options: Mapping[str, Any]) -> Task:
    """Classification, augmented by 'crop_padding' and 'flip'."""
    return Classification(options['crop_padding'], options['flip'], self.mean, self.std)

  def inputs(self, count: int) -> jax.Array:
    """Normalised, float32 [count, H, W, C]."""
    return normalise(jnp.asarray(self.sample(count)), self.mean, self.std)

  def about(self) -> dict[str, Any]:
    """The formula and its numbers."""
    return {'input': '(image / 255 - mean) / std', 'mean': self.mean, 'std': self.std}


class OnDevice(Dataset):
  """A data set that every device holds as a whole; only indices travel.

  Its splits are {name: array [N, ...]} in numpy.
  """

  @property
  def examples(self) -> int:
    """Number of training examples."""
    return _length(self.train)

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
    for index, mask in order.eval_indices(_length(self.held_out), size):
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


class Resident(OnDevice, Images):
  """Images that every device holds; splits of 'image' uint8 [N, H, W, C] and 'label' int32 [N]."""

  @property
  def image_shape(self) -> tuple[int, ...]:
    """(H, W, C) of the images that a network gets."""
    return self.train['image'].shape[1:]

  def sample(self, count: int) -> np.ndarray:
    """The first held-out images, uint8 [count, H, W, C], fewer where there are fewer."""
    return self.held_out['image'][:count]


def _length(split: Mapping[str, np.ndarray]) -> int:
  return len(next(iter(split.values())))
