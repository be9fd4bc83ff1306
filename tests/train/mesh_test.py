"""Several devices: the same run as on one, a transport that tells scalars alone, and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtp_jax import Budget, methods, prunable
from dtp_jax.data import load
from dtp_jax.train import loop
from dtp_jax.train import mesh as meshes
from dtp_jax.train.metrics import read_metrics
from dtp_jax.train.recipe import build
from dtp_jax.train.step import train_step
from dtp_jax.trees import paths
from experiments.tpu.described import check, collectives
from tests.train.conftest import tiny_config

DEVICES = jax.device_count()
eight = pytest.mark.skipif(DEVICES < 8, reason='needs the eight devices of the test session')
# Sums over devices are rounded in another order; 18 steps of the smallest network add to that.
LOSS, ACCURACY = 2e-3, 0.01


def config_on(data, model=1):
  config = tiny_config()
  config.baselines = ()
  config.model.features = (4, 8)
  config.mesh.update({'data': data, 'model': model})
  return config


def arrays(path):
  with np.load(path) as stored:
    return dict(stored)


# --- the mesh


@eight
@pytest.mark.parametrize(
  ('data', 'model', 'shape'),
  [(-1, 1, (8, 1)), (-1, 4, (2, 4)), (2, -1, (2, 4)), (1, 1, (1, 1)), (2, 3, (2, 3))],
)
def test_one_axis_takes_the_rest(data, model, shape):
  mesh = meshes.make({'data': data, 'model': model})
  assert mesh.devices.shape == shape
  assert mesh.devices.ravel().tolist() == jax.devices()[: mesh.size]


@eight
@pytest.mark.parametrize(
  ('data', 'model'), [(-1, -1), (0, 1), (-1, 0), (-1, 3), (9, 1), (-2, 1), (-1, 16)]
)
def test_sizes_that_the_devices_do_not_make_up_are_refused(data, model):
  with pytest.raises(ValueError, match='8 devices') as error:
    meshes.make({'data': data, 'model': model})
  assert f"'data': {data}, 'model': {model}" in str(error.value)


@eight
def test_a_batch_that_cannot_be_split_is_refused():
  config = config_on(8)
  config.data.batch_size = 60
  with pytest.raises(ValueError, match='batch_size is 60, on 8 devices') as error:
    build(config, load(config.data))
  assert 'a multiple of 8' in str(error.value)


# --- where arrays lie


@eight
def test_a_kernel_lies_with_its_scores_log_odds_and_moments():
  config = config_on(2, 4)
  data = load(config.data)
  recipe, create = build(config, data)
  state, template = create(), meshes.template(recipe.mesh, jax.eval_shape(create))
  kernels, momenta = paths(state.params), paths(state.opt_state['params'])
  for name, z in state.transport.items():
    momentum = [m for path, m in momenta.items() if path.endswith(name)]
    assert len(momentum) == 1
    together = {x.sharding for x in (kernels[name], z, state.scores[name], *momentum)}
    assert len(together) == 1
    assert z.addressable_shards[0].data.size == z.size // 4
  assert state.params['conv1']['bias'].sharding.is_fully_replicated
  for ours, theirs in zip(jax.tree.leaves(state), jax.tree.leaves(template), strict=True):
    assert ours.sharding == theirs.sharding


@eight
def test_each_device_gathers_its_own_images():
  """The images of a shard come from the data set on its device: nothing travels but indices."""
  data = load({'name': 'mnist_mini'})
  mesh = meshes.make({'data': 8, 'model': 1})
  with_images = data.train_batches(64, seed=0, sharding=meshes.of_batches(mesh))
  arguments = next(with_images)
  compiled = jax.jit(data.batch).lower(*arguments).compile()
  assert collectives(compiled.as_text()) == []
  image = compiled(*arguments)['image']
  assert {s.data.shape for s in image.addressable_shards} == {(8, 28, 28, 1)}
  alone = next(data.train_batches(64, seed=0))
  np.testing.assert_array_equal(image, data.batch(*alone)['image'])


# --- the same run


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
  folder = tmp_path_factory.mktemp('one_device')
  return folder, loop.train_and_evaluate(config_on(1), folder)


@eight
@pytest.mark.parametrize(('data', 'model'), [pytest.param(8, 1, marks=pytest.mark.slow), (2, 4)])
def test_a_run_on_eight_devices_is_that_on_one(alone, tmp_path, monkeypatch, data, model):
  """And each stage is traced once: no step leaves an array elsewhere than the next expects it."""
  folder, expected = alone
  stages = []

  def counted(recipe, state, batch, *, stage):
    stages.append(stage)
    return train_step(recipe, state, batch, stage=stage)

  monkeypatch.setattr(loop, 'train_step', counted)
  found = loop.train_and_evaluate(config_on(data, model), tmp_path)
  assert stages == ['dense', 'soft', 'hard']
  for name in ('requested', 'achieved', 'total', 'stages', 'parameters_left'):
    assert found[name] == expected[name]
  np.testing.assert_allclose(found['accuracy'], expected['accuracy'], atol=ACCURACY)
  ours, theirs = read_metrics(tmp_path), read_metrics(folder)
  for name in ('loss', 'kept', 'softness'):
    ours_of, theirs_of = ([r[name] for r in records] for records in (ours, theirs))
    np.testing.assert_allclose(ours_of, theirs_of, atol=LOSS)
  masks, expected_masks = arrays(tmp_path / 'masks.npz'), arrays(folder / 'masks.npz')
  for name, mask in expected_masks.items():
    np.testing.assert_array_equal(masks[name], mask)


@eight
@pytest.mark.faults
def test_a_run_goes_on_with_another_number_of_devices(alone, tmp_path, monkeypatch):
  expected, taken = alone[1], []

  def stop_at(step):
    def write(self, kind, at, values):
      if at == step:
        raise KeyboardInterrupt
      return original(self, kind, at, values)

    return write

  original = loop.MetricsWriter.write
  for step, (data, model) in {5: (1, 1), 11: (2, 2)}.items():
    monkeypatch.setattr(loop.MetricsWriter, 'write', stop_at(step))
    with pytest.raises(KeyboardInterrupt):
      loop.train_and_evaluate(config_on(data, model), tmp_path)
    taken.append(max(int(p.name) for p in (tmp_path / 'checkpoints').iterdir()))
  assert taken == [3, 9]
  monkeypatch.setattr(loop.MetricsWriter, 'write', original)
  found = loop.train_and_evaluate(config_on(2), tmp_path)
  assert found['achieved'] == expected['achieved']
  np.testing.assert_allclose(found['accuracy'], expected['accuracy'], atol=ACCURACY)


# --- what devices tell each other


def transport_step(preset, width, scope='global'):
  """The compiled transport step of kernels split over four devices, and their number of weights."""
  mesh = meshes.make({'data': 2, 'model': 4})
  shapes = {'a': (3, 3, 4, width), 'b': (2 * width, 8), 'c': (8, width)}
  params = {n: {'kernel': jax.ShapeDtypeStruct(s, jnp.float32)} for n, s in shapes.items()}
  elements = prunable.weights(params)._replace(parts=meshes.model_parts(mesh))
  budget = Budget(0.1, scope=scope)
  pruner = methods.build('transportation', elements, budget, steps=10, preset=preset)
  extra = jax.eval_shape(pruner.init, params)
  where = meshes.of_state(mesh, (params, extra))

  def step(params, extra, t):
    masks, following = pruner.masks(params, extra, t)
    return pruner.apply_masks(params, masks), following

  out = meshes.of_state(mesh, jax.eval_shape(step, params, extra, 0))
  step = jax.jit(step, in_shardings=(*where, None), out_shardings=out)
  return step.lower(params, extra, 0).compile(), sum(elements.sizes.values())


@eight
@pytest.mark.parametrize('preset', ['default', 'paper'])
def test_the_transport_tells_scalars_alone_whatever_n_is(preset):
  """No array of the size of the problem, nor a part of one, leaves its device."""
  small, large = (transport_step(preset, width) for width in (16, 256))
  assert large[1] == 16 * small[1]
  told = collectives(small[0].as_text())
  assert told == collectives(large[0].as_text())
  assert {one.kind for one in told} == {'all-reduce'}
  assert sum(one.size for one in told) <= 64
  assert 0 < len(told) <= 9  # in the program; those of the solver's loop run a few times


@eight
@pytest.mark.parametrize('scope', ['global', 'layer'])
def test_split_problems_have_the_masks_of_whole_ones(scope):
  rng = np.random.default_rng(0)
  shapes = {'a': (3, 3, 4, 16), 'b': (32, 8), 'c': (8, 16)}
  params = {n: {'kernel': jnp.asarray(rng.normal(size=s), jnp.float32)} for n, s in shapes.items()}
  masks = {}
  for parts in (1, 4):
    elements = prunable.weights(params)._replace(parts=parts)
    pruner = methods.build('transportation', elements, Budget(0.3, scope=scope), steps=4)
    extra = pruner.init(params)
    for t in range(4):
      _, extra['transport'] = pruner.masks(params, extra, t)
    masks[parts] = pruner.harden(extra)
  for name in masks[1]:
    np.testing.assert_array_equal(masks[1][name], masks[4][name])


def test_arrays_without_equal_parts_are_one_problem_as_a_whole():
  params = {'odd': jnp.ones((3, 5)), 'even': jnp.ones((4, 4))}
  elements = prunable.weights(params)._replace(parts=4)
  (global_,) = methods.build('magnitude', elements, Budget(0.5), steps=1).resolved.problems
  assert global_.parts == 1
  layers = methods.build('magnitude', elements, Budget(0.5, scope='layer'), steps=1).resolved
  parts = {problem.names[0]: problem.parts for problem in layers.problems}
  assert parts == {'odd': 1, 'even': 4}


def test_collectives_are_read_off_a_programs_text():
  """Those of a loop count by its turns, through what it calls."""
  turns = 'backend_config={"known_trip_count":{"n":"12"}}'
  text = """HloModule jit_step, entry_computation_layout={(f32[1,8]{1,0})->f32[4]{0}}

