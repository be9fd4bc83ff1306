"""Runs the method study: many short runs in one process on one core, appended to a CSV.

  python -m experiments.method_study --plan=plan.txt --out=validation.csv
  python -m experiments.method_study --plan=PLAN --out=test.csv --split=test

PLAN of the final table is experiments/method_study/final.txt.

A plan has one line for each set of runs: beds, kept fractions, rows of `rows.ROWS` and seeds, each
several with commas between, as in `cifar_channels 0.15,0.1 ours,spartan 0,1,2,3`. What the CSV
has already is skipped; the plan is read again after every run. The test split is for the final rows
alone: what is chosen is chosen on 5,000 training images that no run trains on.
"""

import os
import pathlib
import re
import subprocess
import sys
import time

import jax
from absl import app, flags

from dtp_jax.files import check_folder
from dtp_jax.train.flags import checked
from experiments.method_study import rows
from experiments.method_study.beds import BEDS, Bed
from experiments.method_study.plans import DONE, Job, append, check_out, done, jobs
from experiments.method_study.runs import run

flags.DEFINE_string('plan', None, 'File of lines BEDS KEEPS ROWS SEEDS.', required=True)
flags.DEFINE_string('out', None, 'CSV that is appended to.', required=True)
flags.DEFINE_enum('split', 'validation', ['validation', 'test'], 'What is evaluated.')
flags.DEFINE_string('cache', 'runs/method_study', 'Folder of dense networks and compiled programs.')
flags.DEFINE_string('until', None, 'HH:MM after which no run begins.')
checked('out', lambda path: check_out(path, DONE))
checked('cache', lambda folder: check_folder(folder, '--cache'))
flags.register_validator(
  'until', lambda t: t is None or re.fullmatch(r'([01]\d|2[0-3]):[0-5]\d', t), 'expected HH:MM'
)
FLAGS = flags.FLAGS


def main(argv: list[str]) -> None:
  """Runs what is left of the plan."""
  del argv
  try:
    _study()
  except (ValueError, OSError) as error:
    sys.exit(f'{type(error).__name__}: {error}')


def _study() -> None:
  cache, out, plan = (pathlib.Path(str(FLAGS[name].value)) for name in ('cache', 'out', 'plan'))
  jax.config.update('jax_compilation_cache_dir', os.fspath(cache / 'compiled'))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.3)
  commit = subprocess.run(
    ['git', 'rev-parse', '--short', 'HEAD'], capture_output=True, text=True, check=False
  ).stdout.strip()
  beds: dict[str, Bed] = {}
  failed: set[Job] = set()
  while FLAGS.until is None or time.strftime('%H:%M') < FLAGS.until:
    finished = done(out)
    left = [
      job
      for job in jobs(plan.read_text(), BEDS, rows.ROWS)
      if (job[0], job[1], rows.ROWS[job[2]].text, job[3]) not in finished and job not in failed
    ]
    if not left:
      break
    name, keep, label, seed = job = left[0]
    row = rows.ROWS[label]
    if name not in beds:
      beds[name] = Bed(BEDS[name], split=FLAGS.split, cache=cache / 'dense')
    try:
      outcome = run(beds[name], keep, row, seed)
    except Exception as error:  # one broken method does not end the study
      print(*job, 'FAILED', repr(error)[:2000], flush=True)
      failed.add(job)
      continue
    print(*job, outcome['accuracy'], outcome['cpu_seconds'], f'{len(left)} left', flush=True)
    point = {'bed': name, 'keep': keep, 'row': label, 'options': row.text, 'seed': seed}
    append(out, {**point, **outcome, 'commit': commit, 'split': FLAGS.split})


if __name__ == '__main__':
  app.run(main)
