"""proximal_step and the deadline: OTT's iteration, the annealing law, budgets, ceilings."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import ott_oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dtp_jax import transport

_PROJECTIONS = pytest.mark.parametrize('projection', ['sinkhorn', 'exact'])


def _normal(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.result_type(float))


def _masses(*shape, seed=1):
  a = np.random.default_rng(seed).uniform(0.1, 1.0, size=shape)
  return jnp.asarray(a / a.sum(-1, keepdims=True), jnp.result_type(float))


def _run(scores, steps, **options):
  """The mask and state after `steps` steps at constant scores."""

  @jax.jit
  def run(scores):
    step = lambda _, carry: transport.proximal_step(scores, carry[1], **options)
    return jax.lax.fori_loop(0, steps, step, (transport.init(scores), transport.init(scores)))

  return run(scores)


def test_thirty_drifting_steps_are_ott_iterations(x64):
  n, epsilon, a = 12, 0.8, _masses(12)
  plan, state = a[:, None] * jnp.array([[0.5, 0.5]]), jnp.zeros(n)
  start, drift = _normal(n), _normal(n, seed=2)

  @jax.jit
  def both(scores, plan, state, keep):
    theirs = ott_oracle.proximal_step(scores, plan, keep, epsilon, a)
    return theirs, transport.proximal_step(scores, state, keep=keep, epsilon=epsilon, weights=a)

  for t, keep in enumerate(np.linspace(0.8, 0.2, 30)):
    plan, (mask, state) = both(start + t / 10 * drift, plan, state, keep)
    np.testing.assert_allclose(mask, plan[:, 1] / a, rtol=0, atol=1e-12)


@pytest.mark.parametrize('steps', [1, 2, 9])
def test_exact_steps_anneal_as_epsilon_over_t(x64, steps):
  scores, a = _normal(20), _masses(20)
  mask, _ = _run(scores, steps, keep=0.3, epsilon=2.0, weights=a, projection='exact')
  annealed = transport.soft_topk(scores, keep=0.3, epsilon=2.0 / steps, weights=a)
  np.testing.assert_allclose(mask, annealed, atol=1e-12)


def test_without_memory_a_step_is_soft_topk(x64):
  scores, state = _normal(20), _normal(20, seed=1)
  options = {'keep': 0.3, 'epsilon': 0.5}
  mask, _ = transport.proximal_step(scores, state, memory=0.0, projection='exact', **options)
  np.testing.assert_allclose(mask, transport.soft_topk(scores, **options), atol=1e-13)


@_PROJECTIONS
def test_a_fading_memory_anneals_down_to_soft_topk(x64, projection):
  scores = _normal(20)
  mask, _ = _run(scores, 300, keep=0.3, epsilon=2.0, memory=0.9, projection=projection)
  limit = transport.soft_topk(scores, keep=0.3, epsilon=0.2)
  np.testing.assert_allclose(mask, limit, atol=1e-11)


@pytest.mark.parametrize('ceiling', [None, 0.3])
def test_exact_steps_meet_a_traced_weighted_budget(ceiling):
  scores, a = _normal(4, 200), _masses(4, 200)
  options = {'epsilon': 0.5, 'weights': a, 'projection': 'exact', 'ceiling': ceiling}
  step = jax.jit(lambda state, keep: transport.proximal_step(scores, state, keep=keep, **options))
  state = transport.init(scores)
  for keep in (0.9, 0.5, 0.1):
    mask, state = step(state, jnp.float32(keep))
    np.testing.assert_allclose(jnp.sum(a * mask, -1), keep, rtol=1e-5)


def test_the_state_is_the_log_odds_of_the_mask_and_holds_no_gradient():
  scores = _normal(9)
  mask, state = transport.proximal_step(scores, scores, keep=0.4, epsilon=1.0)
  np.testing.assert_allclose(jax.nn.sigmoid(state), mask, rtol=1e-6)
  step = jax.jit(lambda s, z: transport.proximal_step(s, z, keep=0.4, epsilon=1.0))
  jacobians = jax.jit(lambda *x: (jax.jacfwd(step, 0)(*x), jax.jacfwd(step, 1)(*x)))
  (_, from_state), (into_mask, _) = jacobians(scores, state)
  np.testing.assert_array_equal(from_state, 0.0)
  np.testing.assert_array_equal(into_mask, 0.0)


def _central_differences(f, x, h=1e-6):
  steps = h * jnp.eye(len(x))
  return (jax.vmap(f)(x[None] + steps) - jax.vmap(f)(x[None] - steps)) / (2 * h)


@_PROJECTIONS
def test_gradients_match_finite_differences(x64, projection):
  scores, state, target = _normal(6), _normal(6, seed=1), _normal(6, seed=2)
  options = {'keep': 0.4, 'epsilon': 0.9, 'weights': _masses(6), 'projection': projection}
  loss = lambda s: target @ transport.proximal_step(s, state, **options)[0]
  ours = jax.jit(lambda s: (jax.grad(loss)(s), _central_differences(loss, s)))(scores)
  np.testing.assert_allclose(*ours, atol=1e-8)


def test_the_gradient_under_a_ceiling_holds_the_gain(x64):
  scores, state, target = _normal(6), _normal(6, seed=1), _normal(6, seed=2)
  z = lambda s: state + 2 * s / 0.9
  gain = transport.deadline_gain(z(scores), keep=0.4, ceiling=0.3)
  held = lambda s: target @ jax.nn.sigmoid(transport.project(gain * z(s), keep=0.4))

  def loss(s):
    return target @ transport.proximal_step(s, state, keep=0.4, epsilon=0.9, ceiling=0.3)[0]

  assert gain > 1.5
  ours = jax.jit(lambda s: (jax.grad(loss)(s), _central_differences(held, s)))(scores)
  np.testing.assert_allclose(*ours, atol=1e-7)


# Multiples of 1/64, so that adding an integer to them is exact in float32.
_GRID = arrays(np.int32, 7, elements=st.integers(-128, 128)).map(lambda x: np.float32(x / 64))
_STATE = arrays(np.float32, 7, elements=st.floats(-5, 5, width=32))
_KEEP = st.floats(0.02, 0.98)


@_PROJECTIONS
@given(_GRID, _STATE, st.integers(-16, 16), _KEEP)
def test_adding_a_constant_changes_nothing(projection, scores, state, shift, keep):
  step = functools.partial(
    transport.proximal_step, state=state, keep=keep, epsilon=0.3, projection=projection
  )
  np.testing.assert_allclose(step(scores)[0], step(scores + np.float32(shift))[0], atol=2e-5)


@_PROJECTIONS
@given(_GRID, _STATE, st.permutations(range(7)), _KEEP)
def test_permuting_elements_permutes_mask_and_state(projection, scores, state, order, keep):
  order = np.array(order)
  options = {'keep': keep, 'epsilon': 0.3, 'projection': projection}
  mask, after = transport.proximal_step(scores, state, **options)
  permuted, permuted_after = transport.proximal_step(scores[order], state[order], **options)
  np.testing.assert_allclose(permuted, mask[order], atol=2e-5)
  np.testing.assert_allclose(permuted_after, after[order], atol=1e-4)


@_PROJECTIONS
@pytest.mark.parametrize('ceiling', [None, 0.1])
@given(_GRID, _KEEP)
def test_from_rest_masks_rise_with_scores(projection, ceiling, scores, keep):
  options = {'keep': keep, 'epsilon': 0.3, 'projection': projection, 'ceiling': ceiling}
  mask, _ = transport.proximal_step(scores, np.zeros(7, np.float32), **options)
  assert np.all(np.diff(mask[np.argsort(scores)]) >= -1e-6)


@pytest.mark.parametrize('ceiling', [None, 0.2])
def test_batch_vmap_and_loop_agree(ceiling):
  scores, state = _normal(3, 8), _normal(3, 8, seed=1)
  keep, weights = jnp.array([0.2, 0.5, 0.7]), _masses(3, 8)

  def step(s, z, k, a):
    return transport.proximal_step(s, z, keep=k, epsilon=0.5, weights=a, ceiling=ceiling)

  arguments = scores, state, keep, weights
  batched, mapped, single = step(*arguments), jax.jit(jax.vmap(step))(*arguments), jax.jit(step)
  for i in range(3):
    alone = single(scores[i], state[i], keep[i], weights[i])
    np.testing.assert_allclose(batched[0][i], alone[0], atol=1e-5)
    np.testing.assert_allclose(mapped[0][i], alone[0], atol=1e-5)


def test_one_trace_serves_every_keep_and_epsilon():
  traces = []

  @jax.jit
  def step(state, keep, epsilon, ceiling):
    traces.append(keep)
    options = {'keep': keep, 'epsilon': epsilon, 'ceiling': ceiling}
    return transport.proximal_step(jnp.arange(5.0), state, **options)[1]

  state = jnp.zeros(5)
  for t in range(1, 6):
    state = step(state, 1 - t / 10, 1 / t, 1 - t / 10)
  assert len(traces) == 1


def test_plain_numbers_do_not_retrace_either():
  step = functools.partial(transport.proximal_step, jnp.arange(5.0), jnp.zeros(5))
  step(keep=0.5, epsilon=1.0, memory=1.0, ceiling=1.0)
  with jax.no_tracing(True):
    step(keep=0.25, epsilon=0.1, memory=0.5, ceiling=0.1)


@_PROJECTIONS
@pytest.mark.parametrize('keep', [0.0, 1.0])
def test_nothing_or_everything_leaves_a_state_to_go_on_from(projection, keep):
  scores = _normal(20)
  options = {'epsilon': 200.0, 'projection': projection}
  mask, state = _run(scores, 10, keep=keep, **options)
  np.testing.assert_array_equal(mask, keep)
  assert jnp.isfinite(state).all()
  for _ in range(20):
    mask, state = transport.proximal_step(scores, state, keep=0.25, **options)
  np.testing.assert_allclose(mask.mean(), 0.25, rtol=0.01)


@pytest.mark.parametrize('keep', [0.2, 0.5])
def test_infinite_scores_are_kept_first_and_last(keep):
  scores = _normal(20).at[jnp.array([1, 3])].set(jnp.array([jnp.inf, -jnp.inf]))
  state = transport.init(scores)
  for _ in range(5):
    mask, state = transport.proximal_step(scores, state, keep=keep, epsilon=1.0, projection='exact')
  np.testing.assert_allclose(mask[jnp.array([1, 3])], [1, 0], atol=1e-6)
  assert jnp.isfinite(state).all()


@_PROJECTIONS
@pytest.mark.parametrize('ceiling', [None, 0.1])
def test_nan_propagates(projection, ceiling):
  scores = jnp.array([0.0, jnp.nan, 1.0])
  options = {'keep': 0.5, 'epsilon': 1.0, 'projection': projection, 'ceiling': ceiling}
  mask, state = transport.proximal_step(scores, jnp.zeros(3), **options)
  assert jnp.isnan(mask).all()
  assert jnp.isnan(state).all()


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16])
def test_half_precision_scores_have_a_float32_state(dtype):
  scores, state = _normal(20).astype(dtype), _normal(20, seed=1)
  assert transport.init(scores).dtype == jnp.float32
  mask, after = transport.proximal_step(scores, state, keep=0.3, epsilon=1.0)
  assert mask.dtype == after.dtype == jnp.float32
  full, _ = transport.proximal_step(scores.astype(jnp.float32), state, keep=0.3, epsilon=1.0)
  np.testing.assert_array_equal(mask, full)


@pytest.mark.parametrize('keep', [0.1, 0.5])
@pytest.mark.parametrize('ceiling', [1e-4, 0.01, 0.25])
def test_the_gain_is_the_smallest_that_meets_the_ceiling(keep, ceiling):
  z = 2 * _normal(3, 400)
  mask = lambda kappa: jax.nn.sigmoid(transport.project(kappa[:, None] * z, keep=keep))
  softness = jax.jit(lambda kappa: transport.softness(mask(kappa)))
  gain = transport.deadline_gain(z, keep=keep, ceiling=jnp.full(3, ceiling))
  assert jnp.all(gain > 1)
  assert jnp.all(softness(gain) <= ceiling)
  assert jnp.all(softness(0.99 * gain) > ceiling)


def test_a_mask_that_is_hard_enough_has_gain_one():
  z = 2 * _normal(3, 400)
  soft = transport.softness(jax.nn.sigmoid(transport.project(z, keep=0.3)))
  for ceiling in (jnp.ones(3), 1.001 * soft):
    np.testing.assert_array_equal(transport.deadline_gain(z, keep=0.3, ceiling=ceiling), 1.0)


def test_the_gain_does_not_depend_on_a_shift_of_the_log_odds(x64):
  z = _normal(40)
  gain = transport.deadline_gain(z, keep=0.3, ceiling=0.05)
  shifted = transport.deadline_gain(z + 7, keep=0.3, ceiling=0.05)
  np.testing.assert_allclose(shifted, gain, rtol=1e-9)


def test_softness_is_one_for_halves_and_zero_for_a_hard_mask():
  masks = jnp.array([[0.5, 0.5], [0.0, 1.0], [0.5, 1.0]])
  np.testing.assert_allclose(transport.softness(masks), [1.0, 0.0, 0.5])


@_PROJECTIONS
@pytest.mark.parametrize('ceiling', [0.5, 0.02])
def test_a_step_meets_its_ceiling_and_its_budget_after_a_jump_of_keep(projection, ceiling):
  scores, a = _normal(200), _masses(200)
  options = {'epsilon': 5.0, 'weights': a, 'projection': projection, 'ceiling': ceiling}
  _, state = transport.proximal_step(scores, transport.init(scores), keep=0.9, **options)
  mask, _ = transport.proximal_step(scores, state, keep=0.2, **options)
  assert transport.softness(mask) <= ceiling * (1 + 1e-5)
  np.testing.assert_allclose(jnp.sum(a * mask), 0.2, rtol=1e-5)


def test_a_ceiling_nothing_can_meet_keeps_the_order_of_the_elements():
  # 5.5 of 10 elements: one stays at a half, whatever the gain.
  scores = _normal(10)
  state = transport.init(scores)
  for keep in (0.55,) * 20 + (0.4, 0.3, 0.2, 0.2):
    mask, state = transport.proximal_step(scores, state, keep=keep, epsilon=1.0, ceiling=0.0)
  np.testing.assert_array_equal(jnp.argsort(state), jnp.argsort(scores))
  np.testing.assert_allclose(mask, transport.hard_topk(scores, k=2), atol=1e-6)


def test_tied_elements_stay_finite_under_a_ceiling():
  scores, state = jnp.full(5, 0.5), jnp.zeros(5)

  @jax.jit
  def step(state):
    apply = lambda s: transport.proximal_step(s, state, keep=0.3, epsilon=1.0, ceiling=0.01)
    (mask, state), pullback = jax.vjp(apply, scores)
    return mask, state, pullback((jnp.arange(5.0), state))[0]

  for _ in range(20):
    mask, state, gradient = step(state)
    np.testing.assert_allclose(mask, 0.3, rtol=1e-5)
    assert jnp.isfinite(gradient).all()


def test_a_long_run_through_ramp_and_deadline_stays_finite():
  # 5.2 elements: from some step on the ceiling cannot be met.
  keep, n, steps = 0.13, 40, 2000

  def step(carry, t):
    scores, state, key = carry
    key, noise = jax.random.split(key)
    scores = scores + 0.05 * jax.random.normal(noise, (n,))
    rho = keep + (0.9 - keep) * jnp.maximum(1 - t / 0.4, 0) ** 3
    ceiling = jnp.maximum(1 - t / 0.6, 0)
    apply = lambda s: transport.proximal_step(s, state, keep=rho, epsilon=0.5, ceiling=ceiling)
    (mask, state), pullback = jax.vjp(apply, scores)
    (gradient,) = pullback((mask, state))
    return (scores, state, key), (jnp.isfinite(gradient).all(), mask.mean() - rho)

  carry = jnp.zeros(n), jnp.zeros(n), jax.random.key(0)
  run = jax.jit(lambda carry: jax.lax.scan(step, carry, jnp.arange(steps) / steps))
  (_, state, _), (finite, excess) = run(carry)
  assert finite.all()
  assert jnp.isfinite(state).all()
  np.testing.assert_allclose(excess[-1], 0.0, atol=1e-5)
  # Beside the one element that the budget may cut, everything is hard.
  assert jnp.sum(jnp.abs(state) < 15) <= 1


def test_sharded_steps_give_the_same_mask():
  if jax.device_count() == 1:
    pytest.skip('one device')
  mesh = jax.make_mesh((jax.device_count(),), ('x',), axis_types=(jax.sharding.AxisType.Auto,))
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('x'))
  scores, state = (_normal(8 * jax.device_count(), seed=seed) for seed in (0, 1))
  step = functools.partial(transport.proximal_step, keep=0.2, epsilon=0.3, ceiling=0.2)
  mask, after = step(*jax.device_put((scores, state), sharding))
  expected, _ = step(scores, state)
  np.testing.assert_allclose(mask, expected, atol=1e-5)
  assert after.sharding.is_equivalent_to(sharding, 1)
