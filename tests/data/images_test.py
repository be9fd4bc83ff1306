"""Augmentation against a brute-force oracle; crops of encoded images against PIL's own."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from PIL import Image

from dtp_jax.data import images as images_lib
from tests.data import imagenet

# --- augment

_augment = jax.jit(images_lib.augment, static_argnames=('crop_padding', 'flip'))


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
  out = images_lib.augment(jax.random.key(0), images, crop_padding=0, flip=False)
  np.testing.assert_array_equal(out, images)


def test_augment_is_one_gather_without_pad():
  images = jnp.zeros((4, 8, 8, 3), jnp.uint8)
  call = lambda key: images_lib.augment(key, images, crop_padding=2, flip=True)
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
  call = lambda key, x: images_lib.augment(key, x, crop_padding=2, flip=True)
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
    images_lib.augment(jax.random.key(0), images, crop_padding=padding, flip=True)


# --- normalise


def test_normalise_standardises_each_channel():
  images = _images(50, 8, 8, 3)
  scaled = images / 255.0
  mean, std = scaled.mean((0, 1, 2)), scaled.std((0, 1, 2))
  out = np.asarray(jax.jit(lambda x: images_lib.normalise(x, tuple(mean), tuple(std)))(images))
  assert out.dtype == np.float32
  np.testing.assert_allclose(out, (scaled - mean) / std, atol=2e-6)
  np.testing.assert_allclose(out.mean((0, 1, 2)), 0, atol=1e-5)
  np.testing.assert_allclose(out.std((0, 1, 2)), 1, atol=1e-5)


def test_normalise_refuses():
  images = jnp.zeros((2, 4, 4, 3), jnp.uint8)
  with pytest.raises(ValueError, match='mean has 1 entries'):
    images_lib.normalise(images, (0.5,), (0.2, 0.2, 0.2))
  with pytest.raises(ValueError, match='std is'):
    images_lib.normalise(images, (0.5,) * 3, (0.2, 0.0, 0.2))


# --- crops of encoded images


def _jpeg(pixels, **options):
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, options.pop('format', 'PNG'), **options)
  return buffer.getvalue()


@pytest.mark.parametrize(('width', 'height'), [(28, 45), (51, 28), (28, 28), (28, 31)])
def test_the_centre_of_an_image_that_needs_no_resizing_is_cut_out(width, height):
  pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
  top, left = round((height - 24) / 2), round((width - 24) / 2)
  found = images_lib.centre_crop(_jpeg(pixels), 28, 24)
  np.testing.assert_array_equal(found, pixels[top : top + 24, left : left + 24])


@pytest.mark.parametrize(('width', 'height'), [(500, 375), (300, 700), (100, 90)])
def test_the_shorter_side_is_resized_and_nothing_distorted(width, height):
  pixels = np.zeros((height, width, 3), np.uint8)
  pixels[..., 0] = np.rint(np.linspace(0, 255, width))[None]  # red tells the column, green the row
  pixels[..., 1] = np.rint(np.linspace(0, 255, height))[:, None]
  found = images_lib.centre_crop(_jpeg(pixels), 256, 224).astype(float)
  scale = min(width, height) / 256
  for axis, length, channel in ((1, width, 0), (0, height, 1)):
    middle = (length - 1) / 2 + (np.arange(224) - 111.5) * scale
    line = found[..., channel].mean(1 - axis)
    np.testing.assert_allclose(line, middle / (length - 1) * 255, atol=1.5)


@pytest.mark.parametrize(('width', 'height'), [(500, 375), (40, 30), (333, 500), (64, 64)])
def test_windows_have_the_area_and_the_aspect_asked_for(width, height):
  rng = np.random.default_rng(0)
  boxes = np.array([images_lib.crop_box(rng, width, height) for _ in range(4000)], float)
  left, top, right, bottom = boxes.T
  assert left.min() >= 0
  assert top.min() >= 0
  assert right.max() <= width
  assert bottom.max() <= height
  w, h = right - left, bottom - top
  area, aspect = w * h / (width * height), w / h
  slack = 1 + 2 / min(w.min(), h.min())  # whole pixels
  assert 0.08 / slack <= area.min() < 0.1
  largest = min(1, width / height / (3 / 4), 4 / 3 * height / width)
  assert 0.95 * largest < area.max() <= largest * slack
  assert 3 / 4 / slack <= aspect.min() < aspect.max() <= 4 / 3 * slack
  # Uniform where nothing is cut off: of windows that always fit, area and place.
  fits = area < 0.5
  assert abs(np.mean(area[fits]) - 0.29) < 0.02
  middle = (left / np.maximum(width - w, 1))[fits]
  assert abs(middle.mean() - 0.5) < 0.03
  assert abs(np.log(aspect[fits]).mean()) < 0.02


@pytest.mark.parametrize(
  ('width', 'height', 'box'), [(1000, 9, (494, 0, 506, 9)), (9, 1000, (0, 494, 9, 506))]
)
def test_of_an_extreme_image_the_middle_is_taken(width, height, box):
  assert images_lib.crop_box(np.random.default_rng(0), width, height) == box
  assert images_lib.crop_box(np.random.default_rng(0), 1, 1) == (0, 0, 1, 1)


@pytest.mark.parametrize('seed', range(6))
def test_a_random_crop_is_the_window_resized(seed):
  """Against PIL's crop and resize of the fully decoded image; `draft` may only blur a little."""
  rng = np.random.default_rng(100)
  small = rng.integers(0, 256, (20, 26, 3), np.uint8)
  pixels = np.asarray(Image.fromarray(small).resize((1300, 1000), Image.Resampling.BICUBIC))
  data = _jpeg(pixels, format='JPEG', quality=95)
  box = images_lib.crop_box(np.random.default_rng(seed), 1300, 1000)
  decoded = Image.open(io.BytesIO(data))
  expected = decoded.crop(box).resize((96, 96), Image.Resampling.BILINEAR)
  found = images_lib.random_crop(data, np.random.default_rng(seed), 96)
  difference = np.abs(found.astype(int) - np.asarray(expected, int))
  assert difference.mean() < 1.5
  assert np.asarray(expected).std() > 30


@pytest.mark.parametrize('kind', ['L', 'CMYK', 'PNG'])
def test_grey_cmyk_and_png_come_out_as_rgb(kind):
  colour = imagenet.encoded(0)
  found = images_lib.centre_crop(imagenet.encoded(0, kind), 28, 24).astype(float)
  expected = images_lib.centre_crop(colour, 28, 24).astype(float)
  if kind == 'L':
    np.testing.assert_array_equal(found, found[..., :1].repeat(3, axis=-1))
    expected = (expected @ [0.299, 0.587, 0.114])[..., None]
  assert np.abs(found - expected).mean() < 5
  assert (
    images_lib.random_crop(imagenet.encoded(0, kind), np.random.default_rng(0), 24).shape[-1] == 3
  )
