"""Variables from torch are torch's networks; what does not fit is refused as a whole.

Logits are compared with stored ones of torch. Those that compare with torch itself need it (the
extra test-torch) and are skipped without it.
"""

import pickle
import re
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from dtp_jax.models import VGG, LeNet, MobileNetV2, ResNet, from_torch
from tests import torch_reference
from tests.graph.agreement import QUICK
from tests.graph.models import images

TINY = ResNet(18, 3, width=4, blocks=(1, 1))


def resnet_state(width=4, classes=3, seed=0):
  """The state dict of a torch ResNet of two stages of one basic block, names by hand."""
  rng = np.random.default_rng(seed)
  state = {}

  def layer(conv, norm, inputs, outputs, kernel):
    state[f'{conv}.weight'] = rng.normal(size=(outputs, inputs, kernel, kernel))
    for name in ('weight', 'bias', 'running_mean', 'running_var'):
      state[f'{norm}.{name}'] = 0.5 + rng.random(outputs)
    state[f'{norm}.num_batches_tracked'] = np.asarray(7)

  layer('conv1', 'bn1', 3, width, 7)
  for stage, inputs, outputs in ((1, width, width), (2, width, 2 * width)):
    block = f'layer{stage}.0'
    layer(f'{block}.conv1', f'{block}.bn1', inputs, outputs, 3)
    layer(f'{block}.conv2', f'{block}.bn2', outputs, outputs, 3)
  layer('layer2.0.downsample.0', 'layer2.0.downsample.1', width, 2 * width, 1)
  state |= {'fc.weight': rng.normal(size=(classes, 2 * width)), 'fc.bias': rng.normal(size=classes)}
  return {k: a.astype(np.float32) if a.ndim else a for k, a in state.items()}


def assert_equal(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_every_variable_of_the_model_and_no_other():
  variables = from_torch(resnet_state(), TINY)
  structs = jax.eval_shape(lambda: TINY.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3))))
  assert jax.tree.map(lambda a: (a.shape, a.dtype), variables) == jax.tree.map(
    lambda a: (a.shape, a.dtype), structs
  )


def test_kernels_are_transposed_and_statistics_are_in_their_collection():
  state = resnet_state()
  variables = from_torch(state, TINY)
  kernel = variables['params']['layer2_0']['conv1']['kernel']
  assert kernel[1, 2, 3, 5] == state['layer2.0.conv1.weight'][5, 3, 1, 2]
  assert variables['params']['fc']['kernel'][6, 2] == state['fc.weight'][2, 6]
  norm = variables['params']['layer2_0']['downsample_1']
  np.testing.assert_array_equal(norm['scale'], state['layer2.0.downsample.1.weight'])
  stats = variables['batch_stats']['layer2_0']['downsample_1']
  np.testing.assert_array_equal(stats['var'], state['layer2.0.downsample.1.running_var'])


def test_a_safetensors_file_and_a_mapping_are_one(tmp_path):
  state = resnet_state()
  safetensors.numpy.save_file(state, tmp_path / 'net.safetensors')
  variables = from_torch(state, TINY)
  assert_equal(from_torch(tmp_path / 'net.safetensors', TINY), variables)
  assert_equal(from_torch(str(tmp_path / 'net.safetensors'), TINY), variables)


@pytest.mark.parametrize('dtype', ['float64', 'float16', 'bfloat16'])
def test_types_become_those_of_the_model(dtype):
  state = {k: a.astype(jnp.dtype(dtype)) if a.ndim else a for k, a in resnet_state().items()}
  variables = from_torch(state, TINY)
  assert {a.dtype for a in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
  np.testing.assert_array_equal(variables['params']['fc']['bias'], state['fc.bias'])


def aligned(array):
  """A copy that starts where jax could take the memory over instead of copying it."""
  room = np.zeros(array.nbytes + 64, np.uint8)
  start = -room.ctypes.data % 64
  copy = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
  copy[...] = array
  return copy


def test_nothing_is_shared_with_the_source():
  state = {name: aligned(array) for name, array in resnet_state().items()}
  variables = from_torch(state, TINY)
  before = jax.tree.map(np.array, variables)
  for array in state.values():
    array *= 0
  assert_equal(variables, before)


def without(name):
  return lambda state: state.pop(name)


def setting(name, value):
  return lambda state: state.update({name: value})


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (without('bn1.running_var'), '1 missing: bn1.running_var'),
    (setting('layer3.0.conv1.weight', np.ones(3)), '1 left over: layer3.0.conv1.weight'),
    (setting('fc.bias', np.ones(4, 'f')), r'fc.bias \(4,\) where \(3,\) was expected'),
    (setting('fc.weight', np.ones((8, 3), 'f')), r'fc.weight \(8, 3\) where \(3, 8\) was'),
    (setting('bn1.bias', np.ones(4, int)), '1 not of floats: bn1.bias int64'),
    (setting('bn1.bias', {'a': 1}), '1 not of floats: bn1.bias object'),
  ],
)
def test_what_does_not_fit_is_named(change, message):
  state = resnet_state()
  change(state)
  with pytest.raises(ValueError, match=message):
    from_torch(state, TINY)


