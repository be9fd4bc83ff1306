"""Shares of a host's devices for runs side by side; those of a CPU stand for any."""

import os
import subprocess
import sys

import jax
import pytest

from dtp_jax.train import mesh as meshes
from dtp_jax.train import places, runner
from dtp_jax.train.places import Place

eight = pytest.mark.skipif(
  jax.device_count() < 8, reason='needs the eight devices of the test session'
)


@eight
@pytest.mark.parametrize(
  ('needed', 'count', 'shares'),
  [
    (1, None, [(i,) for i in range(8)]),
    (4, None, [(0, 1, 2, 3), (4, 5, 6, 7)]),
    (3, None, [(0, 1, 2, 3), (4, 5, 6, 7)]),
    (1, 3, [(0, 1), (2, 3), (4, 5)]),
    (1, 10, [(i % 8,) for i in range(10)]),
  ],
)
def test_each_run_has_what_it_needs_to_itself(needed, count, shares):
  found = places.find(needed, count)
  assert [place.devices for place in found] == shares
  assert [(p.platform, p.number, p.processes) for p in found] == [
    ('cpu', i, len(shares)) for i in range(len(shares))
  ]


@eight
@pytest.mark.parametrize(('needed', 'count'), [(8, None), (5, None), (16, None), (1, 1), (9, 1)])
def test_one_alone_has_everything(needed, count):
  assert places.find(needed, count) == [None]


@eight
@pytest.mark.parametrize(('needed', 'count', 'most'), [(4, 3, 2), (5, 2, 1), (9, 2, 1)])
def test_shares_that_are_too_small_are_refused(needed, count, most):
  message = rf'processes is {count} on 8 cpu devices.*needs {needed} .*at most {most}\.'
  with pytest.raises(ValueError, match=message):
    places.find(needed, count)


def test_processes_must_be_positive(tmp_path):
  with pytest.raises(ValueError, match='processes is 0'):
    runner.run_all([], tmp_path, processes=0)


def test_more_processes_than_runs_do_not_keep_it_from_ending(tmp_path):
  """Their places are more than a pipe holds, and nobody takes them out."""
  program = (
    f'from dtp_jax.train import runner; runner.run_all([], {str(tmp_path)!r}, processes=9999)'
  )
  subprocess.run([sys.executable, '-c', program], check=True, timeout=60)


def test_a_host_without_a_device_is_named(monkeypatch):
  monkeypatch.setenv('JAX_PLATFORMS', 'abacus')
  with pytest.raises(OSError, match=r'finds no device on this host: .*abacus'):
    places.find(1)


@pytest.mark.parametrize(
  ('sizes', 'fewest'),
  [((-1, 1), 1), ((1, 1), 1), ((2, 4), 8), ((-1, 4), 4), ((3, -1), 3), ((-1, -1), 1)],
)
def test_an_axis_that_takes_the_rest_may_be_one_long(sizes, fewest):
  assert meshes.needed(dict(zip(('data', 'model'), sizes, strict=True))) == fewest


def test_a_process_sees_its_devices_and_cores_alone():
  """A process that has asked for a device cannot be confined any more: one of its own."""
  program = """
import os
from dtp_jax.train.places import Place, settle
settle(Place('cpu', (2, 3), 1, 2))
import jax
cores = getattr(os, 'sched_getaffinity', lambda _: ())(0)
print(jax.device_count(), *sorted(cores))
"""
  command = [sys.executable, '-c', program]
  done = subprocess.run(command, capture_output=True, text=True, check=True)
  cores = sorted(getattr(os, 'sched_getaffinity', lambda _: ())(0))
  assert done.stdout.split() == ['2', *map(str, cores[1::2] or cores)]


@pytest.mark.parametrize(
  ('visible', 'seen'),
  [('', '2,3'), ('7, 6,5,4', '5,4'), ('GPU-a,GPU-b,GPU-c,GPU-d', 'GPU-c,GPU-d')],
)
def test_gpus_are_told_by_the_names_that_cuda_has_for_them(monkeypatch, visible, seen):
  monkeypatch.setenv('CUDA_VISIBLE_DEVICES', visible)
  places.settle(Place('gpu', (2, 3), 1, 2))
  assert os.environ['CUDA_VISIBLE_DEVICES'] == seen


def test_a_process_of_a_job_does_not_sweep(monkeypatch, tmp_path):
  monkeypatch.setattr(jax.distributed, 'is_initialized', lambda: True)
  with pytest.raises(ValueError, match=r'this is process 0 of a job.*start one on each host'):
    runner.run_all([], tmp_path / 'sweep')
  assert not (tmp_path / 'sweep').exists()
