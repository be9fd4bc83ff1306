"""What is lost when soft masks become hard: rounding, and statistics of a network that is gone.

  python -m experiments.method_study.hardening --out=hardening.csv --seeds=0,1,2,3

Accuracy on all 5,000 validation images right at the end of the soft stage, before any training with
hard masks, with the running statistics as they are and estimated anew on 20 training batches. In a
ResNet a dropped channel's mean, folded into what follows it, is a shift of the next normalisation's
mean, so new statistics hold whatever folding could bring. Neither can outlast training, which
normalises by the batch and forgets the running statistics in some tens of steps.
"""

import itertools
import os
import pathlib
from typing import Any

import jax
from absl import app, flags

from dtp_jax.files import check_folder
from dtp_jax.train.flags import checked, names_of, numbers
from experiments.method_study import rows
from experiments.method_study.beds import BEDS, Bed, apply
from experiments.method_study.plans import append, check_out
from experiments.method_study.runs import search

flags.DEFINE_string('out', None, 'CSV that is appended to.', required=True)
flags.DEFINE_string('cache', 'runs/method_study', 'Folder of dense networks and compiled programs.')
flags.DEFINE_list('seeds', ['0', '1', '2', '3'], 'Seeds.')
flags.DEFINE_list('rows', ['ours', 'handover0.1', 'spartan'], 'Rows.')
flags.DEFINE_list('keeps', ['0.15', '0.1'], 'Fractions of the MACs.')
checked('out', lambda path: check_out(path, ('keep', 'row', 'seed')))
checked('cache', lambda folder: check_folder(folder, '--cache'))
checked('seeds', numbers(int, 0, 2**31))
checked('rows', names_of(rows.ROWS))
checked('keeps', numbers(float, 0, 1))
FLAGS = flags.FLAGS

_BATCHES = 20


def main(argv: list[str]) -> None:
  """One line for each row, budget and seed."""
  del argv
  cache = pathlib.Path(FLAGS.cache)
  jax.config.update('jax_compilation_cache_dir', os.fspath(cache / 'compiled'))
  bed = Bed(BEDS['cifar_channels'], cache=cache / 'dense')

  @jax.jit
  def seen(params: Any, stats: Any, images: Any) -> Any:
    return bed.logits(params, stats, images, train=True)[1]

  for keep, name, seed in itertools.product(FLAGS.keeps, FLAGS.rows, FLAGS.seeds):
    found = search(bed, float(keep), rows.ROWS[name], int(seed))
    line: dict[str, Any] = {'keep': keep, 'row': name, 'seed': seed}
    for kind, masks in (('soft', found.soft), ('hard', found.hard)):
      params, stats = apply(bed, found.params, masks), found.stats
      line[kind] = round(bed.evaluate(params, stats), 2)
      for images, _ in itertools.islice(bed.batches(128, seed=int(seed), stream=2), _BATCHES):
        stats = seen(params, stats, images)
      line[f'{kind}_new_statistics'] = round(bed.evaluate(params, stats), 2)
    print(line, flush=True)
    append(pathlib.Path(FLAGS.out), line)


if __name__ == '__main__':
  app.run(main)
