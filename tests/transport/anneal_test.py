"""anneal: the nested solvers in float64, runs to a deadline, any state to begin with."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtp_jax import transport
from dtp_jax.graph.cost import Polynomial


def _scores(*shape, seed=0, dtype=np.float32):
  """Logarithms of magnitudes, as the default method has them."""
  return np.log(np.abs(np.random.default_rng(seed).normal(size=shape)) + 1e-6).astype(dtype)


@jax.jit
def _anneal(scores, state, keep, ceiling):
  return transport.anneal(scores, state, keep=keep, ceiling=ceiling)


@jax.jit
def _nested(scores, keep, ceiling):
  """The gain by one Newton's method, with the dual by another inside."""
  gain = transport.deadline_gain(2e-2 * scores, keep=keep, ceiling=ceiling)
  return jax.nn.sigmoid(transport.project(gain * 2e-2 * scores, keep=keep))


def _softness(mask):
  mask = np.asarray(mask, np.float64)
  return np.mean(4 * mask * (1 - mask), axis=-1)


@pytest.mark.parametrize('keep', [0.9, 0.5, 0.1])
@pytest.mark.parametrize('left', [0.95, 0.3, 0.02])
def test_agrees_with_the_nested_solvers_in_float64(x64, keep, left):
  scores, ceiling = _scores(5000), 4 * keep * (1 - keep) * left
  mask, _ = _anneal(scores, np.zeros_like(scores), keep, ceiling)
  assert mask.dtype == jnp.float32
  expected = _nested(scores.astype(np.float64), keep, ceiling)
  np.testing.assert_allclose(mask, expected, atol=2e-3)
  np.testing.assert_allclose(np.mean(np.asarray(mask, np.float64)), keep, rtol=1e-5)


@pytest.mark.parametrize(('n', 'steps'), [(300, 60), (3 * 2**17, 12)], ids=['all', 'sampled'])
@pytest.mark.parametrize('keep', [0.5, 0.05])
def test_a_run_keeps_its_budget_and_its_deadline(n, steps, keep):
  """Scores drift, the kept fraction falls along a cubic, the softness along a line."""
  rng = np.random.default_rng(0)
  scores, state = _scores(n), np.zeros(n, np.float32)
  for t in range(steps):
    scores = scores + np.float32(0.02) * rng.normal(size=n).astype(np.float32)
    rho = keep + (0.9 - keep) * max(0.0, 1 - t / (0.4 * steps)) ** 3
    ceiling = 4 * rho * (1 - rho) * max(0.01, 1 - (t + 1) / (0.9 * steps))
    mask, state = _anneal(scores, state, rho, ceiling)
    np.testing.assert_allclose(np.mean(np.asarray(mask, np.float64)), rho, rtol=5e-4)
    np.testing.assert_allclose(_softness(mask), ceiling, rtol=5e-3)
    np.testing.assert_allclose(jax.nn.sigmoid(state), mask, atol=1e-6)
  hard = np.asarray(transport.hard_topk(scores, k=round(keep * n)))
  assert np.mean((mask > 0.5) != hard) < 2e-3


def test_the_state_is_where_the_search_begins_and_nothing_else():
  scores, rng = _scores(2000), np.random.default_rng(1)
  masks = [
    _anneal(scores, state.astype(np.float32), 0.2, 0.1)[0]
    for state in (0 * scores, 3 * scores + 1, -scores, 1e4 * scores, 1e6 * rng.normal(size=2000))
  ]
  for mask in masks:
    np.testing.assert_allclose(mask, masks[0], atol=2e-3)
    np.testing.assert_allclose(np.mean(mask), 0.2, rtol=1e-5)


def test_a_mask_that_is_hard_enough_stays_at_epsilon():
  scores = _scores(500)
  mask, _ = transport.anneal(scores, np.zeros_like(scores), keep=0.3, ceiling=1.0, epsilon=0.5)
  np.testing.assert_allclose(mask, transport.soft_topk(scores, keep=0.3, epsilon=0.5), atol=1e-5)


def test_derivatives_are_those_of_the_projection_with_the_gain_held(x64):
  scores, target = _scores(40, dtype=np.float64), np.random.default_rng(1).normal(size=40)
  mask, state = _anneal(scores, np.zeros(40), 0.3, 0.2)
  gain = (state[1] - state[0]) / (scores[1] - scores[0])

  def held(s):
    return jax.nn.sigmoid(transport.project(gain * s, keep=0.3))

  anneal = lambda s: _anneal(s, state, 0.3, 0.2)[0]
  np.testing.assert_allclose(mask, held(scores), atol=1e-4)
  for jacobian in (jax.jacfwd, jax.jacrev):
    ours, expected = (target @ jax.jit(jacobian(f))(scores) for f in (anneal, held))
    np.testing.assert_allclose(ours, expected, atol=2e-4 * np.abs(expected).max())
  by_keep = jax.jvp(lambda k: _anneal(scores, state, k, 0.2)[0], (0.3,), (1.0,))[1]
  np.testing.assert_allclose(np.mean(by_keep), 1.0, rtol=1e-10)


