"""Measures how many images of the size of ImageNet's a streamed data set makes in a second.

  python -m experiments.bench.streamed_data --config=configs/cifar10_resnet20.py

The pictures are twelve of the config's data set side by side, blown up to 500 x 375 and stored as
JPEG: smoother than photographs, so fewer bytes and somewhat faster to decode. Beside it stands
a plain loop: one thread of Pillow that decodes whole images and resizes windows of the same
distribution, with nothing made ahead. Printed are images per second of wall time and, the figure to
read on a machine with other work, per second of processor time of all threads together: what one
core makes.
"""

import contextlib
import io
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from absl import app, flags
from ml_collections import config_flags
from PIL import Image

from dtp_jax.data import load
from dtp_jax.data.images import crop_box
from dtp_jax.data.streamed import Options, Streamed
from dtp_jax.train.flags import parse_flags
from experiments.bench.timing import Row, define_out, table, write_csv

config_flags.DEFINE_config_file('config', None, 'Path of a config whose data set is in memory.')
flags.DEFINE_integer('image_size', 224, 'Height and width of the crops, in pixels.', lower_bound=1)
flags.DEFINE_integer('batch_size', 32, 'Images of a batch.', lower_bound=1)
flags.DEFINE_integer('batches', 16, 'Timed batches of a repeat.', lower_bound=1)
flags.DEFINE_integer('repeats', 7, 'Repeats, after one to warm up.', lower_bound=1)
flags.DEFINE_integer('threads', os.cpu_count() or 1, 'Threads that decode.', lower_bound=1)
flags.DEFINE_integer('quality', 90, 'Of the JPEG files.', lower_bound=1, upper_bound=100)
define_out(None)
FLAGS = flags.FLAGS

_SIZE, _RECORDS = (500, 375), 256


def records(config, quality: int) -> list[dict[str, Any]]:
  """Pictures of the config's data set as JPEG files of 500 x 375 pixels."""
  data: Any = load(config.data)
  found = []
  height, width, _ = data.image_shape
  for index in range(_RECORDS):
    few = data.train['image'][12 * index : 12 * index + 12].reshape(3, 4, height, width, -1)
    mosaic = few.swapaxes(1, 2).reshape(3 * height, 4 * width, -1)
    picture = Image.fromarray(np.broadcast_to(mosaic, (*mosaic.shape[:2], 3)).copy())
    buffer = io.BytesIO()
    picture.resize(_SIZE, Image.Resampling.BICUBIC).save(buffer, 'JPEG', quality=quality)
    label = int(data.train['label'][index])
    found.append({'image': buffer.getvalue(), 'label': label, 'file_name': str(index).encode()})
  return found


def plain(files: list[dict[str, Any]], batch_size: int, size: int) -> Iterator[Any]:
  """Batches of the peer: one thread, no draft, no Grain."""
  rng, index = np.random.default_rng(0), 0
  while True:
    images = []
    for _ in range(batch_size):
      image = Image.open(io.BytesIO(files[index % len(files)]['image']))
      box = crop_box(rng, *image.size)
      images.append(np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box)))
      index += 1
    yield np.stack(images)


def measure(
  ways: dict[str, Callable[[], Any]], batches: int, batch_size: int, repeats: int, skip: int
) -> dict[str, np.ndarray]:
  """Images per second of wall time and of processor time, {name: [repeats, 2]}, interleaved.

  The first `skip` batches are not timed: they drain what threads had made ahead, so that the rate
  is that of making images, not of handing out ready ones.
  """
  rates: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
  for repeat in range(repeats + 1):
    for name, begin in ways.items():
      with contextlib.closing(begin()) as made:
        for _ in range(skip):
          next(made)
        wall, busy = time.perf_counter(), time.process_time()
        for _ in range(batches):
          next(made)
        wall, busy = time.perf_counter() - wall, time.process_time() - busy
      if repeat:
        rates[name].append((batches * batch_size / wall, batches * batch_size / busy))
  return {name: np.array(values) for name, values in rates.items()}


def main(argv: list[str]) -> None:
  """Measures and prints."""
  del argv
  try:
    files = records(FLAGS.config, FLAGS.quality)
  except (ValueError, OSError, ImportError) as error:
    sys.exit(f'{type(error).__name__}: {error}')
  size, batch_size, threads = FLAGS.image_size, FLAGS.batch_size, FLAGS.threads
  options = Options(image_size=size, resize=size, threads=threads, prefetch=threads)
  channels = (0.5,) * 3
  data = Streamed('mosaics', files, files, 1, channels, channels, verified=False, options=options)
  ways = {
    'plain loop, 1 thread': lambda: plain(files, batch_size, size),
    f'streamed, {threads} threads': lambda: data.train_batches(batch_size, seed=0),
  }
  skip = 2 * threads + 1
  found = measure(ways, FLAGS.batches, batch_size, FLAGS.repeats, skip)
  kilobytes = np.mean([len(file['image']) for file in files]) / 1000
  print(
    f'{_SIZE[0]} x {_SIZE[1]} JPEGs of {kilobytes:.0f} kB to {size} x {size}; {os.cpu_count()} '
    f'cores, load {os.getloadavg()[0]:.1f}; median (quartiles) of {FLAGS.repeats} repeats.'
  )
  rows = [_row(name, rates) for name, rates in found.items()]
  print(table(rows))
  if FLAGS.out:
    case = {'image_size': size, 'batch_size': batch_size, 'repeats': FLAGS.repeats}
    write_csv(FLAGS.out, [{**row, **case} for row in rows])


def _row(name: str, rates: np.ndarray) -> Row:
  """Median and quartiles of images per second of wall time and of processor time."""
  row: Row = {'name': name}
  for clock, values in zip(('wall', 'processor'), rates.T, strict=True):
    low, middle, high = np.percentile(values, (25, 50, 75)).round(1).tolist()
    row |= {f'{clock}_per_s': middle, f'{clock}_lower': low, f'{clock}_upper': high}
  return row


if __name__ == '__main__':
  app.run(main, flags_parser=parse_flags)
