"""TensorFlow-free builders of mnist, fashion_mnist, cifar10 and cifar100.

The stock builders of TensorFlow Datasets describe these data sets but import TensorFlow to unpack
and to encode images. The subclasses here yield the same records under the same keys, hence in the
same order, through numpy and PIL into array_record files, which plain `tfds.data_source(name)`
reads.
"""

import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

from dtp_jax.data import archives as archives_lib

PROVENANCE = 'provenance.json'

Labels = Mapping[str, np.ndarray]


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """What the four builders share; `source` None downloads the archives.

  Attributes:
    url_infos: Official size, checksum and name of each archive by url, as TFDS publishes them.
    counts: Number of examples in each split.
  """

  url_infos: ClassVar[Any]
  counts: ClassVar[Mapping[str, int]]

  def __init__(self, *, source: archives_lib.Source | None = None, **kwargs: Any):
    self._source = source
    super().__init__(file_format='array_record', **kwargs)

  @classmethod
  def archives(cls) -> tuple[archives_lib.Archive, ...]:
    """Returns the official archives of this data set."""
    raise NotImplementedError

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

  def _download_and_prepare(self, dl_manager: Any, download_config: Any) -> None:
    super()._download_and_prepare(dl_manager, download_config)
    assert self._source is not None
    record = {'verified': self._source.verified, 'files': self._source.files}
    # Inside the temporary folder, which is renamed as a whole: never a data set without its record.
    path = pathlib.Path(self.data_dir) / PROVENANCE
    path.write_text(json.dumps(record, indent=2) + '\n')


class _Idx(_Builder, skip_registration=True):
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


class _Cifar(_Builder, skip_registration=True):
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


BUILDERS: Mapping[str, type[_Builder]] = {
  builder.name: builder for builder in (Mnist, FashionMnist, Cifar10, Cifar100)
}


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
