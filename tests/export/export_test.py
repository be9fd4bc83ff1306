"""Exported slim models: data that is the masked network, or an error and no folder."""

import hashlib
import importlib.util
import json
import pathlib
import shutil
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtp_jax import export
from dtp_jax.files import read_safetensors, write_safetensors
from dtp_jax.graph import shrink, trace
from dtp_jax.models import CifarResNet, Decoder, ResNet
from dtp_jax.train.lock import LockedError, locked
from dtp_jax.trees import flatten, nested
from tests.export import accepted
from tests.graph.agreement import random_masks
from tests.graph.models import CASES, images, randomized


class Net(nn.Module):
  """A skip, a norm, a flatten."""

  @nn.compact
  def __call__(self, x, train):
    x = nn.relu(nn.Conv(6, (3, 3), name='stem')(x))
    y = nn.Conv(6, (3, 3), use_bias=False, name='conv')(x)
    x = nn.relu(x + nn.BatchNorm(use_running_average=not train, name='norm')(y))
    x = nn.relu(nn.Dense(5, name='hidden')(x.reshape(x.shape[0], -1)))
    return nn.Dense(3, name='head')(x)


X = images(3, 4, 4, 2)
HARD = {'stem': np.array([1, 0, 1, 1, 0, 0]), 'hidden': np.array([False, True, True, False, True])}


def masked(graph, variables, hard, x, **kwargs):
  masks = {name: jnp.asarray(mask, jnp.float32) for name, mask in hard.items()}
  return jax.jit(lambda v, x: graph.fn(graph.apply_masks(v, masks), x, **kwargs))(variables, x)


@pytest.fixture(scope='module')
def net():
  variables = randomized(jax.eval_shape(lambda: Net().init(jax.random.key(0), X, False)))
  return trace(Net().apply, variables, X, train=False), variables


@pytest.fixture(scope='module')
def saved(net, tmp_path_factory):
  folder = tmp_path_factory.mktemp('export') / 'slim'
  graph, variables = net
  about = {'requested': {'of': 'macs', 'fraction': 0.4}}
  manifest = export.save_slim(
    folder, graph, variables, HARD, (X,), kwargs={'train': False}, about=about
  )
  return folder, manifest


