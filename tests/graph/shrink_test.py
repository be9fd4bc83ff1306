"""shrink: the slim network is the masked network, for every model and mask."""

import time

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from dtp_jax.graph import difference, shrink, trace
from dtp_jax.models import ResNet
from dtp_jax.trees import is_array
from tests.graph import convnets, loops, transformers
from tests.graph.agreement import (
  all_but_one,
  assert_agreement,
  compiled,
  masked,
  one_left,
  random_masks,
)
from tests.graph.models import CASES, SMALL, images, linen, randomized


@pytest.fixture(scope='module')
def traced():
  """Cases and their graphs, made once each."""
  made = {}

  def get(name):
    if name not in made:
      case = CASES[name]()
      made[name] = case, trace(case.fn, case.variables, *case.inputs, **case.eval)
    return made[name]

  return get


@pytest.mark.parametrize('name', CASES)
def test_groups_are_the_ones_expected(traced, name):
  case, graph = traced(name)
  assert set(graph.groups) == case.groups


@pytest.mark.parametrize('name', CASES)
def test_slim_is_masked_at_the_extremes(traced, name):
  case, graph = traced(name)
  reference = compiled(masked(graph), case.eval, grads=False)
  for masks in (one_left(graph), all_but_one(graph)):
    assert_agreement(graph, case.variables, case.inputs, case.eval, masks, False, reference)


# Their code makes arrays of float32 itself.
IN_FLOAT32 = ('equinox', 'llama', 'lstm', 'nnx_transformer', 'standardised')


@pytest.mark.parametrize('name', [name for name in CASES if name not in IN_FLOAT32])
def test_slim_is_masked_in_training_with_gradients_and_new_state(traced, x64, name):
  """In float64: behind normalisations of a small batch, float32 gradients are rounding."""
  case, graph = traced(name)
  variables, inputs = jax.tree.map(in_float64, (case.variables, case.inputs))
  assert_agreement(graph, variables, inputs, training(case), random_masks(graph, 1), scale=1e-8)


@pytest.mark.parametrize('name', IN_FLOAT32)
def test_slim_is_masked_in_training_in_float32(traced, name):
  case, graph = traced(name)
  assert_agreement(graph, case.variables, case.inputs, training(case), random_masks(graph, 1))


def training(case):
  return case.eval if case.train is None else case.train


def in_float64(leaf):
  floating = is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.floating)
  return leaf.astype(jnp.float64) if floating else leaf


def test_deleted_channels_are_gone_from_params_and_state(traced):
  case, graph = traced('residual')
  hard = {'stem': np.array([True, False, True, False])}
  slim = shrink(graph, case.variables, hard)
  np.testing.assert_array_equal(slim.kept['stem'], [0, 2])
  params, state = slim.variables['params'], slim.variables['batch_stats']
  kernel = case.variables['params']['block0_conv2']['kernel']
  np.testing.assert_array_equal(params['block0_conv2']['kernel'], kernel[..., [0, 2]])
  assert params['block1_proj']['kernel'].shape == (1, 1, 2, 6)
  assert state['block0_conv2_bn']['mean'].shape == (2,)
  shapes = shrink(graph, jax.eval_shape(lambda v: v, case.variables), hard).variables
  assert jax.tree.map(jnp.shape, slim.variables) == jax.tree.map(lambda s: s.shape, shapes)


def test_a_group_keeps_min_keep(traced):
  case, graph = traced('vgg')
  none = {name: np.zeros(group.size) for name, group in graph.groups.items()}
  assert {len(k) for k in shrink(graph, case.variables, none).kept.values()} == {1}
  none['b'][4] = 1
  slim = shrink(graph, case.variables, none, min_keep=3)
  np.testing.assert_array_equal(slim.kept['b'], [0, 1, 4])
  more = shrink(graph, case.variables, none, min_keep=100)
  assert {name: len(k) for name, k in more.kept.items()} == graph.sizes


def test_nothing_to_delete_changes_nothing(traced):
  case, graph = traced('vgg')
  slim = shrink(graph, case.variables, {})
  assert jax.tree.all(jax.tree.map(lambda a, b: a is b, slim.variables, case.variables))
  expected = jax.jit(lambda v, x: case.fn(v, x, train=False))(case.variables, *case.inputs)
  np.testing.assert_allclose(
    slim.apply(slim.variables, *case.inputs, train=False), expected, rtol=1e-5, atol=1e-6
  )


