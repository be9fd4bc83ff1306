"""Runs the sweep of a config file: its methods and budgets, each with several seeds.

  python -m experiments.sweep --config=configs/first_table.py --seeds=3 --workdir=runs/first_table

The config file's get_sweep yields the points; --config.x=y changes a field of all of them. Dense
stages are trained once for each seed and shared. Run again with the same workdir, it resumes and
skips what is finished; a run that failed is tried again. Runs go side by side, one for each device
of this host or for each group of as many as config.mesh asks for; --processes=2 runs two at a time,
each with half of the devices, on a CPU half of its cores. --dry_run prints the runs. On SIGTERM, a
notice of preemption, the runs under way write checkpoints and the exit status is 143: run it again.

A sweep belongs to one host. With several, start one on each, with a part of the points and a
workdir of its own; experiments.report takes all of their folders.
"""

import inspect
import runpy
import sys
from collections.abc import Iterator

import tqdm
from absl import app, flags
from ml_collections import config_flags

from dtp_jax.train import preemption, runner, sweep
from dtp_jax.train.compilation import keep_compiled
from dtp_jax.train.flags import parse_flags
from dtp_jax.train.lock import LockedError
from dtp_jax.train.recipe import Config

config_flags.DEFINE_config_file('config', None, 'Path of the config, as in configs/first_table.py.')
flags.DEFINE_string('workdir', None, 'Folder of the sweep; created, or resumed if it is there.')
flags.DEFINE_integer('seeds', 3, 'Seeds 0, 1, ... of every point.', lower_bound=1)
flags.DEFINE_integer(
  'processes', None, 'Runs at a time; default: one a device, or group of them.', lower_bound=1
)
flags.DEFINE_string('compilation_cache', None, 'Folder of what XLA compiled; see keep_compiled.')
flags.DEFINE_bool('dry_run', False, 'Print the names of the runs and stop.')
FLAGS = flags.FLAGS


def points() -> Iterator[tuple[str, Config]]:
  """The points of the config file, with the fields set on the command line.

  Raises:
    ValueError: the file has no get_sweep, or one that yields something else.
  """
  path, _, argument = config_flags.get_config_filename(FLAGS['config']).partition(':')
  get_sweep = runpy.run_path(path).get('get_sweep')
  if not (inspect.isfunction(get_sweep) and len(inspect.signature(get_sweep).parameters) == 1):
    raise ValueError(f'{path} has no function get_sweep(arg); see configs/first_table.py.')
  for point in get_sweep(argument) or ():
    kinds = [type(part).__name__ for part in point] if isinstance(point, tuple) else []
    if kinds != ['str', 'ConfigDict']:
      given = f'({", ".join(kinds)})' if kinds else type(point).__name__
      raise ValueError(f'get_sweep of {path} yields a {given}; expected pairs (name, config).')
    name, config = point
    config.update_from_flattened_dict(config_flags.get_override_values(FLAGS['config']))
    yield name, config


def main(argv: list[str]) -> None:
  """Runs what is left of the sweep and says how it went."""
  del argv
  try:
    runs = sweep.runs_of(points(), range(FLAGS.seeds))
    if FLAGS.dry_run:
      print('\n'.join(run.name for run in runs))
      return
    keep_compiled(FLAGS.compilation_cache)
    with tqdm.tqdm(total=len(runs), unit='run') as bar:

      def report(outcome: runner.Outcome) -> None:
        bar.update()
        if outcome.status == 'failed':
          bar.write(f'{outcome.name} failed: {outcome.reason}', file=sys.stderr)
        if outcome.status == 'finished':
          bar.set_postfix_str(outcome.name)

      outcomes = runner.run_all(runs, FLAGS.workdir, processes=FLAGS.processes, report=report)
  except preemption.PreemptedError as error:
    print(error, file=sys.stderr)
    sys.exit(preemption.STATUS)
  except (ValueError, AttributeError, OSError, ImportError, LockedError) as error:
    sys.exit(f'{type(error).__name__}: {error}')
  failed = sum(outcome.status == 'failed' for outcome in outcomes)
  print(f'{len(outcomes) - failed} of {len(outcomes)} runs are finished, {failed} failed.')
  print(f'Report: python -m experiments.report {FLAGS.workdir} --out=experiments/results/NAME')
  if failed:
    sys.exit('What failed is tried again by the same command; see log.txt in the folder of a run.')


if __name__ == '__main__':
  app.run(main, flags_parser=parse_flags)
