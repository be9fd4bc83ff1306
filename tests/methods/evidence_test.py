"""Evidence: the probe, its running mean, and the score that is made of it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dtp_jax as dtp
from dtp_jax.budget import resolve
from dtp_jax.methods import evidence


def _loss(w, mask, x):
  return jnp.sum(jnp.tanh(x @ (w * mask)) ** 2)


@pytest.fixture
def case():
  a, b, c, d = jax.random.split(jax.random.key(0), 4)
  w, x = jax.random.normal(a, (6, 4)), jax.random.normal(b, (5, 6))
  return w, jax.random.uniform(c, (6, 4)), jax.random.normal(d, (6, 4)), x


def test_the_probe_leaves_the_mask_and_gives_m_times_its_gradient(case):
  w, mask, scores, x = case
  np.testing.assert_array_equal(evidence.probed(mask, scores), mask)
  found = jax.grad(lambda s: _loss(w, evidence.probed(mask, s), x))(scores)
  by_mask, by_weight = jax.grad(_loss, (1, 0))(w, mask, x)
  np.testing.assert_allclose(found, mask * by_mask, rtol=1e-5)
  np.testing.assert_allclose(found, w * by_weight, rtol=1e-5)  # of single weights


def test_the_probe_leaves_the_gradient_through_the_plan(case):
  w, _, scores, x = case
  plan = lambda w: jax.nn.sigmoid(3 * jnp.log(jnp.abs(w)))
  probed = jax.grad(lambda w: _loss(w, evidence.probed(plan(w), scores), x))(w)
  np.testing.assert_allclose(probed, jax.grad(lambda w: _loss(w, plan(w), x))(w), rtol=1e-5)


def test_second_moment_is_the_running_mean_of_squares():
  grads = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
  tx, s = evidence.second_moment(0.9), {'a': jnp.zeros(3)}
  state = tx.init(s)
  expected = np.zeros(3)
  for g in grads:
    updates, state = tx.update({'a': jnp.asarray(g)}, state, s)
    s = optax.apply_updates(s, updates)
    expected = 0.9 * expected + 0.1 * g**2
  np.testing.assert_allclose(s['a'], expected, rtol=1e-5)
  with pytest.raises(ValueError, match='decay is 1'):
    evidence.second_moment(1.0)
  with pytest.raises(ValueError, match='params'):
    tx.update(s, state)


def test_importance_is_the_geometric_mean():
  w, info, prices = jnp.array([0.1, 2.0, 0.5]), jnp.array([4.0, 1.0, 9.0]), jnp.array([1.0, 2.0, 3])
  gap = lambda s: np.diff(np.asarray(s))
  by = lambda **kw: evidence.log_importance(w, info, prices, **kw)
  np.testing.assert_allclose(gap(by(share=0.0)), gap(np.log(w)), rtol=1e-4)
  np.testing.assert_allclose(gap(by(share=1.0)), gap(0.5 * np.log(info / prices)), rtol=1e-4)
  np.testing.assert_allclose(gap(2 * by()), gap(np.log(w) + 0.5 * np.log(info / prices)), rtol=1e-4)
  scaled = evidence.log_importance(w, 1e-9 * info, 7 * prices)
  np.testing.assert_allclose(gap(scaled), gap(by()), rtol=1e-3)  # no factor matters


def test_importance_keeps_the_derivative_of_the_magnitude_alone():
  w, info = jnp.array([0.1, 2.0, 0.5]), jnp.array([4.0, 0.0, 9.0])
  score = lambda w, info: evidence.log_importance(w, info, share=0.25).sum()
  by_w, by_info = jax.grad(score, (0, 1))(w, info)
  np.testing.assert_allclose(by_w, 0.75 / w, rtol=1e-5)
  assert not np.any(by_info)
  dead = jax.value_and_grad(score)(jnp.zeros(3), jnp.zeros(3))
  assert all(np.all(np.isfinite(x)) for x in dead)


def test_prices_are_what_a_channel_costs_beside_the_others():
  def apply(variables, x, train=False):
    p = variables['params']
    return jax.nn.relu(x @ p['a']['kernel']) @ p['b']['kernel']

  variables = {'params': {'a': {'kernel': jnp.ones((3, 4))}, 'b': {'kernel': jnp.ones((4, 2))}}}
  graph = dtp.trace(apply, variables, jnp.ones((1, 3)))
  (problem,) = resolve(dtp.Budget(0.5, 'macs'), dtp.channels(graph)).problems
  np.testing.assert_allclose(problem.prices(jnp.zeros(4)), np.full(4, 0.25), rtol=1e-5)
  (counted,) = resolve(dtp.Budget(0.5), dtp.weights(variables['params'])).problems
  assert counted.prices(jnp.zeros(20)) is None
