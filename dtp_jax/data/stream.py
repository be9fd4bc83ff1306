"""Batches of a data set too large for memory: read, decoded and cropped ahead of the step by Grain.

Everything is a function of (seed, position): the order, one fresh permutation an epoch, and the
place and size of each crop. Starting at step t gives what the uninterrupted stream gives from there
on, so a checkpoint of the data is the step number. The host crops and resizes, because sizes differ
from image to image; mirroring and normalising are left to the device.
"""

import functools
import io
import math
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import grain
import numpy as np
from absl import flags
from PIL import Image

from dtp_jax.data.pipeline import check_range, permutation

__all__ = ['Options', 'Records', 'centre_crop', 'crop_box', 'evaluate', 'random_crop', 'train']

Batch = dict[str, Any]  # arrays
# Encoded examples by index: {'image': bytes, 'label': int, 'file_name': bytes}.
Records = Sequence[Any]

_AREA = (0.08, 1.0)  # of a crop, as a fraction of the image: Szegedy et al. 2015, section 6
_ASPECT = (3 / 4, 4 / 3)  # width / height
_TRIES = 10


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


def train(
  records: Records,
  batch_size: int,
  options: Options,
  *,
  seed: int,
  step: int = 0,
  process_index: int = 0,
  process_count: int = 1,
) -> grain.DatasetIterator:
  """Endless batches of training images, each cropped at random.

  The order is that of `pipeline.IndexStream`, batch t positions [t * batch_size,
  (t + 1) * batch_size); process p of P takes every P-th of them from the p-th on. The global batch,
  crops included, does not depend on P.

  Args:
    records: the training split, N >= 1 examples.
    batch_size: global batch size B, a multiple of `process_count`.
    options: see `Options`.
    seed: of order and crops, in [0, 2**64).
    step: number of the first batch, >= 0.
    process_index: this process, in [0, process_count).
    process_count: how many processes share each batch.

  Returns:
    An iterator, to be closed, of {'image': uint8 [B / P, size, size, 3], 'label': int32 [B / P]}.

  Raises:
    ValueError: an argument out of range; from the iterator, an image that cannot be decoded.
  """
  check_range('number of examples', len(records), 1, 2**31)
  check_range('batch_size', batch_size, 1, 2**31)
  check_range('seed', seed, 0, 2**64)
  check_range('step', step, 0, 2**40)
  check_range('process_count', process_count, 1, 2**31)
  check_range('process_index', process_index, 0, process_count)
  if batch_size % process_count:
    raise ValueError(
      f'batch_size is {batch_size}, not a multiple of process_count {process_count}.'
    )
  crop = functools.partial(_train_example, size=options.check().image_size)
  images = grain.MapDataset.source(_Shuffled(records, seed)).seed(seed).random_map(crop)
  # After the crop: its random numbers are those of the position in the global order.
  mine = images[step * batch_size + process_index :: process_count]
  return _run(mine.batch(batch_size // process_count, batch_fn=_stack), options)


def evaluate(records: Records, batch_size: int, options: Options) -> grain.DatasetIterator:
  """Every example once, in order, in batches of one shape.

  Args:
    records: a held-out split.
    batch_size: size B of every batch, >= 1.
    options: see `Options`.

  Returns:
    An iterator, to be closed, of {'image': uint8 [B, size, size, 3], 'label': int32 [B],
    'mask': bool [B]}; the last batch is filled up with zeros under mask False.

  Raises:
    ValueError: an argument out of range; from the iterator, an image that cannot be decoded.
  """
  check_range('batch_size', batch_size, 1, 2**31)
  options = options.check()
  crop = functools.partial(_test_example, resize=options.resize, size=options.image_size)
  images = grain.MapDataset.source(records).map(crop)
  return _run(images.batch(batch_size, batch_fn=functools.partial(_fill, batch_size)), options)


def crop_box(rng: np.random.Generator, width: int, height: int) -> tuple[int, int, int, int]:
  """A random window: 8 to 100 % of the area, aspect 3/4 to 4/3, log-uniform.

  Of ten windows drawn the first that fits is taken; if none does, the largest central one of an
  allowed aspect. Source: Szegedy et al. 2015, section 6.

  Args:
    rng: where random numbers come from.
    width: of the image, in pixels.
    height: of the image, in pixels.

  Returns:
    Left, top, right and bottom, in pixels, inside of the image and never empty.
  """
  low, high = (math.log(aspect) for aspect in _ASPECT)
  for _ in range(_TRIES):
    area = width * height * rng.uniform(*_AREA)
    root_aspect = math.exp(rng.uniform(low, high) / 2)
    w, h = round(math.sqrt(area) * root_aspect), round(math.sqrt(area) / root_aspect)
    if 0 < w <= width and 0 < h <= height:
      left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
      return left, top, left + w, top + h
  w = max(1, min(width, round(height * _ASPECT[1])))
  h = max(1, min(height, round(width / _ASPECT[0])))
  left, top = (width - w) // 2, (height - h) // 2
  return left, top, left + w, top + h


def random_crop(data: bytes, rng: np.random.Generator, size: int) -> np.ndarray:
  """Decodes an image and resizes a random window of it, uint8 [size, size, 3].

  A window of at least twice the size is decoded at half the resolution, and so on to an eighth:
  a JPEG holds those as they are.
  """
  with Image.open(io.BytesIO(data)) as image:
    width, height = image.size
    left, top, right, bottom = crop_box(rng, width, height)
    drafted = image.draft(
      None,
      (math.ceil(width * size / (right - left)), math.ceil(height * size / (bottom - top))),
    )
    # 1/2, 1/4 or 1/8, which image.width / width is not where pixels are left over at the edge.
    scale = drafted[1][2] / width if drafted else 1.0
    right, bottom = min(right * scale, image.width), min(bottom * scale, image.height)
    box = (left * scale, top * scale, right, bottom)
    return np.asarray(_rgb(image).resize((size, size), Image.Resampling.BILINEAR, box))


def centre_crop(data: bytes, resize: int, size: int) -> np.ndarray:
  """Decodes an image, resizes its shorter side to `resize` and cuts the centre out.

  Returns:
    uint8 [size, size, 3].
  """
  with Image.open(io.BytesIO(data)) as image:
    shorter = min(image.size)
    width, height = (resize * side // shorter for side in image.size)
    resized = _rgb(image).resize((width, height), Image.Resampling.BILINEAR)
  left, top = round((width - size) / 2), round((height - size) / 2)
  return np.asarray(resized.crop((left, top, left + size, top + size)))


class _Shuffled:
  """Records at the positions of an endless stream.

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


def _train_example(record: Any, rng: np.random.Generator, *, size: int) -> Batch:
  return _example(record, lambda data: random_crop(data, rng, size))


def _test_example(record: Any, *, resize: int, size: int) -> Batch:
  return _example(record, lambda data: centre_crop(data, resize, size))


def _example(record, decode) -> Batch:
  """An example with its image decoded, or an error that names it."""
  try:
    image = decode(record['image'])
  except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
    name, size = record['file_name'].decode(), len(record['image'])
    raise ValueError(
      f'image {name} ({size:,} bytes) cannot be decoded: {error}. Its record is damaged: remove '
      'the prepared data set and prepare it again from the archives.'
    ) from error
  return {'image': image, 'label': np.int32(record['label'])}


def _rgb(image: Image.Image) -> Image.Image:
  """Grey, CMYK and palette images as RGB; ImageNet has a few of each."""
  return image if image.mode == 'RGB' else image.convert('RGB')


def _stack(examples: Sequence[Batch]) -> Batch:
  return {name: np.stack([e[name] for e in examples]) for name in examples[0]}


def _fill(size: int, examples: Sequence[Batch]) -> Batch:
  """A batch of `size`, filled up with zeros under mask False."""
  missing = size - len(examples)
  batch = _stack(examples) | {'mask': np.ones(len(examples), bool)}
  return {
    name: np.pad(values, [(0, missing)] + [(0, 0)] * (values.ndim - 1))
    for name, values in batch.items()
  }
