"""Is a least-squares update of the consumers at hardening worth anything after fine-tuning?

  python -m experiments.method_study.refit --out=refit.csv --seeds=0,1,2,3

When masks of channels become hard, every layer loses inputs. Layer by layer, from the first on,
its kernel is changed so that what it makes of the inputs that are left is closest to what it made
under the soft masks: a ridge regression over images of the training set (as arXiv:1707.06168 prunes
channels). Both networks, with the update and without, are then trained on with the same images.
Accuracies are of all 5,000 validation images, right after the masks became hard with statistics
estimated anew, and at the end.
"""

import functools
import itertools
import os
import pathlib
from operator import getitem
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags
from jax import Array

from dtp_jax.files import check_folder
from dtp_jax.train.flags import checked, names_of, numbers
from experiments.method_study import nets, rows
from experiments.method_study.beds import BEDS, Bed, apply
from experiments.method_study.consumers import correction, windows
from experiments.method_study.plans import append, check_out
from experiments.method_study.runs import Searched, search

flags.DEFINE_string('out', None, 'CSV that is appended to.', required=True)
flags.DEFINE_string('cache', 'runs/method_study', 'Folder of dense networks and compiled programs.')
flags.DEFINE_list('seeds', ['0', '1', '2', '3'], 'Seeds.')
flags.DEFINE_list('rows', ['ours_soft0.5', 'spartan_soft0.5'], 'Rows.')
flags.DEFINE_list('keeps', ['0.3', '0.15', '0.1'], 'Fractions of the MACs.')
checked('out', lambda path: check_out(path, ('keep', 'row', 'seed')))
checked('cache', lambda folder: check_folder(folder, '--cache'))
checked('seeds', numbers(int, 0, 2**31))
checked('keeps', numbers(float, 0, 1))
checked('rows', names_of(rows.ROWS))
FLAGS = flags.FLAGS

_IMAGES = 1024  # of the regression
_BATCHES = 20  # that statistics are estimated on


def main(argv: list[str]) -> None:
  """One line for each row, budget and seed."""
  del argv
  cache = pathlib.Path(FLAGS.cache)
  jax.config.update('jax_compilation_cache_dir', os.fspath(cache / 'compiled'))
  bed = Bed(BEDS['cifar_channels'], cache=cache / 'dense')
  for keep, name, seed in itertools.product(FLAGS.keeps, FLAGS.rows, map(int, FLAGS.seeds)):
    found = search(bed, float(keep), rows.ROWS[name], seed)
    if found.soft is None:
      raise ValueError(f'{name} has no soft stage; expected a row with one.')
    images, _ = next(bed.batches(_IMAGES, seed=seed, stream=3))
    updated = _refitted(bed, found, images)
    ways = zip(('', '_refit'), (found.params, updated), itertools.tee(found.batches), strict=True)
    line: dict[str, Any] = {'keep': keep, 'row': name, 'seed': seed}
    for way, params, batches in ways:
      fresh = found.stats
      for some, _ in itertools.islice(bed.batches(128, seed=seed, stream=2), _BATCHES):
        fresh = _statistics(bed)(apply(bed, params, found.hard), fresh, some)
      line[f'hard{way}'] = round(bed.evaluate(apply(bed, params, found.hard), fresh), 2)
      stats, state = found.stats, found.state
      for _ in range(found.steps, bed.spec.steps):
        params, stats, state = bed.hard_step(params, stats, state, found.hard, *next(batches))
      line[f'end{way}'] = round(bed.evaluate(apply(bed, params, found.hard), stats), 2)
    print(line, flush=True)
    append(pathlib.Path(FLAGS.out), line)


@functools.cache
def _statistics(bed: Bed) -> Any:
  return jax.jit(lambda params, stats, images: bed.logits(params, stats, images, train=True)[1])


def _refitted(bed: Bed, found: Searched, images: Any) -> Any:
  """The weights, with every kernel changed that reads what the hard masks have changed."""
  params = jax.tree.map(lambda leaf: leaf, found.params)  # its dicts are written to
  soft = _read(bed, found, found.params, found.soft, images)
  for path, wanted in soft.items():
    layer = functools.reduce(getitem, path.split('/'), params)
    given = _read(bed, found, params, found.hard, images)[path]
    layer['kernel'] = layer['kernel'] + correction(given, wanted, layer['kernel'])
  return params


def _read(bed: Bed, found: Searched, params: Any, masks: Any, images: Any) -> dict[str, Array]:
  """The windows of every layer under some masks, normalised by the batch.

  Masks of channels multiply the kernels that read them, here what is read: the same product.
  """
  seen: dict[str, nets.Layer] = {}
  nets.resnet(apply(bed, params, masks), found.stats, bed.normalised(images), True, seen)
  factors = apply(bed, jax.tree.map(jnp.ones_like, params), masks)
  layers = {}
  for path, layer in seen.items():
    kernel = functools.reduce(getitem, path.split('/'), factors)['kernel']
    inputs = layer.inputs * kernel[(0,) * (kernel.ndim - 2)][:, 0].reshape(
      (1,) * (layer.inputs.ndim - 1) + (-1,)
    )
    layers[path] = windows(layer._replace(inputs=inputs), kernel)
  return layers


if __name__ == '__main__':
  app.run(main)
