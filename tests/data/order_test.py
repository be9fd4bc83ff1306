"""The order of examples: complete, resumed, uniform and never another."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtp_jax.data.order import eval_indices, split_off, train_indices


def _take(batches, count):
  return list(itertools.islice(batches, count))


# --- training


@given(n=st.integers(1, 60), batch=st.integers(1, 80), seed=st.integers(0, 2**64 - 1))
def test_every_epoch_holds_every_example_once(n, batch, seed):
  epochs = 3
  steps = -(-epochs * n // batch)
  batches = _take(train_indices(n, batch, seed=seed), steps)
  assert {len(b) for b in batches} == {batch}
  seen = np.concatenate(batches)
  assert seen.dtype == np.int32
  for epoch in range(epochs):
    assert sorted(seen[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_every_epoch_has_its_own_order_and_so_has_every_seed():
  def epochs(seed):
    return [order.tolist() for order in _take(train_indices(50, 50, seed=seed), 3)]

  orders = epochs(0) + epochs(1)
  assert len({tuple(o) for o in orders}) == 6
  assert list(range(50)) not in orders
  assert epochs(0) == epochs(0)


def test_order_is_uniform():
  # Where example 0 lands in 3,000 epochs of 6: each place 500 times, standard deviation 20.
  orders = np.concatenate(_take(train_indices(6, 6, seed=5), 3000)).reshape(-1, 6)
  for example in range(6):
    counts = np.bincount(np.argmax(orders == example, axis=1), minlength=6)
    assert np.all(np.abs(counts - 500) < 6 * 20.4)


def test_order_never_changes():
  # Published results and checkpoints depend on it, whatever numpy's version.
  assert next(train_indices(10, 10, seed=0)).tolist() == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]
  assert next(train_indices(10, 10, seed=0, step=1)).tolist() == [5, 3, 7, 8, 2, 4, 1, 0, 6, 9]


@pytest.mark.parametrize('stop', [0, 1, 4, 9])
def test_resumed_equals_uninterrupted(stop):
  whole = _take(train_indices(23, 7, seed=9), 12)
  resumed = train_indices(23, 7, seed=9, step=stop)
  np.testing.assert_array_equal(_take(resumed, 12 - stop), whole[stop:])


def test_changing_a_batch_in_place_does_not_change_the_order():
  changed, untouched = (train_indices(20, 5, seed=0) for _ in range(2))
  for _ in range(8):
    batch = next(changed)
    np.testing.assert_array_equal(batch, next(untouched))
    batch[:] = -1


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'n': 0}, 'number of examples is 0'),
    ({'n': 2**31}, 'number of examples is 2147483648'),
    ({'batch_size': 0}, 'batch_size is 0'),
    ({'batch_size': 2.5}, r'batch_size is 2\.5'),
    ({'seed': -1}, 'seed is -1'),
    ({'step': -1}, 'step is -1'),
    ({'step': 1.5}, r'step is 1\.5'),
  ],
)
def test_training_refuses(change, message):
  with pytest.raises(ValueError, match=message):
    next(train_indices(**{'n': 10, 'batch_size': 4, 'seed': 0} | change))


# --- evaluation


@given(n=st.integers(1, 70), batch=st.integers(1, 40))
def test_evaluation_counts_every_example_once(n, batch):
  counts = np.zeros(n, int)
  batches = list(eval_indices(n, batch))
  assert len(batches) == -(-n // batch)
  for indices, mask in batches:
    assert indices.shape == mask.shape == (batch,)
    assert (indices.dtype, mask.dtype) == (np.int32, bool)
    assert indices.min() >= 0
    assert indices.max() < n
    np.add.at(counts, indices, mask)
  assert counts.tolist() == [1] * n


@pytest.mark.parametrize(
  ('n', 'batch', 'name'), [(0, 4, 'number of examples'), (4, 0, 'batch_size')]
)
def test_evaluation_refuses(n, batch, name):
  with pytest.raises(ValueError, match=f'{name} is 0'):
    list(eval_indices(n, batch))


# --- validation


@given(n=st.integers(2, 300), data=st.data())
def test_what_is_split_off_and_what_stays_is_all_there_is(n, data):
  count = data.draw(st.integers(1, n - 1))
  stay, off = split_off(n, count)
  assert len(off) == count
  assert sorted([*stay, *off]) == list(range(n))
  assert stay.tolist() == sorted(stay)
  assert off.tolist() == sorted(off)


def test_a_larger_split_holds_the_smaller_and_it_never_changes():
  # Results on validation images depend on it, whatever numpy's version.
  assert split_off(20, 4)[1].tolist() == [1, 11, 14, 18]
  assert set(split_off(20, 4)[1]) < set(split_off(20, 7)[1])
  first_half = np.sum(split_off(1000, 500)[1] < 500)
  assert abs(first_half - 250) < 6 * 8  # sets lie sorted by class, or by something else


@pytest.mark.parametrize('count', [0, 10, -1, 2.5, True])
def test_splitting_off_refuses(count):
  with pytest.raises(ValueError, match=r'data\.validation is'):
    split_off(10, count)
