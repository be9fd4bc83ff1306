"""Jobs of two real processes: the same run as that of one, and what happens when one is killed."""

import os
import signal

import jax
import numpy as np
import pytest

from dtp_jax import report
from dtp_jax.files import read_json
from dtp_jax.report import rows
from dtp_jax.train import hosts, preemption
from dtp_jax.train.metrics import read_metrics
from tests.train import victims
from tests.train.victims import steps

pytestmark = pytest.mark.faults

CONFIG = '--config=tests/train/killed.py'
SPREAD = (CONFIG, '--config.mesh.data=-1')
# One sum of two or eight parts for one sum of all: rounding, over 18 steps.
LOSS, ACCURACY = 2e-3, 0.01


def arrays(path):
  with np.load(path) as stored:
    return dict(stored)


@pytest.fixture(scope='module')
def spread(tmp_path_factory):
  """The folders of one run on one device, on eight, and of two processes; with all reports."""
  place = tmp_path_factory.mktemp('spread')
  jobs = victims.start_pair(place / 'pair', *SPREAD)
  for name, devices in (('one', 1), ('eight', 8)):
    workdir, log = place / name, place / f'{name}.txt'
    started = victims.start('train', *SPREAD, f'--workdir={workdir}', log=log, devices=devices)
    jobs.append((started, log))
  for process, log in jobs:
    victims.finish(process, log)
  return place


@pytest.mark.parametrize('name', ['eight', 'pair'])
def test_one_run_has_one_report_however_it_is_spread(spread, name):
  """Every column of the tables, the kept channels, and what was measured on the way."""
  (expected,), (found,) = (rows.collect([spread / run])[0] for run in ('one', name))
  tolerances = {'accuracy': ACCURACY, 'dense_accuracy': ACCURACY, 'gap': ACCURACY, 'loss': LOSS}
  of_this_run = {'seconds', 'run', 'command'}
  for column in expected:
    if column in tolerances:
      np.testing.assert_allclose(found[column], expected[column], atol=tolerances[column])
    elif column not in of_this_run:
      assert found[column] == expected[column], column
  ours, theirs = (read_json(spread / run / 'summary.json') for run in (name, 'one'))
  for key in ('widths', 'costs', 'kept_per_array', 'stages'):
    assert ours[key] == theirs[key]
  assert any(kept < dense for dense, kept in theirs['widths'].values())
  ours, theirs = read_metrics(spread / name), read_metrics(spread / 'one')
  assert [(r['kind'], r['step']) for r in ours] == [(r['kind'], r['step']) for r in theirs]
  for key in ('loss', 'kept', 'softness'):
    values = ([r[key] for r in records] for records in (ours, theirs))
    np.testing.assert_allclose(*values, atol=LOSS)
  masks, expected_masks = (arrays(spread / run / 'masks.npz') for run in (name, 'one'))
  for key, mask in expected_masks.items():
    np.testing.assert_array_equal(masks[key], mask)


def test_the_report_says_how_it_was_spread(spread):
  for name, devices, processes in (('one', 1, 1), ('eight', 8, 1), ('pair', 2, 2)):
    environment = read_json(spread / name / 'environment.json')
    assert (environment['devices'], environment['processes']) == (devices, processes)
    text = (spread / name / 'report.md').read_text()
    assert f'Device: {devices} x cpu' in text
    assert report.table(spread / name) in text


def test_the_first_process_alone_writes_and_reports(spread):
  first, second = ((spread / f'pair.{i}.txt').read_text() for i in range(2))
  assert 'Report:' in first
  assert 'Report:' not in second
  assert not list((spread / 'pair').rglob('*.tmp'))


def compare(coordinator, i, told):
  """What one process of a job of two is told of two arrays, of which one differs."""
  hosts.start(coordinator, 2, i)
  hosts.check_same('masks', {'a': np.ones(3)})
  with pytest.raises(RuntimeError) as error:
    hosts.check_same('masks', {'a': np.ones(3), 'b': np.array([i])})
  told.write_text(str(error.value))
  jax.distributed.shutdown()


def test_arrays_that_differ_between_processes_are_named(tmp_path):
  """The hard masks of all jobs here were held to it."""
  address, told = victims.coordinator(), [tmp_path / f'{i}.txt' for i in range(2)]
  jobs = [victims.context.Process(target=compare, args=(address, i, told[i])) for i in range(2)]
  for job in jobs:
    job.start()
  for job, file in zip(jobs, told, strict=True):
    job.join(victims.PATIENCE)
    job.kill()
    assert "have different masks, of 'b' to begin with" in file.read_text()


@pytest.mark.parametrize('killed', [1, 0])
def test_a_killed_process_ends_the_other_and_a_restart_resumes(spread, tmp_path, killed):
  """Of process 0 the other loses the coordinator as well."""
  workdir, whole = tmp_path / 'run', spread / 'pair'
  jobs = victims.start_pair(workdir, *SPREAD, '--lost_after=10')
  # The programs of two stages are to come.
  saved = lambda: (workdir / 'checkpoints' / '6').exists()
  try:
    assert victims.wait_for(saved, *jobs[killed])
    assert victims.kill(jobs[killed][0]) == -signal.SIGKILL
    left, log = jobs[1 - killed]
    left.join(60)
    assert left.exitcode not in (None, 0), log.read_text()
  finally:
    for process, _ in jobs:
      process.kill()
  assert not (workdir / 'summary.json').exists()
  told = log.read_text()
  assert 'the run goes on from its last checkpoint' in told or 'distributed service' in told, told
  for job in victims.start_pair(workdir, *SPREAD):
    victims.finish(*job)
  assert read_metrics(workdir) == read_metrics(whole)
  for file in ('masks.npz', 'pruned.npz'):
    ours, theirs = arrays(workdir / file), arrays(whole / file)
    for name in theirs:
      np.testing.assert_array_equal(ours[name], theirs[name])


def test_of_two_processes_a_notice_to_one_ends_both_at_one_step(tmp_path):
  workdir = tmp_path / 'run'
  flags = (*SPREAD, '--config.stages.hard=3.2', '--config.eval_every=0.4')
  one, other = victims.start_pair(workdir, *flags)
  assert victims.wait_for(lambda: steps(workdir)[-1:] >= [6], *one), one[1].read_text()
  os.kill(other[0].pid, signal.SIGTERM)
  for process, log in (one, other):
    victims.finish(process, log, preemption.STATUS)
    assert f'from {workdir}/checkpoints/{steps(workdir)[-1]}.' in log.read_text()
  assert steps(workdir)[-1] < 12 + 200
  for process, log in victims.start_pair(workdir, *flags):
    victims.finish(process, log)
  taken = [r['step'] for r in read_metrics(workdir) if r['kind'] == 'train']
  assert taken == list(range(1, 12 + 200 + 1))


@pytest.mark.parametrize(
  ('flags', 'words'),
  [
    (['--num_processes=2', '--process_id=0'], 'without a coordinator'),
    (['--coordinator=auto'], "coordinator is 'auto'"),
    (['--coordinator=127.0.0.1:1', '--num_processes=2', '--process_id=2'], 'process_id 2'),
  ],
)
def test_an_incomplete_job_is_answered_with_the_flags_it_needs(tmp_path, flags, words):
  log = tmp_path / 'log.txt'
  victims.finish(
    victims.start('train', CONFIG, f'--workdir={tmp_path / "run"}', *flags, log=log), log, 1
  )
  told = log.read_text()
  assert words in told
  assert '--coordinator=HOST:PORT' in told
  assert 'Traceback' not in told
  assert not (tmp_path / 'run').exists()
