"""Trains a network, prunes it to the size asked for, fine-tunes and reports.

  python -m experiments.train --config=configs/mnist_mini.py --workdir=runs/mnist_mini

Any field of the config can be set on the command line, as in --config.prune.keep=0.02 or
--config.seed=1. The baselines of the config fork from one dense network and lie in
workdir/baselines; where there are several devices, --processes=2 trains two of them at a time, as
experiments.sweep does. Run again with the same workdir, it resumes; the report is
workdir/report.md.

On SIGTERM, a scheduler's notice of preemption, it writes a checkpoint at the next step and ends
with the exit status 143: the same command goes on from there.

Several processes train one network when each is started with --coordinator=HOST:PORT of the first,
--num_processes and --process_id, or with --coordinator=auto where JAX finds the others by itself
(Cloud TPU, GKE, SLURM). The workdir lies on a disk that all of them share. When one is lost, the
others end with an error, at the latest --lost_after seconds later.
"""

import pathlib
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from dtp_jax import report
from dtp_jax.export import run as slim
from dtp_jax.files import read_json
from dtp_jax.train import hosts, preemption, runner, sweep
from dtp_jax.train.compilation import keep_compiled
from dtp_jax.train.flags import parse_flags
from dtp_jax.train.lock import LockedError
from dtp_jax.train.loop import DivergedError

config_flags.DEFINE_config_file('config', None, 'Path of the config, as in configs/mnist_mini.py.')
flags.DEFINE_string('workdir', None, 'Run folder; created, or resumed if it is there.')
flags.DEFINE_string('compilation_cache', None, 'Folder of what XLA compiled; see keep_compiled.')
flags.DEFINE_integer(
  'processes', 1, 'Runs at a time, each in a process with a share of the devices.', lower_bound=1
)
flags.DEFINE_string('coordinator', None, 'HOST:PORT of process 0 of several, or auto.')
flags.DEFINE_integer('num_processes', None, 'Processes of the job.', lower_bound=1)
flags.DEFINE_integer('process_id', None, 'Number of this process, from 0.', lower_bound=0)
flags.DEFINE_integer(
  'lost_after', 60, 'Seconds of silence after which a process is lost.', lower_bound=1
)
FLAGS = flags.FLAGS


def main(argv: list[str]) -> None:
  """Runs the config and its baselines, a small sweep, then writes the report."""
  del argv
  logging.set_verbosity(logging.WARNING)  # Orbax tells every file it writes
  try:
    job = FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id
    hosts.start(*job, lost_after=FLAGS.lost_after)
  except ValueError as error:
    sys.exit(str(error))
  with hosts.ending_together():
    try:
      _run()
    except preemption.PreemptedError as error:
      print(error, file=sys.stderr)
      sys.exit(preemption.STATUS)
    except (ValueError, OSError, ImportError, DivergedError, LockedError) as error:
      sys.exit(f'{type(error).__name__}: {error}')


def _run() -> None:
  keep_compiled(FLAGS.compilation_cache)
  runs = sweep.with_baselines(FLAGS.config)
  if FLAGS.processes == 1:
    runner.run_here(runs, FLAGS.workdir)
  else:
    outcomes = runner.run_all(runs, FLAGS.workdir, processes=FLAGS.processes)
    failed = [f'{o.name}: {o.reason}' for o in outcomes if o.status == 'failed']
    if failed:
      sys.exit('\n'.join([*failed, 'See log.txt in their folders; the same command tries again.']))
  if not hosts.is_first():
    return
  if read_json(pathlib.Path(FLAGS.workdir) / 'summary.json')['widths']:
    slim.finish(FLAGS.workdir)
  path = report.write_report(FLAGS.workdir)
  print(f'{report.table(FLAGS.workdir)}Report: {path}')


if __name__ == '__main__':
  app.run(main, flags_parser=parse_flags)
