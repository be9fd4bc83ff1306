"""anneal_rows: scipy's roots for every row, soft_topk at the same gain, runs to a deadline."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, special

from dtp_jax import transport


def _scores(rows, n, seed=0):
  """Logarithms of magnitudes, as the default method has them."""
  drawn = np.random.default_rng(seed).normal(size=(rows, n))
  return np.log(np.abs(drawn) + 1e-6).astype(np.float32)


@jax.jit
def _anneal(scores, state, keep, ceiling):
  return transport.anneal_rows(scores, state, keep=keep, ceiling=ceiling)


def _at(gain, scores, keep):
  """The masks of a gain, one row after the other."""

  def row(s):
    used = lambda c: np.mean(special.expit(gain * (s - c))) - keep
    reach = special.logit(keep) / gain
    c = optimize.brentq(used, s.min() - reach - 1, s.max() - reach + 1, xtol=1e-14)
    return special.expit(gain * (s - c))

  return np.stack([row(s) for s in scores.astype(np.float64)])


def _softness(mask):
  mask = np.asarray(mask, np.float64)
  return np.mean(4 * mask * (1 - mask))


def _settled(scores, keep, ceiling):
  state = np.zeros_like(scores)
  for _ in range(2):
    mask, state = _anneal(scores, state, keep, ceiling)
  return mask, state


@pytest.mark.parametrize(
  ('n', 'keep'), [(4, 0.5), (4, 0.25), (2, 0.5), (4, 0.7), (16, 0.125), (40, 0.1)]
)
@pytest.mark.parametrize('left', [0.95, 0.3, 0.01])
def test_agrees_with_root_finding_for_every_row(n, keep, left):
  scores, ceiling = _scores(60, n), 4 * keep * (1 - keep) * left
  mask, _ = _settled(scores, keep, ceiling)
  if keep * n == round(keep * n):
    softness = _softness(mask)
    assert 0.99 * ceiling <= softness <= 1.005 * ceiling
    gap = lambda log_gain: _softness(_at(np.exp(log_gain), scores, keep)) - softness
    gain = np.exp(optimize.brentq(gap, -4, 14, xtol=1e-6))
    np.testing.assert_allclose(mask, _at(gain, scores, keep), atol=1e-3)
  np.testing.assert_allclose(np.mean(np.asarray(mask, np.float64), axis=1), keep, rtol=1e-3)


@pytest.mark.parametrize(('n', 'keep'), [(4, 0.5), (8, 0.125), (100, 0.1)])
def test_a_run_keeps_every_budget_and_the_deadline(n, keep):
  """Scores drift past each other, the kept fraction falls along a cubic, the softness in a line."""
  rng = np.random.default_rng(0)
  scores, steps = _scores(3000, n), 30
  state = np.zeros_like(scores)
  for t in range(steps):
    scores = scores + np.float32(0.05) * rng.normal(size=scores.shape).astype(np.float32)
    rho = keep + (0.9 - keep) * max(0.0, 1 - t / (0.4 * steps)) ** 3
    ceiling = 4 * rho * (1 - rho) * max(0.01, 1 - (t + 1) / (0.9 * steps))
    mask, state = _anneal(scores, state, rho, ceiling)
    used = np.mean(np.asarray(mask, np.float64), axis=1)
    np.testing.assert_allclose(used, rho, rtol=1e-3 if t else 1e-2)
    hardest = 4 * (rho * n % 1) * (1 - rho * n % 1) / n  # one element of a row may be cut
    assert _softness(mask) <= 1.04 * max(ceiling, hardest)
    if hardest < ceiling:
      assert _softness(mask) >= 0.96 * ceiling
    np.testing.assert_allclose(jax.nn.sigmoid(state), mask, atol=1e-6)


def test_the_derivative_is_that_of_soft_topk_at_this_gain(x64):
  scores = _scores(7, 4).astype(np.float64)
  state = np.zeros_like(scores)
  tangent = np.random.default_rng(1).normal(size=scores.shape)
  (mask, log_odds), (moved, none) = jax.jvp(
    lambda s: _anneal(s, state, 0.5, 0.4), (scores,), (tangent,)
  )
  gain = (log_odds[0, 0] - log_odds[0, 1]) / (scores[0, 0] - scores[0, 1])
  expected, slope = jax.jvp(
    lambda s: transport.soft_topk(s, keep=0.5, epsilon=2 / gain), (scores,), (tangent,)
  )
  np.testing.assert_allclose(mask, expected, atol=1e-3)
  np.testing.assert_allclose(moved, slope, atol=1e-2 * np.abs(slope).max())
  np.testing.assert_allclose(np.sum(moved, axis=1), 0, atol=1e-12)
  assert not np.any(none)
  by_keep = jax.jvp(lambda k: _anneal(scores, state, k, 0.4)[0], (0.5,), (1.0,))[1]
  np.testing.assert_allclose(np.mean(by_keep, axis=1), 1.0, rtol=1e-10)


def test_a_tie_stays_soft_and_does_not_steepen_the_others():
  scores = _scores(200, 4)
  alone, _ = _settled(scores, 0.5, 0.05)
  scores[0] = [0, 1, 1, 2]
  mask, _ = _settled(scores, 0.5, 0.05)
  np.testing.assert_allclose(mask[0], [0, 0.5, 0.5, 1], atol=1e-2)
  np.testing.assert_allclose(mask[1:], alone[1:], atol=0.1)
  slopes = jax.grad(lambda s: _anneal(s, np.zeros_like(scores), 0.5, 0.05)[0][0, 1])(scores)
  assert np.all(np.isfinite(slopes))


def test_what_no_gain_can_harden_keeps_its_budget():
  """Every row ties; every row has 1.2 of two elements to keep."""
  for scores, keep in ((np.ones((5, 4), np.float32), 0.5), (_scores(9, 2), 0.6)):
    state = np.zeros_like(scores)
    for _ in range(3):
      (mask, state), pullback = jax.vjp(lambda s, z=state, k=keep: _anneal(s, z, k, 0.0), scores)
      np.testing.assert_allclose(np.mean(mask, axis=1), keep, rtol=5e-3)
      assert np.all(np.isfinite(pullback((np.ones_like(mask), state))[0]))


@pytest.mark.parametrize('keep', [0.0, 1.0])
def test_nothing_and_everything_are_exact(keep):
  mask, state = _anneal(_scores(3, 8), np.zeros((3, 8), np.float32), keep, 0.1)
  np.testing.assert_array_equal(mask, keep)
  assert np.all(np.isfinite(state))


def test_infinite_scores_come_first_and_last_and_nan_propagates():
  scores = _scores(4, 5)
  scores[0, 3], scores[0, 1] = np.inf, -np.inf
  mask, state = _anneal(scores, np.zeros_like(scores), 0.4, 0.2)
  assert (mask[0, 3], mask[0, 1]) == (1, 0)
  assert np.all(np.isfinite(state))
  scores[2, 2] = np.nan
  assert np.any(np.isnan(_anneal(scores, np.zeros_like(scores), 0.4, 0.2)[0]))


@pytest.mark.parametrize(
  ('changed', 'match'),
  [({'state': np.zeros((2, 3))}, 'state has shape'), ({'ceiling': 1.5}, 'ceiling is 1.5'),
   ({'epsilon': 0.0}, 'epsilon is 0.0'), ({'keep': -1.0}, 'keep is -1.0'),
   ({'scores': np.zeros(5)}, r'scores has shape \(5,\)'), ({'keep': np.full(2, 0.5)}, 'keep')],
)  # fmt: skip
def test_wrong_arguments_are_named(changed, match):
  given = {'scores': np.zeros((2, 5)), 'state': np.zeros((2, 5)), 'keep': 0.5, 'ceiling': 0.5}
  with pytest.raises(ValueError, match=match):
    transport.anneal_rows(**{**given, **changed})


def test_the_mask_has_the_dtype_of_the_others():
  mask, _ = _anneal(jnp.ones((2, 4), jnp.bfloat16), np.zeros((2, 4), np.float32), 0.5, 0.2)
  assert mask.dtype == jnp.float32
