"""TensorFlow-free builders of mnist, fashion_mnist, cifar10, cifar100 and imagenet2012.

The stock builders of TensorFlow Datasets describe these data sets but import TensorFlow to unpack
and to encode images. The subclasses here yield the same records through numpy and PIL into
array_record files, which plain `tfds.data_source(name)` reads; the small sets under the same keys,
hence in the same order, imagenet2012 in the order of its archives.
"""

import functools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
import tqdm
from PIL import Image
from tensorflow_datasets.core.dataset_builder import FileReaderBuilder

from dtp_jax.data import archives as archives_lib
from dtp_jax.files import write_json

PROVENANCE = 'provenance.json'

Example = dict[str, Any]
Labels = Mapping[str, np.ndarray]


class _Builder(FileReaderBuilder, skip_registration=True):
  """What all builders share; `source` is needed to prepare, not to read what is prepared.

  Attributes:
    url_infos: Official size, checksum and name of each archive by url, as TFDS publishes them.
    counts: Number of examples in each split.
    account: Where to register for the download; '' for archives that anyone may fetch.
  """

  url_infos: ClassVar[Any]
  counts: ClassVar[Mapping[str, int]]
  account: ClassVar[str] = ''

  def __init__(self, *, source: Any = None, **kwargs: Any):
    self._source: archives_lib.Source = source
    super().__init__(file_format='array_record', **kwargs)

  @classmethod
  def archives(cls) -> tuple[archives_lib.Archive, ...]:
    """Returns the official archives of this data set."""
    return tuple(
      archives_lib.Archive(url, file, int(info.size), info.checksum, *cls._members(file))
      for url, info in cls.url_infos.items()
      for file in [info.filename or url.rpartition('/')[2]]
    )

  @classmethod
  def _members(cls, archive: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the raw files in an archive, needed and optional; none if it is read in place."""
    raise NotImplementedError

  def _download_and_prepare(self, dl_manager: Any, download_config: Any = None) -> None:
    super()._download_and_prepare(dl_manager, download_config)  # pyright: ignore[reportAbstractUsage]
    for split, expected in self.counts.items():
      found = self.info.splits[split].num_examples
      if found != expected:
        raise ValueError(
          f'{self.name} has {found:,} images in its {split} split, the official one {expected:,}. '
          'A file is cut short or of another data set: copy or download it again.'
        )
    # Inside the temporary folder, which is renamed as a whole: never a data set without its record.
    record = {'verified': self._source.verified, 'files': self._source.files}
    write_json(pathlib.Path(self.data_dir) / PROVENANCE, record)


class _Arrays(_Builder, tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Sets whose raw files fit in memory."""

  def _arrays(self, members: Mapping[str, bytes]) -> dict[str, tuple[np.ndarray, Labels]]:
    """Returns {split: (images [N, H, W, C], {feature: labels [N]})}; sets names of classes."""
    raise NotImplementedError

  def _split_generators(self, dl_manager: Any) -> Any:
    features: Any = self.info.features
    return {
      split: _examples(images, labels, id_prefix=f'{split}_' if 'id' in features else None)
      for split, (images, labels) in self._arrays(self._source.members).items()
    }


class _Idx(_Arrays, skip_registration=True):
  """MNIST and what shares its format and file names."""

  counts: ClassVar = {'train': 60_000, 'test': 10_000}

  @classmethod
  def _members(cls, archive: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return (archive.removesuffix('.gz'),), ()

  def _arrays(self, members: Mapping[str, bytes]) -> dict[str, tuple[np.ndarray, Labels]]:
    splits = {}
    for split, prefix in {'train': 'train', 'test': 't10k'}.items():
      names = f'{prefix}-images-idx3-ubyte', f'{prefix}-labels-idx1-ubyte'
      images, labels = (archives_lib.read_idx(name, members[name]) for name in names)
      if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
        raise ValueError(
          f'{names[0]} has shape {images.shape} and {names[1]} {labels.shape}, expected '
          '[N, 28, 28] and [N]. Were the two files exchanged, or is one of another data set?'
        )
      splits[split] = (images[..., None], {'label': labels})
    return splits


class _Cifar(_Arrays, skip_registration=True):
  """CIFAR-10 and CIFAR-100, the binary versions.

  Attributes:
    folder: In the archive.
    split_files: Names of the files of each split.
    label_files: Names of the files with the names of classes, by feature, in the order of labels.
  """

  counts: ClassVar = {'train': 50_000, 'test': 10_000}
  folder: ClassVar[str]
  split_files: ClassVar[Mapping[str, Sequence[str]]]
  label_files: ClassVar[Mapping[str, str]]

  @classmethod
  def _members(cls, archive: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    needed = (f'{cls.folder}/{name}' for names in cls.split_files.values() for name in names)
    return tuple(needed), tuple(f'{cls.folder}/{name}' for name in cls.label_files.values())

  def _arrays(self, members: Mapping[str, bytes]) -> dict[str, tuple[np.ndarray, Labels]]:
    features: Any = self.info.features
    for key, name in self.label_files.items():
      if name in members:
        features[key].names = [line for line in members[name].decode().split('\n') if line]
    splits = {}
    for split, names in self.split_files.items():
      parts = [archives_lib.read_cifar(n, members[n], len(self.label_files)) for n in names]
      images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
      splits[split] = images, dict(zip(self.label_files, labels.T, strict=True))
    return splits


class Mnist(_Idx, tfds.image_classification.MNIST, skip_registration=True):
  """The MNIST digits."""

  url_infos = tfds.image_classification.MNIST.url_infos


class FashionMnist(_Idx, tfds.image_classification.FashionMNIST, skip_registration=True):
  """Zalando's clothes in MNIST's format."""

  url_infos = tfds.image_classification.FashionMNIST.url_infos


class Cifar10(_Cifar, tfds.image_classification.Cifar10, skip_registration=True):
  """CIFAR-10."""

  url_infos = tfds.image_classification.Cifar10.url_infos
  folder = 'cifar-10-batches-bin'
  split_files: ClassVar = {
    'train': [f'data_batch_{i}.bin' for i in range(1, 6)],
    'test': ['test_batch.bin'],
  }
  label_files: ClassVar = {'label': 'batches.meta.txt'}


class Cifar100(_Cifar, tfds.image_classification.Cifar100, skip_registration=True):
  """CIFAR-100; `label` is the fine label."""

  url_infos = tfds.image_classification.Cifar100.url_infos
  folder = 'cifar-100-binary'
  split_files: ClassVar = {'train': ['train.bin'], 'test': ['test.bin']}
  label_files: ClassVar = {
    'coarse_label': 'coarse_label_names.txt',
    'label': 'fine_label_names.txt',
  }


_STOCK_IMAGENET: Any = tfds.builder_cls('imagenet2012')


class Imagenet2012(_Builder, tfds.core.ShardBasedBuilder, _STOCK_IMAGENET, skip_registration=True):
  """ImageNet, ILSVRC 2012: splits train and validation, the JPEG bytes as they are.

  Streamed from the archives shard by shard: a GeneratorBasedBuilder sorts through temporary files
  above a gigabyte, and TFDS writes those with TensorFlow.
  """

  url_infos = _STOCK_IMAGENET.url_infos
  counts: ClassVar = {'train': 1_281_167, 'validation': 50_000}
  account = 'https://image-net.org/download-images'
  # Files of about 600 MB at most: TFDS keeps one in memory, and a process may open 1,024.
  synsets_per_shard: ClassVar = 4
  validation_shards: ClassVar = 25

  @classmethod
  def _members(cls, archive: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return (), ()

  def _shard_iterators_per_split(self, dl_manager: Any) -> Any:
    train, validation = (
      next(path for name, path in self._source.paths.items() if name.endswith(f'_{part}.tar'))
      for part in ('train', 'val')
    )
    synsets = archives_lib.tar_names(train)
    features: Any = self.info.features
    known = features['label'].names
    for name in synsets:
      if name.removesuffix('.tar') not in known:
        raise ValueError(f'{train} holds {name!r}, expected SYNSET.tar of the 1,000 synsets.')
    step = self.synsets_per_shard
    shards = [synsets[i : i + step] for i in range(0, len(synsets), step)]
    images = archives_lib.tar_names(validation)
    labels = tfds.core.tfds_path('datasets/imagenet2012/validation_labels.txt').read_text().split()
    label_of = dict(zip(images, labels, strict=False))  # counted when they are written
    parts = [[str(n) for n in part] for part in np.array_split(images, self.validation_shards)]
    generators = {
      'train': [functools.partial(_synsets, train, s) for s in shards],
      'validation': [functools.partial(_labelled, validation, p, label_of) for p in parts if p],
    }
    # TFDS shows no progress of its own here; what it gets has the length and the items of the list.
    return {
      split: tqdm.tqdm(shards, f'{self.name} {split}', unit='shard', disable=None)
      for split, shards in generators.items()
    }


BUILDERS: Mapping[str, type[_Builder]] = {
  builder.name: builder for builder in (Mnist, FashionMnist, Cifar10, Cifar100, Imagenet2012)
}


def _synsets(path: pathlib.Path, names: Sequence[str]) -> Iterator[tuple[str, Example]]:
  """Yields (file name, example) of some of the tars, one a synset, in the training archive."""
  with path.open('rb') as file:
    for synset, tar in archives_lib.tar_files(file, names):
      for name, image in archives_lib.tar_files(tar):
        label = synset.removesuffix('.tar')
        yield name, {'file_name': name, 'image': image.read(), 'label': label}


def _labelled(
  path: pathlib.Path, names: Sequence[str], label_of: Mapping[str, str]
) -> Iterator[tuple[str, Example]]:
  """Yields (file name, example) of some of the images in the validation archive."""
  with path.open('rb') as file:
    for name, image in archives_lib.tar_files(file, names):
      yield name, {'file_name': name, 'image': image.read(), 'label': label_of[name]}


def _examples(
  images: np.ndarray, labels: Labels, id_prefix: str | None
) -> Iterator[tuple[int, Example]]:
  """Yields (key, example); `images` is uint8 [N, H, W, C]."""
  for index, image in enumerate(images):
    # An array would be encoded by tf.image; PIL writes the same pixels as PNG.
    example = {'image': Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)}
    example |= {key: int(values[index]) for key, values in labels.items()}
    # The key decides the shuffled order on disk: the index, as in the stock builders.
    yield index, example | ({} if id_prefix is None else {'id': f'{id_prefix}{index:05d}'})
