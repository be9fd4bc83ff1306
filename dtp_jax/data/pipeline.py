"""What feeds the jitted step: the order of examples, augmentation, normalisation.

Small data sets stay on the device as uint8. The host sends a batch of indices, the step gathers,
augments and normalises. The order is a function of (seed, step) alone, so a checkpoint of the data
position is the step number.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np


def augment(
  key: jax.Array, images_u8_BxHxWxC: jax.Array, *, crop_padding: int, flip: bool
) -> jax.Array:
  """Random crop of the zero-padded image and random mirror image, one gather and no pad.

  Equal to padding each image with `crop_padding` zeros on all four sides, cutting a window of the
  original size at a uniformly random place, and mirroring it left-right with probability 1/2.
  Pure and jit-able; under data parallelism each device touches its own images only.

  Args:
    key: A random key; equal keys give equal results.
    images_u8_BxHxWxC: Images, uint8 [B, H, W, C].
    crop_padding: Largest shift in pixels, >= 0; 0 leaves the place alone.
    flip: Whether to mirror.

  Returns:
    Images, uint8 [B, H, W, C].

  Raises:
    ValueError: Not uint8, not of rank 4, or a negative `crop_padding`.
  """
  images = images_u8_BxHxWxC
  if images.ndim != 4 or images.dtype != jnp.uint8:
    raise ValueError(
      f'images are {images.dtype}{list(images.shape)}, expected uint8[B, H, W, C]. '
      'Augment before normalising.'
    )
  if crop_padding < 0:
    raise ValueError(f'crop_padding is {crop_padding}, expected 0 or more pixels.')
  if crop_padding == 0 and not flip:
    return images
  key_crop, key_flip = jax.random.split(key)
  batch = images.shape[0]
  shifts_Bx2 = jax.random.randint(key_crop, (batch, 2), -crop_padding, crop_padding + 1)
  mirror_B = jax.random.bernoulli(key_flip, 0.5, (batch,)) & flip
  # vmap makes the batch a batching dimension of the gather: no communication when it is sharded.
  return jax.vmap(_window)(images, shifts_Bx2, mirror_B)


def normalise(
  images_u8_BxHxWxC: jax.Array, mean: Sequence[float], std: Sequence[float]
) -> jax.Array:
  """Scales bytes to [0, 1] and standardises each channel.

  Args:
    images_u8_BxHxWxC: Images, uint8 [..., C].
    mean: Mean of each of the C channels, in [0, 1] units.
    std: Standard deviation of each channel, > 0, same units.

  Returns:
    (images / 255 - mean) / std, float32 [..., C].

  Raises:
    ValueError: `mean` or `std` does not have C entries, or a `std` is not positive.
  """
  images = images_u8_BxHxWxC
  for name, values in {'mean': mean, 'std': std}.items():
    if len(values) != images.shape[-1]:
      raise ValueError(
        f'{name} has {len(values)} entries {tuple(values)}, images of shape {images.shape} have '
        f'{images.shape[-1]} channels. Pass one number a channel.'
      )
  if not all(s > 0 for s in std):
    raise ValueError(f'std is {tuple(std)}, expected positive numbers.')
  shape = (1,) * (images.ndim - 1) + (-1,)
  mean_C, std_C = (jnp.asarray(v, jnp.float32).reshape(shape) for v in (mean, std))
  return (images.astype(jnp.float32) / 255 - mean_C) / std_C


class IndexStream(Iterator[np.ndarray]):
  """Endless batches of training indices, a fresh permutation every epoch.

  The permutations of epochs 0, 1, 2, ... follow one another without a gap and batch t takes
  positions [t * batch_size, (t + 1) * batch_size): every epoch holds every example exactly once and
  every batch is full. Where batch_size does not divide n, one batch straddles two epochs.

  The global batch does not depend on how many processes share it: process p of P takes the p-th of
  P equal slices.

  Attributes:
    step: Number of the next batch; the whole state.
  """

  def __init__(
    self,
    n: int,
    batch_size: int,
    *,
    seed: int,
    step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
  ):
    """Starts the stream.

    Args:
      n: Number of examples, in [1, 2**31).
      batch_size: Global batch size, >= 1, a multiple of `process_count`; may exceed n.
      seed: Seed of the order, in [0, 2**64).
      step: Number of the first batch.
      process_index: This process, in [0, process_count).
      process_count: How many processes share each batch.

    Raises:
      ValueError: An argument is out of range.
    """
    check_range('n', n, 1, 2**31)
    check_range('batch_size', batch_size, 1, 2**31)
    check_range('seed', seed, 0, 2**64)
    check_range('process_count', process_count, 1, 2**31)
    check_range('process_index', process_index, 0, process_count)
    if batch_size % process_count:
      raise ValueError(
        f'batch_size is {batch_size}, not a multiple of process_count {process_count}. '
        f'The nearest above is {-(-batch_size // process_count) * process_count}.'
      )
    self._n, self._batch, self._seed = n, batch_size, seed
    self._local = batch_size // process_count
    self._offset = process_index * self._local
    self.state = {'step': step}

  @property
  def state(self) -> dict[str, int]:
    """The position, JSON-able: {'step': number of the next batch}."""
    return {'step': self.step}

  @state.setter
  def state(self, state: Mapping[str, int]) -> None:
    if set(state) != {'step'}:
      raise ValueError(f"state is {dict(state)}, expected {{'step': number of the next batch}}.")
    check_range('step', state['step'], 0, 2**63)
    self.step = int(state['step'])

  def epoch(self, step: int | None = None) -> float:
    """Returns how many epochs lie before batch `step` (default: the next one)."""
    return (self.step if step is None else step) * self._batch / self._n

  def __next__(self) -> np.ndarray:
    """Returns this process's indices of the next batch, int32 [batch_size / process_count]."""
    start = self.step * self._batch + self._offset
    stop = start + self._local
    parts = []
    while start < stop:
      epoch, first = divmod(start, self._n)
      part = permutation(self._n, self._seed, epoch)[first : first + stop - start]
      parts.append(part)
      start += len(part)
    self.step += 1
    return np.concatenate(parts)