def test_one_error_for_all_that_does_not_fit():
  state = resnet_state()
  state |= {'extra': np.ones(3), 'fc.bias': np.ones(9, 'f'), 4: np.ones(3)}
  del state['conv1.weight'], state['bn1.weight']
  with pytest.raises(ValueError) as error:
    from_torch(state, TINY)
  lines = str(error.value).splitlines()[1:]
  assert [line.split(':')[0].strip() for line in lines] == [
    '2 missing', '2 left over', '1 of another shape',
  ]  # fmt: skip
  names = {'conv1.weight', 'bn1.weight', 'extra', '4', 'fc.bias'}
  assert names <= set(re.findall(r'[\w.]+', ' '.join(lines)))


def test_another_depth_is_refused():
  # Three blocks of two convolutions with an array each and two norms with four.
  with pytest.raises(ValueError, match=r'30 missing: layer1.1.bn1.running_mean, .*, \.\.\.'):
    from_torch(resnet_state(), ResNet(18, 3, width=4, blocks=(2, 3)))
  with pytest.raises(ValueError, match=r'left over: layer2.0'):
    from_torch(resnet_state(), ResNet(18, 3, width=4, blocks=(1,)))


def test_a_checkpoint_around_the_state_dict_is_refused():
  with pytest.raises(ValueError, match='2 left over: epoch, state_dict'):
    from_torch({'epoch': 3, 'state_dict': resnet_state()}, TINY)


def test_another_kind_of_model_is_refused():
  with pytest.raises(TypeError, match='is a LeNet; expected one of ResNet, VGG, MobileNetV2'):
    from_torch(resnet_state(), LeNet())


def test_the_classifier_of_torchvisions_vgg_is_refused():
  state = {f'classifier.{i}.weight': np.ones((2, 2), np.float32) for i in (0, 3, 6)}
  with pytest.raises(ValueError, match=r'three linear layers .* no counterpart'):
    from_torch(state, VGG(16))


def test_an_unknown_suffix_is_refused(tmp_path):
  with pytest.raises(ValueError, match=r"ends in '.npz'; expected .safetensors, .pth or .pt"):
    from_torch(tmp_path / 'net.npz', TINY)


def test_a_broken_or_absent_safetensors_file_is_refused(tmp_path):
  path = tmp_path / 'net.safetensors'
  with pytest.raises(FileNotFoundError):
    from_torch(path, TINY)
  path.write_bytes(safetensors.numpy.save(resnet_state())[:-1])
  with pytest.raises(ValueError, match=r'net.safetensors cannot be read as safetensors'):
    from_torch(path, TINY)


def test_without_torch_a_pth_file_says_what_to_install(tmp_path, monkeypatch):
  (tmp_path / 'net.pth').touch()
  monkeypatch.setitem(sys.modules, 'torch', None)  # what `import torch` finds where it is absent
  with pytest.raises(ImportError, match='needs torch, which is not installed: pip install torch'):
    from_torch(tmp_path / 'net.pth', TINY)


def torch_that(load, monkeypatch):
  """Puts a module named torch in place that has no more than this `load`."""
  module = types.SimpleNamespace(load=load, __version__='2.6.0+cpu')
  monkeypatch.setitem(sys.modules, 'torch', module)


def test_torch_reads_a_file_without_running_code_in_it(tmp_path, monkeypatch):
  calls = []
  load = lambda path, **options: calls.append((path, options)) or resnet_state()
  torch_that(load, monkeypatch)
  for path in (tmp_path / 'net.pth', tmp_path / 'net.pt'):
    path.touch()
    assert_equal(from_torch(path, TINY), from_torch(resnet_state(), TINY))
    assert calls.pop() == (path, {'map_location': 'cpu', 'weights_only': True})


@pytest.mark.parametrize('error', [pickle.UnpicklingError, RuntimeError, EOFError])
def test_what_torch_cannot_read_is_refused(tmp_path, monkeypatch, error):
  def load(path, **options):
    raise error('broken')

  (tmp_path / 'net.pth').touch()
  torch_that(load, monkeypatch)
  with pytest.raises(ValueError, match=r'net.pth cannot be read as tensors alone.*: broken'):
    from_torch(tmp_path / 'net.pth', TINY)


def test_a_file_of_something_else_is_refused(tmp_path, monkeypatch):
  (tmp_path / 'net.pth').touch()
  torch_that(lambda path, **options: [1, 2], monkeypatch)
  with pytest.raises(ValueError, match='holds a list; expected a state dict'):
    from_torch(tmp_path / 'net.pth', TINY)


@pytest.fixture(scope='module')
def theirs():
  """tests.torch_models, whose import skips the test where torch is not installed."""
  from tests import torch_models

  return torch_models


