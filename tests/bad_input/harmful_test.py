"""Files made to do harm: nothing is unpickled, run, unpacked elsewhere, or larger than expected."""

import gzip
import hashlib
import io
import json
import pathlib
import pickle
import struct
import sys
import tarfile
import tracemalloc
import types
import zipfile
import zlib

import jax
import numpy as np
import pytest

from dtp_jax import export
from dtp_jax.data import archives
from dtp_jax.data.loading import _pixels
from dtp_jax.export.run import load_run
from dtp_jax.files import read_npz, read_safetensors
from dtp_jax.models import from_torch
from dtp_jax.train.checkpoint import Checkpoints
from dtp_jax.train.state import TrainState
from tests.bad_input.files_test import SLIM, TINY, header, npz, run_files, slim
from tests.bad_input.table import Case, assert_refused

MIB = 2**20
BOMB = 16 * MIB


class Harmful:
  """Unpickled, it makes a folder."""

  def __reduce__(self):
    return pathlib.Path.mkdir, (pathlib.Path('harmed'),)


PICKLE = pickle.dumps(Harmful(), protocol=2)
OBJECTS = npz(a=np.array([Harmful()], dtype=object))


def zipped(files, compression=zipfile.ZIP_DEFLATED):
  content = io.BytesIO()
  with zipfile.ZipFile(content, 'w', compression) as archive:
    for name, data in files.items():
      archive.writestr(name, data)
  return content.getvalue()


def npy(shape, data=b'', descr="'|b1'"):
  """An .npy file whose header says anything."""
  text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n".encode()
  return b'\x93NUMPY\x01\x00' + struct.pack('<H', len(text)) + text + data


