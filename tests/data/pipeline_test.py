"""Augmentation against a brute-force oracle; the order of examples, resumed and uninterrupted."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from dtp_jax.data import pipeline
from dtp_jax.data.pipeline import IndexStream

# --- augment

_augment = jax.jit(pipeline.augment, static_argnames=('crop_padding', 'flip'))


def _images(batch, height, width, channels, seed=0):
  # No zeros inside: a zero in the result is a pixel from outside.
  rng = np.random.default_rng(seed)
  return rng.integers(1, 256, (batch, height, width, channels), np.uint8)


def _all_variants(image, padding, flip):
  """Every image that padding, cutting and mirroring can give, by {(top, left, mirrored): image}."""
  height, width, _ = image.shape
  padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
  variants = {}
  for top in range(2 * padding + 1):
    for left in range(2 * padding + 1):
      window = padded[top : top + height, left : left + width]
      variants[top, left, False] = window
      if flip:
        variants[top, left, True] = window[:, ::-1]
  return variants


@pytest.mark.parametrize(
  ('shape', 'padding', 'flip'),
  [((5, 7, 3), 0, True), ((5, 7, 3), 2, False), ((5, 7, 3), 3, True), ((8, 8, 1), 1, True)],
)
def test_augment_gives_exactly_the_windows_of_the_padded_image(shape, padding, flip):
  images = _images(1, *shape)
  variants = _all_variants(images[0], padding, flip)
  batch = jnp.repeat(jnp.asarray(images), 1200, axis=0)
  out = np.asarray(_augment(jax.random.key(0), batch, crop_padding=padding, flip=flip))
  assert out.dtype == np.uint8
  by_bytes = {v.tobytes(): k for k, v in variants.items()}
  assert len(by_bytes) == len(variants), 'the oracle tells all variants apart'
  seen = [by_bytes[o.tobytes()] for o in out]  # KeyError: not a window of the padded image.
  counts = np.array([seen.count(k) for k in variants])
  # Uniform over all places and both directions, with six standard deviations to spare.
  expected = len(out) / len(variants)
  assert np.all(np.abs(counts - expected) <= 6 * np.sqrt(expected))


def test_augment_treats_each_image_by_itself():
  images = _images(64, 6, 6, 2)
  out = np.asarray(_augment(jax.random.key(1), images, crop_padding=2, flip=True))
  found = set()
  for image, result in zip(images, out, strict=True):
    variants = _all_variants(image, 2, True)
    found |= {k for k, v in variants.items() if np.array_equal(v, result)}
  assert len(found) > 20  # Of 50 variants, 64 independent draws show about 36.


def test_augment_depends_on_the_key_only():
  images = jnp.asarray(_images(8, 9, 9, 3))
  call = lambda seed: _augment(jax.random.key(seed), images, crop_padding=4, flip=True)
  np.testing.assert_array_equal(call(3), call(3))
  assert (call(3) != call(4)).any()


def test_augment_without_anything_to_do_is_the_identity():
  images = jnp.asarray(_images(3, 4, 4, 1))
  out = pipeline.augment(jax.random.key(0), images, crop_padding=0, flip=False)
  np.testing.assert_array_equal(out, images)


def test_augment_is_one_gather_without_pad():
  images = jnp.zeros((4, 8, 8, 3), jnp.uint8)
  call = lambda key: pipeline.augment(key, images, crop_padding=2, flip=True)
  lowered = jax.jit(call).lower(jax.random.key(0)).as_text()
  assert lowered.count('"stablehlo.gather"(') == 1
  assert 'stablehlo.pad' not in lowered


def test_augment_of_a_sharded_batch_needs_no_communication():
  count = len(jax.devices())
  if count == 1:
    pytest.skip('needs several devices')
  mesh = jax.make_mesh((count,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
  sharding = NamedSharding(mesh, PartitionSpec('data'))
  images = _images(4 * count, 8, 8, 3)
  call = lambda key, x: pipeline.augment(key, x, crop_padding=2, flip=True)
  compiled = jax.jit(call, in_shardings=(None, sharding), out_shardings=sharding)
  compiled = compiled.lower(jax.random.key(0), images).compile()
  for collective in ('all-gather', 'all-reduce', 'all-to-all', 'collective-permute'):
    assert collective not in compiled.as_text()
  out = compiled(jax.random.key(0), jax.device_put(images, sharding))
  alone = _augment(jax.random.key(0), jnp.asarray(images), crop_padding=2, flip=True)
  np.testing.assert_array_equal(out, alone)


@pytest.mark.parametrize(
  ('images', 'padding', 'message'),
  [
    (np.zeros((2, 4, 4, 3), np.float32), 1, 'float32'),
    (np.zeros((4, 4, 3), np.uint8), 1, r'uint8\[4, 4, 3\]'),
    (np.zeros((2, 4, 4, 3), np.uint8), -1, 'crop_padding is -1'),
  ],
)
def test_augment_refuses(images, padding, message):
  with pytest.raises(ValueError, match=message):
    pipeline.augment(jax.random.key(0), images, crop_padding=padding, flip=True)


# --- normalise


def test_normalise_standardises_each_channel():
  images = _images(50, 8, 8, 3)
  scaled = images / 255.0
  mean, std = scaled.mean((0, 1, 2)), scaled.std((0, 1, 2))
  out = np.asarray(jax.jit(lambda x: pipeline.normalise(x, tuple(mean), tuple(std)))(images))
  assert out.dtype == np.float32
  np.testing.assert_allclose(out, (scaled - mean) / std, atol=2e-6)
  np.testing.assert_allclose(out.mean((0, 1, 2)), 0, atol=1e-5)
  np.testing.assert_allclose(out.std((0, 1, 2)), 1, atol=1e-5)


def test_normalise_refuses():
  images = jnp.zeros((2, 4, 4, 3), jnp.uint8)
  with pytest.raises(ValueError, match='mean has 1 entries'):
    pipeline.normalise(images, (0.5,), (0.2, 0.2, 0.2))
  with pytest.raises(ValueError, match='std is'):
    pipeline.normalise(images, (0.5,) * 3, (0.2, 0.0, 0.2))


# --- order


def _take(stream, count):
  return [next(stream) for _ in range(count)]


@given(n=st.integers(1, 60), batch=st.integers(1, 80), seed=st.integers(0, 2**64 - 1))
def test_every_epoch_holds_every_example_once(n, batch, seed):
  epochs = 3
  steps = -(-epochs * n // batch)
  stream = np.concatenate(_take(IndexStream(n, batch, seed=seed), steps))
  assert stream.dtype == np.int32
  for epoch in range(epochs):
    assert sorted(stream[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_every_epoch_has_its_own_order_and_so_has_every_seed():
  def epochs(seed):
    return [order.tolist() for order in _take(IndexStream(50, 50, seed=seed), 3)]

  orders = epochs(0) + epochs(1)
  assert len({tuple(o) for o in orders}) == 6
  assert list(range(50)) not in orders
  assert epochs(0) == epochs(0)


def test_order_is_uniform():
  # Where example 0 lands in 3,000 epochs of 6: each place 500 times, standard deviation 20.
  orders = np.concatenate(_take(IndexStream(6, 6, seed=5), 3000)).reshape(-1, 6)
  for example in range(6):
    counts = np.bincount(np.argmax(orders == example, axis=1), minlength=6)
    assert np.all(np.abs(counts - 500) < 6 * 20.4)


def test_order_never_changes():
  # Published results and checkpoints depend on it, whatever numpy's version.
  assert next(IndexStream(10, 10, seed=0)).tolist() == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]
  assert next(IndexStream(10, 10, seed=0, step=1)).tolist() == [5, 3, 7, 8, 2, 4, 1, 0, 6, 9]


@pytest.mark.parametrize('stop', [0, 1, 4, 9])
def test_resumed_equals_uninterrupted(stop):
  whole = _take(IndexStream(23, 7, seed=9), 12)
  first = IndexStream(23, 7, seed=9)
  _take(first, stop)
  saved = json.dumps(first.state)
  resumed = IndexStream(23, 7, seed=9)
  next(resumed)  # It need not be fresh.
  resumed.state = json.loads(saved)
  assert resumed.state == {'step': stop}
  np.testing.assert_array_equal(_take(resumed, 12 - stop), whole[stop:])
  np.testing.assert_array_equal(next(IndexStream(23, 7, seed=9, step=stop)), whole[stop])


def test_changing_a_batch_in_place_does_not_change_the_order():
  stream, untouched = (IndexStream(20, 5, seed=0) for _ in range(2))
  for _ in range(8):
    batch = next(stream)
    np.testing.assert_array_equal(batch, next(untouched))
    batch[:] = -1


@pytest.mark.parametrize('count', [1, 2, 4])
def test_processes_share_the_same_global_batches(count):
  whole = _take(IndexStream(30, 8, seed=2), 10)
  parts = [
    _take(IndexStream(30, 8, seed=2, process_index=p, process_count=count), 10)
    for p in range(count)
  ]
  np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)


def test_epochs_are_counted():
  stream = IndexStream(100, 30, seed=0)
  assert stream.epoch() == 0
  _take(stream, 5)
  assert stream.epoch() == 1.5
  assert stream.epoch(10) == 3


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'n': 0}, 'n is 0'),
    ({'n': 2**31}, 'n is 2147483648'),
    ({'batch_size': 0}, 'batch_size is 0'),
    ({'batch_size': 2.5}, r'batch_size is 2\.5'),
    ({'seed': -1}, 'seed is -1'),
    ({'step': -1}, 'step is -1'),
    ({'process_count': 3}, 'batch_size is 4, not a multiple of process_count 3.*6'),
    ({'process_count': 2, 'process_index': 2}, 'process_index is 2'),
  ],
)
def test_index_stream_refuses(change, message):
  arguments = {'n': 10, 'batch_size': 4, 'seed': 0} | change
  with pytest.raises(ValueError, match=message):
    IndexStream(arguments.pop('n'), arguments.pop('batch_size'), **arguments)


@pytest.mark.parametrize('state', [{}, {'step': -1}, {'step': 1.5}, {'step': 1, 'epoch': 0}])
def test_bad_state_is_refused_and_changes_nothing(state):
  stream = IndexStream(10, 4, seed=0, step=3)
  with pytest.raises(ValueError):
    stream.state = state
  assert stream.state == {'step': 3}


# --- evaluation


@given(n=st.integers(1, 70), batch=st.integers(1, 40))
def test_evaluation_counts_every_example_once(n, batch):
  counts = np.zeros(n, int)
  batches = list(pipeline.eval_batches(n, batch))
  assert len(batches) == -(-n // batch)
  for indices, mask in batches:
    assert indices.shape == mask.shape == (batch,)
    assert (indices.dtype, mask.dtype) == (np.int32, bool)
    assert indices.min() >= 0
    assert indices.max() < n
    np.add.at(counts, indices, mask)
  assert counts.tolist() == [1] * n


@pytest.mark.parametrize(('n', 'batch', 'name'), [(0, 4, 'n'), (4, 0, 'batch_size')])
def test_evaluation_refuses(n, batch, name):
  with pytest.raises(ValueError, match=f'{name} is 0'):
    list(pipeline.eval_batches(n, batch))
