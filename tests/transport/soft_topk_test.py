"""soft_topk, sinkhorn_step and project: closed forms, OTT, linprog, finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import ott_oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from jax.test_util import check_grads
from scipy import optimize

from dtp_jax import transport


def _normal(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.result_type(float))


def _masses(*shape, seed=1):
  a = np.random.default_rng(seed).uniform(0.1, 1.0, size=shape)
  return jnp.asarray(a / a.sum(-1, keepdims=True), jnp.result_type(float))


@pytest.mark.parametrize('keep', [0.1, 0.5, 0.8])
def test_two_weighted_elements_solve_the_quadratic(x64, keep):
  scores, a, epsilon = np.array([0.3, -0.4]), np.array([0.7, 0.3]), 0.5
  e = np.exp(2 * scores / epsilon)
  # sum a e u / (1 + e u) = keep, u = exp(nu), multiplied out.
  u = np.roots([e.prod() * (1 - keep), a @ e - keep * e.sum(), -keep]).max()
  mask = transport.soft_topk(scores, keep=keep, epsilon=epsilon, weights=a)
  np.testing.assert_allclose(mask, e * u / (1 + e * u), rtol=1e-13)


@pytest.mark.parametrize('value', [0.0, -7.0, 1e4])
def test_equal_scores_share_the_budget(value):
  mask = transport.soft_topk(jnp.full(5, value), keep=0.3, epsilon=1e-4)
  np.testing.assert_allclose(mask, 0.3, rtol=1e-6)


@pytest.mark.parametrize('keep', [0.0, 0.2, 1.0])
def test_one_element_takes_the_budget(keep):
  mask = transport.soft_topk(jnp.array([3.0]), keep=keep, epsilon=0.1)
  np.testing.assert_allclose(mask, [keep], rtol=1e-6)


@pytest.mark.parametrize(('keep', 'epsilon'), [(0.07, 0.2), (0.6, 3.0)])
def test_agrees_with_ott_sinkhorn(x64, keep, epsilon):
  scores, a = _normal(30), _masses(30)
  mask = transport.soft_topk(scores, keep=keep, epsilon=epsilon, weights=a)
  expected = jax.jit(ott_oracle.soft_topk)(scores, keep, epsilon, a)
  np.testing.assert_allclose(mask, expected, atol=1e-11)


@pytest.mark.parametrize('keep', [0.13, 0.5])
@pytest.mark.parametrize('weighted', [False, True])
def test_small_epsilon_is_the_unregularised_plan(x64, keep, weighted):
  n = 21
  scores = np.random.default_rng(0).permutation(n) / n
  a = np.asarray(_masses(n)) if weighted else np.full(n, 1 / n)
  cost = (scores[:, None] - np.array([0.0, 1.0])) ** 2
  rows, columns = np.kron(np.eye(n), np.ones(2)), np.kron(np.ones(n), np.eye(2))
  plan = optimize.linprog(
    cost.ravel(), A_eq=np.vstack([rows, columns]), b_eq=np.concatenate([a, [1 - keep, keep]])
  ).x.reshape(n, 2)
  mask = transport.soft_topk(scores, keep=keep, epsilon=1e-4, weights=a)
  np.testing.assert_allclose(mask, plan[:, 1] / a, atol=1e-9)


def _unrolled(scores, keep, epsilon, weights):
  """The mask from Sinkhorn's dual iteration, for autodiff to go through every iteration."""
  a, l = weights / weights.sum(), 2 * scores / epsilon

  def iterate(nu, _):
    kept = jnp.sum(a * jax.nn.sigmoid(l + nu))
    return nu + jax.scipy.special.logit(keep) - jax.scipy.special.logit(kept), None

  nu, _ = jax.lax.scan(iterate, 0.0, length=400)
  return jax.nn.sigmoid(l + nu)


def _exact(scores, keep, epsilon, weights):
  return transport.soft_topk(scores, keep=keep, epsilon=epsilon, weights=weights)


