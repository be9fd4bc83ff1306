"""Batches of a streamed data set: order and crops after a resumption, evaluation, damage."""

import contextlib
import dataclasses
import itertools

import numpy as np
import pytest

from dtp_jax.data import load
from dtp_jax.data.images import centre_crop
from dtp_jax.data.order import train_indices
from dtp_jax.data.streamed import Options

OPTIONS = Options(image_size=24, resize=28, threads=2, prefetch=2)


@pytest.fixture(scope='module')
def data(imagenet2012):
  return load({'name': 'imagenet2012', 'data_dir': imagenet2012[0], **OPTIONS._asdict()})


def _take(data, count, *, options=OPTIONS, **kwargs):
  data = dataclasses.replace(data, options=options)
  with contextlib.closing(data.train_batches(16, seed=3, **kwargs)) as batches:
    # Copies: worker processes lend their memory.
    return [{k: np.array(v) for k, v in b.items()} for (b,) in itertools.islice(batches, count)]


def _assert_equal(ours, theirs):
  for a, b in zip(ours, theirs, strict=True):
    assert a.keys() == b.keys()
    for name in a:
      np.testing.assert_array_equal(a[name], b[name])


# --- order


@pytest.mark.parametrize('step', [1, 3, 4])  # an epoch is 2.5 batches
def test_resuming_gives_the_uninterrupted_stream_images_included(data, step):
  _assert_equal(_take(data, 6 - step, step=step), _take(data, 6)[step:])


def test_the_order_is_that_of_sets_in_memory(data):
  labels = np.array([record['label'] for record in data.train])
  batches = zip(_take(data, 6), train_indices(40, 16, seed=3), strict=False)
  for batch, index in batches:
    np.testing.assert_array_equal(batch['label'], labels[index])
    assert batch['image'].shape == (16, 24, 24, 3)
    assert (batch['image'].dtype, batch['label'].dtype) == (np.uint8, np.int32)


def test_crops_are_drawn_anew_every_epoch_and_for_every_seed(data):
  one = dataclasses.replace(data, train=[data.train[0]])
  images = []
  for seed in (0, 1):
    with contextlib.closing(one.train_batches(4, seed=seed)) as batches:
      (batch,) = next(batches)
    images += [np.asarray(image).tobytes() for image in batch['image']]
  assert len(set(images)) == 8


@pytest.mark.slow
def test_worker_processes_change_nothing(data):
  _assert_equal(_take(data, 5, options=OPTIONS._replace(workers=2)), _take(data, 5))


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'step': -1}, 'step is -1'),
    ({'options': OPTIONS._replace(image_size=0)}, 'image_size is 0'),
    ({'options': OPTIONS._replace(resize=23)}, r'resize is 23, expected an integer in \[24'),
    ({'options': OPTIONS._replace(threads=0)}, 'threads is 0'),
  ],
)
def test_arguments_out_of_range_are_refused(data, arguments, message):
  with pytest.raises(ValueError, match=message):
    _take(data, 1, **arguments)


# --- evaluation


@pytest.mark.parametrize('size', [4, 5, 16])
def test_evaluation_has_every_example_once_in_batches_of_one_shape(data, size):
  with contextlib.closing(data.eval_batches(size)) as batches:
    found = [batch for (batch,) in batches]
  assert {batch['image'].shape for batch in found} == {(size, 24, 24, 3)}
  mask = np.concatenate([batch['mask'] for batch in found])
  assert mask.sum() == len(data.held_out) == 10
  images = np.concatenate([batch['image'] for batch in found])[mask]
  labels = np.concatenate([batch['label'] for batch in found])[mask]
  assert labels.tolist() == [record['label'] for record in data.held_out]
  for image, record in zip(images, data.held_out, strict=True):
    np.testing.assert_array_equal(image, centre_crop(record['image'], 28, 24))


# --- damaged files


@pytest.mark.parametrize('damage', [lambda d: d[: len(d) // 2], lambda d: b'', lambda d: b'X' + d])
def test_a_damaged_image_is_named(data, damage):
  records = [dict(record) for record in data.train]
  records[7]['image'] = damage(records[7]['image'])
  name = records[7]['file_name'].decode()
  data = dataclasses.replace(data, train=records, held_out=records)
  for batches in (data.train_batches(40, seed=0), data.eval_batches(40)):
    with contextlib.closing(batches), pytest.raises(ValueError, match=name) as error:
      next(batches)
    assert 'prepare it again' in str(error.value)