@functools.lru_cache(maxsize=2)  # two: a batch, or threads that work ahead, may straddle epochs
def permutation(n: int, seed: int, epoch: int) -> np.ndarray:
  """The order of one epoch, int32 [n], not to be written to.

  Args:
    n: Number of examples, in [1, 2**31).
    seed: Of the order, in [0, 2**64).
    epoch: In [0, 2**64).
  """
  # Sorting the raw words of a counter-based generator: numpy fixes them for good, which it does
  # not for Generator.permutation.
  words = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(n)
  order = np.argsort(words, kind='stable').astype(np.int32)
  order.setflags(write=False)
  return order


def eval_batches(n: int, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields index batches of one shape that cover every example exactly once.

  Args:
    n: Number of examples, >= 1.
    batch_size: Size of every batch, >= 1.

  Yields:
    Indices int32 [batch_size] and mask bool [batch_size]. The last batch is filled up with index 0
    under mask False: sums weighted by the mask count each example once.

  Raises:
    ValueError: An argument is out of range.
  """
  check_range('n', n, 1, 2**31)
  check_range('batch_size', batch_size, 1, 2**31)
  for start in range(0, n, batch_size):
    indices = np.arange(start, start + batch_size, dtype=np.int64)
    mask = indices < n
    yield np.where(mask, indices, 0).astype(np.int32), mask


def _window(image_HxWxC: jax.Array, shift_2: jax.Array, mirror: jax.Array) -> jax.Array:
  """Reads one image at shifted, maybe mirrored places; 0 outside of it."""
  height, width, _ = image_HxWxC.shape
  columns_W = jnp.arange(width)
  rows_Hx1 = (jnp.arange(height) + shift_2[0])[:, None]
  columns_1xW = (jnp.where(mirror, width - 1 - columns_W, columns_W) + shift_2[1])[None, :]
  inside_HxW = (rows_Hx1 >= 0) & (rows_Hx1 < height) & (columns_1xW >= 0) & (columns_1xW < width)
  clipped = jnp.clip(rows_Hx1, 0, height - 1), jnp.clip(columns_1xW, 0, width - 1)
  pixels = image_HxWxC.at[clipped].get(mode='promise_in_bounds')
  return jnp.where(inside_HxW[:, :, None], pixels, 0)


def check_range(name: str, value: int, low: int, high: int) -> None:
  """Raises ValueError unless `value` is an integer in [low, high)."""
  if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
    raise ValueError(f'{name} is {value!r}, expected an integer.')
  if not low <= value < high:
    raise ValueError(f'{name} is {value}, expected an integer in [{low}, {high}).')