@pytest.mark.parametrize('jacobian', [jax.jacfwd, jax.jacrev])
def test_derivatives_in_every_argument_match_the_unrolled_solve(x64, jacobian):
  arguments = _normal(8), 0.3, 0.7, _masses(8)
  ours, unrolled = (
    jax.jit(jacobian(f, argnums=(0, 1, 2, 3)))(*arguments) for f in (_exact, _unrolled)
  )
  for derivative, expected in zip(ours, unrolled, strict=True):
    np.testing.assert_allclose(derivative, expected, atol=1e-10)


def test_derivatives_match_finite_differences_to_second_order(x64):
  arguments = _normal(8), 0.3, 0.7, _masses(8)
  check_grads(jax.jit(_exact), arguments, order=2, modes=('rev',), atol=1e-5, rtol=1e-5)


def test_derivatives_of_the_projection_match_finite_differences(x64):
  project = jax.jit(lambda z, keep: transport.project(z, keep=keep))
  check_grads(project, (_normal(2, 5), jnp.array([0.3, 0.6])), order=1, atol=1e-6, rtol=1e-6)


def test_masks_move_within_the_budget(x64):
  a = _masses(12)
  by_score, by_keep = jax.jit(jax.jacrev(_exact, (0, 1)))(_normal(12), 0.3, 0.2, a)
  np.testing.assert_allclose(a @ by_score, 0.0, atol=1e-14)
  np.testing.assert_allclose(a @ by_keep, 1.0, rtol=1e-12)


@pytest.mark.parametrize('keep', [0.0, 0.5, 1.0])
def test_a_hard_mask_has_gradient_zero(keep):
  mask = lambda s: transport.soft_topk(s, keep=keep, epsilon=1e-4)
  np.testing.assert_array_equal(jax.jit(jax.jacrev(mask))(jnp.arange(4.0)), 0.0)


def _each(scores, keep, epsilon, weights):
  """The batch as a loop of single problems."""
  problems = zip(scores, keep, epsilon, weights, strict=True)
  return jnp.stack([_exact(*problem) for problem in problems])


def _batch():
  epsilon = jnp.array([0.01, 0.1, 1.0, 9.0])
  return _normal(4, 9), jnp.linspace(0.1, 0.9, 4), epsilon, _masses(4, 9)


@pytest.mark.parametrize(
  'transform', [lambda f: f, jax.jit, lambda f: jax.jit(jax.vmap(f))], ids=['eager', 'jit', 'vmap']
)
def test_a_batch_is_its_problems(transform):
  arguments = _batch()
  batched = transform(_exact)(*arguments)
  np.testing.assert_allclose(batched, jax.jit(_each)(*arguments), atol=1e-6)


def test_a_batch_of_two_axes_shares_keep_and_weights():
  scores, a = _normal(2, 3, 7), _masses(7)
  mask = _exact(scores, 0.3, 0.2, a)
  single = jax.jit(lambda row: _exact(row, 0.3, 0.2, a))
  loop = [[single(row) for row in rows] for rows in scores]
  np.testing.assert_allclose(mask, jnp.asarray(loop), atol=1e-6)


def test_gradients_of_a_batch_are_those_of_its_problems():
  arguments = _batch()
  target = _normal(4, 9, seed=3)
  batched, loop = (
    jax.jit(jax.grad(lambda *x, f=f: jnp.sum(target * f(*x)), argnums=(0, 1, 2, 3)))(*arguments)
    for f in (_exact, _each)
  )
  for ours, expected in zip(batched, loop, strict=True):
    np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-4)