def test_apply_takes_any_batch_and_compiles_each_once(traced):
  case, graph = traced('vgg')
  hard = random_masks(graph, 3)
  slim = shrink(graph, case.variables, hard)
  masks = {name: jnp.asarray(mask, jnp.float32) for name, mask in hard.items()}
  variables = graph.apply_masks(case.variables, masks)
  for batch in (1, 5, 1):
    x = images(batch, *SMALL[1:])
    expected = jax.jit(lambda v, x: case.fn(v, x, train=False))(variables, x)
    np.testing.assert_allclose(
      slim.apply(slim.variables, x, train=False), expected, rtol=1e-4, atol=1e-5
    )
  assert len(slim.apply.programs) == 2


def test_apply_is_a_jax_function(traced):
  """Under jit, vmap, grad of grad and another trace."""
  case, graph = traced('plain')
  slim = shrink(graph, case.variables, random_masks(graph, 4))
  (x,) = case.inputs
  out = slim.apply(slim.variables, x)
  np.testing.assert_allclose(jax.jit(slim.apply)(slim.variables, x), out, rtol=1e-5)
  rows = jax.vmap(lambda row: slim.apply(slim.variables, row[None])[0])(x)
  np.testing.assert_allclose(rows, out, rtol=1e-5, atol=1e-6)
  bent = jax.hessian(lambda x: slim.apply(slim.variables, x).sum())(x)
  assert bent.shape == (2, 3, 2, 3)
  again = trace(slim.apply, slim.variables, x)
  twice = shrink(again, slim.variables, random_masks(again, 5))
  assert again.sizes == {name: len(kept) for name, kept in slim.kept.items()}
  assert twice.apply(twice.variables, x).shape == out.shape


def test_dropout_draws_the_same_bits_for_the_channels_that_stay(traced):
  case, graph = traced('vgg')
  slim = shrink(graph, case.variables, random_masks(graph, 6))
  run = jax.jit(
    lambda v, x, key: slim.apply(v, x, train=True, mutable=['batch_stats'], rngs={'dropout': key})[
      0
    ]
  )
  one, two, other = (run(slim.variables, *case.inputs, jax.random.key(k)) for k in (3, 3, 4))
  np.testing.assert_array_equal(one, two)
  assert np.max(np.abs(one - other)) > 1e-3
  assert len(slim.apply.programs) == 1


def test_a_relu_keeps_its_slope_at_zero():
  """Replay keeps custom derivatives: jax.nn.relu has slope 0 at 0, max(x, 0) has 1/2."""

  def fn(w, x):
    return jax.nn.relu(x @ w['a']) @ w['b']

  params = {'a': jnp.zeros((3, 4)), 'b': jnp.ones((4, 2))}
  slim = shrink(trace(fn, params, images(2, 3)), params, {'a': np.array([1, 0, 1, 1])})
  slope = jax.grad(lambda v: slim.apply(v, images(2, 3)).sum())(slim.variables)
  np.testing.assert_array_equal(slope['a'], np.zeros((3, 3)))


def test_remat_stays_remat():
  def fn(w, x):
    return jax.checkpoint(lambda v: jnp.sin(jnp.sin(v @ w['a'])))(x) @ w['b']

  params = randomized(
    {'a': jax.ShapeDtypeStruct((3, 4), jnp.float32), 'b': jax.ShapeDtypeStruct((4, 2), jnp.float32)}
  )
  slim = shrink(trace(fn, params, images(2, 3)), params, {'a': np.array([1, 0, 1, 1])})
  assert 'remat' in str(jax.make_jaxpr(slim.apply)(slim.variables, images(2, 3)))


class Auxiliary(nn.Module):
  """A head that exists in training only."""

  @nn.compact
  def __call__(self, x, train):
    x = nn.relu(nn.Dense(6, name='a')(x))
    head = nn.Dense(2, name='b')
    extra = nn.Dense(2, name='extra')
    if self.is_initializing() or train:
      return head(x), extra(x)
    return head(x)


def test_a_mode_that_couples_more_is_refused_not_wrong():
  module, x = Auxiliary(), images(2, 3)
  variables = randomized(jax.eval_shape(lambda: module.init(jax.random.key(0), x, True)))
  hard = {'a': np.array([1, 0, 1, 1, 0, 1])}
  slim = shrink(trace(module.apply, variables, x, train=False), variables, hard)
  assert slim.apply(slim.variables, x, train=False).shape == (2, 2)
  with pytest.raises(ValueError, match=r'params/extra/kernel:0 .* trace it with these arguments'):
    slim.apply(slim.variables, x, train=True)
  graph = trace(module.apply, variables, x, train=True)
  assert_agreement(graph, variables, (x,), {'train': True}, hard)
  both = shrink(graph, variables, hard)
  assert both.apply(both.variables, x, train=False).shape == (2, 2)


