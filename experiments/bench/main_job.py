"""Times the main job by phase: cold, and with what JAX compiled before.

  python -m experiments.bench.main_job --job=configs/mnist_mini.py --out=main_job.csv

Processes run `experiments.train` one after the other in new folders: the first with an empty
compilation cache, the next ones with what it left in it. Phases are wall time and add up to the
total: `import` until the main function is reached; `data`, loading the data set; `build`, which
holds the trace of the network; `compile`, XLA's work or the reading of its cache, and what JAX
traces and lowers before it; `export`, the slim model saved, checked and timed; `report`; `train`,
all the rest, evaluation and checkpoints among it. What is compiled in an export counts as export.
With --at_a_time above 1 all that the processes of the runs do counts as train.
"""

import collections
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from absl import app, flags

from experiments.bench.timing import define_out, table, write_csv

flags.DEFINE_string('job', 'configs/mnist_mini.py', 'Path of the config.')
define_out('main_job.csv')
flags.DEFINE_string('cache', '', 'Compilation cache to go on with; default: an empty one.')
flags.DEFINE_integer('at_a_time', 1, 'Runs that a job trains at a time.', lower_bound=1)
flags.DEFINE_integer('runs', 2, 'Jobs, each with what those before it compiled.', lower_bound=1)
FLAGS = flags.FLAGS

PHASES = ('import', 'data', 'build', 'compile', 'train', 'export', 'report')


def phases(config: str, workdir: str, *more: str) -> None:
  """Runs the job in this process and prints its seconds by phase as JSON."""
  begin = time.perf_counter()
  import jax

  from dtp_jax.train import loop, runner
  from experiments import train

  spent: dict[str, float] = collections.defaultdict(float)
  spent['import'] = time.perf_counter() - begin
  running: list[str] = []

  def timed(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
      running.append(name)
      start, compiled = time.perf_counter(), spent['compile']
      try:
        return call(*args, **kwargs)
      finally:
        running.pop()
        spent[name] += time.perf_counter() - start - (spent['compile'] - compiled)

    return run

  def compiled(event: str, seconds: float, **_: Any) -> None:
    if event.startswith('/jax/core/compile/') and not running:
      spent['compile'] += seconds

  jax.monitoring.register_event_duration_secs_listener(compiled)  # pyright: ignore
  runner.load = timed('data', runner.load)
  loop.build = timed('build', loop.build)
  train.slim.finish = timed('export', train.slim.finish)
  train.report.write_report = timed('report', train.report.write_report)
  argv = ['train', f'--config={config}', f'--workdir={workdir}', *more]
  try:
    app.run(train.main, argv, flags_parser=train.parse_flags)
  except SystemExit as end:
    if end.code:
      raise
  total = time.perf_counter() - begin
  spent['train'] = total - sum(spent.values())
  print(json.dumps({**spent, 'total': total}))


def run(config: str, workdir: str, *more: str) -> dict[str, float]:
  """Seconds by phase of one job in a process of its own."""
  code = 'import sys; from experiments.bench.main_job import phases; phases(*sys.argv[1:])'
  command = [sys.executable, '-c', code, config, workdir, *more]
  done = subprocess.run(command, capture_output=True, text=True)
  if done.returncode:
    raise RuntimeError(f'{" ".join(command)} failed:\n{done.stderr}')
  return json.loads(done.stdout.splitlines()[-1])


def main(argv: list[str]) -> None:
  """Measures, prints and writes."""
  del argv
  found = []
  with tempfile.TemporaryDirectory() as folder:
    cache = FLAGS.cache or os.path.join(folder, 'cache')
    for _ in range(FLAGS.runs):
      name = 'warm' if os.path.isdir(cache) else 'cold'
      workdir = os.path.join(folder, str(len(found)))
      begin = time.perf_counter()
      more = f'--compilation_cache={cache}', f'--processes={FLAGS.at_a_time}'
      try:
        spent = run(FLAGS.job, workdir, *more)
      except RuntimeError as error:
        sys.exit(str(error))
      wall = time.perf_counter() - begin
      seconds = {f'{phase}_s': round(spent.get(phase, 0.0), 2) for phase in PHASES}
      seconds['import_s'] = round(spent['import'] + wall - spent['total'], 2)  # Python's own start
      found.append(
        {
          'job': FLAGS.job,
          'at_a_time': FLAGS.at_a_time,
          'cache': name,
          **seconds,
          'total_s': round(wall, 2),
        }
      )
  print(table(found))
  write_csv(FLAGS.out, found)


if __name__ == '__main__':
  app.run(main)
