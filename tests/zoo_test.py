"""The zoo's command on networks that need no other library, and the committed table."""

import importlib.util
import pathlib
import re
import subprocess
import sys

import pytest

from experiments import zoo
from experiments.zoo_models import MODELS

ROOT = pathlib.Path(__file__).parents[1]
COMMITTED = ROOT / 'experiments/results/2026-11-29_zoo/zoo.csv'
VAE_MACS = 2 * (96 * 64 + 64 * 8)
VAE_PARAMS = VAE_MACS + 64 + 8 + 64 + 96


def command(folder, *arguments):
  done = subprocess.run(
    [sys.executable, '-m', 'experiments.zoo', f'--out={folder}', *arguments],
    capture_output=True,
    text=True,
    check=False,
    cwd=ROOT,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A zoo of one network, and of one whose library is missing."""
  libraries = {name: name.split('/')[0] for name in MODELS}
  missing = [n for n, library in libraries.items() if importlib.util.find_spec(library) is None]
  folder = tmp_path_factory.mktemp('zoo')
  text = command(folder, f'--models={",".join(["flax/vae", *missing[:1]])}')
  return folder, text, [row for row in zoo.read(folder / zoo.FILE) if row['model'] != 'flax/vae']


def test_a_network_is_measured_to_the_end(folder):
  row = next(row for row in zoo.read(folder[0] / zoo.FILE) if row['model'] == 'flax/vae')
  assert not row['error']
  assert (int(row['macs']), int(row['params'])) == (VAE_MACS, VAE_PARAMS)
  assert float(row['prunable_macs']) == 1
  assert float(row['prunable_params']) == pytest.approx(1 - 96 / VAE_PARAMS, abs=1e-4)
  assert int(row['groups']) == 3
  for unit in ('macs', 'params'):
    assert 0.4 < float(row[f'{unit}_50']) <= 0.5
    assert 0.2 < float(row[f'{unit}_25']) <= 0.25
  assert float(row['difference']) < 1e-5
  assert float(row['export_difference']) < 1e-5
  assert row['export_batch'] == 'any'
  assert float(row['seconds']) > float(row['trace_seconds']) > 0


def test_what_fails_is_a_row_with_its_error(folder):
  for row in folder[2]:
    assert row['error'].startswith('build: ModuleNotFoundError')
    assert row['macs'] == ''
    assert zoo.exceptions([row]) == {row['model']: [row['error']]}
  row = zoo.measured('flax/vae', limit=0)
  assert row['error'].endswith('not done after 0 s')
  assert float(row['seconds']) < 5


def test_rows_are_kept_and_shown(folder):
  path, text, _ = folder
  before = (path / zoo.FILE).read_bytes()
  assert command(path, '--models=flax/vae') == command(path, '--nothing_new') == text
  assert (path / zoo.FILE).read_bytes() == before
  assert f'| flax/vae | {VAE_MACS:,} | 100.0 % | {VAE_PARAMS:,} | 99.3 % | 3 |' in text


def test_a_wrong_name_or_another_table_is_refused(tmp_path):
  arguments = [sys.executable, '-m', 'experiments.zoo', f'--out={tmp_path}', '--models=bert']
  done = subprocess.run(arguments, capture_output=True, text=True, check=False, cwd=ROOT)
  assert done.returncode == 1
  assert '--models=bert fits none of transformers/bert' in done.stderr
  assert not (tmp_path / zoo.FILE).exists()
  for wrong, says in {
    '--models=flax/vae,nope': '--models=nope fits none',
    '--limit=-1': '-1 is not a positive integer',
    '--out=/proc/out': '--out is /proc/out, but nothing can be written',
  }.items():
    done = subprocess.run([*arguments, '--models=flax/vae', wrong], capture_output=True, cwd=ROOT)
    assert done.returncode == 1
    assert says in done.stderr.decode()
    assert 'Traceback' not in done.stderr.decode()
  (tmp_path / zoo.FILE).write_bytes(COMMITTED.read_bytes()[:-9])
  with pytest.raises(ValueError, match=r'zoo.csv was cut short|zoo.csv is not the CSV file'):
    zoo.read(tmp_path / zoo.FILE)
  (tmp_path / zoo.FILE).write_text('model,seconds\n')
  with pytest.raises(ValueError, match=r"has the columns \['model', 'seconds'\]; expected"):
    zoo.read(tmp_path / zoo.FILE)


def test_the_committed_table_is_whole_right_and_explained():
  rows = zoo.read(COMMITTED)
  assert {row['model'] for row in rows} == set(MODELS)
  page = (ROOT / 'docs/zoo.md').read_text()
  explained = set(re.findall(r'^- `([\w/]+)`', page, re.M))
  assert set(zoo.exceptions(rows)) == explained
  for row in rows:
    assert not row['error'], row['model']
    assert float(row['difference']) < 1e-5
    assert float(row['export_difference']) < 1e-5
    for unit in ('macs', 'params'):
      assert float(row[f'{unit}_50']) <= 0.5
      assert float(row[f'{unit}_25']) <= 0.25
