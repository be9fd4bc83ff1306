"""Compiles training steps for many described devices on one CPU host: memory and communication.

  export XLA_FLAGS='--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false'
  python -m experiments.tpu.compile_check --networks=resnet50,vit_s --out=described.csv

Nothing is allocated but the program: state and batch are shapes with their place on the mesh. A
table row is the soft step of DTP's default, which holds the most. It is in the file as soon as it
is found, and one that is there already is not compiled again. Its columns:

  state and temporaries: bytes on one device, as XLA plans them
  collectives: operations of the program between devices, by kind
  gathered, reduced, sent: bytes that all-gathers, reductions and all of them give back to one
    device in a step, those of a scan as often as it has turns; the transport's solver passes single
    numbers, and counts as one turn

The programs are XLA's for CPU. On a TPU the placement of arrays is the same; fusion, padding and so
the temporaries are not, and where this one computes and sends float32 for bfloat16, half of it
travels. Not run on one: none was at hand. The flags leave out work on machine code that is never
run; the second is jaxlib 0.10's.
"""

import itertools
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import jax
from absl import app, flags

from dtp_jax.files import read_table
from dtp_jax.train.flags import checked, names_of, numbers
from experiments.bench.timing import Row, define_out, table, where, write_rows
from experiments.tpu.described import NETWORKS, check, config_of, described

flags.DEFINE_list('networks', list(NETWORKS), f'Some of {", ".join(NETWORKS)}.')
flags.DEFINE_list('granularities', ['channels', 'weights'], 'What is pruned.')
flags.DEFINE_integer('devices', 256, 'Described devices.', lower_bound=1)
flags.DEFINE_list('model', ['1', '16'], 'Devices along the axis model; the others share batches.')
flags.DEFINE_integer(
  'batch_size', 1024, 'Examples of a step, of all devices together.', lower_bound=1
)
define_out(None, 'CSV file of the table; rows are added to it.')
checked('networks', names_of(NETWORKS))
checked('granularities', names_of(('channels', 'weights')))
checked('model', numbers(int, 1, 2**20))
FLAGS = flags.FLAGS

_KEY = ('network', 'granularity', 'data', 'model', 'batch_size')

checked('out', lambda path: _rows(path))


def main(argv: list[str]) -> None:
  """Compiles, prints and saves."""
  del argv
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_num_cpu_devices', FLAGS.devices)
  try:
    found = _rows(FLAGS.out)
    for case, config in _cases():
      if any(row.items() >= {k: str(v) for k, v in case.items()}.items() for row in found):
        continue
      found.append(case | check(config, described(case['network'])))
      print(table(found[-1:]), flush=True)
      found[-1] |= where()
      if FLAGS.out:
        write_rows(FLAGS.out, found)
  except (ValueError, OSError) as error:
    sys.exit(f'{type(error).__name__}: {error}')


def _cases() -> Iterator[tuple[Row, Any]]:
  """(columns that say what is compiled, its config) of every row."""
  size = FLAGS.batch_size
  for network, granularity in itertools.product(FLAGS.networks, FLAGS.granularities):
    for model in map(int, FLAGS.model):
      config, data = config_of(network, granularity), FLAGS.devices // model
      config.data.batch_size = size
      config.mesh.update({'data': data, 'model': model})
      case = {'network': network, 'granularity': granularity, 'data': data, 'model': model}
      yield case | {'batch_size': size}, config


def _rows(path: str | None) -> list[Row]:
  """The rows that are in the file already."""
  if not path or not pathlib.Path(path).exists():
    return []
  rows: list[Row] = []
  rows += read_table(pathlib.Path(path), _KEY, others=True)
  return rows


if __name__ == '__main__':
  app.run(main)
