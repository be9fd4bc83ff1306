"""The order in which examples are seen, a function of (seed, step) alone."""

import functools
from collections.abc import Iterator

import numpy as np

__all__ = ['check_range', 'eval_indices', 'permutation', 'split_off', 'train_indices']

# Of `split_off`; training counts its epochs from 0 and never meets this one.
_HELD_OUT = 2**64 - 1


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


def train_indices(n: int, batch_size: int, *, seed: int, step: int = 0) -> Iterator[np.ndarray]:
  """Endless batches of indices, a fresh permutation every epoch.

  The permutations of epochs 0, 1, 2, ... follow one another without a gap and batch t takes
  positions [t * batch_size, (t + 1) * batch_size): every epoch holds every example exactly once and
  every batch is full. Where batch_size does not divide n, one batch straddles two epochs.

  Args:
    n: Number of examples, in [1, 2**31).
    batch_size: Size of every batch, >= 1; may exceed n.
    seed: Of the order, in [0, 2**64).
    step: Number of the first batch.

  Yields:
    Indices int32 [batch_size].

  Raises:
    ValueError: At the first batch, an argument is out of range.
  """
  check_range('number of examples', n, 1, 2**31)
  check_range('batch_size', batch_size, 1, 2**31)
  check_range('seed', seed, 0, 2**64)
  check_range('step', step, 0, 2**40)
  start = step * batch_size
  while True:
    stop, parts = start + batch_size, []
    while start < stop:
      epoch, first = divmod(start, n)
      parts.append(permutation(n, seed, epoch)[first : first + stop - start])
      start += len(parts[-1])
    yield np.concatenate(parts)


def eval_indices(n: int, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Batches of indices, all of one size, that cover every example exactly once.

  Args:
    n: Number of examples, >= 1.
    batch_size: Size of every batch, >= 1.

  Yields:
    Indices int32 [batch_size] and mask bool [batch_size]. The last batch is filled up with index 0
    under mask False: sums weighted by the mask count each example once.

  Raises:
    ValueError: At the first batch, an argument is out of range.
  """
  check_range('number of examples', n, 1, 2**31)
  check_range('batch_size', batch_size, 1, 2**31)
  for start in range(0, n, batch_size):
    indices = np.arange(start, start + batch_size, dtype=np.int64)
    mask = indices < n
    yield np.where(mask, indices, 0).astype(np.int32), mask


def split_off(n: int, count: int) -> tuple[np.ndarray, np.ndarray]:
  """Splits n examples at random, always alike, whatever the seed of a run.

  Args:
    n: Number of examples.
    count: How many to split off, in [1, n).

  Returns:
    Sorted indices of those that stay and of those split off, the last `count` of one fixed
    permutation: a larger `count` splits off the same ones and more.

  Raises:
    ValueError: `count` is out of range.
  """
  check_range('data.validation', count, 1, n)
  order = permutation(n, 0, _HELD_OUT)
  return np.sort(order[:-count]), np.sort(order[-count:])


def check_range(name: str, value: int, low: int, high: int) -> None:
  """Raises ValueError unless `value` is an integer in [low, high)."""
  if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
    raise ValueError(f'{name} is {value!r}, expected an integer.')
  if not low <= value < high:
    raise ValueError(f'{name} is {value}, expected an integer in [{low}, {high}).')
