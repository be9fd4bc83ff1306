"""When the paper's rule hardens by itself in a network that trains, at the epsilon derived for it.

  python -m experiments.method_study.hardens --out=hardens.csv --seeds=0,1,2,3

`transport.hardening_epsilon` promises a softness after a number of steps, T, for scores whose
spread is known. Here the scores are trained by Adam through the masks of a dense network that
trains on, and the spread is the one its docstring gives for gradients that are noise. A line has
the first step at which the mean of 4 m (1 - m) over all elements was at or below that softness.
"""

import itertools
import math
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags

from dtp_jax.files import check_folder
from dtp_jax.train.flags import checked, numbers
from dtp_jax.transport import hardening_epsilon, softness
from experiments.method_study.beds import BEDS, Bed
from experiments.method_study.plans import append, check_out
from experiments.method_study.runs import Row, search

flags.DEFINE_string('out', None, 'CSV that is appended to.', required=True)
flags.DEFINE_string('cache', 'runs/method_study', 'Folder of dense networks and compiled programs.')
flags.DEFINE_list('seeds', ['0', '1', '2', '3'], 'Seeds.')
flags.DEFINE_list('lengths', ['100', '300', '1000'], 'Steps after which the mask should be hard.')
flags.DEFINE_list('keeps', ['0.02', '0.1'], 'Fractions of the weights.')
flags.DEFINE_list('rates', ['0.01'], "Adam's learning rate of the scores.")
flags.DEFINE_enum('bed', 'cifar_weights', sorted(BEDS), 'Data and network.')
checked('out', lambda path: check_out(path, ('bed', 'length', 'seed')))
checked('cache', lambda folder: check_folder(folder, '--cache'))
checked('seeds', numbers(int, 0, 2**31))
checked('keeps', numbers(float, 0, 1))
checked('lengths', numbers(int, 1, 2**31))
checked('rates', numbers(float, 0, 1))
FLAGS = flags.FLAGS

_SOFTNESS = 0.01
_LONGER = 2  # times the length, after which a mask is said to stay soft


@jax.jit
def _softness(masks: dict[str, jax.Array]) -> jax.Array:
  return softness(jnp.concatenate([m.ravel() for m in jax.tree.leaves(masks)]))


def main(argv: list[str]) -> None:
  """One line for each length, fraction, rate and seed."""
  del argv
  cache = pathlib.Path(FLAGS.cache)
  jax.config.update('jax_compilation_cache_dir', os.fspath(cache / 'compiled'))
  for length in map(int, FLAGS.lengths):
    bed = Bed(BEDS[FLAGS.bed]._replace(steps=_LONGER * length), cache=cache / 'dense')
    for keep, rate, seed in itertools.product(FLAGS.keeps, FLAGS.rates, map(int, FLAGS.seeds)):
      spread = 2 * float(rate) * math.sqrt(length / 3)
      epsilon = hardening_epsilon(
        length, keep=float(keep), spread=spread, growth=1.5, softness=_SOFTNESS
      )
      seen: list[Any] = []
      row = Row(
        'transportation',
        {'preset': 'paper', 'epsilon': epsilon},
        soft=1.0,
        scores=('adam', {'learning_rate': float(rate)}),
      )
      search(bed, float(keep), row, seed, lambda _, m, seen=seen: seen.append(_softness(m)))
      hard = [t + 1 for t, s in enumerate(seen) if s <= _SOFTNESS]
      line: dict[str, Any] = {'bed': FLAGS.bed, 'length': length, 'keep': keep, 'rate': rate}
      line |= {'epsilon': f'{epsilon:.4g}', 'seed': seed}
      line |= {'hard_after': hard[0] if hard else '', 'at_length': f'{seen[length - 1]:.4g}'}
      print(line, flush=True)
      append(pathlib.Path(FLAGS.out), line)


if __name__ == '__main__':
  app.run(main)
