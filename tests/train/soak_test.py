"""Sweeps that are stopped and killed, again and again: nothing is lost and nothing done twice."""

import contextlib
import json
import os
import pathlib
import random
import signal

import pytest

from dtp_jax.report import rows
from dtp_jax.train import preemption
from tests.train import victims

pytestmark = pytest.mark.faults

CONFIG = '--config=tests/train/killed.py'
WORKER = 'worker'  # SIGKILL to one of the sweep's processes, as where memory is short


def summaries(workdir):
  """{path: when it was written} of the finished runs of a sweep."""
  return {path: path.stat().st_mtime_ns for path in workdir.glob('*/*/seed*/summary.json')}


def workers_of(process, workdir):
  """The process ids of those of a sweep that train at the moment."""
  found = []
  for path in workdir.rglob('run.lock'):  # some were left by others
    with contextlib.suppress(OSError, ValueError, KeyError):
      pid = json.loads(path.read_text())['pid']
      stat = pathlib.Path(f'/proc/{pid}/stat').read_text()
      if int(stat.rpartition(')')[2].split()[1]) == process.pid:  # the parent
        found.append(pid)
  return found


def soak(tmp_path, seeds, disturbed):
  """A sweep that is stopped by `disturbed` signals and begun again, against one that is not.

  Both have two devices, and so two runs side by side, each with as many cores: equal to the bit.
  """
  flags = (CONFIG, f'--seeds={seeds}', '--config.eval_every=0.096')
  log, calm, stormy = tmp_path / 'log.txt', tmp_path / 'calm', tmp_path / 'stormy'
  runs, done = 5 * seeds, {}
  patience = victims.PATIENCE + 5 * runs
  calm_sweep = victims.start('sweep', *flags, f'--workdir={calm}', log=log, devices=2)
  victims.finish(calm_sweep, log, patience=patience)

  def begin():
    return victims.start('sweep', *flags, f'--workdir={stormy}', log=log, devices=2)

  for i, how in enumerate(disturbed):
    process = begin()
    while i == 0 and len(workers_of(process, stormy)) < 2:
      assert process.exitcode is None, log.read_text()
    # At least one more than before: this sweep is under way, and not only about to begin.
    enough = max((i + 1) * runs // (len(disturbed) + 1), len(done) + 1)
    victims.wait_for(lambda n=enough: len(summaries(stormy)) >= n, process, log)
    process.join(random.uniform(0, 1))
    if how == WORKER:
      while not (training := workers_of(process, stormy)):
        assert process.exitcode is None, log.read_text()
      os.kill(training[0], signal.SIGKILL)
      victims.finish(process, log, 1)
      assert 'was killed; where memory is short' in log.read_text()
    else:
      status = victims.kill(process, how)
      assert status == (preemption.STATUS if how == signal.SIGTERM else -how), log.read_text()
    now = summaries(stormy)
    assert done.items() <= now.items()  # nothing that was finished was touched again
    done = now
  victims.finish(begin(), log, patience=patience)
  now = summaries(stormy)
  assert done.items() <= now.items()
  (expected, none), (found, left) = rows.collect([calm]), rows.collect([stormy])
  assert len(expected) == runs
  assert not none
  assert not left
  placed = {'seconds': 0, 'command': ''}  # and the folder's name in front of the run's
  same = lambda row: {**row, **placed, 'run': row['run'].partition('/')[2]}
  assert [*map(same, found)] == [*map(same, expected)]


def test_a_sweep_that_is_stopped_and_killed_is_that_of_a_calm_day(tmp_path):
  soak(tmp_path, 2, [WORKER, signal.SIGTERM, signal.SIGKILL])


@pytest.mark.slow
def test_two_hundred_runs_and_twenty_kills(tmp_path):
  signals = [random.choice([WORKER, signal.SIGTERM, signal.SIGKILL]) for _ in range(20)]
  soak(tmp_path, 40, signals)