def test_scan_is_the_loop_forward_and_backward():
  scores, keeps = _normal(9), jnp.linspace(0.1, 0.9, 4)

  def scanned(s):
    return jax.lax.scan(lambda s, k: (s + _exact(s, k, 0.5, jnp.ones(9)), None), s, keeps)[0]

  def looped(s):
    for k in keeps:
      s = s + _exact(s, k, 0.5, jnp.ones(9))
    return s

  np.testing.assert_allclose(jax.jit(scanned)(scores), jax.jit(looped)(scores), rtol=1e-5)
  gradient, expected = (
    jax.jit(jax.grad(lambda s, f=f: f(s)[0]))(scores) for f in (scanned, looped)
  )
  np.testing.assert_allclose(gradient, expected, atol=1e-5)


def test_ties_share_what_the_better_leave():
  scores = jnp.array([2.0, 1.0, 1.0, 1.0, 0.0])
  mask = transport.soft_topk(scores, keep=2 / 5, epsilon=1e-2)
  np.testing.assert_allclose(mask, [1, 1 / 3, 1 / 3, 1 / 3, 0], atol=1e-5)


def test_infinite_scores_are_first_and_last():
  scores = jnp.array([1.0, jnp.inf, 2.0, -jnp.inf, 0.0])
  mask = transport.soft_topk(scores, keep=3 / 5, epsilon=1.0)
  np.testing.assert_allclose(mask[jnp.array([1, 3])], [1, 0], atol=1e-6)
  finite = transport.soft_topk(scores[jnp.array([0, 2, 4])], keep=2 / 3, epsilon=1.0)
  np.testing.assert_allclose(mask[jnp.array([0, 2, 4])], finite, atol=1e-4)


@pytest.mark.parametrize('sign', [1, -1])
def test_more_infinities_than_the_budget_share_it(sign):
  scores = sign * jnp.array([1.0, jnp.inf, jnp.inf, jnp.inf])
  mask = transport.soft_topk(scores, keep=0.5, epsilon=1e-2)
  share = 2 / 3 if sign > 0 else 1 / 3
  np.testing.assert_allclose(mask, [0.5 - sign / 2, share, share, share], atol=1e-4)


@pytest.mark.parametrize('keep', [0.0, 0.5, 1.0])
def test_nan_propagates(keep):
  mask = transport.soft_topk(jnp.array([1.0, jnp.nan, 2.0]), keep=keep, epsilon=0.1)
  assert jnp.isnan(mask).all()


def test_nan_stays_in_its_problem():
  mask = transport.soft_topk(jnp.array([[1.0, jnp.nan], [1.0, 2.0]]), keep=0.5, epsilon=0.1)
  np.testing.assert_array_equal(jnp.isnan(mask), [[True, True], [False, False]])


@pytest.mark.parametrize('keep', [0.0, 1.0])
def test_keep_nothing_and_everything_are_exact(keep):
  mask = transport.soft_topk(_normal(9), keep=keep, epsilon=5.0, weights=_masses(9))
  np.testing.assert_array_equal(mask, keep)


@pytest.mark.parametrize('keep', [1e-6, 0.05, 0.5, 1 - 1e-3])
@pytest.mark.parametrize('epsilon', [1e-4, 1.0, 1e4])
def test_float32_meets_the_budget(keep, epsilon):
  scores, a = _normal(5000), _masses(5000)
  mask = transport.soft_topk(scores, keep=keep, epsilon=epsilon, weights=a)
  assert mask.dtype == jnp.float32
  # At small epsilon one element is cut, at a log-odds rounded relative to the largest of them.
  cut = a.max() * 2**-23 * jnp.abs(2 * scores / epsilon).max()
  np.testing.assert_allclose(np.float64(mask) @ np.float64(a), keep, rtol=2e-5, atol=cut)


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16])
def test_half_precision_scores_are_solved_in_float32(dtype):
  scores = _normal(50).astype(dtype)
  mask = transport.soft_topk(scores, keep=0.3, epsilon=1e-3)
  full = transport.soft_topk(scores.astype(jnp.float32), keep=0.3, epsilon=1e-3)
  assert mask.dtype == jnp.float32
  np.testing.assert_array_equal(mask, full)


