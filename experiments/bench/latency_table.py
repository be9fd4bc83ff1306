"""Measures how long every operator of a network takes at which width, on the present device.

  python -m experiments.bench.latency_table --config=configs/mnist_mini.py --out=latency.json

The file is a unit of budgets: Budget(0.6, of=LatencyTable.load('latency.json')). Printed are the
nanoseconds of each operator at full and at half width, and their sum against the measured time of
the whole dense network.
"""

import pathlib
import sys

import jax
import jax.numpy as jnp
from absl import app, flags
from ml_collections import config_flags

from dtp_jax.budget.latency.table import LatencyTable
from dtp_jax.budget.latency.timing import interleaved
from dtp_jax.data import load
from dtp_jax.graph import trace
from dtp_jax.train.flags import parse_flags
from dtp_jax.train.recipe import build_model
from experiments.bench.timing import define_out

config_flags.DEFINE_config_file('config', None, 'Path of the config, as in configs/mnist_mini.py.')
define_out('latency.json', 'File of the table.')
flags.DEFINE_integer('batch_size', 64, 'Examples of a call.', lower_bound=1)
flags.DEFINE_integer(
  'points', 5, 'Widths on a grid axis, 1 and the full width among them.', lower_bound=2
)
flags.DEFINE_integer('repeats', 20, 'Timed calls of each operator at each width.', lower_bound=2)
FLAGS = flags.FLAGS


def measure(config, batch_size: int, points: int, repeats: int) -> tuple[LatencyTable, int]:
  """The table of the network of a config, and the nanoseconds of its dense forward pass."""
  data = load(config.data)
  model = build_model(config, data.num_classes)
  images = jnp.zeros((batch_size, *data.example.shape[1:]), data.example.dtype)
  variables = jax.jit(lambda key, x: model.init(key, x, train=False))(
    jax.random.key(config.seed), images[:1]
  )
  example = jax.ShapeDtypeStruct((max(2, batch_size), *images.shape[1:]), images.dtype)
  graph = trace(model.apply, variables, example, train=False)
  table = LatencyTable.measure(graph, batch_size=batch_size, points=points, repeats=repeats)
  dense = jax.jit(lambda v, x: model.apply(v, x, train=False))
  timing = interleaved({'dense': lambda: dense(variables, images)}, repeats=max(repeats, 10))
  return table, round(1e6 * timing['dense'].median)


def main(argv: list[str]) -> None:
  """Measures, saves and prints."""
  del argv
  try:
    table, dense = measure(FLAGS.config, FLAGS.batch_size, FLAGS.points, FLAGS.repeats)
    pathlib.Path(FLAGS.out).parent.mkdir(parents=True, exist_ok=True)
    table.save(FLAGS.out)
  except (ValueError, OSError, ImportError) as error:
    sys.exit(f'{type(error).__name__}: {error}')
  total = table.cost(table.groups).total
  print(table)
  print(
    f'dense forward pass, measured whole: {dense:,} ns; the sum is {total / dense:.2f} of it.\n'
    'It is not 1: the sum leaves out normalisation, activations, pooling and the dispatch of the '
    f'call\n({table.overhead:,} ns), and an operator alone is neither fused with others nor held '
    'to their layouts.'
  )
  print(f'Table: {FLAGS.out}')


if __name__ == '__main__':
  app.run(main, flags_parser=parse_flags)
