"""The study's fast networks are the product's, and its runs end at their budgets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtp_jax import models
from experiments.method_study import consumers, nets, rows, runs
from experiments.method_study.beds import Bed, Spec
from experiments.method_study.plans import append, done, jobs

NETS = {
  'lenet': (nets.lenet, models.LeNet(num_classes=10)),
  'resnet': (nets.resnet, models.CifarResNet(depth=8, width=4, stem_strides=2, num_classes=10)),
}


def _scattered(tree, key):
  """Every entry drawn anew: scales, biases and statistics are constants at first."""
  leaves, structure = jax.tree.flatten(tree)
  keys = jax.random.split(key, len(leaves))
  drawn = [0.2 + jax.random.uniform(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
  return jax.tree.unflatten(structure, drawn)


@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize('name', NETS)
def test_the_fast_networks_equal_the_linen_ones(name, train):
  fast, model = NETS[name]
  a, b, c, d = jax.random.split(jax.random.key(0), 4)
  x, y = jax.random.normal(a, (3, 28, 28, 1)), jax.random.normal(b, (3, 10))
  variables = model.init(c, x, train=False)
  params = variables['params']
  stats = _scattered(variables.get('batch_stats', {}), d)

  def theirs(params):
    given = {'params': params, **({'batch_stats': stats} if stats else {})}
    logits, after = model.apply(given, x, train=train, mutable=['batch_stats'])
    return jnp.vdot(y, logits), (logits, after.get('batch_stats', {}) if train else stats)

  def ours(params):
    logits, after = fast(params, stats, x, train)
    return jnp.vdot(y, logits), (logits, after)

  (_, expected), slopes = jax.jit(jax.value_and_grad(theirs, has_aux=True))(params)
  (_, found), grads = jax.jit(jax.value_and_grad(ours, has_aux=True))(params)
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3)
  jax.tree.map(close, found, expected)
  jax.tree.map(close, grads, slopes)


@pytest.mark.parametrize(
  'row', ['ours weights', 'taylor weights', 'acdc weights', 'rigl weights', 'greg channels']
)
def test_a_run_ends_at_its_budget(row, tmp_path):
  row, granularity = row.split()
  bed = Bed(Spec('mnist_mini', granularity, dense_steps=2, steps=4, validation=500), cache=tmp_path)
  outcome = runs.run(bed, 0.3, rows.ROWS[row]._replace(soft=0.5), seed=0)
  if granularity == 'weights':
    assert outcome['achieved'] == outcome['requested']
  else:  # rounded down to whole channels of a uniform width
    assert 0.7 * outcome['requested'] < outcome['achieved'] <= outcome['requested']
  assert outcome == {**outcome, **_again(bed, row)}  # the dense network came from the cache


def _again(bed, row):
  outcome = runs.run(bed, 0.3, rows.ROWS[row]._replace(soft=0.5), seed=0)
  outcome.pop('cpu_seconds')
  return outcome


def test_a_plan_is_resumed(tmp_path):
  plan = '# two beds\na,b 0.1 ours,spartan 0,1\n\nb 0.2 ours 3  # one more'
  found = jobs(plan, 'ab', rows.ROWS)
  assert len(found) == 9
  assert found[-1] == ('b', 0.2, 'ours', 3)
  path = tmp_path / 'out.csv'
  assert done(path) == set()
  append(path, {'bed': 'b', 'keep': 0.2, 'options': rows.ROWS['ours'].text, 'seed': 3})
  assert done(path) == {('b', 0.2, rows.ROWS['ours'].text, 3)}


@pytest.mark.parametrize('strides', [1, 2])
def test_the_windows_of_a_layer_are_what_its_kernel_reads(strides):
  x, kernel = (
    jax.random.normal(jax.random.key(i), s) for i, s in ((0, (2, 6, 6, 3)), (1, (3, 3, 3, 5)))
  )
  layout = ('NHWC', 'HWIO', 'NHWC')
  y = jax.lax.conv_general_dilated(x, kernel, (strides,) * 2, 'SAME', dimension_numbers=layout)
  read = consumers.windows(nets.Layer(x, strides=strides), kernel)
  found = read @ kernel.transpose(2, 0, 1, 3).reshape(-1, 5)
  np.testing.assert_allclose(
    found, (y - y.mean((0, 1, 2), keepdims=True)).reshape(-1, 5), atol=1e-5
  )


def test_an_updated_layer_gives_what_it_gave_as_nearly_as_least_squares_can():
  """Two of five inputs are gone, which the others tell in part."""
  mixed = jax.random.normal(jax.random.key(0), (400, 5)) @ jax.random.normal(
    jax.random.key(1), (5, 5)
  )
  wanted = mixed - mixed.mean(0, keepdims=True)
  given = wanted.at[:, 3:].set(0)
  kernel = jax.random.normal(jax.random.key(2), (5, 2))
  moved = kernel + consumers.correction(given, wanted, kernel)
  best = np.linalg.lstsq(given, wanted @ kernel, rcond=None)[0]
  np.testing.assert_allclose(given @ moved, given @ best, atol=0.1)
  np.testing.assert_allclose(moved[3:], kernel[3:], atol=1e-6)
  np.testing.assert_allclose(consumers.correction(wanted, wanted, kernel), 0, atol=1e-6)
