"""What happens to images: crops of encoded ones on the host, augmentation of batches on the device.

The host crops and resizes images whose sizes differ; those of one size are cropped, mirrored and
normalised inside of the jitted step.
"""

import io
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

__all__ = ['Classification', 'augment', 'centre_crop', 'crop_box', 'normalise', 'random_crop']

_AREA = (0.08, 1.0)  # of a crop, as a fraction of the image: Szegedy et al. 2015, section 6
_ASPECT = (3 / 4, 4 / 3)  # width / height
_TRIES = 10


class Classification(NamedTuple):
  """The task of telling what an image shows; equal for equal options, so that jit can tell.

  Attributes:
    crop_padding: largest shift in pixels of the random crop.
    flip: whether to mirror at random.
    mean: of each channel, in [0, 1] units.
    std: of each channel, same units.
  """

  crop_padding: int
  flip: bool
  mean: tuple[float, ...]
  std: tuple[float, ...]

  def __call__(
    self, key: jax.Array, batch: Mapping[str, jax.Array], train: bool
  ) -> tuple[jax.Array, jax.Array]:
    """(float images, labels [B]) of 'image' uint8 [B, H, W, C] and 'label'; it augments."""
    images = batch['image']
    if train:
      images = augment(key, images, crop_padding=self.crop_padding, flip=self.flip)
    return normalise(images, self.mean, self.std), batch['label']


def augment(
  key: jax.Array, images_u8_BxHxWxC: jax.Array, *, crop_padding: int, flip: bool
) -> jax.Array:
  """Random crop of the zero-padded image and random mirror image, one gather and no pad.

  Equal to padding each image with `crop_padding` zeros on all four sides, cutting a window of the
  original size at a uniformly random place, and mirroring it left-right with probability 1/2.
  Pure and jit-able; under data parallelism each device touches its own images only.

  Args:
    key: A random key; equal keys give equal results.
    images_u8_BxHxWxC: Images, uint8 [B, H, W, C].
    crop_padding: Largest shift in pixels, >= 0; 0 leaves the place alone.
    flip: Whether to mirror.

  Returns:
    Images, uint8 [B, H, W, C].

  Raises:
    ValueError: Not uint8, not of rank 4, or a negative `crop_padding`.
  """
  images = images_u8_BxHxWxC
  if images.ndim != 4 or images.dtype != jnp.uint8:
    raise ValueError(
      f'images are {images.dtype}{list(images.shape)}, expected uint8[B, H, W, C]. '
      'Augment before normalising.'
    )
  if crop_padding < 0:
    raise ValueError(f'crop_padding is {crop_padding}, expected 0 or more pixels.')
  if crop_padding == 0 and not flip:
    return images
  key_crop, key_flip = jax.random.split(key)
  batch = images.shape[0]
  shifts_Bx2 = jax.random.randint(key_crop, (batch, 2), -crop_padding, crop_padding + 1)
  mirror_B = jax.random.bernoulli(key_flip, 0.5, (batch,)) & flip
  # vmap makes the batch a batching dimension of the gather: no communication when it is sharded.
  return jax.vmap(_window)(images, shifts_Bx2, mirror_B)


def normalise(
  images_u8_BxHxWxC: jax.Array, mean: Sequence[float], std: Sequence[float]
) -> jax.Array:
  """Scales bytes to [0, 1] and standardises each channel.

  Args:
    images_u8_BxHxWxC: Images, uint8 [..., C].
    mean: Mean of each of the C channels, in [0, 1] units.
    std: Standard deviation of each channel, > 0, same units.

  Returns:
    (images / 255 - mean) / std, float32 [..., C].

  Raises:
    ValueError: `mean` or `std` does not have C entries, or a `std` is not positive.
  """
  images = images_u8_BxHxWxC
  for name, values in {'mean': mean, 'std': std}.items():
    if len(values) != images.shape[-1]:
      raise ValueError(
        f'{name} has {len(values)} entries {tuple(values)}, images of shape {images.shape} have '
        f'{images.shape[-1]} channels. Pass one number a channel.'
      )
  if not all(s > 0 for s in std):
    raise ValueError(f'std is {tuple(std)}, expected positive numbers.')
  shape = (1,) * (images.ndim - 1) + (-1,)
  mean_C, std_C = (jnp.asarray(v, jnp.float32).reshape(shape) for v in (mean, std))
  return (images.astype(jnp.float32) / 255 - mean_C) / std_C


