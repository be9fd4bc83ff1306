"""Runs that are stopped, killed or cannot write go on to the same end."""

import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess

import numpy as np
import pytest

from dtp_jax import export
from dtp_jax.files import read_json
from dtp_jax.train import preemption
from dtp_jax.train.metrics import read_metrics
from tests.train import victims
from tests.train.victims import steps

pytestmark = pytest.mark.faults

CONFIG = '--config=tests/train/killed.py'


def arrays(path):
  with np.load(path) as stored:
    return dict(stored)


def train(workdir, *flags, **options):
  """(process, its log) of a training run in `workdir`."""
  log = workdir.with_suffix('.txt')
  return victims.start('train', CONFIG, f'--workdir={workdir}', *flags, log=log, **options), log


def assert_same(workdir, whole):
  """All results of a run are those of another, bit for bit, and nothing is left lying about."""
  assert read_metrics(workdir) == read_metrics(whole)
  summaries = [{**read_json(w / 'summary.json'), 'seconds': 0} for w in (workdir, whole)]
  assert summaries[0] == summaries[1]
  for file in ('masks.npz', 'pruned.npz'):
    ours, theirs = arrays(workdir / file), arrays(whole / file)
    for name in theirs:
      np.testing.assert_array_equal(ours[name], theirs[name])
  ours, theirs = (export.load_slim(w / 'slim').kept for w in (workdir, whole))
  for name in theirs:
    np.testing.assert_array_equal(ours[name], theirs[name])
  names = [{p.name for p in w.iterdir() if 'tfevents' not in p.name} for w in (workdir, whole)]
  assert names[0] == names[1]


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """The folder of a run that nothing happened to."""
  workdir = tmp_path_factory.mktemp('whole') / 'run'
  victims.finish(*train(workdir))
  return workdir


def halted(workdir, moment):
  """(process, its log) of a run that stands still some steps after `moment`, of 18, not the last.

  It would be done before another has looked. On a busy machine it is done before the signal comes,
  now and then: then another run is.
  """
  for _ in range(5):
    process, log = train(workdir)
    assert victims.wait_for(lambda: steps(workdir)[-1:] >= [moment], process, log)
    os.kill(process.pid, signal.SIGSTOP)
    if steps(workdir)[-1] <= 9:  # and the save that goes on in the background is not the last
      return process, log
    victims.kill(process)
    shutil.rmtree(workdir)
  raise AssertionError(f'Five runs went past step 9 before they stood still after {moment}.')


def test_a_notice_ends_it_after_a_checkpoint_and_the_rerun_ends_the_same(whole, tmp_path):
  """And while it runs a second job in its folder is refused."""
  workdir = tmp_path / 'run'
  process, log = halted(workdir, random.randint(1, 3) * 3)
  second = tmp_path / 'second.txt'
  other = victims.start('train', CONFIG, f'--workdir={workdir}', log=second)
  victims.finish(other, second, 1)
  assert f'LockedError: {workdir} is at work: process {process.pid} of host' in second.read_text()
  os.kill(process.pid, signal.SIGTERM)
  status = victims.kill(process, signal.SIGCONT)
  assert status == preemption.STATUS == 143, log.read_text()
  told = log.read_text()
  assert f'from {workdir}/checkpoints/{steps(workdir)[-1]}.' in told
  assert 'Traceback' not in told
  assert not (workdir / 'summary.json').exists()
  victims.finish(*train(workdir))
  assert_same(workdir, whole)


def in_a_save(workdir):
  return any(workdir.glob('checkpoints/*orbax-checkpoint-tmp*'))


def in_the_export(workdir):
  return any(workdir.glob('.slim.*'))


def test_killed_in_a_save_at_any_moment_and_in_the_export_it_ends_the_same(whole, tmp_path):
  workdir = tmp_path / 'run'
  for moment in (in_a_save, None, in_the_export):
    process, log = train(workdir)
    if moment:
      assert victims.wait_for(lambda moment=moment: moment(workdir), process, log)
    else:
      process.join(random.uniform(0, 2))
    victims.kill(process)
    assert not (workdir / 'slim.json').exists(), log.read_text()
  victims.finish(*train(workdir))
  assert_same(workdir, whole)
  told = log.read_text()
  assert 'run.lock was left by process' in told
  assert 'cannot be read' not in told
  assert 'is damaged' not in told


