"""TensorFlow-free builders of mnist, fashion_mnist, cifar10, cifar100 and imagenet2012.

The stock builders of TensorFlow Datasets describe these data sets but import TensorFlow to unpack
and to encode images. The subclasses here yield the same records through numpy and PIL into
array_record files, which plain `tfds.data_source(name)` reads; the small sets under the same keys,
hence in the same order, imagenet2012 in the order of its archives.
"""

import functools
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
import tqdm
from PIL import Image
from tensorflow_datasets.core.dataset_builder import FileReaderBuilder
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

from dtp_jax.data import archives as archives_lib

PROVENANCE = 'provenance.json'

Labels = Mapping[str, np.ndarray]


class _Builder(FileReaderBuilder, skip_registration=True):
  """What all builders share; `source` None downloads the archives.

  Attributes:
    url_infos: Official size, checksum and name of each archive by url, as TFDS publishes them.
    counts: Number of examples in each split.
    account: Where to register for the download; '' for archives that anyone may fetch.
  """

  url_infos: ClassVar[Any]
  counts: ClassVar[Mapping[str, int]]
  account: ClassVar[str] = ''

  def __init__(self, *, source: archives_lib.Source | None = None, **kwargs: Any):
    self._source = source
    super().__init__(file_format='array_record', **kwargs)

  @classmethod
  def archives(cls) -> tuple[archives_lib.Archive, ...]:
    """Returns the official archives of this data set."""
    raise NotImplementedError

  @classmethod
  def source(cls, folder: pathlib.Path) -> archives_lib.Source:
    """Returns the verified archives of `folder`, or its raw files: `archives.from_folder`."""
    return archives_lib.from_folder(cls.archives(), folder)

  def _download_and_prepare(self, dl_manager: Any, download_config: Any = None) -> None:
    super()._download_and_prepare(dl_manager, download_config)  # pyright: ignore[reportAbstractUsage]
    assert self._source is not None
    record = {'verified': self._source.verified, 'files': self._source.files}
    # Inside the temporary folder, which is renamed as a whole: never a data set without its record.
    path = pathlib.Path(self.data_dir) / PROVENANCE
    path.write_text(json.dumps(record, indent=2) + '\n')