OURS = {
  'resnet18': ResNet(18),
  'resnet34': ResNet(34),
  'resnet50': ResNet(50),
  'mobilenet_v2': MobileNetV2(),
  'vgg11': VGG(11),
  'vgg16': VGG(16),
  'vgg19': VGG(19, 100),
}


def assert_logits(name, state, x, expected):
  """In float64 on both sides, where another padding or epsilon cannot pass for rounding."""
  variables = jax.tree.map(lambda a: np.asarray(a, np.float64), from_torch(state, OURS[name]))
  logits = jax.jit(OURS[name].apply, compiler_options=QUICK)(variables, np.asarray(x, np.float64))
  assert np.abs(expected).max() > 0.1
  np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-10 * np.abs(expected).max())


@pytest.fixture(scope='module')
def stored():
  return torch_reference.read()


@pytest.mark.once
@pytest.mark.parametrize('name', OURS)
def test_the_logits_are_those_stored_of_torch(stored, x64, name):
  shapes, expected = stored[name]
  assert_logits(name, torch_reference.state_of(shapes), torch_reference.images(), expected)


@pytest.mark.parametrize('name', OURS)
def test_what_is_stored_is_what_torch_computes(theirs, stored, name):
  shapes, logits = torch_reference.computed(name)
  assert shapes == stored[name][0]
  np.testing.assert_allclose(logits, stored[name][1], rtol=0, atol=1e-12 * np.abs(logits).max())


@pytest.mark.parametrize('name', OURS)
def test_the_logits_are_those_of_torch(theirs, x64, name):
  torch, module = theirs.torch, theirs.randomized(theirs.MODELS[name]())
  x = images(*torch_reference.IMAGES)
  with torch.no_grad():
    double = torch.from_numpy(np.asarray(x, np.float64)).permute(0, 3, 1, 2)
    expected = module.double()(double).numpy()
  assert_logits(name, module.float().state_dict(), x, expected)


def test_mapping_safetensors_and_pth_are_one(theirs, tmp_path):
  torch, module = theirs.torch, theirs.randomized(theirs.MODELS['mobilenet_v2']())
  state = module.state_dict()
  arrays = {name: tensor.numpy() for name, tensor in state.items()}
  safetensors.numpy.save_file(arrays, tmp_path / 'net.safetensors')
  torch.save(state, tmp_path / 'net.pth')
  torch.save(state, tmp_path / 'net.pt', _use_new_zipfile_serialization=False)
  x = images(*torch_reference.IMAGES)
  with torch.no_grad():
    expected = module(torch.from_numpy(np.array(x)).permute(0, 3, 1, 2)).numpy()
  model = OURS['mobilenet_v2']
  apply = jax.jit(model.apply, compiler_options=QUICK)
  sources = [state, arrays, *(tmp_path / f'net.{s}' for s in ('safetensors', 'pth', 'pt'))]
  for source in sources:
    logits = apply(from_torch(source, model), x)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_the_state_by_hand_is_that_of_torch(theirs):
  module = theirs.ResNet(theirs.Basic, (1, 1), 3, width=4)
  shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
  assert shapes == {name: array.shape for name, array in resnet_state().items()}


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16', 'float64'])
def test_tensors_of_every_float_type(theirs, dtype):
  torch = theirs.torch
  state = {
    name: torch.from_numpy(a).to(getattr(torch, dtype)).requires_grad_() if a.ndim else a
    for name, a in resnet_state().items()
  }
  bias = from_torch(state, TINY)['params']['fc']['bias']
  np.testing.assert_array_equal(bias, state['fc.bias'].detach().float().numpy())


class Harmful:
  def __reduce__(self):
    return print, ('this code must not run',)


def test_a_file_that_runs_code_is_refused_unrun(theirs, tmp_path, capsys):
  path = tmp_path / 'net.pth'
  theirs.torch.save({**resnet_state(), 'fc.bias': Harmful()}, path)
  with pytest.raises(ValueError, match='cannot be read as tensors alone'):
    from_torch(path, TINY)
  path.write_bytes(pickle.dumps(Harmful(), protocol=2))
  with pytest.raises(ValueError, match='cannot be read as tensors alone'):
    from_torch(path, TINY)
  assert 'must not run' not in capsys.readouterr().out


@pytest.mark.parametrize('content', [b'', b'no tensors', b'PK\x03\x04 half of a zip archive'])
def test_a_broken_pth_file_is_refused(theirs, tmp_path, content):
  path = tmp_path / 'net.pth'
  path.write_bytes(content)
  with pytest.raises(ValueError, match='cannot be read as tensors alone'):
    from_torch(path, TINY)


def test_a_pth_file_of_something_else_is_refused(theirs, tmp_path):
  theirs.torch.save([1, 2], tmp_path / 'net.pth')
  with pytest.raises(ValueError, match='holds a list; expected a state dict'):
    from_torch(tmp_path / 'net.pth', TINY)
