"""A zoo of networks of other libraries: how much of each can be pruned, and does it come out right.

  pip install 'dtp-jax[zoo]'
  python -m experiments.zoo --out=experiments/results/2026-11-29_zoo    all networks, two at a time
  python -m experiments.zoo --out=/tmp/zoo --models='transformers/*'    some
  python -m experiments.zoo --out=/tmp/zoo --nothing_new                its tables alone

Small configurations with random weights. Each network has a process of its own, which is killed
after a time, and a second one that runs its export without any library; a row of zoo.csv is written
as soon as it is known. Networks that have a row there are not measured again. Linux only.
"""

import concurrent.futures
import csv
import fnmatch
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import app, flags

from dtp_jax.export import load_slim
from dtp_jax.export.checks import agreement
from dtp_jax.files import check_folder, read_table
from dtp_jax.markdown import Table

FLAGS = flags.FLAGS
FILE = 'zoo.csv'
GOAL = {'macs': 0.95, 'params': 0.9}  # the shares of these that should be prunable
COLUMNS: tuple[str, ...] = (
  'model', 'library', 'macs', 'prunable_macs', 'params', 'prunable_params', 'groups', 'macs_50',
  'macs_25', 'params_50', 'params_25', 'difference', 'export_batch', 'export_difference',
  'trace_seconds', 'trace_mib', 'shrink_seconds', 'shrink_mib', 'seconds', 'frozen_macs',
  'frozen_params', 'error',
)  # fmt: skip
# Compiling is what most of the time goes to, and what is compiled runs once.
_QUICK = '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'

Row = Mapping[str, str]


def read(path: pathlib.Path) -> list[dict[str, str]]:
  """The rows of a zoo.csv, by name.

  Raises:
    ValueError: it has other columns, or was cut short.
  """
  return sorted(read_table(path, COLUMNS), key=lambda row: row['model'])


def shares(rows: Sequence[Row]) -> Table:
  """What can be pruned, and whether it comes out right."""
  header = (
    'network', 'MACs', 'prunable', 'parameters', 'prunable', 'groups', 'half of the MACs',
    'a quarter', 'half of the parameters', 'a quarter', 'slim against masked',
    'exported, read back',
  )  # fmt: skip
  lines = []
  for row in rows:
    exported = f'{row["export_difference"]}, {row["export_batch"]} batch'
    lines.append(
      (
        row['model'],
        _count(row['macs']),
        _percent(row['prunable_macs']),
        _count(row['params']),
        _percent(row['prunable_params']),
        row['groups'],
        *(_percent(row[key]) for key in ('macs_50', 'macs_25', 'params_50', 'params_25')),
        row['difference'],
        exported if row['export_difference'] else 'no',
      )
    )
  return Table(header, tuple(lines))


def spent(rows: Sequence[Row]) -> Table:
  """Seconds and memory of tracing and shrinking."""
  header = ('network', 'trace, s', 'trace, MiB', 'shrink, s', 'shrink, MiB', 'all, s')
  keys = ('model', 'trace_seconds', 'trace_mib', 'shrink_seconds', 'shrink_mib', 'seconds')
  return Table(header, tuple(tuple(row[key] for key in keys) for row in rows))


def exceptions(rows: Sequence[Row]) -> dict[str, list[str]]:
  """{network: what keeps it from the goal, as it was measured}; empty if there is nothing."""
  found: dict[str, list[str]] = {}
  for row in rows:
    said = [
      row[f'frozen_{unit}']
      for unit, share in GOAL.items()
      if row[f'prunable_{unit}'] and float(row[f'prunable_{unit}']) < share
    ]
    if row['error']:
      said.append(row['error'])
    if said:
      found[row['model']] = said
  return found


def measured(name: str, limit: int) -> dict[str, str]:
  """The row of a network: what its processes have said before they ended or were ended."""
  row: dict[str, Any] = {'model': name, 'stage': 'start'}
  with tempfile.TemporaryDirectory() as folder:
    said, error, seconds = _run([f'--measure={name}', f'--out={folder}'], limit)
    for line in said:
      row |= line
    if not error and not row['stage']:
      said, error, more = _run(['--reload', f'--out={folder}'], limit)
      row |= {'stage': '' if said else 'reload', **(said[-1] if said else {})}
      seconds += more
  if error or row['stage']:
    row['error'] = f'{row["stage"]}: {error or "no result"}'
  row['seconds'] = f'{seconds:.1f}'
  return {column: str(row.get(column, '')) for column in COLUMNS}