def test_the_program_alone_is_the_masked_network_at_other_batch_sizes(net, saved):
  graph, variables = net
  loaded = export.load_slim(saved[0])
  for batch in (1, 5):
    x = images(batch, 4, 4, 2, seed=batch)
    expected = masked(graph, variables, HARD, x, train=False)
    np.testing.assert_allclose(loaded(x), expected, atol=1e-5 * np.max(np.abs(expected)), rtol=0)
  assert loaded.program.platforms == ('cpu', 'cuda', 'tpu')
  # On one core XLA adds in another order inside of a jitted function.
  np.testing.assert_allclose(jax.jit(loaded)(X), loaded(X), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('inputs', [(images(2, 4, 4, 3),), (X.astype(int),), ()])
def test_a_program_names_the_inputs_it_takes(saved, inputs):
  with pytest.raises(ValueError) as raised:
    export.load_slim(saved[0])(*inputs)
  assert "input_0 float32['batch', 4, 4, 2]" in raised.value.__notes__[-1]


_NO_MODEL_CODE = """
import sys, numpy as np, jax, jax.export, safetensors.numpy
program = jax.export.deserialize(bytearray(open(sys.argv[1] + '/stablehlo.bin', 'rb').read()))
variables = {}
for name, array in safetensors.numpy.load_file(sys.argv[1] + '/variables.safetensors').items():
  *branches, last = name.split('/')
  place = variables
  for branch in branches:
    place = place.setdefault(branch, {})
  place[last] = array
print(program.call(variables, np.load(sys.argv[1] + '/x.npy')).tolist())
assert not {'flax', 'dtp_jax'} & set(sys.modules)
"""


def test_a_process_without_flax_and_dtp_jax_runs_it(net, saved, tmp_path):
  for name in ('stablehlo.bin', 'variables.safetensors'):
    (tmp_path / name).write_bytes((saved[0] / name).read_bytes())
  np.save(tmp_path / 'x.npy', X)
  command = [sys.executable, '-c', _NO_MODEL_CODE, str(tmp_path)]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  expected = masked(*net, HARD, X, train=False)
  np.testing.assert_allclose(json.loads(done.stdout), expected, rtol=1e-4, atol=1e-5)


def test_the_folder_tells_what_was_kept_cut_spent_and_checked(net, saved):
  graph, _ = net
  folder, manifest = saved
  assert json.loads((folder / 'manifest.json').read_text()) == manifest
  assert sorted(path.name for path in folder.iterdir()) == [
    'SHA256SUMS', 'kept.json', 'manifest.json', 'stablehlo.bin', 'variables.safetensors'
  ]  # fmt: skip
  assert len({path.stat().st_mode for path in folder.iterdir()}) == 1
  kept = json.loads((folder / 'kept.json').read_text())
  assert kept['groups']['stem'] == {'size': 6, 'kept': [0, 2, 3]}
  flattened = [c for p in range(16) for c in (6 * p, 6 * p + 2, 6 * p + 3)]
  assert kept['arrays']['params/hidden/kernel'] == {
    'shape': [96, 5], 'kept': {'0': flattened, '1': [1, 2, 4]}
  }  # fmt: skip
  assert kept['arrays']['batch_stats/norm/mean'] == {'shape': [6], 'kept': {'0': [0, 2, 3]}}
  assert kept['arrays']['params/head/bias'] == {'shape': [3], 'kept': {}}
  params = 57 + 81 + 2 * 3 + 48 * 3 + 3 + 3 * 3 + 3
  macs = 16 * (18 * 3 + 27 * 3) + 48 * 3 + 3 * 3
  assert manifest['costs'] == {
    'params': {'dense': graph.params.total, 'slim': params},
    'macs': {'dense': graph.macs.total, 'slim': macs},
  }
  (given,) = manifest['inputs']
  assert given == {'name': 'input_0', 'shape': ['batch', 4, 4, 2], 'dtype': 'float32'}
  assert manifest['outputs'][0]['shape'] == ['batch', 3]
  assert (manifest['norms'], manifest['from_masked']) == ('exact', 0.0)
  assert manifest['about'] == {'requested': {'of': 'macs', 'fraction': 0.4}}
  assert [check['batch'] for check in manifest['checks']['stablehlo']] == [3, 1]
  assert all(c['difference'] <= 1e-5 * c['scale'] for c in manifest['checks']['stablehlo'])
  assert manifest['versions']['jax'] == jax.__version__


def test_a_new_trace_restores_the_slim_network_with_its_code(net, saved):
  graph, variables = net
  slim = shrink(graph, variables, HARD)
  abstract = jax.eval_shape(lambda: Net().init(jax.random.key(0), X, False))
  anew = trace(Net().apply, abstract, X, train=False)
  restored = export.load_slim(saved[0]).restore(anew, abstract)
  assert jax.tree.structure(restored.variables) == jax.tree.structure(slim.variables)
  jax.tree.map(np.testing.assert_array_equal, restored.variables, slim.variables)
  jax.tree.map(np.testing.assert_array_equal, restored.kept, slim.kept)
  run = {'train': True, 'mutable': ['batch_stats']}
  ours, theirs = (jax.jit(lambda v, x, s=s: s.apply(v, x, **run)) for s in (restored, slim))
  jax.tree.map(
    np.testing.assert_array_equal, ours(restored.variables, X), theirs(slim.variables, X)
  )


def test_a_network_that_is_not_the_saved_one_is_refused(saved):
  loaded = export.load_slim(saved[0])
  case = CASES['plain']()
  graph = trace(case.fn, case.variables, *case.inputs)
  with pytest.raises(ValueError, match=r"group 'hidden' has None channels .* expected 5"):
    loaded.restore(graph, case.variables)
  wide = images(1, 4, 4, 5)
  abstract = jax.eval_shape(lambda: Net().init(jax.random.key(0), wide, False))
  graph = trace(Net().apply, abstract, wide, train=False)
  with pytest.raises(ValueError, match=r'stem/kernel.*\(3, 3, 2, 3\).*expected \(3, 3, 5, 3\)'):
    loaded.restore(graph, abstract)


def test_a_fine_tuned_slim_network_is_saved_through_expand(net, tmp_path):
  graph, variables = net
  slim = shrink(graph, variables, HARD)
  tuned = jax.tree.map(lambda v: 0.9 * v + 0.01, slim.variables)
  dense = export.expand(graph, tuned, slim.kept)
  assert jax.tree.map(jnp.shape, dense) == jax.tree.map(jnp.shape, variables)
  export.save_slim(tmp_path / 'slim', graph, dense, HARD, (X,), kwargs={'train': False})
  loaded = export.load_slim(tmp_path / 'slim')
  jax.tree.map(np.testing.assert_array_equal, loaded.variables, tuned)
  np.testing.assert_allclose(loaded(X), slim.apply(tuned, X, train=False), rtol=1e-4, atol=1e-5)
  with pytest.raises(ValueError, match=r'of shape .* expected .*as these kept channels'):
    export.expand(graph, variables, slim.kept)


class Normed(nn.Module):
  """A norm that reads the pruned channels."""

  width: int = 6

  @nn.compact
  def __call__(self, x):
    x = nn.LayerNorm(name='norm')(nn.Dense(self.width, name='stem')(x))
    return nn.Dense(3, name='head')(nn.relu(x))


def test_refitted_norms_are_those_of_the_module_built_anew(tmp_path):
  x, hard = images(3, 4), {'stem': np.array([1, 0, 1, 1, 0, 0])}
  variables = randomized(jax.eval_shape(lambda: Normed().init(jax.random.key(0), x)))
  graph = trace(Normed().apply, variables, x)
  manifest = export.save_slim(tmp_path / 'slim', graph, variables, hard, (x,), norms='refit')
  loaded = export.load_slim(tmp_path / 'slim')
  expected = jax.jit(Normed(width=3).apply)(loaded.variables, x)
  np.testing.assert_allclose(loaded(x), expected, rtol=1e-4, atol=1e-5)
  restored = loaded.restore(graph, variables)
  np.testing.assert_allclose(restored.apply(restored.variables, x), expected, rtol=1e-4, atol=1e-5)
  assert (manifest['norms'], loaded.manifest['norms']) == ('refit', 'refit')
  of_masked = masked(graph, variables, hard, x)
  apart = np.max(np.abs(expected - of_masked)) / np.max(np.abs(of_masked))
  assert apart > 1e-2
  np.testing.assert_allclose(manifest['from_masked'], apart, rtol=1e-3)
  with pytest.raises(ValueError, match="norms is 'fitted'; expected one of"):
    export.save_slim(tmp_path / 'other', graph, variables, hard, (x,), norms='fitted')
  assert [path.name for path in tmp_path.iterdir()] == ['slim']


@pytest.mark.parametrize('name', ['equinox', 'tokens'])
def test_any_tree_of_variables_and_integer_inputs(name, tmp_path):
  case = CASES[name]()
  graph = trace(case.fn, case.variables, *case.inputs, **case.eval)
  hard = random_masks(graph, 1)
  export.save_slim(tmp_path / 'slim', graph, case.variables, hard, case.inputs, kwargs=case.eval)
  loaded = export.load_slim(tmp_path / 'slim')
  slim = loaded.restore(graph, case.variables)
  assert jax.tree.structure(slim.variables) == jax.tree.structure(case.variables)
  expected = slim.apply(slim.variables, *case.inputs, **case.eval)
  np.testing.assert_allclose(loaded(*case.inputs), expected, rtol=1e-4, atol=1e-5)


def test_half_precision_variables_stay_so(net, tmp_path):
  graph, variables = net
  half = jax.tree.map(lambda v: v.astype(jnp.bfloat16), variables)
  x = X.astype(jnp.bfloat16)
  manifest = export.save_slim(tmp_path / 'slim', graph, half, HARD, (x,), kwargs={'train': False})
  assert manifest['checks']['tolerance'] == 4 * 2.0**-7
  loaded = export.load_slim(tmp_path / 'slim')
  assert {a.dtype.name for a in jax.tree.leaves(loaded.variables)} == {'bfloat16'}
  assert loaded(x).dtype == jnp.bfloat16


def test_a_program_over_the_tolerance_leaves_no_folder(net, tmp_path):
  traces = []

  def fickle(v, x):
    traces.append(x.shape)  # a side effect: what is exported is not what was masked
    return Net().apply(v, x, train=False) + 0.01 * len(traces)

  graph = trace(fickle, net[1], X)
  with pytest.raises(export.ExportError, match=r'StableHLO differs .* by 0\.0\d.* at most 1e-05'):
    export.save_slim(tmp_path / 'slim', graph, net[1], HARD, (X,))
  assert list(tmp_path.iterdir()) == []
  manifest = export.save_slim(tmp_path / 'slim', graph, net[1], HARD, (X,), tolerance=0.9)
  assert all(0.009 < check['difference'] < 0.06 for check in manifest['checks']['stablehlo'])


def test_an_output_that_is_not_finite_is_no_agreement(net, tmp_path):
  variables = jax.tree.map(lambda v: v, net[1])  # new dicts
  variables['params']['head']['bias'] = jnp.array([0.0, jnp.inf, 0.0])
  with pytest.raises(export.ExportError, match='masked network has outputs that are NaN'):
    export.save_slim(tmp_path / 'slim', net[0], variables, HARD, (X,), kwargs={'train': False})


def test_nothing_is_overwritten_unasked(net, saved, tmp_path):
  graph, variables = net
  before = (saved[0] / 'kept.json').read_text()
  with pytest.raises(FileExistsError, match='holds a slim model'):
    export.save_slim(saved[0], graph, variables, HARD, (X,), kwargs={'train': False})
  (tmp_path / 'notes.txt').write_text('mine')
  with pytest.raises(FileExistsError, match='is no slim model'):
    export.save_slim(tmp_path, graph, variables, HARD, (X,), overwrite=True)
  assert (saved[0] / 'kept.json').read_text() == before


def test_overwrite_replaces_the_whole_folder(net, saved, tmp_path):
  shutil.copytree(saved[0], tmp_path / 'slim')
  (tmp_path / 'slim' / 'model.onnx').write_text('of the slim model that is replaced')
  hard = {'stem': HARD['stem']}
  export.save_slim(tmp_path / 'slim', *net, hard, (X,), kwargs={'train': False}, overwrite=True)
  assert not (tmp_path / 'slim' / 'model.onnx').exists()
  assert len(export.load_slim(tmp_path / 'slim').kept['hidden']) == 5
  assert [path.name for path in tmp_path.iterdir()] == ['slim']


def test_killed_between_the_old_model_and_the_new_it_loses_none(net, saved, tmp_path, capsys):
  for name in ('.slim.old', '.slim.tmp'):  # the one moved away, the other not yet in its place
    shutil.copytree(saved[0], tmp_path / name)
  (tmp_path / '.slim.lock').write_text('{"host": "here", "pid": 17}')
  with pytest.raises(FileExistsError, match='holds a slim model'):
    export.save_slim(tmp_path / 'slim', *net, HARD, (X,), kwargs={'train': False})
  assert 'left by process 17 of host here' in capsys.readouterr().err
  assert export.load_slim(tmp_path / 'slim').manifest == saved[1]
  assert [path.name for path in tmp_path.iterdir()] == ['slim']


def test_where_the_new_model_cannot_take_its_place_the_old_one_stays(
  net, saved, tmp_path, monkeypatch
):
  original = pathlib.Path.replace

  def replace(path, target):
    if path.name == '.slim.tmp':
      raise OSError('the disk is gone')
    return original(path, target)

  monkeypatch.setattr(pathlib.Path, 'replace', replace)
  shutil.copytree(saved[0], tmp_path / 'slim')
  with pytest.raises(OSError, match='the disk is gone'):
    export.save_slim(tmp_path / 'slim', *net, {}, (X,), kwargs={'train': False}, overwrite=True)
  assert export.load_slim(tmp_path / 'slim').manifest == saved[1]
  assert [path.name for path in tmp_path.iterdir()] == ['slim']


def test_a_place_that_another_process_writes_to_is_refused(net, tmp_path):
  with locked(tmp_path, '.slim.lock'), pytest.raises(LockedError, match=r'holds \.slim\.lock'):
    export.save_slim(tmp_path / 'slim', *net, HARD, (X,), kwargs={'train': False})
  assert list(tmp_path.iterdir()) == []


def test_inputs_that_cannot_be_exported_are_named(net, tmp_path):
  graph, variables = net
  for inputs, error, match in [
    (
      (jax.ShapeDtypeStruct(X.shape, X.dtype),),
      TypeError,
      r'input 0 is ShapeDtype.*expected values',
    ),
    ((X, True), export.ExportError, 'masked network does not run at batch size 3: Modif'),
    ((jnp.zeros(()), False), export.ExportError, 'does not run on the inputs given: '),
    ((), export.ExportError, 'does not run on the inputs given: TypeError: .*missing'),
  ]:
    with pytest.raises(error, match=match):
      export.save_slim(tmp_path / 'slim', graph, variables, HARD, inputs)
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
  'name', ['manifest.json', 'kept.json', 'variables.safetensors', 'stablehlo.bin', 'SHA256SUMS']
)
def test_a_damaged_file_is_named(saved, tmp_path, name):
  shutil.copytree(saved[0], tmp_path / 'slim')
  path = tmp_path / 'slim' / name
  content = path.read_bytes()
  flipped = bytearray(content)
  flipped[len(content) // 2] ^= 1
  for damaged in (bytes(flipped), content[: len(content) // 2], b''):
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r'damaged|missing') as error:
      export.load_slim(tmp_path / 'slim')
    # A line of the list and the file it is of do not tell which of the two is damaged.
    assert name in str(error.value)
  path.unlink()
  with pytest.raises((ValueError, FileNotFoundError), match=name):
    export.load_slim(tmp_path / 'slim')


def test_a_list_of_checksums_reads_no_file_outside_of_its_folder(saved, tmp_path):
  shutil.copytree(saved[0], tmp_path / 'slim')
  (tmp_path / 'secret').write_text('mine')
  with (tmp_path / 'slim' / 'SHA256SUMS').open('a') as sums:
    sums.write(f'{hashlib.sha256(b"mine").hexdigest()}  ../secret\n')
  with pytest.raises(ValueError, match=r'\.\./secret is missing'):
    export.load_slim(tmp_path / 'slim')


@pytest.mark.parametrize(
  'dtype',
  ['bool', 'int4', 'uint4', 'int8', 'uint16', 'int64', 'float16', 'bfloat16', 'float64',
   'float8_e4m3fn', 'float8_e5m2', 'float8_e4m3b11fnuz', 'complex64', 'complex128'],
)  # fmt: skip
def test_arrays_of_every_type_come_back(dtype, tmp_path):
  dtype = jnp.dtype(dtype)
  values = np.random.default_rng(0).integers(0, 2, (3, 4, 2)).astype(dtype)
  arrays = {
    'a': values, 'b/transposed': values.T, 'b/scalar': values[0, 0, 0].reshape(()),
    'b/empty': values[:0], 'b/every_second': values[:, ::2],
  }  # fmt: skip
  write_safetensors(tmp_path / 'x.safetensors', arrays)
  read = read_safetensors(tmp_path / 'x.safetensors')
  assert set(read) == set(arrays)
  for name, array in arrays.items():
    assert read[name].dtype == dtype
    assert read[name].shape == array.shape
    np.testing.assert_array_equal(read[name].astype(complex), array.astype(complex))


def test_names_that_clash_are_refused():
  with pytest.raises(ValueError, match="two arrays of the variables are named 'a/b'"):
    flatten({'a/b': np.ones(1), 'a': {'b': np.ones(1)}})
  with pytest.raises(ValueError, match='of another array'):
    nested({'a': np.ones(1), 'a/b': np.ones(1)})
  with pytest.raises(ValueError, match='another array continues'):
    nested({'a/b': np.ones(1), 'a': np.ones(1)})


@pytest.mark.parametrize('impl', ['threefry2x32', 'rbg'])
def test_keys_are_numbers_by_name_and_keys_again(impl):
  tree = {'a': np.ones(2), 'keys': jax.random.split(jax.random.key(3, impl=impl), 2), 'rate': 0.5}
  arrays, rebuild = flatten(tree)
  np.testing.assert_array_equal(arrays['keys'], jax.random.key_data(tree['keys']))
  again = rebuild({name: np.asarray(array) for name, array in arrays.items()})
  assert again['rate'] == 0.5
  assert again['keys'].dtype == tree['keys'].dtype
  drawn = [jax.vmap(jax.random.normal)(keys) for keys in (again['keys'], tree['keys'])]
  np.testing.assert_array_equal(*drawn)
  structs, rebuild = flatten({'keys': jax.eval_shape(lambda: tree['keys'])})
  assert structs['keys'].shape == arrays['keys'].shape
  assert rebuild(arrays)['keys'].dtype == tree['keys'].dtype


_HAS_ONNX = importlib.util.find_spec('jax2onnx') is not None


@pytest.mark.skipif(_HAS_ONNX, reason='jax2onnx is installed')
def test_onnx_without_jax2onnx_tells_the_commands(net, tmp_path):
  with pytest.raises(ImportError, match=r"pip install 'dtp-jax\[onnx\]'\n.*--no-deps jax2onnx=="):
    export.save_slim(tmp_path / 'slim', *net, HARD, (X,), kwargs={'train': False}, onnx=True)
  assert list(tmp_path.iterdir()) == []


def _decoder(scan):
  model = Decoder(num_classes=11, width=8, depth=2, heads=4, kv_heads=2, hidden=12, scan=scan)
  return model, np.arange(12).reshape(2, 6) % 11


@pytest.mark.skipif(not _HAS_ONNX, reason='needs jax2onnx')
@pytest.mark.parametrize('name', ['convolutions', 'max pooling', 'decoder', 'scanned decoder'])
def test_onnx_is_the_masked_network_in_onnxruntime(name, tmp_path):
  onnxruntime = pytest.importorskip('onnxruntime')
  module, x = {
    'convolutions': lambda: (CifarResNet(depth=8, width=8), images(2, 16, 16, 3)),
    'max pooling': lambda: (ResNet(18, num_classes=5, width=8), images(2, 32, 32, 3)),
    'decoder': lambda: _decoder(False),
    'scanned decoder': lambda: _decoder(True),
  }[name]()
  variables = randomized(jax.eval_shape(lambda: module.init(jax.random.key(0), x)))
  graph = trace(module.apply, variables, x, train=False)
  hard = random_masks(graph, 2)
  manifest = export.save_slim(
    tmp_path / 'slim', graph, variables, hard, (x,), kwargs={'train': False}, onnx=True
  )
  assert [check['batch'] for check in manifest['checks']['onnx']] == [2, 1]
  assert manifest['notes'] == []
  session = onnxruntime.InferenceSession(tmp_path / 'slim' / 'model.onnx')
  x = np.concatenate([x, x[::-1], x[:1]])
  given = x.astype(manifest['inputs'][0]['dtype'])
  (result,) = session.run(['output_0'], {'input_0': given})
  expected = masked(graph, variables, hard, x, train=False)
  np.testing.assert_allclose(result, expected, atol=1e-5 * np.max(np.abs(expected)), rtol=0)


@pytest.mark.skipif(not _HAS_ONNX, reason='needs jax2onnx')
def test_what_onnx_cannot_do_is_told_in_a_line(tmp_path):
  case = accepted.cases()['a key']  # random floats are made of bits: no operator of ONNX yet
  inputs = case.inputs(3)
  graph = trace(case.fn, case.variables, *inputs)
  hard = random_masks(graph, 2)
  with pytest.raises(export.ExportError, match=r'onnxruntime cannot run .*BitCast'):
    export.save_slim(tmp_path / 'slim', graph, case.variables, hard, inputs, onnx=True)
  assert list(tmp_path.iterdir()) == []
