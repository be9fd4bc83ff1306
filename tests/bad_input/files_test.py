"""Files and folders that are not what they should be: each is named, and nothing is written."""

import functools
import hashlib
import io
import json
import struct

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import dtp_jax as dtp
from configs import mnist_lenet
from dtp_jax import export
from dtp_jax.budget.device import device_name
from dtp_jax.data import archives, load, prepare
from dtp_jax.export.load import FORMAT
from dtp_jax.export.run import load_run
from dtp_jax.files import read_safetensors
from dtp_jax.models import CifarResNet, ResNet, from_torch
from dtp_jax.report import write_report
from dtp_jax.report.rows import COLUMNS, collect, read_csv, read_published
from dtp_jax.train.folder import read_config
from tests.bad_input.table import UNWRITABLE, Case, assert_refused

FLOATS = np.zeros(3, np.float32)


def changed(content, **fields):
  """JSON of a mapping with other fields, those that are None left out."""
  return json.dumps({k: v for k, v in {**content, **fields}.items() if v is not None})


def npz(**arrays):
  file = io.BytesIO()
  np.savez(file, **arrays)
  return file.getvalue()


def header(entries, data=b''):
  """A safetensors file whose header says anything."""
  text = json.dumps(entries).encode()
  return struct.pack('<Q', len(text)) + text + data


TABLE = {
  'format': 'dtp_jax.latency_table', 'version': 1, 'device': device_name(), 'batch_size': 1,
  'repeats': 2, 'overhead_ns': 0, 'groups': {'a': 4}, 'untimed': [],
  'curves': [{'knots': [[1, 4]], 'measured_ns': [10, 20]}],
  'operators': [{'name': 'a', 'primitive': 'dot', 'curve': 0, 'widths': [[[['a'], 1]]]}],
}  # fmt: skip


def table(**fields):
  return {'table.json': changed(TABLE, **fields)}


def load_table(place):
  dtp.LatencyTable.load(place / 'table.json')


TABLES = {
  'not there': Case(load_table, FileNotFoundError, ('table.json', 'LatencyTable.measure')),
  'to be written over a folder': Case(
    lambda place: measured().save(place / 'slim'),
    IsADirectoryError,
    ('slim', 'Is a directory'),
    {'slim/a': ''},
  ),
  'torn': Case(load_table, ValueError, ('table.json', 'cut short'), {'table.json': '{"for'}),
  'bytes': Case(load_table, ValueError, ('table.json', 'not JSON'), {'table.json': b'\xff\xfe\0'}),
  'a list': Case(load_table, ValueError, ('table.json', 'LatencyTable.save'), {'table.json': '[]'}),
  'of something else': Case(load_table, ValueError, ("'notes'", 'anew'), table(format='notes')),
  'of another version': Case(load_table, ValueError, ('version 9', 'anew'), table(version=9)),
  'of another device': Case(load_table, ValueError, ("'toaster'", 'any_'), table(device='toaster')),
  'without its groups': Case(load_table, ValueError, ("'groups'", '.save'), table(groups=None)),
  'of groups by number': Case(load_table, ValueError, ('table.json', '.save'), table(groups=[4])),
  'sizes in words': Case(
    load_table, ValueError, ('table.json', 'four'), table(groups={'a': 'four'})
  ),
  'of widths it did not measure': Case(
    load_table, ValueError, ("'a' has the widths [9]", 'up to [4]'), table(groups={'a': 9})
  ),
}

SLIM = {
  'manifest.json': json.dumps({'format': FORMAT, 'versions': {'jax': '0.10.2'}}),
  'kept.json': json.dumps(
    {
      'groups': {'a': {'size': 5, 'kept': [0, 1, 4]}},
      'arrays': {'params/a': {'shape': [5], 'kept': {'0': [0, 1, 4]}}},
    }
  ),
  'variables.safetensors': safetensors.numpy.save({'params/a': FLOATS}),
  'stablehlo.bin': b'a program',
}