def test_the_pickle_here_does_harm(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  pickle.loads(PICKLE)
  assert (tmp_path / 'harmed').is_dir()


def of_run(place):
  load_run(place / 'run')


def stored(place):
  read_npz(place / 'x.npz', 1000)


def tensors(place):
  read_safetensors(place / 'x.safetensors')


def torch_file(place):
  from_torch(place / 'x.pth', TINY)


LIES = {
  'beyond the end': {'a': {'dtype': 'F32', 'shape': [4], 'data_offsets': [0, 16]}},
  'before the start': {'a': {'dtype': 'F32', 'shape': [1], 'data_offsets': [-4, 0]}},
  'backwards': {'a': {'dtype': 'F32', 'shape': [1], 'data_offsets': [8, 4]}},
  'twice': {name: {'dtype': 'F32', 'shape': [2], 'data_offsets': [0, 8]} for name in ('a', 'b')},
  'of another size than the shape': {
    'a': {'dtype': 'F32', 'shape': [2**40], 'data_offsets': [0, 8]}
  },
}
REFUSED = {
  'arrays of objects': Case(stored, ValueError, ('Python objects', 'pickle'), {'x.npz': OBJECTS}),
  'a pickle for arrays': Case(stored, ValueError, ('not a zip',), {'x.npz': PICKLE}),
  'a pickle in an archive': Case(
    stored, ValueError, ('x.npz', 'damaged'), {'x.npz': zipped({'a.npy': PICKLE})}
  ),
  'names that lead out': Case(
    of_run,
    ValueError,
    ("'params/conv1/bias'", 'of another run'),
    {**run_files(), 'run/pruned.npz': zipped({'../../a.npy': npy((0,))})},
  ),
  'arrays that unpack to 16 MiB': Case(
    stored,
    ValueError,
    ('16,777,216', 'at most 1,000'),
    {'x.npz': zipped({'a.npy': npy((BOMB,), bytes(BOMB))})},
  ),
  'arrays that say 8 EiB': Case(
    stored, ValueError, ('at most 1,000',), {'x.npz': zipped({'a.npy': npy((2**63,))})}
  ),
  'a header without end': Case(
    stored,
    ValueError,
    ('another version',),
    {'x.npz': zipped({'a.npy': b'\x93NUMPY\x02\x00' + struct.pack('<I', 2**30) + bytes(BOMB)})},
  ),
  'a torch file that unpacks to 16 MiB': Case(
    torch_file,
    ValueError,
    ('16,777,216', 'does not compress'),
    {'x.pth': zipped({'x/data.pkl': bytes(BOMB)})},
  ),
  'a pickle for safetensors': Case(tensors, ValueError, ('x.saf',), {'x.safetensors': PICKLE}),
  'safetensors with a header of 8 EiB': Case(
    tensors, ValueError, ('x.saf',), {'x.safetensors': struct.pack('<Q', 2**63) + b'{}'}
  ),
  **{
    f'safetensors with data {name}': Case(
      tensors, ValueError, ('x.saf', 'changed'), {'x.safetensors': header(entries, bytes(8))}
    )
    for name, entries in LIES.items()
  },
  'a pickle for a manifest': Case(
    lambda place: export.load_slim(place / 'slim'), ValueError, ('not JSON',), slim(manifest=PICKLE)
  ),
  'a pickle for a program': Case(
    lambda place: export.load_slim(place / 'slim').program,
    ValueError,
    ('stablehlo.bin',),
    slim(stablehlo=PICKLE),
  ),
}


@pytest.mark.parametrize('name', REFUSED)
def test_it_is_refused_in_little_memory_and_leaves_nothing(name, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  case, peaks = REFUSED[name], []

  def measured(place):
    tracemalloc.start()
    try:
      case.call(place)
    finally:
      peaks.append(tracemalloc.get_traced_memory()[1])
      tracemalloc.stop()

  measures = case.call is not of_run  # that loads its data and traces its network
  assert_refused(case._replace(call=measured) if measures else case, tmp_path)
  assert all(peak < 4 * MIB for peak in peaks)


def test_a_manifest_names_no_file_that_is_read(tmp_path):
  """Whatever it says: the files are the four of the folder, and names are keys, never paths."""
  secret = {
    'variables': '../secret.safetensors',
    'stablehlo.bin': '/etc/passwd',
    'kept': '../k.json',
  }
  manifest = {**json.loads(SLIM['manifest.json']), 'files': secret, **secret}
  files = slim(manifest=json.dumps(manifest))
  assert not any(name in ('secret.safetensors', 'k.json') for name in files)
  for name, content in files.items():
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
  saved = export.load_slim(tmp_path / 'slim')
  assert list(saved.variables['params']) == ['a']


def test_a_stranger_s_config_imports_nothing(tmp_path, monkeypatch):
  (tmp_path / 'evil_methods.py').write_text('import os; os.mkdir("harmed")')
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.chdir(tmp_path)
  files = run_files(imports=('evil_methods',), pretrained='evil.pth')
  assert_refused(Case(of_run, FileNotFoundError, ('pruned.npz',), files), tmp_path)
  assert 'evil_methods' not in sys.modules


def test_an_old_torch_is_not_asked(tmp_path, monkeypatch):
  """Before 2.6 a file could run code although weights_only is True."""
  (tmp_path / 'x.pth').write_bytes(PICKLE)
  load = lambda path, **options: pickle.loads(path.read_bytes())
  monkeypatch.setitem(sys.modules, 'torch', types.SimpleNamespace(load=load, __version__='2.5.1'))
  monkeypatch.chdir(tmp_path)
  assert_refused(Case(torch_file, ImportError, ('2.5.1', 'pip install -U torch')), tmp_path)


def test_a_checkpoint_is_never_unpickled(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  step = tmp_path / 'checkpoints' / '5'
  for item in ('params', 'position'):
    (step / item).mkdir(parents=True)
    for name in ('_METADATA', 'manifest.ocdbt', 'checkpoint', 'metadata', 'data.pkl'):
      (step / item / name).write_bytes(PICKLE)
  (step / '_CHECKPOINT_METADATA').write_bytes(PICKLE)
  checkpoints = Checkpoints(tmp_path / 'checkpoints')
  params = {'a': jax.ShapeDtypeStruct((3,), np.float32)}
  like = TrainState(jax.ShapeDtypeStruct((), np.int32), {}, params, {}, {}, {}, {})
  with pytest.raises(Exception):
    checkpoints.restore(like, 5)
  checkpoints.close()
  assert not (tmp_path / 'harmed').exists()


def official(content, *members):
  """An archive of these bytes, as if its publisher had gone bad."""
  return archives.Archive(
    'https://host.invalid/a', 'a.tar.gz', len(content), hashlib.sha256(content).hexdigest(), members
  )


def test_an_archive_is_read_and_never_unpacked(tmp_path):
  content = io.BytesIO()
  with tarfile.open(fileobj=content, mode='w:gz') as tar:
    for name in ('../out.bin', '/tmp/out.bin', 'd/a.bin'):
      item = tarfile.TarInfo(name)
      item.size = 3
      tar.addfile(item, io.BytesIO(b'abc'))
    link = tarfile.TarInfo('d/b.bin')
    link.type, link.linkname = tarfile.SYMTYPE, '/etc/passwd'
    tar.addfile(link)
  folder = tmp_path / 'raw'
  folder.mkdir()
  (folder / 'a.tar.gz').write_bytes(content.getvalue())
  source = archives.read([official(content.getvalue(), 'd/a.bin', 'd/b.bin')], folder)
  assert source.members == {'a.bin': b'abc'}
  assert [p.name for p in tmp_path.rglob('*')] == ['raw', 'a.tar.gz']


def test_an_archive_of_another_checksum_is_not_unpacked(tmp_path):
  (tmp_path / 'a.tar.gz').write_bytes(gzip.compress(bytes(BOMB), 1))
  tracemalloc.start()
  with pytest.raises(archives.ChecksumError):
    archives.read([official(b'', 'a.bin')], tmp_path)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 4 * MIB


def test_an_image_of_another_size_is_not_decoded():
  def chunk(kind, data):
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

  side = struct.pack('>IIBBBBB', 2**13, 2**13, 8, 0, 0, 0, 0)  # 64 MiB of pixels
  png = b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', side) + chunk(b'IDAT', b'')
  with pytest.raises(ValueError, match=r'bytes cannot be decoded: .* \(28, 28\)'):
    _pixels(png, (28, 28, 1))


def test_plain_arrays_come_through(tmp_path):
  (tmp_path / 'a.npz').write_bytes(npz(a=np.arange(3), b=np.ones((2, 2), bool)))
  found = read_npz(tmp_path / 'a.npz', 3 * 8 + 4)
  assert {name: array.tolist() for name, array in found.items()} == {
    'a': [0, 1, 2], 'b': [[True, True]] * 2
  }  # fmt: skip
