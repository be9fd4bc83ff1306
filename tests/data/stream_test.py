"""The stream of ImageNet: order and crops after a resumption, crops against oracles."""

import contextlib
import io
import itertools

import numpy as np
import pytest
from PIL import Image

from dtp_jax.data import sources, stream
from dtp_jax.data.pipeline import IndexStream
from tests.data import imagenet

OPTIONS = stream.Options(image_size=24, resize=28, threads=2, prefetch=2)


@pytest.fixture(scope='module')
def data(imagenet2012):
  return sources.open_streamed('imagenet2012', imagenet2012[0], **OPTIONS._asdict())


def _take(data, count, **kwargs):
  options = kwargs.pop('options', OPTIONS)
  with contextlib.closing(stream.train(data.train, 16, options, seed=3, **kwargs)) as batches:
    # Copies: worker processes lend their memory.
    return [{k: v.copy() for k, v in b.items()} for b in itertools.islice(batches, count)]


def _assert_equal(ours, theirs):
  for a, b in zip(ours, theirs, strict=True):
    assert a.keys() == b.keys()
    for name in a:
      np.testing.assert_array_equal(a[name], b[name])


def _jpeg(pixels, **options):
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, options.pop('format', 'PNG'), **options)
  return buffer.getvalue()


# --- order


@pytest.mark.parametrize('step', [1, 3, 4])  # an epoch is 2.5 batches
def test_resuming_gives_the_uninterrupted_stream_images_included(data, step):
  _assert_equal(_take(data, 6 - step, step=step), _take(data, 6)[step:])


def test_the_order_is_that_of_sets_in_memory(data):
  labels = np.array([record['label'] for record in data.train])
  batches = zip(_take(data, 6), IndexStream(40, 16, seed=3), strict=False)
  for batch, index in batches:
    np.testing.assert_array_equal(batch['label'], labels[index])
    assert batch['image'].shape == (16, 24, 24, 3)
    assert (batch['image'].dtype, batch['label'].dtype) == (np.uint8, np.int32)


def test_crops_are_drawn_anew_every_epoch_and_for_every_seed(data):
  record = data.train[0]
  batches = stream.train([record], 4, OPTIONS, seed=0)
  other = stream.train([record], 4, OPTIONS, seed=1)
  with contextlib.closing(batches), contextlib.closing(other):
    images = [image.tobytes() for image in (*next(batches)['image'], *next(other)['image'])]
  assert len(set(images)) == 8


def test_processes_share_the_batch_of_one(data):
  whole = _take(data, 4)
  for process in range(2):
    part = _take(data, 4, process_index=process, process_count=2)
    _assert_equal(part, [{k: v[process::2] for k, v in batch.items()} for batch in whole])


@pytest.mark.slow
def test_worker_processes_change_nothing(data):
  _assert_equal(_take(data, 5, options=OPTIONS._replace(workers=2)), _take(data, 5))


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ({'process_count': 3}, 'batch_size is 16, not a multiple of process_count 3'),
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
  with contextlib.closing(stream.evaluate(data.test, size, OPTIONS)) as batches:
    found = list(batches)
  assert {batch['image'].shape for batch in found} == {(size, 24, 24, 3)}
  mask = np.concatenate([batch['mask'] for batch in found])
  assert mask.sum() == len(data.test) == 10
  images = np.concatenate([batch['image'] for batch in found])[mask]
  labels = np.concatenate([batch['label'] for batch in found])[mask]
  assert labels.tolist() == [record['label'] for record in data.test]
  for image, record in zip(images, data.test, strict=True):
    np.testing.assert_array_equal(image, stream.centre_crop(record['image'], 28, 24))


@pytest.mark.parametrize(('width', 'height'), [(28, 45), (51, 28), (28, 28), (28, 31)])
def test_the_centre_of_an_image_that_needs_no_resizing_is_cut_out(width, height):
  pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
  top, left = round((height - 24) / 2), round((width - 24) / 2)
  found = stream.centre_crop(_jpeg(pixels), 28, 24)
  np.testing.assert_array_equal(found, pixels[top : top + 24, left : left + 24])