# Multiples of 1/64, so that adding an integer to them is exact in float32.
_GRID = arrays(np.int32, 7, elements=st.integers(-128, 128)).map(lambda x: np.float32(x / 64))
_KEEP = st.floats(0.02, 0.98)
_EPSILON = st.sampled_from([0.05, 0.5, 5.0])


@given(_GRID, st.integers(-16, 16), _KEEP, _EPSILON)
def test_adding_a_constant_changes_nothing(scores, shift, keep, epsilon):
  mask = transport.soft_topk(scores, keep=keep, epsilon=epsilon)
  shifted = transport.soft_topk(scores + np.float32(shift), keep=keep, epsilon=epsilon)
  np.testing.assert_allclose(mask, shifted, atol=2e-5)


@given(_GRID, st.permutations(range(7)), _KEEP, _EPSILON)
def test_permuting_scores_permutes_the_mask(scores, order, keep, epsilon):
  mask = transport.soft_topk(scores, keep=keep, epsilon=epsilon)
  permuted = transport.soft_topk(scores[np.array(order)], keep=keep, epsilon=epsilon)
  np.testing.assert_allclose(mask[np.array(order)], permuted, atol=2e-5)


@given(_GRID, _KEEP, _EPSILON)
def test_masks_rise_with_scores_and_meet_the_budget(scores, keep, epsilon):
  mask = np.asarray(transport.soft_topk(scores, keep=keep, epsilon=epsilon))
  assert np.all(np.diff(mask[np.argsort(scores)]) >= -1e-6)
  np.testing.assert_allclose(mask.mean(), keep, atol=1e-5)


@pytest.mark.parametrize('weighted', [False, True])
def test_sinkhorn_iterates_converge_to_the_projection(x64, weighted):
  z, a = 3 * _normal(2, 12), _masses(12) if weighted else None
  keep = jnp.array([0.2, 0.7])
  iterate = lambda _, z: transport.sinkhorn_step(z, keep=keep, weights=a)
  limit = jax.jit(lambda z: jax.lax.fori_loop(0, 400, iterate, z))(z)
  np.testing.assert_allclose(limit, transport.project(z, keep=keep, weights=a), atol=1e-11)


def test_projection_is_idempotent_and_the_soft_topk_of_its_log_odds(x64):
  z = 3 * _normal(12)
  projected = transport.project(z, keep=0.3)
  np.testing.assert_allclose(transport.project(projected, keep=0.3), projected, atol=1e-13)
  mask = transport.soft_topk(z, keep=0.3, epsilon=2.0)
  np.testing.assert_allclose(jax.nn.sigmoid(projected), mask, atol=1e-13)


@pytest.mark.parametrize('spread', [1e3, 1e7])
def test_a_sinkhorn_step_on_a_hard_plan_stays_finite(spread):
  step = jax.jit(lambda z: jax.value_and_grad(lambda z: transport.sinkhorn_step(z, keep=0.3)[0])(z))
  value, gradient = step(spread * _normal(20))
  assert jnp.isfinite(value)
  assert jnp.isfinite(gradient).all()


def test_sharded_scores_give_the_same_mask():
  if jax.device_count() == 1:
    pytest.skip('one device')
  mesh = jax.make_mesh((jax.device_count(),), ('x',), axis_types=(jax.sharding.AxisType.Auto,))
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('x'))
  scores, target = _normal(64 * jax.device_count()), _normal(64 * jax.device_count(), seed=1)
  mask = lambda s: transport.soft_topk(s, keep=0.2, epsilon=0.1)
  step = jax.jit(lambda s: (mask(s), jax.vjp(mask, s)[1](target)[0]))
  sharded = step(jax.device_put(scores, sharding))
  assert sharded[0].sharding.is_equivalent_to(sharding, 1)
  for ours, expected in zip(sharded, step(scores), strict=True):
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)