def crop_box(rng: np.random.Generator, width: int, height: int) -> tuple[int, int, int, int]:
  """A random window: 8 to 100 % of the area, aspect 3/4 to 4/3, log-uniform.

  Of ten windows drawn the first that fits is taken; if none does, the largest central one of an
  allowed aspect. Source: Szegedy et al. 2015, section 6.

  Args:
    rng: where random numbers come from.
    width: of the image, in pixels.
    height: of the image, in pixels.

  Returns:
    Left, top, right and bottom, in pixels, inside of the image and never empty.
  """
  low, high = (math.log(aspect) for aspect in _ASPECT)
  for _ in range(_TRIES):
    area = width * height * rng.uniform(*_AREA)
    root_aspect = math.exp(rng.uniform(low, high) / 2)
    w, h = round(math.sqrt(area) * root_aspect), round(math.sqrt(area) / root_aspect)
    if 0 < w <= width and 0 < h <= height:
      left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
      return left, top, left + w, top + h
  w = max(1, min(width, round(height * _ASPECT[1])))
  h = max(1, min(height, round(width / _ASPECT[0])))
  left, top = (width - w) // 2, (height - h) // 2
  return left, top, left + w, top + h


def random_crop(data: bytes, rng: np.random.Generator, size: int) -> np.ndarray:
  """Decodes an image and resizes a random window of it, uint8 [size, size, 3].

  A window of at least twice the size is decoded at half the resolution, and so on to an eighth:
  a JPEG holds those as they are.
  """
  with Image.open(io.BytesIO(data)) as image:
    width, height = image.size
    left, top, right, bottom = crop_box(rng, width, height)
    drafted = image.draft(
      None,
      (math.ceil(width * size / (right - left)), math.ceil(height * size / (bottom - top))),
    )
    # 1/2, 1/4 or 1/8, which image.width / width is not where pixels are left over at the edge.
    scale = drafted[1][2] / width if drafted else 1.0
    right, bottom = min(right * scale, image.width), min(bottom * scale, image.height)
    box = (left * scale, top * scale, right, bottom)
    return np.asarray(_rgb(image).resize((size, size), Image.Resampling.BILINEAR, box))


def centre_crop(data: bytes, resize: int, size: int) -> np.ndarray:
  """Decodes an image, resizes its shorter side to `resize` and cuts the centre out.

  Returns:
    uint8 [size, size, 3].
  """
  with Image.open(io.BytesIO(data)) as image:
    shorter = min(image.size)
    width, height = (resize * side // shorter for side in image.size)
    resized = _rgb(image).resize((width, height), Image.Resampling.BILINEAR)
  left, top = round((width - size) / 2), round((height - size) / 2)
  return np.asarray(resized.crop((left, top, left + size, top + size)))


def _window(image_HxWxC: jax.Array, shift_2: jax.Array, mirror: jax.Array) -> jax.Array:
  """Reads one image at shifted, maybe mirrored places; 0 outside of it."""
  height, width, _ = image_HxWxC.shape
  columns_W = jnp.arange(width)
  rows_Hx1 = (jnp.arange(height) + shift_2[0])[:, None]
  columns_1xW = (jnp.where(mirror, width - 1 - columns_W, columns_W) + shift_2[1])[None, :]
  inside_HxW = (rows_Hx1 >= 0) & (rows_Hx1 < height) & (columns_1xW >= 0) & (columns_1xW < width)
  clipped = jnp.clip(rows_Hx1, 0, height - 1), jnp.clip(columns_1xW, 0, width - 1)
  pixels = image_HxWxC.at[clipped].get(mode='promise_in_bounds')
  return jnp.where(inside_HxW[:, :, None], pixels, 0)


def _rgb(image: Image.Image) -> Image.Image:
  """Grey, CMYK and palette images as RGB; ImageNet has a few of each."""
  return image if image.mode == 'RGB' else image.convert('RGB')