def slim(**files):
  """A slim model with other files, whose checksums fit; None leaves one out."""
  names = {name.split('.')[0]: name for name in SLIM}
  wanted = {**SLIM, **{names[key]: content for key, content in files.items()}}
  there = {name: content for name, content in wanted.items() if content is not None}
  there['SHA256SUMS'] = ''.join(f'{_sha256(c)}  {name}\n' for name, c in there.items())
  return {f'slim/{name}': content for name, content in there.items()}


def _sha256(content):
  return hashlib.sha256(content if isinstance(content, bytes) else content.encode()).hexdigest()


def load_slim(place):
  return export.load_slim(place / 'slim')


BATCH = np.ones((2, 3), np.float32)


def save_slim(place, name='slim', inputs=(BATCH,), **options):
  graph = dtp.trace(lambda w, x: x @ w, jnp.ones((3, 2)), jnp.ones((2, 3)))
  export.save_slim(place / name, graph, jnp.ones((3, 2)), {}, inputs, **options)


AGAIN = 'again'
SLIM_MODELS = {
  'not there': Case(load_slim, FileNotFoundError, ('slim', 'experiments.export')),
  'a torn manifest': Case(
    load_slim, ValueError, ('manifest.json', 'cut short'), slim(manifest='{')
  ),
  'a manifest of a list': Case(
    load_slim, ValueError, ('manifest.json', AGAIN), slim(manifest='[]')
  ),
  'no format': Case(load_slim, ValueError, ('manifest.json', AGAIN), slim(manifest='{}')),
  'a newer format': Case(
    load_slim, ValueError, ('format 99', f'expected {FORMAT}'), slim(manifest='{"format": 99}')
  ),
  'no kept channels': Case(load_slim, ValueError, ('kept.json is missing', AGAIN), slim(kept=None)),
  'torn kept channels': Case(load_slim, ValueError, ('kept.json', 'cut'), slim(kept='{"groups')),
  'kept channels in a list': Case(load_slim, ValueError, ('kept.json', AGAIN), slim(kept='[]')),
  'kept channels of nothing': Case(load_slim, ValueError, ("'groups'", AGAIN), slim(kept='{}')),
  'no variables': Case(
    load_slim, ValueError, ('variables.safetensors is missing', AGAIN), slim(variables=None)
  ),
  'torn variables': Case(
    load_slim,
    ValueError,
    ('variables.safetensors', 'cut short'),
    slim(variables=SLIM['variables.safetensors'][:-1]),
  ),
  'variables of another size': Case(
    load_slim,
    ValueError,
    ("'params/a'", '(4,)', 'expected (3,)', AGAIN),
    slim(variables=safetensors.numpy.save({'params/a': np.zeros(4)})),
  ),
  'no program': Case(
    lambda place: load_slim(place).program,
    ValueError,
    ('stablehlo.bin is missing', AGAIN),
    slim(stablehlo=None),
  ),
  'a program that is none': Case(
    lambda place: load_slim(place).program, ValueError, ('stablehlo.bin', AGAIN), slim()
  ),
  'a changed program': Case(
    load_slim, ValueError, ('stablehlo.bin is damaged', AGAIN), {**slim(), 'slim/stablehlo.bin': ''}
  ),
  'over another folder': Case(
    save_slim,
    FileExistsError,
    ('slim exists and is no slim model', 'a new folder'),
    {'slim/notes.txt': 'mine'},
  ),
  'in a file': Case(
    lambda place: save_slim(place, 'notes.txt/slim'),
    NotADirectoryError,
    ('notes.txt is a file', 'path of a folder'),
    {'notes.txt': 'mine'},
  ),
  'where nothing can be written': Case(
    lambda _: save_slim(UNWRITABLE), OSError, (str(UNWRITABLE.parent), 'may write to')
  ),
  'arguments in a list': Case(
    lambda place: save_slim(place, kwargs=['train']), TypeError, ('kwargs is a list', 'a mapping')
  ),
  'notes in no mapping': Case(
    lambda place: save_slim(place, about={'budget': dtp.Budget(0.5)}.items()),
    TypeError,
    ('about is a dict_items', 'a mapping'),
  ),
  'a note that is no JSON': Case(
    lambda place: save_slim(place, about={'mask': BATCH}), TypeError, ('ndarray', 'as JSON')
  ),
  'a tolerance in words': Case(
    lambda place: save_slim(place, tolerance='small'), ValueError, ("tolerance is 'small'", '>= 0')
  ),
  'a tolerance that is no number': Case(
    lambda place: save_slim(place, tolerance=float('nan')), ValueError, ('nan', '>= 0')
  ),
  'inputs without a tuple': Case(
    lambda place: save_slim(place, inputs=BATCH),
    TypeError,
    ('inputs is a', 'as in (images,)'),
  ),
}

