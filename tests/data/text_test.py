"""Text as windows of bytes, and what of the standard library is read."""

import pathlib
import subprocess
import sys
import sysconfig
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtp_jax.data import Text, load, text


@pytest.fixture
def library(tmp_path):
  """Two hundred files of a library, and what must not be read."""
  for i in range(200):
    path = tmp_path / f'package{i % 3}' / f'module{i}.py'
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(bytes([i + 1]) * 50)
  for name in ('test/a.py', 'package0/tests/a.py', 'site-packages/b/c.py', 'encodings/cp1.py'):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b'\xff' * 50)
  (tmp_path / '_sysconfigdata__linux.py').write_bytes(b'\xff' * 50)
  (tmp_path / 'notes.txt').write_bytes(b'\xff' * 50)
  return tmp_path


def test_windows_predict_every_byte_but_the_first_once():
  found = text.windows(bytes(range(14)), 4)
  assert found.dtype == np.uint8
  np.testing.assert_array_equal(found[:, :-1].ravel(), np.arange(12))
  np.testing.assert_array_equal(found[:, 1:].ravel(), np.arange(1, 13))


def test_files_are_held_out_as_a_whole_and_nothing_else_is_read(library):
  train, held_out = text.python_stdlib(7, library)
  bytes_of = [set(np.unique(split['tokens'])) - {0} for split in (train, held_out)]
  assert not bytes_of[0] & bytes_of[1]
  assert bytes_of[0] | bytes_of[1] == set(range(1, 201))
  assert 2 < len(bytes_of[1]) < 25


def test_a_file_is_held_out_whatever_else_is_there(library):
  before = set(np.unique(text.python_stdlib(7, library)[1]['tokens']))
  for path in sorted(library.glob('package*/*.py'))[::2]:
    if path.read_bytes()[0] not in before:
      path.unlink()
  assert set(np.unique(text.python_stdlib(7, library)[1]['tokens'])) == before


def test_held_out_windows_are_few_and_evenly_spread(library, monkeypatch):
  _, every = text.python_stdlib(3, library)
  monkeypatch.setattr(text, 'HELD_OUT_WINDOWS', 5)
  _, few = text.python_stdlib(3, library)
  rows = [r * len(every['tokens']) // 5 for r in range(5)]
  np.testing.assert_array_equal(few['tokens'], every['tokens'][rows])


def test_the_installed_library_is_the_same_in_another_process():
  data = load({'name': 'python_stdlib', 'window': 128})
  assert (data.name, data.num_classes, data.verified) == ('python_stdlib', 256, True)
  assert data.train['tokens'].shape[1] == 129
  assert data.examples / len(data.held_out['tokens']) > 10
  assert len(data.held_out['tokens']) == text.HELD_OUT_WINDOWS
  code = (
    'import zlib; from dtp_jax.data import load; d = load({"name": "python_stdlib"});'
    'print(zlib.crc32(d.train["tokens"].tobytes()), zlib.crc32(d.held_out["tokens"].tobytes()))'
  )
  run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  splits = (data.train, data.held_out)
  assert run.stdout.split() == [str(zlib.crc32(s['tokens'].tobytes())) for s in splits]


def test_no_program_of_the_library_is_a_test_or_a_package_of_others():
  folder = pathlib.Path(sysconfig.get_path('stdlib'))
  found = text._sources(folder)
  assert 'argparse.py' in found
  assert 'json/decoder.py' in found
  assert not any('/test/' in f'/{path}' or 'site-packages' in path for path in found)


def test_the_task_asks_for_the_next_byte():
  tokens = np.arange(12, dtype=np.uint8).reshape(2, 6)
  data = Text('two', {'tokens': tokens}, {'tokens': tokens}, 256, verified=False)
  inputs, labels = data.task({})(jax.random.key(0), {'tokens': jnp.asarray(tokens)}, True)
  np.testing.assert_array_equal(inputs, tokens[:, :-1])
  np.testing.assert_array_equal(labels, tokens[:, 1:])
  assert (inputs.shape[1:], inputs.dtype) == (data.example.shape[1:], data.example.dtype)
  np.testing.assert_array_equal(data.inputs(1), inputs[:1])


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'window': 0}, r'data\.window is 0, expected an integer in'),
    ({'validation': 8}, r'data\.validation is 8, expected 0'),
    ({'window': 2**20 - 1}, r'data\.window is 1048575, of a text of .* bytes; expected fewer'),
  ],
)
def test_what_does_not_fit_is_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    load({'name': 'python_stdlib', **fields})


def test_a_python_without_source_files_is_said(tmp_path):
  with pytest.raises(FileNotFoundError, match=r'holds no source file of the standard library'):
    text.python_stdlib(8, tmp_path)
