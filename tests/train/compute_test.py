"""How a step is computed: in parts, in bfloat16, with less kept, with clipped gradients."""

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest

from configs import mnist_mini
from dtp_jax.data import Resident, load
from dtp_jax.train import mesh as meshes
from dtp_jax.train import recipe as recipes
from dtp_jax.train.recipe import Network, build
from dtp_jax.train.step import enter_stage, train_step
from tests.train.conftest import tiny_config

ALONE = meshes.make({'data': 1, 'model': 1})


@pytest.fixture(scope='module')
def data():
  return load({'name': 'mnist_mini'})


def after_a_soft_step(config, data):
  """(state, metrics) after the first soft step of a run, from weights at random."""
  config.stages.dense = 0.0
  recipe, create = build(config, data)
  state = enter_stage(recipe, create(), 0)
  batch = Resident.batch(jax.tree.map(jnp.asarray, data.train), jnp.arange(64))
  step = jax.jit(lambda state, batch: train_step(recipe, state, batch, stage='soft'))
  return step(state, batch)


def close(ours, theirs, rtol, atol):
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def test_four_parts_of_sixteen_are_a_batch_of_sixty_four(data):
  config = tiny_config()
  state, metrics = after_a_soft_step(config, data)
  config.accumulate = 4
  of_parts, metrics_of_parts = after_a_soft_step(config, data)
  for name in ('params', 'scores', 'transport', 'opt_state'):
    close(getattr(of_parts, name), getattr(state, name), rtol=1e-4, atol=1e-6)
  close(metrics_of_parts, metrics, rtol=1e-5, atol=1e-6)


def test_a_step_in_parts_has_one_plan(data):
  """The transport's loops are as many as without parts, and outside of that over the parts."""

  def loops(parts):
    config = tiny_config()
    config.accumulate = parts
    recipe, create = build(config, data)
    batch = {
      name: jax.ShapeDtypeStruct((64, *x.shape[1:]), x.dtype) for name, x in data.train.items()
    }
    step = jax.make_jaxpr(lambda s, b: train_step(recipe, s, b, stage='soft'))
    return list(_loops(step(jax.eval_shape(create), batch).jaxpr))

  whole, in_parts = loops(1), loops(4)
  assert whole
  assert in_parts.count('while') == whole.count('while')
  assert in_parts.count('scan') == whole.count('scan') + 1


def _loops(jaxpr, inside=()):
  """Names of the loops of a program; one inside of a scan is named 'scan/...'."""
  for equation in jaxpr.eqns:
    name = equation.primitive.name
    if name in ('while', 'scan'):
      yield '/'.join((*inside, name))
    for sub in jax.extend.core.jaxprs_in_params(equation.params):
      yield from _loops(sub, (*inside, name) if name == 'scan' else inside)


@pytest.mark.parametrize('parts', [3, 128])
def test_parts_that_do_not_divide_the_batch_are_refused(data, parts):
  config = tiny_config()
  config.accumulate = parts
  with pytest.raises(ValueError, match=f'batch_size is 64.*accumulate = {parts}'):
    build(config, data)


def test_bfloat16_computes_and_stores_nothing(data):
  """All that is kept from step to step is float32, and near to what float32 computes."""
  config = small_resnet()
  state, metrics = after_a_soft_step(config, data)
  config.dtype = 'bfloat16'
  coarse, metrics_of_coarse = after_a_soft_step(config, data)
  types = lambda tree: jax.tree.map(lambda x: x.dtype, tree)
  assert types(coarse) == types(state)
  np.testing.assert_allclose(metrics_of_coarse['loss'], metrics['loss'], rtol=0.02)
  close(coarse.batch_stats, state.batch_stats, rtol=0.05, atol=0.02)
  pairs = zip(*map(jax.tree.leaves, (coarse.batch_stats, state.batch_stats)), strict=True)
  assert any(np.any(a != b) for a, b in pairs)
  np.testing.assert_allclose(metrics_of_coarse['kept'], metrics['kept'], atol=1e-6)


def test_bfloat16_reaches_every_product():
  """No dot or convolution, forward or backward, is left in float32."""
  model = recipes.build_model(small_resnet(), 10)
  network = Network(model, 'bfloat16', remat=False, mesh=ALONE)
  images = jnp.zeros((2, 28, 28, 1))
  variables = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))

  def loss(params, stats):
    logits, _ = network(
      {'params': params, 'batch_stats': stats}, images, train=True, mutable=['batch_stats']
    )
    return jnp.sum(logits.astype(jnp.float32))

  traced = jax.make_jaxpr(jax.grad(loss))(variables['params'], variables['batch_stats'])
  types = {
    v.aval.dtype.name
    for equation in traced.jaxpr.eqns
    if equation.primitive.name in ('dot_general', 'conv_general_dilated')
    for v in equation.invars
  }
  assert types == {'bfloat16'}


def test_an_unknown_arithmetic_is_refused(data):
  config = tiny_config()
  config.dtype = 'float8'
  with pytest.raises(ValueError, match=r"dtype is 'float8'.*'bfloat16', 'float32'"):
    build(config, data)


def test_rematerialisation_keeps_less_and_changes_no_gradient():
  """What the backward pass holds, in bytes: without the results of normalisation and activation."""
  model = recipes.build_model(small_resnet(), 10)
  images = jax.random.normal(jax.random.key(1), (4, 28, 28, 1))
  variables = model.init(jax.random.key(0), images, train=False)

  def loss(remat, params):
    network = Network(model, 'float32', remat, ALONE)
    now = {**variables, 'params': params}
    logits, _ = network(now, images, train=True, mutable=['batch_stats'])
    return jnp.sum(jax.nn.log_softmax(logits)[:, 0])

  def kept(remat):
    pull_back = jax.eval_shape(
      lambda p: jax.vjp(lambda p: loss(remat, p), p)[1], variables['params']
    )
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(pull_back))

  assert kept(True) < 0.6 * kept(False)
  gradients = [
    jax.jit(jax.grad(lambda p, remat=remat: loss(remat, p)))(variables['params'])
    for remat in (True, False)
  ]
  close(*gradients, rtol=1e-4, atol=1e-5)


def test_the_norm_of_the_gradient_of_the_weights_is_clipped():
  config = tiny_config()
  config.optimizer.update({'momentum': 0.0, 'nesterov': False, 'weight_decay': 0.0, 'warmup': 0.0})
  gradient = {'a': jnp.array([3.0]), 'b': jnp.array([4.0])}  # of norm 5
  moves = {}
  for norm in (None, 10.0, 0.5):
    config.optimizer.clip_norm = norm
    tx = recipes.build_optimizer(config, recipes.Stages(4, 4, 4))
    updates, _ = tx.update(gradient, tx.init(gradient), gradient)
    moves[norm] = np.array([updates['a'][0], updates['b'][0]])
  np.testing.assert_allclose(moves[10.0], moves[None])
  np.testing.assert_allclose(moves[0.5], moves[None] / 10, rtol=1e-6)


@pytest.mark.parametrize('norm', [0.0, -1.0])
def test_a_norm_that_stops_everything_is_refused(norm):
  config = tiny_config()
  config.optimizer.clip_norm = norm
  with pytest.raises(ValueError, match=f'clip_norm is {norm}'):
    recipes.build_optimizer(config, recipes.Stages(4, 4, 4))


def small_resnet():
  config = mnist_mini.get_config('runlocal')
  config.model.width = 4
  config.prune.update({'keep': 0.4, 'multiple_of': '1'})
  config.mesh.data = 1
  return config