TINY = ResNet(18, 3, width=4, blocks=(1, 1))


def read_tensors(place):
  read_safetensors(place / 'x.safetensors')


def tensors(dtype, shape, offsets, data=bytes(12), **metadata):
  entries = {'a': {'dtype': dtype, 'shape': shape, 'data_offsets': offsets}}
  return {'x.safetensors': header({**entries, **metadata}, data)}


WEIGHTS = {
  'no tensors': Case(read_tensors, ValueError, ('x.saf', 'cut short'), {'x.safetensors': b'none'}),
  'a type of another library': Case(
    read_tensors, ValueError, ('F8_E8M0', "'F32'"), tensors('F8_E8M0', [12], [0, 12])
  ),
  'a stored type that is none': Case(
    read_tensors,
    ValueError,
    ('type object', "'F32'"),
    tensors('U8', [3, 4], [0, 12], __metadata__={'a': 'object'}),
  ),
  'a stored type of another size': Case(
    read_tensors,
    ValueError,
    ('12 bytes', 'complex128[3]'),
    tensors('U8', [3, 4], [0, 12], __metadata__={'a': 'complex128'}),
  ),
  'a path of nothing': Case(
    lambda place: from_torch(place / 'x.pth', TINY), FileNotFoundError, ('x.pth', 'state dict')
  ),
  'another ending': Case(
    lambda place: from_torch(place / 'x.npz', TINY), ValueError, ("'.npz'", '.safetensors')
  ),
  'another kind of network': Case(
    lambda _: from_torch({}, CifarResNet(8)), TypeError, ('CifarResNet', 'MobileNetV2')
  ),
  'another network': Case(
    lambda _: from_torch({'a': FLOATS}, TINY), ValueError, ('1 left over: a', 'expected its kind')
  ),
}


def run_files(summary='{}', **changes):
  """A finished run of LeNet-5 that pruned channels."""
  config = mnist_lenet.get_config('runlocal')
  config.prune.granularity = 'channels'
  config.model.features, config.model.hidden = (2, 4), (16,)
  with config.unlocked():
    config.update_from_flattened_dict({k.replace('__', '.'): v for k, v in changes.items()})
  return {'run/config.json': config.to_json_best_effort(), 'run/summary.json': summary}


def of_run(function):
  return lambda place: function(place / 'run')


UNREADABLE = ('is not a readable run', 'move it away')
ENVIRONMENT = {
  'versions': {'dtp-jax': '0', 'jax': '0', 'flax': '0', 'optax': '0'}, 'python': '3', 'cpus': 2,
  'device': 'cpu', 'command': 'train',
}  # fmt: skip
SUMMARY = {
  'row': 'pdp', 'method': 'pdp', 'seed': 0, 'stages': {'dense': 1, 'soft': 1, 'hard': 1},
  'dense_accuracy': 0.9, 'accuracy': 0.8, 'gap': None, 'unit': 'count', 'requested': 1,
  'achieved': 1, 'total': 10, 'parameters': 10, 'parameters_left': 1, 'seconds': 1.0, 'costs': {},
}  # fmt: skip