def test_a_batch_is_its_problems():
  scores, state = _scores(3, 50), np.zeros((3, 50), np.float32)
  keep, ceiling = np.float32([0.2, 0.5, 0.8]), np.float32([0.3, 0.05, 0.5])
  batched = _anneal(scores, state, keep, ceiling)[0]
  mapped = jax.jit(jax.vmap(_anneal))(scores, state, keep, ceiling)[0]
  for i in range(3):
    alone = _anneal(scores[i], state[i], keep[i], ceiling[i])[0]
    np.testing.assert_allclose(batched[i], alone, atol=1e-5)
    np.testing.assert_allclose(mapped[i], alone, atol=1e-5)


def test_masses_and_costs_are_met():
  scores = _scores(40)
  a = np.random.default_rng(1).uniform(0.1, 1, 40)
  state = np.zeros(40, np.float32)
  mask, _ = transport.anneal(scores, state, keep=0.3, ceiling=0.1, weights=a)
  np.testing.assert_allclose(a @ mask / a.sum(), 0.3, rtol=1e-5)
  assert _softness(mask) <= 0.1 * 1.002
  cost = Polynomial({('a', 'b'): 4, ('b', 'b'): 2, ('a',): 7, (): 9}, {'a': 15, 'b': 25})
  share = lambda m: cost.fraction({'a': m[:15], 'b': m[15:]})
  for _ in range(3):
    mask, state = transport.anneal(scores, state, keep=0.3, ceiling=0.1, cost=share)
    np.testing.assert_allclose(share(mask), 0.3, rtol=1e-5)
    np.testing.assert_allclose(_softness(mask), 0.1, rtol=5e-3)


@pytest.mark.parametrize('keep', [0.0, 1.0])
def test_nothing_and_everything_are_exact(keep):
  mask, state = _anneal(_scores(30), np.zeros(30, np.float32), keep, 0.1)
  np.testing.assert_array_equal(mask, keep)
  assert np.all(np.isfinite(state))


def test_what_no_gain_can_harden_keeps_its_budget_and_its_order():
  """Ties at the threshold, and 5.5 of ten elements."""
  for scores, keep in ((np.float32([0, 1, 1, 1, 2]), 0.4), (_scores(10), 0.55)):
    state = np.zeros_like(scores)
    for _ in range(3):
      (mask, state), pullback = jax.vjp(lambda s, z=state, k=keep: _anneal(s, z, k, 0.0), scores)
      np.testing.assert_allclose(np.mean(mask), keep, rtol=5e-3)
      assert np.all(np.diff(np.asarray(mask)[np.argsort(scores)]) >= 0)
      assert np.all(np.isfinite(pullback((np.ones_like(mask), state))[0]))


def test_infinite_scores_come_first_and_last_and_nan_propagates():
  scores = _scores(20)
  scores[3], scores[5] = np.inf, -np.inf
  mask, state = _anneal(scores, np.zeros(20, np.float32), 0.4, 0.2)
  assert (mask[3], mask[5]) == (1, 0)
  assert np.all(np.isfinite(state))
  scores[0] = np.nan
  assert np.all(np.isnan(_anneal(scores, np.zeros(20, np.float32), 0.4, 0.2)[0]))


@pytest.mark.parametrize(
  ('changed', 'match'),
  [({'state': np.zeros(3)}, 'state has shape'), ({'ceiling': 1.5}, 'ceiling is 1.5'),
   ({'epsilon': 0.0}, 'epsilon is 0.0'), ({'keep': -1.0}, 'keep is -1.0')],
)  # fmt: skip
def test_wrong_arguments_are_named(changed, match):
  arguments = {'scores': np.zeros(5), 'state': np.zeros(5), 'keep': 0.5, 'ceiling': 0.5, **changed}
  with pytest.raises(ValueError, match=match):
    functools.partial(transport.anneal, **arguments)()


def test_a_threshold_far_from_all_scores_on_the_way_is_no_nan():
  """The search begins at a gain that leaves it between elements, where every slope underflows."""
  scores = np.float32([[-3.5033798, -2.3821616, 0.46103173, -1.9512203]])
  state = np.float32([[-31.883707, -0.69614244, 77.47918, 0.69614244]])
  mask, _ = _anneal(scores, state, 0.5, 0.41666666)
  np.testing.assert_allclose(np.mean(mask), 0.5, rtol=1e-5)
  np.testing.assert_allclose(_softness(mask), 0.41666666, rtol=5e-3)


def test_many_short_problems_keep_their_budgets():
  """Where two scores of four nearly tie, the gain is sought longest."""
  rng = np.random.default_rng(0)
  scores = _scores(50_000, 4) + rng.normal(scale=0.15, size=(50_000, 4)).astype(np.float32)
  state = np.zeros_like(scores)
  for ceiling in (0.9, 0.5, 0.2, 0.06, 0.01):
    drift = rng.normal(scale=0.01, size=scores.shape).astype(np.float32)
    mask, state = _anneal(scores + drift, state, 0.5, ceiling)
    np.testing.assert_allclose(np.mean(np.asarray(mask, np.float64), axis=1), 0.5, rtol=1e-3)
    assert np.mean(_softness(mask) > 1.01 * ceiling) < 1e-3