def _run(arguments: list[str], limit: int) -> tuple[list[dict[str, Any]], str, float]:
  """The JSON lines that a process of this file printed, what went wrong, and its seconds."""
  command = [sys.executable, '-m', 'experiments.zoo', *arguments]
  options = f'{os.environ.get("XLA_FLAGS", "")} {_QUICK}'
  own = {'JAX_PLATFORMS': 'cpu', 'PYTHONWARNINGS': 'ignore', 'XLA_FLAGS': options}
  environment = {**os.environ, **own}
  start, error = os.times().elapsed, ''
  try:
    done = subprocess.run(command, capture_output=True, timeout=limit, env=environment, check=False)
    printed = done.stdout
    if done.returncode:
      error = (done.stderr.decode().strip().splitlines() or [f'exit status {done.returncode}'])[-1]
  except subprocess.TimeoutExpired as expired:
    printed, error = expired.stdout or b'', f'not done after {limit} s'
  lines = [line for line in printed.decode().splitlines() if line.startswith('{"')]
  return [json.loads(line) for line in lines], error, os.times().elapsed - start


def _percent(share: str) -> str:
  return f'{100 * float(share):.1f} %' if share else ''


def _count(number: str) -> str:
  return f'{int(number):,}' if number else ''


def _child(folder: pathlib.Path) -> None:
  """Prints what is measured in this process, a JSON object a line."""
  if FLAGS.reload:
    print(json.dumps({'export_difference': f'{_read_back(folder):.1e}'}))
    return
  from experiments.zoo_models import measure

  for part in measure.measure(FLAGS.measure or '', folder):
    print(json.dumps(part), flush=True)


def _read_back(folder: pathlib.Path) -> float:
  """How far the exported program is from the masked network, relative, without any of its code."""
  with np.load(folder / 'arrays.npz') as arrays:
    inputs = [arrays[name] for name in arrays if name.startswith('input')]
    expected = [arrays[name] for name in arrays if name.startswith('output')]
  found = jax.tree.leaves(load_slim(folder / 'slim')(*inputs))
  if 'flax' in sys.modules or 'experiments.zoo_models' in sys.modules:
    raise RuntimeError('a library of the network was imported to run its export')
  return agreement([np.asarray(array) for array in found], expected).relative


def _measure_all(path: pathlib.Path) -> None:
  """Appends the rows that are wanted and missing."""
  from experiments.zoo_models import MODELS

  fitting = {pattern: fnmatch.filter(MODELS, pattern) for pattern in FLAGS.models or ['']}
  for pattern, names in fitting.items():
    if not names:
      sys.exit(f'--models={pattern} fits none of {", ".join(MODELS)}.')
  wanted = [name for name in MODELS if any(name in names for names in fitting.values())]
  check_folder(path.parent, '--out')
  path.parent.mkdir(parents=True, exist_ok=True)
  there = {row['model'] for row in read(path)} if path.exists() else set()
  with path.open('a', newline='') as file:
    writer = csv.DictWriter(file, COLUMNS, lineterminator='\n')
    if not there and not file.tell():
      writer.writeheader()
    with concurrent.futures.ThreadPoolExecutor(FLAGS.jobs) as pool:
      jobs = [pool.submit(measured, n, FLAGS.limit) for n in wanted if n not in there]
      for job in concurrent.futures.as_completed(jobs):
        row = job.result()
        writer.writerow(row)
        file.flush()
        print(f'{row["model"]}: {row["seconds"]} s {row["error"]}', file=sys.stderr)


def main(argv: list[str]) -> None:
  """Measures, and prints the tables."""
  if len(argv) > 1 or not FLAGS.out:
    sys.exit('Give --out=FOLDER and no other argument. Try --help.')
  folder = pathlib.Path(FLAGS.out)
  if FLAGS.measure or FLAGS.reload:
    _child(folder)
    return
  path = folder / FILE
  try:
    if not FLAGS.nothing_new:
      _measure_all(path)
    rows = read(path)
    tables = f'{shares(rows)}\n{spent(rows)}'
    said = exceptions(rows)
  except (ValueError, OSError) as error:
    sys.exit(f'{type(error).__name__}: {error}')
  print(tables)
  for name, reasons in said.items():
    print(f'\n{name}: {" ".join(reasons)}')


def _define_flags() -> None:
  """In the program alone: the functions above are imported beside those of other programs."""
  flags.DEFINE_string('out', None, 'Folder for zoo.csv.')
  flags.DEFINE_list('models', ['*'], 'Names of networks, or patterns of them.')
  flags.DEFINE_integer('jobs', 2, 'Networks at a time.', lower_bound=1)
  flags.DEFINE_integer('limit', 120, 'Seconds after which a network is given up.', lower_bound=1)
  flags.DEFINE_bool('nothing_new', False, 'Measure nothing, show the tables.')
  flags.DEFINE_string('measure', None, 'Internal: measures one network in this process.')
  flags.DEFINE_bool('reload', False, 'Internal: runs the export of a network.')


if __name__ == '__main__':
  _define_flags()
  app.run(main)