%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %c = f32[] add(f32[] %a, f32[] %b)
}

%inner (x: f8e4m3fn[16]) -> f8e4m3fn[4] {
  ROOT %r = f8e4m3fn[4]{0} reduce-scatter(f8e4m3fn[16]{0} %x), channel_id=3, to_apply=%sum
}

%body (t: (s32[], pred[6])) -> (s32[], pred[6]) {
  %g = pred[6]{0} all-gather(pred[3]{0} %y), channel_id=4, dimensions={0}
  ROOT %i = (s32[], pred[6]{0}) fusion(%g), kind=kLoop, calls=%inner
}

ENTRY %main (x: f32[1,8]) -> f32[4] {
  %a = f32[4,8]{1,0} all-gather(f32[1,8]{1,0} %x), channel_id=1
  %w = (s32[], pred[6]{0}) while(%t), condition=%sum, body=%body, TURNS
  %v = (s32[], pred[6]{0}) while(%w), condition=%sum, body=%body
  %b = (bf16[3]{0}, /*index=1*/s32[]) all-reduce(bf16[3]{0} %y, s32[] %z), channel_id=2
  ROOT %c = f32[4]{0} add(f32[4]{0} %p, f32[4]{0} %q)
}
"""
  text = text.replace('TURNS', turns)
  looped = [('reduce-scatter', 4), ('all-gather', 6)]
  expected = [('all-gather', 128, 1), *((*one, 12) for one in looped)]
  expected += [*((*one, 1) for one in looped), ('all-reduce', 10, 1)]
  assert sorted(collectives(text)) == sorted(expected)
  with pytest.raises(ValueError, match='no ENTRY'):
    collectives('%a = f32[4,8]{1,0} all-gather(f32[1,8]{1,0} %x)')


@eight
def test_a_step_sends_its_kernels_once_and_no_activations():
  """Compiled from shapes alone; more examples send no more, and a part of the state is a part."""
  data = load({'name': 'mnist_mini'})
  found = {}
  for model, size in ((1, 64), (4, 64), (4, 256)):
    config = config_on(-1, model)
    config.model.features = (8, 32)
    config.data.batch_size = size
    found[model, size] = check(config, data)
  alone, small, large = found[1, 64], found[4, 64], found[4, 256]
  whole = 4 * small['weights']
  assert small['sent'] == large['sent']
  assert 0.9 * whole < small['gathered'] <= whole  # the pruned kernels: neither masks nor scores
  assert alone['gathered'] == 0
  assert alone['reduced'] < 1.01 * whole
  # Among those that share kernels, and then a quarter of it among the others.
  assert small['reduced'] < 1.3 * whole
  assert 0.25 <= small['state'] / alone['state'] < 0.4


@eight
def test_of_channels_a_step_sends_their_vectors_whole():
  """One array each: the one problem that groups of all sizes make up is nobody's part."""
  config = config_on(-1, 4)
  config.model.features = (8, 32)
  config.prune.update({'granularity': 'channels', 'of': 'macs', 'keep': 0.5})
  found = check(config, load({'name': 'mnist_mini'}))
  assert 'permute' not in found['collectives']
  assert 'all-to-all' not in found['collectives']
  channels = 4 * (8 + 32 + 16)
  assert found['gathered'] <= 4 * found['weights'] + 4 * channels
