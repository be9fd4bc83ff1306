"""Jobs of two real processes: the same run as that of one, and what happens when one is killed."""

import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from dtp_jax.files import read_json
from dtp_jax.train import loop
from dtp_jax.train.metrics import read_metrics
from tests.train import several

pytestmark = pytest.mark.faults

# One sum of two halves for one sum of all: rounding, over 18 steps.
LOSS, ACCURACY = 2e-3, 0.01
PATIENCE = 180  # seconds, for a job that compiles on a busy machine


def free_port():
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    return s.getsockname()[1]


def start(workdir, *extra):
  """Two processes of one device each that train in one workdir, their output beside it."""
  port, jobs = free_port(), []
  environment = {**os.environ, 'XLA_FLAGS': '--xla_backend_optimization_level=0'}
  for i in range(2):
    command = [sys.executable, '-m', 'experiments.train', '--config=tests/train/several.py']
    command += [f'--workdir={workdir}', f'--coordinator=127.0.0.1:{port}', *extra]
    command += ['--num_processes=2', f'--process_id={i}']
    with (workdir.parent / f'{workdir.name}.{i}.txt').open('a') as log:
      jobs.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))
  return jobs


def output(workdir, i):
  return (workdir.parent / f'{workdir.name}.{i}.txt').read_text()


def finish(workdir, jobs):
  try:
    codes = [job.wait(PATIENCE) for job in jobs]
  finally:
    for job in jobs:
      job.kill()
  assert codes == [0, 0], output(workdir, 0) + output(workdir, 1)


def arrays(path):
  with np.load(path) as stored:
    return dict(stored)


@pytest.fixture(scope='module')
def pair(tmp_path_factory):
  """The folder of a run of two processes."""
  workdir = tmp_path_factory.mktemp('pair') / 'run'
  finish(workdir, start(workdir))
  return workdir


def test_two_processes_train_the_network_of_one(pair, tmp_path):
  config = several.get_config()
  config.mesh.data = 1
  expected = loop.train_and_evaluate(config, tmp_path)
  found = read_json(pair / 'summary.json')
  for name in ('requested', 'achieved', 'total', 'stages', 'parameters_left'):
    assert found[name] == expected[name]
  np.testing.assert_allclose(found['accuracy'], expected['accuracy'], atol=ACCURACY)
  ours, theirs = read_metrics(pair), read_metrics(tmp_path)
  assert [(r['kind'], r['step']) for r in ours] == [(r['kind'], r['step']) for r in theirs]
  for name in ('loss', 'kept', 'softness'):
    of_pair, of_one = ([r[name] for r in records] for records in (ours, theirs))
    np.testing.assert_allclose(of_pair, of_one, atol=LOSS)
  masks, expected_masks = arrays(pair / 'masks.npz'), arrays(tmp_path / 'masks.npz')
  for name, mask in expected_masks.items():
    np.testing.assert_array_equal(masks[name], mask)


def test_the_first_process_alone_writes_and_reports(pair):
  environment = read_json(pair / 'environment.json')
  assert (environment['processes'], environment['devices']) == (2, 2)
  assert (pair / 'report.md').exists()
  assert 'Report:' in output(pair, 0)
  assert 'Report:' not in output(pair, 1)
  assert not list(pair.rglob('*.tmp'))


@pytest.mark.parametrize('killed', [1, 0])
def test_a_killed_process_ends_the_other_and_a_restart_resumes(pair, tmp_path, killed):
  """Of process 0 the other loses the coordinator as well."""
  workdir = tmp_path / 'run'
  jobs = start(workdir)
  try:
    deadline = time.monotonic() + PATIENCE
    while not (workdir / 'checkpoints' / '6').exists():  # the programs of two stages are to come
      assert time.monotonic() < deadline, output(workdir, 0) + output(workdir, 1)
      time.sleep(0.02)
    jobs[killed].send_signal(signal.SIGKILL)
    code = jobs[1 - killed].wait(120)
  finally:
    for job in jobs:
      job.kill()
  assert code != 0
  assert not (workdir / 'summary.json').exists()
  told = output(workdir, 1 - killed)
  assert 'the run goes on from its last checkpoint' in told or 'distributed service' in told, told
  finish(workdir, start(workdir))
  ours, theirs = read_metrics(workdir), read_metrics(pair)
  assert ours == theirs
  for file in ('masks.npz', 'pruned.npz'):
    resumed, whole = arrays(workdir / file), arrays(pair / file)
    for name in whole:
      np.testing.assert_array_equal(resumed[name], whole[name])


@pytest.mark.parametrize(
  ('flags', 'words'),
  [
    (['--num_processes=2', '--process_id=0'], 'without a coordinator'),
    (['--coordinator=auto'], "coordinator is 'auto'"),
    (['--coordinator=127.0.0.1:1', '--num_processes=2', '--process_id=2'], 'process_id 2'),
  ],
)
def test_an_incomplete_job_is_answered_with_the_flags_it_needs(tmp_path, flags, words):
  command = [sys.executable, '-m', 'experiments.train', '--config=tests/train/several.py']
  command += [f'--workdir={tmp_path / "run"}', *flags]
  done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
  assert done.returncode == 1
  assert words in done.stderr
  assert '--coordinator=HOST:PORT' in done.stderr
  assert 'Traceback' not in done.stderr
  assert not (tmp_path / 'run').exists()
