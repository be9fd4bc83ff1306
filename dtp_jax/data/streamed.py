"""Data sets too large for memory: read, decoded and cropped by Grain while the device works.

Everything is a function of (seed, position): the order, one fresh permutation an epoch, and the
place and size of each crop. Starting at step t gives what the uninterrupted batches are from there
on. The host crops and resizes, because sizes differ from image to image; mirroring and normalising
are left to the device.
"""

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
from absl import flags
from jax.sharding import NamedSharding
from PIL import Image

from dtp_jax.data import placing
from dtp_jax.data.dataset import Arguments, Images
from dtp_jax.data.images import centre_crop, random_crop
from dtp_jax.data.order import check_range, permutation

__all__ = ['Options', 'Records', 'Streamed']

# Encoded examples by index: {'image': bytes, 'label': int, 'file_name': bytes}.
Records = Sequence[Any]


class Options(NamedTuple):
  """How images are cropped and by whom.

  Attributes:
    image_size: height and width of the images that a network gets, in pixels.
    resize: shorter side of an image before its centre is cut out in evaluation, >= image_size.
    workers: processes that decode; 0 decodes in this one, where Pillow lets threads run in
      parallel: processes pay off where more cores are to be fed than one interpreter can.
    threads: threads that decode in each process, >= 1; each makes a whole batch.
    prefetch: batches that wait in each process, >= 1.
  """

  image_size: int = 224
  resize: int = 256
  workers: int = 0
  threads: int = 8
  prefetch: int = 8

  def check(self) -> 'Options':
    """Returns itself, or raises ValueError if a value is out of range."""
    for name, low in {'image_size': 1, 'workers': 0, 'threads': 1, 'prefetch': 1}.items():
      check_range(f'data.{name}', getattr(self, name), low, 2**15)
    check_range('data.resize', self.resize, self.image_size, 2**15)
    return self


@dataclasses.dataclass(frozen=True, eq=False)
class Streamed(Images):
  """Images on the disk; its splits are `Records`.

  Its batches raise a ValueError that names an image where one cannot be decoded.

  Attributes:
    options: Crops and workers.
  """

  options: Options

  @property
  def image_shape(self) -> tuple[int, ...]:
    """(H, W, C) of the images that a network gets."""
    return (self.options.image_size, self.options.image_size, 3)

  @property
  def examples(self) -> int:
    """Number of training examples."""
    return len(self.train)

  def sample(self, count: int) -> np.ndarray:
    """The first held-out images, uint8 [count, H, W, C], fewer where there are fewer."""
    with contextlib.closing(self.eval_batches(min(count, len(self.held_out)))) as batches:
      (first,) = next(batches)
    return np.array(first['image'])

  @staticmethod
  def batch(batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The batch itself."""
    return batch

  def train_batches(
    self, size: int, *, seed: int, step: int = 0, sharding: NamedSharding | None = None
  ) -> Arguments:
    """Yields (batch,)."""
    check_range('number of examples', len(self.train), 1, 2**31)
    check_range('batch_size', size, 1, 2**31)
    check_range('seed', seed, 0, 2**64)
    check_range('step', step, 0, 2**40)
    crop = functools.partial(random_crop, size=self.options.check().image_size)
    example = functools.partial(_example, crop=crop)
    images = grain.MapDataset.source(_Shuffled(self.train, seed)).seed(seed).random_map(example)
    # After the crop: its random numbers are those of the position in the endless order.
    mine = placing.rows(size, sharding)
    local = grain.MapDataset.source(_Rows(images[step * size :], size, mine))
    batches = _run(local.batch(len(mine), batch_fn=_stack), self.options)
    yield from _one_ahead(batches, size, sharding)

  def eval_batches(self, size: int, *, sharding: NamedSharding | None = None) -> Arguments:
    """Yields (batch,)."""
    check_range('batch_size', size, 1, 2**31)
    options = self.options.check()
    crop = functools.partial(centre_crop, resize=options.resize, size=options.image_size)
    images = grain.MapDataset.source(self.held_out).map(functools.partial(_example, crop=crop))
    mine = placing.rows(size, sharding)
    local = grain.MapDataset.source(_Rows(_Masked(images, size), size, mine))
    yield from _one_ahead(_run(local.batch(len(mine), batch_fn=_stack), options), size, sharding)


class _Shuffled:
  """Records at the positions of an endless order.

  Not Grain's shuffle: on a split sorted by class, the numbers of neighbours in its order correlate,
  by up to 0.05 for the size of ImageNet.
  """

  def __init__(self, records: Records, seed: int):
    self._records, self._seed = records, seed

  def __len__(self) -> int:
    return sys.maxsize

  def __getitem__(self, index: int) -> Any:
    epoch, place = divmod(index, len(self._records))
    return self._records[int(permutation(len(self._records), self._seed, epoch)[place])]


class _Masked:
  """Images filled up to whole batches with black ones under mask False."""

  def __init__(self, images: Any, size: int):
    self._images, self._size = images, size

  def __len__(self) -> int:
    return -(-len(self._images) // self._size) * self._size

  def __getitem__(self, index: int) -> Any:
    if index < len(self._images):
      return {**self._images[index], 'mask': np.bool_(True)}
    black = jax.tree.map(np.zeros_like, self._images[0])
    return {**black, 'mask': np.bool_(False)}


class _Rows:
  """Of every batch of `size` examples the given rows: what one process makes."""

  def __init__(self, examples: Any, size: int, rows: np.ndarray):
    self._examples, self._size, self._rows = examples, size, rows

  def __len__(self) -> int:
    return len(self._examples) // self._size * len(self._rows)

  def __getitem__(self, index: int) -> Any:
    batch, row = divmod(index, len(self._rows))
    return self._examples[batch * self._size + int(self._rows[row])]


def _run(batches: grain.MapDataset, options: Options) -> grain.DatasetIterator:
  """Starts the threads, or the processes, that work ahead."""
  reading = grain.ReadOptions(
    num_threads=options.threads, prefetch_buffer_size=max(options.prefetch, options.threads)
  )
  ahead = batches.to_iter_dataset(reading)
  if options.workers:
    if not flags.FLAGS.is_parsed():  # Grain reads its own in every process
      flags.FLAGS.mark_as_parsed()
    ahead = ahead.mp_prefetch(grain.MultiprocessingOptions(num_workers=options.workers))
  return iter(ahead)


def _one_ahead(batches: Any, size: int, sharding: NamedSharding | None) -> Arguments:
  """Sends each batch to the devices while the one before is at work."""
  with contextlib.closing(batches):
    sent = placing.place(next(batches), size, sharding)
    for batch in batches:
      following = placing.place(batch, size, sharding)
      yield (sent,)
      sent = following
    yield (sent,)


def _example(
  record: Any, *rng: np.random.Generator, crop: Callable[..., np.ndarray]
) -> dict[str, Any]:
  """An example with its image decoded and cropped, or an error that names it."""
  try:
    image = crop(record['image'], *rng)
  except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
    name, size = record['file_name'].decode(), len(record['image'])
    raise ValueError(
      f'image {name} ({size:,} bytes) cannot be decoded: {error}. Its record is damaged: remove '
      'the prepared data set and prepare it again from the archives.'
    ) from error
  return {'image': image, 'label': np.int32(record['label'])}


def _stack(examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
  return {name: np.stack([e[name] for e in examples]) for name in examples[0]}
