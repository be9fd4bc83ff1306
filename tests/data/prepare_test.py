"""Preparing: what is accepted, what is refused, and that nothing half-written is ever left."""

import functools
import gzip
import http.server
import json
import os
import pathlib
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np
import pytest
from tensorflow_datasets.core.download import checksums

from dtp_jax.data import archives, builders, load, prepare


def _files(folder):
  return sorted(p for p in pathlib.Path(folder).rglob('*') if p.is_file())


def _damage(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


@pytest.mark.parametrize('name', ['mnist', 'cifar10', 'cifar100'])
def test_raw_files_are_recorded_as_unverified(name, request, tmp_path):
  official = request.getfixturevalue(name)
  status = prepare.prepare(name, official.raw, tmp_path / 'tfds')
  assert status.prepared
  assert not status.verified
  record = json.loads((status.path / builders.PROVENANCE).read_text())
  assert record['verified'] is False
  assert {f['file'] for f in record['files']} == {p.name for p in _files(official.raw)}
  data = load({'name': name, 'data_dir': tmp_path / 'tfds'})
  assert data.verified is False
  archived = prepare.prepare(name, official.folder, tmp_path / 'tfds2')
  assert archived.verified
  np.testing.assert_array_equal(
    data.train['image'], load({'name': name, 'data_dir': tmp_path / 'tfds2'}).train['image']
  )


def test_folder_may_be_the_unpacked_one_itself_and_names_of_classes_are_optional(cifar10, tmp_path):
  folder = cifar10.raw / 'cifar-10-batches-bin'
  (folder / 'batches.meta.txt').unlink()
  assert prepare.prepare('cifar10', folder, tmp_path / 'tfds').prepared
  assert load({'name': 'cifar10', 'data_dir': tmp_path / 'tfds'}).held_out['image'].shape == (
    10,
    32,
    32,
    3,
  )


def test_one_raw_file_among_archives_makes_it_unverified(mnist, tmp_path):
  path = mnist.folder / 't10k-labels-idx1-ubyte.gz'
  path.with_suffix('').write_bytes(gzip.decompress(path.read_bytes()))
  path.unlink()
  assert not prepare.prepare('mnist', mnist.folder, tmp_path / 'tfds').verified


@pytest.mark.parametrize(
  ('name', 'file'),
  [('mnist', 'train-images-idx3-ubyte.gz'), ('cifar10', 'cifar-10-binary.tar.gz')],
)
def test_wrong_checksum_is_refused(name, file, request, tmp_path, capsys):
  official = request.getfixturevalue(name)
  infos = {i.filename: i for i in builders.BUILDERS[name].url_infos.values()}
  _damage(official.folder / file)
  found = checksums.compute_url_info(official.folder / file).checksum
  with pytest.raises(archives.ChecksumError) as error:
    prepare.prepare(name, official.folder, tmp_path / 'tfds')
  for part in (file, found, infos[file].checksum):
    assert part in str(error.value)
  assert not (tmp_path / 'tfds').exists()
  command = [name, '--from', str(official.folder), '--data_dir', str(tmp_path / 'tfds')]
  assert prepare.main(command) == 1
  assert file in capsys.readouterr().err


def test_same_file_names_of_another_data_set_are_refused(mnist, fashion_mnist, tmp_path):
  # Both write to tmp_path / 'archives' under the same names; fashion_mnist came last.
  with pytest.raises(archives.ChecksumError, match='not the official'):
    prepare.prepare('mnist', mnist.folder, tmp_path / 'tfds')


def test_missing_files_are_listed(mnist, tmp_path):
  (mnist.folder / 't10k-labels-idx1-ubyte.gz').unlink()
  with pytest.raises(FileNotFoundError, match=r't10k-labels-idx1-ubyte\.gz') as error:
    prepare.prepare('mnist', mnist.folder, tmp_path / 'tfds')
  assert 'train-images' not in str(error.value)
  with pytest.raises(FileNotFoundError, match='nowhere is not a folder'):
    prepare.prepare('mnist', tmp_path / 'nowhere', tmp_path / 'tfds')


def test_short_raw_file_is_refused_and_leaves_nothing(cifar10, tmp_path):
  path = cifar10.raw / 'cifar-10-batches-bin' / 'data_batch_5.bin'
  path.write_bytes(path.read_bytes()[:-3073])  # A whole record less.
  with pytest.raises(ValueError, match=r'39 images in its train split, the official one 40'):
    prepare.prepare('cifar10', cifar10.raw, tmp_path / 'tfds')
  assert list((tmp_path / 'tfds').iterdir()) == []


def test_exchanged_raw_files_are_refused(mnist, tmp_path):
  images, labels = (mnist.raw / f'train-{k}-ubyte' for k in ('images-idx3', 'labels-idx1'))
  data = images.read_bytes()
  shutil.copy(labels, images)
  labels.write_bytes(data)
  with pytest.raises(ValueError, match='exchanged'):
    prepare.prepare('mnist', mnist.raw, tmp_path / 'tfds')


def test_label_that_is_no_class_is_refused_and_leaves_nothing(mnist, tmp_path):
  path = mnist.raw / 't10k-labels-idx1-ubyte'
  path.write_bytes(path.read_bytes()[:-1] + bytes([10]))
  with pytest.raises(ValueError, match='10'):
    prepare.prepare('mnist', mnist.raw, tmp_path / 'tfds')
  assert list((tmp_path / 'tfds').iterdir()) == []


def test_failure_in_the_middle_of_writing_leaves_nothing(mnist, tmp_path, monkeypatch):
  written = []

  def full_disk(images, labels, id_prefix, examples=builders._examples):
    for item in examples(images, labels, id_prefix):
      if len(written) == 45:  # All of one split and some of the other.
        written.append(_files(tmp_path / 'tfds'))
        raise OSError(28, 'No space left on device')
      written.append(item)
      yield item

  monkeypatch.setattr(builders, '_examples', full_disk)
  with pytest.raises(OSError, match='No space left'):
    prepare.prepare('mnist', mnist.folder, tmp_path / 'tfds')
  assert written[-1], 'files had been written by then'
  assert list((tmp_path / 'tfds').iterdir()) == []
  monkeypatch.undo()


def test_an_interrupt_in_the_middle_of_writing_leaves_nothing(mnist, tmp_path, monkeypatch, capsys):
  written = []

  def interrupted(images, labels, id_prefix, examples=builders._examples):
    for item in examples(images, labels, id_prefix):
      if len(written) == 45:
        written.append(_files(tmp_path / 'tfds'))
        raise KeyboardInterrupt
      written.append(item)
      yield item

  monkeypatch.setattr(builders, '_examples', interrupted)
  command = ['mnist', '--from', str(mnist.folder), '--data_dir', str(tmp_path / 'tfds')]
  assert prepare.main(command) == 130
  assert 'nothing was kept' in capsys.readouterr().err
  assert written[-1], 'files had been written by then'
  assert list((tmp_path / 'tfds').iterdir()) == []


def test_a_killed_process_leaves_no_data_set_and_nothing_in_the_way_of_the_next(mnist, tmp_path):
  raw, data_dir = tmp_path / 'large', tmp_path / 'tfds'
  raw.mkdir()
  for prefix, n in {'train': 60_000, 't10k': 10_000}.items():
    images = struct.pack('>4B3I', 0, 0, 8, 3, n, 28, 28) + bytes(n * 28 * 28)
    (raw / f'{prefix}-images-idx3-ubyte').write_bytes(images)
    (raw / f'{prefix}-labels-idx1-ubyte').write_bytes(struct.pack('>4BI', 0, 0, 8, 1, n) + bytes(n))
  process = subprocess.Popen(
    [sys.executable, '-m', 'dtp_jax.data.prepare', 'mnist', '--from', raw, '--data_dir', data_dir],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  deadline = time.monotonic() + 60
  while not list(data_dir.glob('mnist/incomplete.*')) and time.monotonic() < deadline:
    time.sleep(0.02)
  process.kill()
  process.communicate(timeout=60)
  assert process.returncode == -signal.SIGKILL
  assert not prepare.status('mnist', data_dir).prepared
  assert prepare.prepare('mnist', mnist.folder, data_dir).prepared


def test_already_prepared_says_so_and_keeps_it(mnist, tmp_path, capsys):
  command = ['mnist', '--from', str(mnist.folder), '--data_dir', str(tmp_path / 'tfds')]
  assert prepare.main(command) == 0
  assert 'mnist prepared' in capsys.readouterr().out
  before = {p: p.stat().st_mtime_ns for p in _files(tmp_path / 'tfds')}
  assert prepare.main(command) == 0
  out = capsys.readouterr().out
  assert 'already prepared' in out
  assert 'official checksums' in out
  assert {p: p.stat().st_mtime_ns for p in _files(tmp_path / 'tfds')} == before


def test_data_set_in_a_format_of_tensorflow_is_refused_and_kept(tmp_path, capsys):
  path = prepare.status('mnist', tmp_path).path
  path.mkdir(parents=True)
  (path / 'dataset_info.json').write_text('{"fileFormat": "tfrecord"}')
  assert prepare.main(['mnist', '--data_dir', str(tmp_path)]) == 1
  assert 'tfrecord' in capsys.readouterr().err
  with pytest.raises(ValueError, match='array_record'):
    load({'name': 'mnist', 'data_dir': tmp_path})
  assert [p.name for p in _files(tmp_path)] == ['dataset_info.json']


@pytest.mark.parametrize(
  ('name', 'hint'), [('cifra10', "mean 'cifar10'"), ('MNIST', 'mnist'), ('imagenet', 'There are')]
)
def test_unknown_name_is_wrong_usage(name, hint, capsys):
  with pytest.raises(SystemExit) as stop:
    prepare.main([name])
  assert stop.value.code == 2
  err = capsys.readouterr().err
  assert hint in err
  assert 'fashion_mnist' in err


def test_help_explains_offline_use(capsys):
  with pytest.raises(SystemExit) as stop:
    prepare.main(['--help'])
  assert stop.value.code == 0
  out = capsys.readouterr().out
  assert '--from FOLDER' in out
  assert 'unverified' in out
  assert all(name in out for name in builders.BUILDERS)


class _Quiet(http.server.SimpleHTTPRequestHandler):
  def log_message(self, *args):
    pass


@pytest.fixture
def published(mnist, monkeypatch):
  """The archives of `mnist`, published by a web server on this machine."""
  handler = functools.partial(_Quiet, directory=os.fspath(mnist.folder))
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
  thread = threading.Thread(target=server.serve_forever, args=(0.02,))
  thread.start()
  url = f'http://127.0.0.1:{server.server_port}/'
  infos = {url + i.filename: i for i in builders.Mnist.url_infos.values()}
  monkeypatch.setattr(builders.Mnist, 'url_infos', infos)
  monkeypatch.setenv('no_proxy', '127.0.0.1')
  yield mnist
  server.shutdown()
  server.server_close()
  thread.join()


def test_download_is_verified_and_leaves_only_the_data_set(published, tmp_path):
  status = prepare.prepare('mnist', data_dir=tmp_path / 'tfds')
  assert status.prepared
  assert status.verified
  assert [p.name for p in (tmp_path / 'tfds').iterdir()] == ['mnist']
  assert len(load({'name': 'mnist', 'data_dir': tmp_path / 'tfds'}).train['label']) == 40


def test_damaged_download_is_refused_and_leaves_nothing(published, tmp_path):
  _damage(published.folder / 't10k-images-idx3-ubyte.gz')
  with pytest.raises(archives.ChecksumError, match=r't10k-images-idx3-ubyte\.gz'):
    prepare.prepare('mnist', data_dir=tmp_path / 'tfds')
  assert not (tmp_path / 'tfds').exists()


def test_missing_download_says_how_to_do_without(published, tmp_path):
  (published.folder / 't10k-images-idx3-ubyte.gz').unlink()
  with pytest.raises(ConnectionError, match='404') as error:
    prepare.prepare('mnist', data_dir=tmp_path / 'tfds')
  assert 'python -m dtp_jax.data.prepare mnist --from FOLDER' in str(error.value)
  assert not (tmp_path / 'tfds').exists()


def test_interrupted_download_ends_at_once_and_leaves_nothing(
  published, tmp_path, monkeypatch, capsys
):
  scratch = tmp_path / 'scratch'
  scratch.mkdir()
  monkeypatch.setattr(tempfile, 'tempdir', str(scratch))
  found = []

  def half_a_file(handler):  # and then nothing, but Ctrl-C
    handler.send_response(200)
    handler.send_header('Content-Length', '9999999')
    handler.end_headers()
    handler.wfile.write(bytes(500_000))
    deadline = time.monotonic() + 60
    while not any(p.stat().st_size for p in _files(scratch)) and time.monotonic() < deadline:
      time.sleep(0.02)
    found.extend(_files(scratch))
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    while list(scratch.iterdir()) and time.monotonic() < deadline:
      time.sleep(0.02)  # the end of the connection would be another error

  monkeypatch.setattr(_Quiet, 'do_GET', half_a_file)
  assert prepare.main(['mnist', '--data_dir', str(tmp_path / 'tfds')]) == 130
  assert 'nothing was kept' in capsys.readouterr().err
  assert found, 'half a file had been written by then'
  assert list(scratch.iterdir()) == []
  assert not (tmp_path / 'tfds').exists()


def test_unknown_host_fails_at_once(mnist, tmp_path, monkeypatch):
  infos = {f'http://host.invalid/{i.filename}': i for i in builders.Mnist.url_infos.values()}
  monkeypatch.setattr(builders.Mnist, 'url_infos', infos)
  for variable in ('http_proxy', 'https_proxy', 'all_proxy'):
    monkeypatch.delenv(variable, raising=False)
    monkeypatch.delenv(variable.upper(), raising=False)
  with pytest.raises(ConnectionError, match=r'host\.invalid'):
    prepare.prepare('mnist', data_dir=tmp_path / 'tfds')
  assert not (tmp_path / 'tfds').exists()