def reported(**fields):
  files = run_files(changed(SUMMARY, **fields))
  return {**files, 'run/environment.json': json.dumps(ENVIRONMENT)}


collect_run = of_run(lambda run: collect([run]))
RUNS = {
  'not there': Case(of_run(read_config), FileNotFoundError, ('run', '--workdir')),
  'a torn config': Case(
    of_run(read_config), ValueError, ('config.json', 'cut'), {'run/config.json': '{"a'}
  ),
  'a config of a list': Case(
    of_run(read_config), ValueError, ('config.json', '--workdir'), {'run/config.json': '[]'}
  ),
  'not finished': Case(
    of_run(load_run),
    FileNotFoundError,
    ('summary.json', 'not finished'),
    {'run/config.json': run_files()['run/config.json']},
  ),
  'of single weights': Case(
    of_run(load_run),
    ValueError,
    ('weights', '--config.prune.granularity=channels'),
    run_files(prune__granularity='weights'),
  ),
  'without its arrays': Case(
    of_run(load_run), FileNotFoundError, ('pruned.npz', 'not finished'), run_files()
  ),
  'arrays that are none': Case(
    of_run(load_run),
    ValueError,
    ('pruned.npz', 'not a zip', 'damaged'),
    {**run_files(), 'run/pruned.npz': b'none'},
  ),
  'torn arrays': Case(
    of_run(load_run),
    ValueError,
    ('pruned.npz', 'damaged'),
    {**run_files(), 'run/pruned.npz': npz(a=FLOATS)[:-60]},
  ),
  'arrays of another run': Case(
    of_run(load_run),
    ValueError,
    ("'params/conv1/bias'", 'of another run'),
    {**run_files(), 'run/pruned.npz': npz(a=FLOATS)},
  ),
  'a report too soon': Case(
    of_run(write_report), FileNotFoundError, ('summary.json', 'not finished'), {'run/a': ''}
  ),
  'no folder': Case(collect_run, FileNotFoundError, ('run', 'expected one that')),
  'no run in it': Case(collect_run, FileNotFoundError, ('run', 'summary.json'), {'run/a': ''}),
  'a torn summary': Case(collect_run, ValueError, UNREADABLE, run_files('{"row')),
  'a summary of a list': Case(
    collect_run, ValueError, UNREADABLE, {**reported(), 'run/summary.json': '[]'}
  ),
  'no environment': Case(collect_run, ValueError, UNREADABLE, run_files(changed(SUMMARY))),
  'no accuracy': Case(
    collect_run, ValueError, ("'accuracy'", *UNREADABLE), reported(accuracy=None)
  ),
  'an accuracy in words': Case(
    collect_run, ValueError, ("'high'", *UNREADABLE), reported(accuracy='high')
  ),
  'a seed of a half': Case(collect_run, ValueError, ('0.5', *UNREADABLE), reported(seed=0.5)),
}

ROW = ','.join(COLUMNS)
CSVS = {
  'other columns': Case(
    lambda p: read_csv(p / 'runs.csv'), ValueError, ("['a']", "'data'"), {'runs.csv': 'a\n1\n'}
  ),
  'a word for a number': Case(
    lambda p: read_csv(p / 'runs.csv'),
    ValueError,
    ("seed 'one'", 'a number'),
    {'runs.csv': ROW + '\n' + ','.join('one' if c == 'seed' else '' for c in COLUMNS) + '\n'},
  ),
  'a line that is too long': Case(
    lambda p: read_csv(p / 'runs.csv'),
    ValueError,
    ('runs.csv', 'line 2', f'{len(COLUMNS)} cells'),
    {'runs.csv': ROW + '\n' + ',' * len(COLUMNS) + '\n'},
  ),
  'a last line without its end': Case(
    lambda p: read_csv(p / 'runs.csv'),
    ValueError,
    ('runs.csv', 'cut short'),
    {'runs.csv': ROW + '\n' + ',' * (len(COLUMNS) - 1)},
  ),
  'nothing': Case(
    lambda p: read_csv(p / 'runs.csv'), ValueError, ('runs.csv', '[]', "'data'"), {'runs.csv': ''}
  ),
  'a cell without end': Case(
    lambda p: read_csv(p / 'runs.csv'),
    ValueError,
    ('runs.csv', 'field larger'),
    {'runs.csv': ROW + '\n"' + 'a' * 200_000},
  ),
  'a figure without a source': Case(
    lambda p: read_published(p / 'p.csv'),
    ValueError,
    ("'GReg'", 'without a source'),
    {
      'p.csv': 'data,model,granularity,method,accuracy,base_accuracy,speedup,sparsity,at,source\n'
      'cifar10,a,weights,GReg,93,,,,,\n'
    },
  ),
}