@pytest.mark.parametrize(('width', 'height'), [(500, 375), (300, 700), (100, 90)])
def test_the_shorter_side_is_resized_and_nothing_distorted(width, height):
  pixels = np.zeros((height, width, 3), np.uint8)
  pixels[..., 0] = np.rint(np.linspace(0, 255, width))[None]  # red tells the column, green the row
  pixels[..., 1] = np.rint(np.linspace(0, 255, height))[:, None]
  found = stream.centre_crop(_jpeg(pixels), 256, 224).astype(float)
  scale = min(width, height) / 256
  for axis, length, channel in ((1, width, 0), (0, height, 1)):
    middle = (length - 1) / 2 + (np.arange(224) - 111.5) * scale
    line = found[..., channel].mean(1 - axis)
    np.testing.assert_allclose(line, middle / (length - 1) * 255, atol=1.5)


# --- random crops


@pytest.mark.parametrize(('width', 'height'), [(500, 375), (40, 30), (333, 500), (64, 64)])
def test_windows_have_the_area_and_the_aspect_asked_for(width, height):
  rng = np.random.default_rng(0)
  boxes = np.array([stream.crop_box(rng, width, height) for _ in range(4000)], float)
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
  assert stream.crop_box(np.random.default_rng(0), width, height) == box
  assert stream.crop_box(np.random.default_rng(0), 1, 1) == (0, 0, 1, 1)


@pytest.mark.parametrize('seed', range(6))
def test_a_random_crop_is_the_window_resized(seed):
  """Against PIL's crop and resize of the fully decoded image; `draft` may only blur a little."""
  rng = np.random.default_rng(100)
  small = rng.integers(0, 256, (20, 26, 3), np.uint8)
  pixels = np.asarray(Image.fromarray(small).resize((1300, 1000), Image.Resampling.BICUBIC))
  data = _jpeg(pixels, format='JPEG', quality=95)
  box = stream.crop_box(np.random.default_rng(seed), 1300, 1000)
  decoded = Image.open(io.BytesIO(data))
  expected = decoded.crop(box).resize((96, 96), Image.Resampling.BILINEAR)
  found = stream.random_crop(data, np.random.default_rng(seed), 96)
  difference = np.abs(found.astype(int) - np.asarray(expected, int))
  assert difference.mean() < 1.5
  assert np.asarray(expected).std() > 30


# --- odd and damaged files


@pytest.mark.parametrize('kind', ['L', 'CMYK', 'PNG'])
def test_grey_cmyk_and_png_come_out_as_rgb(kind):
  colour = imagenet.encoded(0)
  found = stream.centre_crop(imagenet.encoded(0, kind), 28, 24).astype(float)
  expected = stream.centre_crop(colour, 28, 24).astype(float)
  if kind == 'L':
    np.testing.assert_array_equal(found, found[..., :1].repeat(3, axis=-1))
    expected = (expected @ [0.299, 0.587, 0.114])[..., None]
  assert np.abs(found - expected).mean() < 5
  assert stream.random_crop(imagenet.encoded(0, kind), np.random.default_rng(0), 24).shape[-1] == 3


@pytest.mark.parametrize('damage', [lambda d: d[: len(d) // 2], lambda d: b'', lambda d: b'X' + d])
def test_a_damaged_image_is_named(data, damage):
  records = [dict(record) for record in data.train]
  records[7]['image'] = damage(records[7]['image'])
  name = records[7]['file_name'].decode()
  for batches in (
    stream.train(records, 40, OPTIONS, seed=0),
    stream.evaluate(records, 40, OPTIONS),
  ):
    with contextlib.closing(batches), pytest.raises(ValueError, match=name) as error:
      next(batches)
    assert 'prepare it again' in str(error.value)