class _Arrays(_Builder, tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Sets whose raw files fit in memory."""

  def _arrays(self, members: Mapping[str, bytes]) -> dict[str, tuple[np.ndarray, Labels]]:
    """Returns {split: (images [N, H, W, C], {feature: labels [N]})}; sets names of classes."""
    raise NotImplementedError

  def _split_generators(self, dl_manager: Any) -> Any:
    if self._source is None:
      archives = self.archives()
      self._source = archives_lib.from_paths(archives, _download(dl_manager, self.name, archives))
    splits = self._arrays(self._source.members)
    for split, (images, labels) in splits.items():
      for key, values in {'images': images, **labels}.items():
        if len(values) != self.counts[split]:
          raise ValueError(
            f'{self.name} has {len(values):,} {key} in its {split} split, the official one '
            f'{self.counts[split]:,}. A file is cut short or of another data set: copy it again.'
          )
    features: Any = self.info.features
    return {
      split: _examples(images, labels, id_prefix=f'{split}_' if 'id' in features else None)
      for split, (images, labels) in splits.items()
    }


class _Idx(_Arrays, skip_registration=True):
  """MNIST and what shares its format and file names."""

  counts: ClassVar = {'train': 60_000, 'test': 10_000}
  _prefixes: ClassVar = {'train': 'train', 'test': 't10k'}

  @classmethod
  def archives(cls) -> tuple[archives_lib.Archive, ...]:
    return tuple(
      archives_lib.Archive(
        url, info.filename, int(info.size), info.checksum, (info.filename.removesuffix('.gz'),)
      )
      for url, info in cls.url_infos.items()
    )

  def _arrays(self, members: Mapping[str, bytes]) -> dict[str, tuple[np.ndarray, Labels]]:
    splits = {}
    for split, prefix in self._prefixes.items():
      images, labels = (
        archives_lib.read_idx(name, members[name])
        for name in (f'{prefix}-images-idx3-ubyte', f'{prefix}-labels-idx1-ubyte')
      )
      if images.shape[1:] != (28, 28) or labels.ndim != 1:
        raise ValueError(
          f'{prefix}-images-idx3-ubyte has shape {images.shape} and {prefix}-labels-idx1-ubyte '
          f'{labels.shape}, expected [N, 28, 28] and [N]. Were the two files exchanged?'
        )
      splits[split] = (images[..., None], {'label': labels})
    return splits


class _Cifar(_Arrays, skip_registration=True):
  """CIFAR-10 and CIFAR-100, the binary versions."""

  counts: ClassVar = {'train': 50_000, 'test': 10_000}

  @classmethod
  def archives(cls) -> tuple[archives_lib.Archive, ...]:
    layout = _cifar_layout(cls)
    info = cls.url_infos[layout.url]
    members, optional = (
      tuple(layout.prefix + name for name in names)
      for names in (layout.train_files + layout.test_files, layout.label_files)
    )
    return (
      archives_lib.Archive(
        layout.url, info.filename, int(info.size), info.checksum, members, optional
      ),
    )

  def _arrays(self, members: Mapping[str, bytes]) -> dict[str, tuple[np.ndarray, Labels]]:
    layout = _cifar_layout(type(self))
    features: Any = self.info.features
    for key, name in zip(layout.label_keys, layout.label_files, strict=True):
      if name in members:
        features[key].names = [line for line in members[name].decode().split('\n') if line]
    splits = {}
    for split, names in {'train': layout.train_files, 'test': layout.test_files}.items():
      parts = [archives_lib.read_cifar(n, members[n], len(layout.label_keys)) for n in names]
      labels = np.concatenate([labels for _, labels in parts])
      columns = {key: labels[:, i] for i, key in enumerate(layout.label_keys)}
      splits[split] = (np.concatenate([images for images, _ in parts]), columns)
    return splits


class Mnist(_Idx, tfds.image_classification.MNIST, skip_registration=True):
  """The MNIST digits."""

  name = 'mnist'
  url_infos = tfds.image_classification.MNIST.url_infos


class FashionMnist(_Idx, tfds.image_classification.FashionMNIST, skip_registration=True):
  """Zalando's clothes in MNIST's format."""

  name = 'fashion_mnist'
  url_infos = tfds.image_classification.FashionMNIST.url_infos


class Cifar10(_Cifar, tfds.image_classification.Cifar10, skip_registration=True):
  """CIFAR-10."""

  name = 'cifar10'
  url_infos = tfds.image_classification.Cifar10.url_infos


class Cifar100(_Cifar, tfds.image_classification.Cifar100, skip_registration=True):
  """CIFAR-100; `label` is the fine label."""

  name = 'cifar100'
  url_infos = tfds.image_classification.Cifar100.url_infos


_STOCK_IMAGENET: Any = tfds.builder_cls('imagenet2012')


class Imagenet2012(_Builder, tfds.core.ShardBasedBuilder, _STOCK_IMAGENET, skip_registration=True):
  """ImageNet, ILSVRC 2012: splits train and validation, the JPEG bytes as they are.

  Streamed from the archives shard by shard: a GeneratorBasedBuilder sorts through temporary files
  above a gigabyte, and TFDS writes those with TensorFlow.
  """

  name = 'imagenet2012'
  url_infos = _STOCK_IMAGENET.url_infos
  counts: ClassVar = {'train': 1_281_167, 'validation': 50_000}
  account = 'https://image-net.org/download-images'
  # Files of about 600 MB at most: TFDS keeps one in memory, and a process may open 1,024.
  synsets_per_shard: ClassVar = 4
  validation_shards: ClassVar = 25

  @classmethod
  def archives(cls) -> tuple[archives_lib.Archive, ...]:
    """Returns the archives of training and validation."""
    return tuple(
      archives_lib.Archive(url, url.rpartition('/')[2], int(info.size), info.checksum, ())
      for url, info in cls.url_infos.items()
    )

  @classmethod
  def source(cls, folder: pathlib.Path) -> archives_lib.Source:
    """Returns the two verified archives of `folder`, not read into memory."""
    return archives_lib.packed(cls.archives(), folder)

  def _shard_iterators_per_split(self, dl_manager: Any) -> Any:
    assert self._source is not None, 'prepare() asks for a folder: there is no public download'
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
    return {
      'train': self._counted('train', [functools.partial(_synsets, train, s) for s in shards]),
      'validation': self._counted(
        'validation', [functools.partial(_labelled, validation, p, label_of) for p in parts if p]
      ),
    }

  def _counted(self, split: str, shards: Sequence[Callable[[], Any]]) -> list[Callable[[], Any]]:
    """Wraps the generators of a split: a progress bar, and a check of how many there were."""
    expected, found = self.counts[split], 0
    bar = tqdm.tqdm(desc=f'{self.name} {split}', total=expected, unit='image', disable=None)

    def generate(index: int) -> Iterator[tuple[str, dict[str, Any]]]:
      nonlocal found
      for item in shards[index]():
        yield item
        found += 1
        bar.update()
      if index == len(shards) - 1:
        bar.close()
        if found != expected:
          raise ValueError(
            f'{self.name} has {found:,} images in its {split} split, the official one '
            f'{expected:,}. An archive is of another data set: download it again.'
          )

    return [functools.partial(generate, index) for index in range(len(shards))]


BUILDERS: Mapping[str, type[_Builder]] = {
  builder.name: builder for builder in (Mnist, FashionMnist, Cifar10, Cifar100, Imagenet2012)
}


def _synsets(path: pathlib.Path, names: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields (file name, example) of some of the tars, one a synset, in the training archive."""
  with path.open('rb') as file:
    for synset, tar in archives_lib.tar_files(file, names):
      for name, image in archives_lib.tar_files(tar):
        label = synset.removesuffix('.tar')
        yield name, {'file_name': name, 'image': image.read(), 'label': label}


def _labelled(
  path: pathlib.Path, names: Sequence[str], label_of: Mapping[str, str]
) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields (file name, example) of some of the images in the validation archive."""
  with path.open('rb') as file:
    for name, image in archives_lib.tar_files(file, names):
      yield name, {'file_name': name, 'image': image.read(), 'label': label_of[name]}


def _examples(
  images: np.ndarray, labels: Labels, id_prefix: str | None
) -> Iterator[tuple[int, dict[str, Any]]]:
  """Yields (key, example); `images` is uint8 [N, H, W, C]."""
  for index, image in enumerate(images):
    # An array would be encoded by tf.image; PIL writes the same pixels as PNG.
    example = {'image': Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)}
    example |= {key: int(values[index]) for key, values in labels.items()}
    # The key decides the shuffled order on disk: the index, as in the stock builders.
    yield index, example | ({} if id_prefix is None else {'id': f'{id_prefix}{index:05d}'})


def _download(
  dl_manager: Any, name: str, archives: Sequence[archives_lib.Archive]
) -> Mapping[str, pathlib.Path]:
  """Downloads the archives; returns their paths by url."""
  try:
    # One by one: of several at a time, the others would go on writing after the first failure.
    return {archive.url: dl_manager.download(archive.url) for archive in archives}
  except NonMatchingChecksumError as error:
    raise archives_lib.ChecksumError(
      f'A download of {name} is not the official file; try again later.\n{error}'
    ) from error
  except (tfds.download.DownloadError, OSError) as error:
    raise archives_lib.no_network(name, archives, error) from error


def _cifar_layout(cls: type[_Builder]) -> Any:
  """Returns the url, folder and file names that the stock builder declares."""
  # A property that reads `self.name` only, so the class stands in for an instance.
  return cls._cifar_info.fget(cls)  # pyright: ignore[reportAttributeAccessIssue]
