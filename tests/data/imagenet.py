"""Tiny archives in the format of ImageNet, with the oddities that ImageNet has."""

import hashlib
import io
import pathlib
import tarfile

import numpy as np
from PIL import Image
from tensorflow_datasets.core.download import checksums

from dtp_jax.data import builders

SYNSETS = ('n01440764', 'n01443537', 'n02105855', 'n04596742', 'n15075141')  # classes 0, 1, ...
COUNTS = {'train': 40, 'validation': 10}
SIZES = ((40, 30), (30, 41), (64, 17), (9, 50), (33, 33), (200, 150), (25, 180), (48, 36))


def encoded(seed: int, kind: str = 'RGB') -> bytes:
  """A file that calls itself JPEG: coloured noise on a slope, of an odd size."""
  rng = np.random.default_rng(seed)
  width, height = SIZES[seed % len(SIZES)]
  slope = np.linspace(0, 180, width)[None, :, None] + np.zeros((height, 1, 3))
  pixels = (slope + rng.integers(0, 75, (1, 1, 3))).astype(np.uint8)
  image, buffer = Image.fromarray(pixels), io.BytesIO()
  if kind == 'PNG':
    image.save(buffer, 'PNG')
  else:
    image.convert(kind).save(buffer, 'JPEG', quality=95)
  return buffer.getvalue()


def archives(folder: pathlib.Path) -> dict[str, dict[str, bytes]]:
  """Writes both archives; returns {split: {file name: contents}}, in the order of the records."""
  kinds = {3: 'CMYK', 11: 'L', 17: 'PNG'}
  train, outer = {}, {}
  for number, synset in enumerate(SYNSETS):
    seeds = range(8 * number, 8 * number + 8)
    images = {f'{synset}_{i}.JPEG': encoded(i, kinds.get(i, 'RGB')) for i in seeds}
    train |= images
    outer[f'{synset}.tar'] = tar(images)
  validation = {f'ILSVRC2012_val_{i:08d}.JPEG': encoded(100 + i) for i in range(1, 11)}
  folder.mkdir(parents=True)
  # Neither archive lies in order, as the official ones do not.
  (folder / 'ILSVRC2012_img_train.tar').write_bytes(tar(dict(reversed(outer.items()))))
  (folder / 'ILSVRC2012_img_val.tar').write_bytes(tar(dict(reversed(validation.items()))))
  return {'train': train, 'validation': validation}


def stand_in(folder: pathlib.Path, monkeypatch, counts=COUNTS) -> None:
  """Makes the archives of `folder` the official ones."""
  builder = builders.Imagenet2012
  infos = {}
  for url in builder.url_infos:
    data = (folder / url.rpartition('/')[2]).read_bytes()
    infos[url] = checksums.UrlInfo(len(data), hashlib.sha256(data).hexdigest(), None)
  monkeypatch.setattr(builder, 'url_infos', infos)
  monkeypatch.setattr(builder, 'counts', counts)


def tar(files: dict[str, bytes]) -> bytes:
  """An uncompressed tar."""
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode='w') as archive:
    for name, data in files.items():
      item = tarfile.TarInfo(name)
      item.size = len(data)
      archive.addfile(item, io.BytesIO(data))
  return buffer.getvalue()