def test_short_of_memory_it_ends_and_goes_on_to_the_same_end(whole, tmp_path):
  """It gets no more than it has while steps and evaluations are to come."""
  workdir = tmp_path / 'run'
  process, log = halted(workdir, 3)
  pages = int(pathlib.Path(f'/proc/{process.pid}/statm').read_text().split()[0])
  size = pages * resource.getpagesize()
  resource.prlimit(process.pid, resource.RLIMIT_AS, (size, size))
  os.kill(process.pid, signal.SIGCONT)
  process.join(5)
  assert victims.kill(process) != 0, log.read_text()  # where it hangs, as the system would
  assert not (workdir / 'summary.json').exists()
  victims.finish(*train(workdir))
  assert_same(workdir, whole)


@pytest.mark.slow
def test_killed_at_twenty_random_moments_it_ends_the_same(whole, tmp_path):
  """As often as it takes, each run on to its end."""
  kills, run = 0, 0
  while kills < 20:
    workdir = tmp_path / f'run{run}'
    while not (workdir / 'report.md').exists():
      process, log = train(workdir)
      process.join(random.uniform(0, 6))
      if process.exitcode is None:
        kills += victims.kill(process) == -signal.SIGKILL
      else:
        assert process.exitcode == 0, log.read_text()
    assert_same(workdir, whole)
    assert 'cannot be read' not in log.read_text()
    shutil.rmtree(workdir)
    run += 1


def test_the_number_of_devices_changes_between_runs(whole, tmp_path):
  workdir = tmp_path / 'run'
  for devices, until in ((1, 3), (4, 9)):
    process, log = train(workdir, '--config.mesh.data=-1', devices=devices)
    victims.wait_for(lambda until=until: steps(workdir)[-1:] >= [until], process, log)
    assert victims.kill(process, signal.SIGTERM) == preemption.STATUS, log.read_text()
    assert read_json(workdir / 'environment.json')['devices'] == devices
  victims.finish(*train(workdir, '--config.mesh.data=-1', devices=2))
  assert read_json(workdir / 'environment.json')['devices'] == 2
  ours, theirs = read_json(workdir / 'summary.json'), read_json(whole / 'summary.json')
  for name in ('requested', 'total', 'stages'):
    assert ours[name] == theirs[name]
  losses = [[r['loss'] for r in read_metrics(w)] for w in (workdir, whole)]
  np.testing.assert_allclose(*losses, atol=2e-3)  # sums over devices are rounded in another order


@pytest.fixture
def small_disk(tmp_path):
  """A function that mounts a disk of some size at a folder, or again with other options."""
  folder = tmp_path / 'disk'
  folder.mkdir()

  def mount(options):
    command = ['mount', '-t', 'tmpfs', '-o', options, 'tmpfs', str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
      pytest.skip(f'a disk cannot be mounted here: {done.stderr}')
    return folder

  yield mount
  subprocess.run(['umount', str(folder)], check=False, capture_output=True)


def test_a_full_and_a_read_only_disk_are_named_and_the_last_checkpoint_is_intact(
  whole, small_disk, tmp_path
):
  log = tmp_path / 'log.txt'

  def told_by(status):
    log.write_text('')
    victims.finish(
      victims.start('train', CONFIG, f'--workdir={disk / "run"}', log=log), log, status
    )
    return log.read_text()

  disk = small_disk('size=700k')
  told = told_by(1)
  assert 'No space left on device' in told
  assert f'the last complete one is {disk}/run/checkpoints/{steps(disk / "run")[-1]}.' in told
  small_disk('remount,ro')
  told = told_by(1)
  assert f'workdir is {disk}/run, but nothing can be written' in told
  assert '(Read-only file system)' in told
  small_disk('remount,rw,size=100m')
  told_by(0)
  assert_same(disk / 'run', whole)
