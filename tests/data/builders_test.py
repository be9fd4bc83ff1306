"""What the builders write, plain TFDS reads: same records, same order, no TensorFlow."""

import importlib.util
import json
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core import hashing

from dtp_jax.data import archives, builders
from dtp_jax.data.prepare import prepare

ALL = ('mnist', 'fashion_mnist', 'cifar10', 'cifar100')


@pytest.fixture(params=ALL)
def official(request):
  return request.getfixturevalue(request.param)


def test_plain_tfds_reads_every_record_in_the_stock_order(official, tmp_path):
  prepare(official.name, official.folder, tmp_path / 'tfds')
  splits = tfds.data_source(official.name, data_dir=tmp_path / 'tfds')
  assert set(splits) == {'train', 'test'}
  for split, records in splits.items():
    images, labels = official.images[split], official.labels[split]
    # The stock builders key examples by their index; TFDS orders the split by these hashes.
    hasher = hashing.Hasher(split)
    order = sorted(range(len(images)), key=hasher.hash_key)
    assert len(records) == len(order)
    assert order != list(range(len(order)))
    for index, record in zip(order, records, strict=True):
      np.testing.assert_array_equal(record['image'], images[index])
      assert record['image'].dtype == np.uint8
      assert record['label'] == labels[index].reshape(-1)[-1]
      if official.name == 'cifar100':
        assert record['coarse_label'] == labels[index][0]
      if official.name.startswith('cifar'):
        assert record['id'] == f'{split}_{index:05d}'.encode()


def test_names_of_classes_come_from_the_archive(cifar100, tmp_path):
  prepare('cifar100', cifar100.folder, tmp_path / 'tfds')
  features = tfds.builder('cifar100', data_dir=tmp_path / 'tfds').info.features
  assert features['label'].names == [f'fine{i}' for i in range(100)]
  assert features['coarse_label'].int2str(3) == 'coarse3'


def test_tensorflow_is_neither_imported_nor_there(cifar10, tmp_path):
  prepare('cifar10', cifar10.folder, tmp_path / 'tfds')
  assert tfds.data_source('cifar10', data_dir=tmp_path / 'tfds')['test'][0]['image'].any()
  assert 'tensorflow' not in sys.modules
  assert importlib.util.find_spec('tensorflow') is None


def test_subclasses_leave_the_stock_registry_alone():
  for name, builder in builders.BUILDERS.items():
    assert builder.name == name
    assert tfds.builder_cls(name) in builder.__mro__[1:]


def test_record_names_the_files_and_their_checksums(mnist, tmp_path):
  path = prepare('mnist', mnist.folder, tmp_path / 'tfds').path
  record = json.loads((path / builders.PROVENANCE).read_text())
  assert record['verified'] is True
  expected = {(i.filename, i.size, i.checksum) for i in builders.Mnist.url_infos.values()}
  assert {(f['file'], f['bytes'], f['sha256']) for f in record['files']} == expected
  assert str(tmp_path) not in json.dumps(record)


@pytest.mark.parametrize('rank', [1, 2, 3])
def test_idx_round_trip(rank):
  array = np.arange(2 * 3 * 5, dtype=np.uint8).reshape(*(2, 3, 5)[: rank - 1], -1)
  data = bytes([0, 0, 8, rank]) + np.array(array.shape, '>u4').tobytes() + array.tobytes()
  np.testing.assert_array_equal(archives.read_idx('x', data), array)


@pytest.mark.parametrize(
  ('data', 'message'),
  [
    (b'', 'nothing'),
    (b'\x1f\x8b\x08\x00\x00', '1f 8b 08 00'),  # gzip
    (b'\0\0\x0d\x01\0\0\0\x01\0\0\0\0', '00 00 0d 01'),  # floats
    (b'\0\0\x08\x01\0\0\0\x03\x01\x02', 'asks for 11'),  # one byte short
    (b'\0\0\x08\x01\0\0\0\x03\x01\x02\x03\x04', 'has 12 bytes'),  # one too many
    (b'\0\0\x08\x03\0\0', 'has 6 bytes'),  # cut in the header
  ],
)
def test_damaged_idx_is_refused(data, message):
  with pytest.raises(ValueError, match=message) as error:
    archives.read_idx('train-labels-idx1-ubyte', data)
  assert 'train-labels-idx1-ubyte' in str(error.value)


@pytest.mark.parametrize('size', [0, 3072, 3073 * 2 - 1])
def test_damaged_cifar_is_refused(size):
  with pytest.raises(ValueError, match=rf'test_batch.bin has {size:,} bytes.*3,073'):
    archives.read_cifar('test_batch.bin', bytes(size), 1)