REBUILT = {
  'decoder': (transformers.Decoder, {'embed': np.arange(8) % 3 != 0}, 5),
  'encoder': (
    transformers.Encoder,
    {name: np.arange(8) % 3 == 0 for name in ('word', 'pooler')},
    3,
  ),
  'scanned': (loops.Scanned, {'embed': np.arange(8) % 3 != 1}, 5),
  'standardised': (
    transformers.Standardised,
    {'stem:3.1': np.array([True, False, True, False])},
    4,
  ),
}


@pytest.mark.parametrize('name', REBUILT)
def test_with_norms_refitted_it_is_the_module_of_the_kept_width(traced, name):
  """One- and two-pass layer norms, group norms, kernels standardised over their in-axis."""
  module, hard, width = REBUILT[name]
  case, graph = traced(name)
  slim = shrink(graph, case.variables, hard, norms='refit')
  expected = module(width=width).apply(slim.variables, *case.inputs, train=False)
  result = slim.apply(slim.variables, *case.inputs, train=False)
  np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)
  assert difference(graph, case.variables, slim, *case.inputs, train=False) > 1e-3
  exact = shrink(graph, case.variables, hard)
  assert difference(graph, case.variables, exact, *case.inputs, train=False) < 1e-5


def test_errors_name_what_is_wrong(traced):
  case, graph = traced('vgg')
  with pytest.raises(ValueError, match=r'entry 0\.5; expected 0 and 1'):
    shrink(graph, case.variables, {'a': np.full(6, 0.5)})
  with pytest.raises(ValueError, match="norms is 'plain'; expected one of"):
    shrink(graph, case.variables, {}, norms='plain')
  with pytest.raises(ValueError, match="'params/a/kernel' of shape None"):
    shrink(graph, {'batch_stats': case.variables['batch_stats']}, {})
  with pytest.raises(ValueError, match="did you mean 'a'"):
    shrink(graph, case.variables, {'aa': np.ones(6)})
  slim = shrink(graph, case.variables, random_masks(graph, 0))
  with pytest.raises(ValueError, match=r'of shape .* expected'):
    slim.apply(case.variables, *case.inputs, train=False)


def test_half_precision_weights_run_in_half_precision():
  case = linen(convnets.Residual(), images(*SMALL), set())
  graph = trace(case.fn, case.variables, *case.inputs, **case.eval)
  slim = shrink(graph, case.variables, random_masks(graph, 0))
  half = jax.tree.map(lambda v: v.astype(jnp.bfloat16), slim.variables)
  out = slim.apply(half, images(*SMALL).astype(jnp.bfloat16), train=False)
  full = slim.apply(slim.variables, *case.inputs, train=False)
  np.testing.assert_allclose(np.asarray(out, np.float32), full, atol=0.2)


def test_resnet50_is_traced_and_shrunk_in_seconds():
  module = ResNet(50)
  x = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  structs = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, False), x)
  variables = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), structs)
  start = time.perf_counter()
  graph = trace(module.apply, variables, x, train=False)
  hard = {name: np.arange(group.size) % 2 == 0 for name, group in graph.groups.items()}
  slim = shrink(graph, variables, hard)
  assert jax.eval_shape(lambda v, x: slim.apply(v, x, train=False), slim.variables, x).shape == (
    1,
    1000,
  )
  assert time.perf_counter() - start < 15


@pytest.mark.parametrize('name', ['vgg', 'vit'])
def test_slim_exports_with_a_symbolic_batch(traced, name):
  case, graph = traced(name)
  slim = shrink(graph, case.variables, random_masks(graph, 7))
  (batch,) = jax.export.symbolic_shape('batch')
  x = jax.ShapeDtypeStruct((batch, *SMALL[1:]), jnp.float32)
  exported = jax.export.export(jax.jit(lambda v, x: slim.apply(v, x, train=False)))(
    jax.eval_shape(lambda: slim.variables), x
  )
  x = images(5, *SMALL[1:])
  np.testing.assert_allclose(
    exported.call(slim.variables, x),
    slim.apply(slim.variables, x, train=False),
    rtol=1e-5,
    atol=1e-5,
  )


def test_batch_statistics_at_another_batch_size(traced):
  """BatchNorm's means divide by a literal B * H * W: a new batch size is a new trace."""
  case, graph = traced('flatten_chw')
  x = (images(3, *SMALL[1:]),)
  assert_agreement(graph, case.variables, x, case.train, random_masks(graph, 8), grads=False)
