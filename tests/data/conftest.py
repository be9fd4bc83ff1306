"""Tiny archives in the official formats, standing where the builders expect the official ones."""

import gzip
import hashlib
import io
import pathlib
import tarfile
from typing import NamedTuple

import numpy as np
import pytest
from tensorflow_datasets.core.download import checksums

from dtp_jax.data import builders, prepare
from tests.data import imagenet

COUNTS = {'train': 40, 'test': 10}


class Official(NamedTuple):
  """Synthetic official files of one data set."""

  name: str
  folder: pathlib.Path  # archives under their original names
  raw: pathlib.Path  # the same, unpacked
  images: dict[str, np.ndarray]
  labels: dict[str, np.ndarray]  # [N] or [N, 2] (coarse, fine)


def idx(array: np.ndarray) -> bytes:
  """Writes an idx file of bytes."""
  shape = np.array(array.shape, '>u4').tobytes()
  return bytes([0, 0, 8, array.ndim]) + shape + array.tobytes()


@pytest.fixture
def mnist(tmp_path, monkeypatch):
  return _idx_set('mnist', builders.Mnist, tmp_path, monkeypatch)


@pytest.fixture
def fashion_mnist(tmp_path, monkeypatch):
  return _idx_set('fashion_mnist', builders.FashionMnist, tmp_path, monkeypatch)


@pytest.fixture
def cifar10(tmp_path, monkeypatch):
  splits = {'train': [f'data_batch_{i}.bin' for i in range(1, 6)], 'test': ['test_batch.bin']}
  names = {'batches.meta.txt': 'a b c d e f g h i j'}
  return _cifar_set(builders.Cifar10, splits, names, (10,), tmp_path, monkeypatch)


@pytest.fixture
def cifar100(tmp_path, monkeypatch):
  splits = {'train': ['train.bin'], 'test': ['test.bin']}
  names = {
    'coarse_label_names.txt': ' '.join(f'coarse{i}' for i in range(20)),
    'fine_label_names.txt': ' '.join(f'fine{i}' for i in range(100)),
  }
  return _cifar_set(builders.Cifar100, splits, names, (20, 100), tmp_path, monkeypatch)


@pytest.fixture(scope='session')
def imagenet2012(tmp_path_factory):
  """(folder of the data sets, {split: {file name: contents}}) of a tiny ImageNet, prepared."""
  folder = tmp_path_factory.mktemp('imagenet')
  with pytest.MonkeyPatch.context() as monkeypatch:
    files = imagenet.archives(folder / 'archives')
    imagenet.stand_in(folder / 'archives', monkeypatch)
    command = ['imagenet2012', '--from', str(folder / 'archives'), '--data_dir', str(folder)]
    assert prepare.main(command) == 0
  return folder, files


def _idx_set(name, builder, tmp_path, monkeypatch):
  rng = np.random.default_rng(len(name))
  images = {s: rng.integers(0, 256, (n, 28, 28, 1), np.uint8) for s, n in COUNTS.items()}
  labels = {s: rng.integers(0, 10, n, np.uint8) for s, n in COUNTS.items()}
  raw = {}
  for split, prefix in {'train': 'train', 'test': 't10k'}.items():
    raw[f'{prefix}-images-idx3-ubyte'] = idx(images[split].squeeze(-1))
    raw[f'{prefix}-labels-idx1-ubyte'] = idx(labels[split])
  packed = {f'{file}.gz': gzip.compress(data) for file, data in raw.items()}
  urls = {pathlib.PurePosixPath(url).name: url for url in builder.url_infos}
  _stand_in(builder, {urls[file]: (file, data) for file, data in packed.items()}, monkeypatch)
  folder, unpacked = _write(tmp_path / 'archives', packed), _write(tmp_path / 'raw', raw)
  return Official(name, folder, unpacked, images, labels)


def _cifar_set(builder, splits, names, classes, tmp_path, monkeypatch):
  rng = np.random.default_rng(len(classes))
  prefix = 'cifar-10-batches-bin' if len(classes) == 1 else 'cifar-100-binary'
  raw = {f'{prefix}/{file}': '\n'.join(text.split()) + '\n\n' for file, text in names.items()}
  raw = {file: text.encode() for file, text in raw.items()}
  images, labels = {}, {}
  for split, files in splits.items():
    n = COUNTS[split]
    images[split] = rng.integers(0, 256, (n, 32, 32, 3), np.uint8)
    labels[split] = np.stack([rng.integers(0, c, n, np.uint8) for c in classes], axis=1)
    planes = np.moveaxis(images[split], 3, 1).reshape(n, -1)
    rows = np.concatenate([labels[split], planes], axis=1)
    for file, part in zip(files, np.split(rows, len(files)), strict=True):
      raw[f'{prefix}/{file}'] = part.tobytes()
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode='w:gz') as tar:
    for file, data in raw.items():
      item = tarfile.TarInfo(file)
      item.size = len(data)
      tar.addfile(item, io.BytesIO(data))
  (url,) = builder.url_infos
  file = pathlib.PurePosixPath(url).name
  _stand_in(builder, {url: (file, buffer.getvalue())}, monkeypatch)
  folder = _write(tmp_path / 'archives', {file: buffer.getvalue()})
  unpacked = _write(tmp_path / 'raw', raw)
  return Official(builder.name, folder, unpacked, images, labels)


def _stand_in(builder, files, monkeypatch):
  """Makes the synthetic archives the official ones: {url: (file name, contents)}."""
  infos = {
    url: checksums.UrlInfo(len(data), hashlib.sha256(data).hexdigest(), file)
    for url, (file, data) in files.items()
  }
  monkeypatch.setattr(builder, 'url_infos', infos)
  monkeypatch.setattr(builder, 'counts', COUNTS)


def _write(folder, files):
  for file, data in files.items():
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
  return folder
