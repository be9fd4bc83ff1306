"""Compiles training steps for many described devices on one CPU host: memory and communication.

  python -m experiments.tpu.compile_check --networks=resnet50,vit_s,decoder_1b --devices=256

Nothing is allocated but the program: state and batch are shapes with their place on the mesh. A
table row is the soft step of DTP's default, which holds the most. Its columns:

  state and temporaries: bytes on one device, as XLA plans them
  collectives: operations of the program between devices, by kind
  sent: bytes that they give back on one device in a step; a loop's body counts once, and that of
    the transport's solver passes single numbers

The programs are XLA's for CPU. On a TPU the placement of arrays and the collectives' sizes are the
same; fusion, padding and so the temporaries are not. Not run on one: none was at hand.
"""

import sys

import jax
from absl import app, flags

from experiments.bench.timing import table, write_csv
from experiments.tpu.described import NETWORKS, check, config_of, described

flags.DEFINE_list('networks', list(NETWORKS), f'Some of {", ".join(NETWORKS)}.')
flags.DEFINE_list('granularities', ['channels', 'weights'], 'What is pruned.')
flags.DEFINE_integer('devices', 256, 'Described devices.')
flags.DEFINE_list('model', ['1', '16'], 'Devices along the axis model; the others share batches.')
flags.DEFINE_integer('batch_size', 1024, 'Examples of a step, of all devices together.')
flags.DEFINE_string('out', None, 'CSV file of the table.')
FLAGS = flags.FLAGS


def main(argv: list[str]) -> None:
  """Compiles, prints and saves."""
  del argv
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_num_cpu_devices', FLAGS.devices)
  found = []
  try:
    for network in FLAGS.networks:
      for granularity in FLAGS.granularities:
        for model in map(int, FLAGS.model):
          config = config_of(network, granularity)
          config.data.batch_size = FLAGS.batch_size
          config.mesh.update({'data': FLAGS.devices // model, 'model': model})
          case = {'network': network, 'granularity': granularity, 'data': FLAGS.devices // model}
          case |= {'model': model, 'batch_size': FLAGS.batch_size}
          found.append(case | check(config, described(network)))
          print(table(found[-1:]), flush=True)
    if FLAGS.out:
      write_csv(FLAGS.out, found)
  except (ValueError, OSError) as error:
    sys.exit(f'{type(error).__name__}: {error}')


if __name__ == '__main__':
  app.run(main)