def prepared(name='mnist', **info):
  return {f'{name}/3.0.1/dataset_info.json': json.dumps(info)}


def unpack(place, name='mnist'):
  prepare.prepare(name, place / 'raw', place)


@functools.cache
def measured():
  graph = dtp.trace(lambda w, x: (x @ w) @ w.T, jnp.ones((3, 2)), jnp.ones((2, 3)))
  return dtp.LatencyTable.measure(graph, points=2, repeats=2)


RAW = ('train-images-idx3', 'train-labels-idx1', 't10k-images-idx3', 't10k-labels-idx1')
DATA = {
  'a name alone': Case(lambda p: load('mnist_mini'), TypeError, ("'mnist_mini'", "{'name': ")),
  'no name': Case(lambda p: load({'validation': 3}), TypeError, ("{'validation': 3}", "{'name': ")),
  'misspelt': Case(
    lambda p: load({'name': 'cifra10'}), ValueError, ("'cifra10'", "mean 'cifar10'")
  ),
  'not prepared': Case(
    lambda p: load({'name': 'mnist', 'data_dir': p}),
    FileNotFoundError,
    ('mnist', 'dtp_jax.data.prepare mnist --data_dir'),
  ),
  'prepared with TensorFlow': Case(
    lambda p: load({'name': 'mnist', 'data_dir': p}),
    ValueError,
    ('tfrecord', 'expected array_record'),
    prepared(fileFormat='tfrecord'),
  ),
  'torn facts': Case(
    lambda p: load({'name': 'mnist', 'data_dir': p}),
    ValueError,
    ('dataset_info.json', 'cut short'),
    {'mnist/3.0.1/dataset_info.json': '{"fileFor'},
  ),
  'no folder to prepare from': Case(unpack, FileNotFoundError, ('raw', 'Pass the folder')),
  'no archive': Case(
    unpack, FileNotFoundError, ('t10k-images-idx3-ubyte.gz', 'under these names'), {'raw/a': ''}
  ),
  'another archive': Case(
    unpack,
    archives.ChecksumError,
    ('sha256', 'Download it again'),
    {f'raw/{name}-ubyte.gz': 'another' for name in RAW},
  ),
  'raw files of something else': Case(
    unpack,
    ValueError,
    ('train-images-idx3-ubyte', '61 6e 6f 74', 'official file'),
    {f'raw/{name}-ubyte': 'another' for name in RAW},
  ),
  'a header of more than there is': Case(
    lambda _: archives.read_idx('x', b'\0\0\x08\x03' + b'\xff' * 12),
    ValueError,
    ('16 bytes', 'asks for', 'copy it again'),
  ),
  'half a record': Case(
    lambda _: archives.read_cifar('x.bin', bytes(100), 1),
    ValueError,
    ('100 bytes', 'copy it again'),
  ),
}

CASES = {
  f'{kind}: {name}': case
  for kind, cases in {
    'latency table': TABLES,
    'slim model': SLIM_MODELS,
    'weights': WEIGHTS,
    'run': RUNS,
    'csv': CSVS,
    'data': DATA,
  }.items()
  for name, case in cases.items()
}


@pytest.mark.parametrize('name', CASES)
def test_a_wrong_file_is_named_with_what_to_do(name, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert_refused(CASES[name], tmp_path)
