"""The ops under a cost: a linear one is plain transport, polynomials are met exactly."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

from dtp_jax import transport
from dtp_jax.graph.cost import Polynomial

_SIZES = {'a': 3, 'b': 4, 'c': 5}
_N = sum(_SIZES.values())


def _share(terms):
  """A cost as the share of a flat mask, with its polynomial."""
  cost = Polynomial(terms, _SIZES)

  def share(mask):
    return cost.fraction({'a': mask[:3], 'b': mask[3:7], 'c': mask[7:]})

  share.polynomial = cost
  return share


_LINEAR = _share({('a',): 5, ('b',): 1, ('c',): 2})
_MASSES = np.repeat([5.0, 1.0, 2.0], [3, 4, 5]) / 29
_SQUARE = _share({('a', 'b'): 4, ('b', 'c'): 3, ('c', 'c'): 2, ('a',): 7, (): 9})
_CUBIC = _share({('a', 'b', 'c'): 2, ('c', 'c', 'c'): 1, ('a', 'b'): 5, ('b',): 4, (): 11})
_POLYNOMIALS = pytest.mark.parametrize('cost', [_SQUARE, _CUBIC], ids=['square', 'cubic'])


def _normal(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.result_type(float))


# Compiled once per cost and precision, whatever the test.
_project = jax.jit(
  lambda z, keep, cost: transport.project(z, keep=keep, cost=cost), static_argnames='cost'
)
_gain = jax.jit(
  lambda z, keep, ceiling, cost: transport.deadline_gain(z, keep=keep, ceiling=ceiling, cost=cost),
  static_argnames='cost',
)


@functools.partial(jax.jit, static_argnames=('cost', 'projection'))
def _step(scores, state, keep, ceiling, cost, projection='exact'):
  return transport.proximal_step(
    scores,
    state,
    keep=keep,
    epsilon=0.5,
    cost=cost,
    degree=cost.polynomial.degree,
    memory=0.9,
    projection=projection,
    ceiling=ceiling,
  )


def _exact_cost(cost, mask):
  """The share from its definition, in numpy: the polynomial of the sums over its dense value."""
  mask = np.asarray(mask, np.float64)
  kept = {'a': mask[:3].sum(), 'b': mask[3:7].sum(), 'c': mask[7:].sum()}
  terms = cost.polynomial.terms.items()
  return sum(c * np.prod([kept[n] for n in names]) for names, c in terms) / cost.polynomial.total


def _central_differences(f, x, h=1e-6):
  steps = h * jnp.eye(len(x))
  return (jax.vmap(f)(x[None] + steps) - jax.vmap(f)(x[None] - steps)) / (2 * h)


_FAMILIES = {'weights': _MASSES}, {'cost': _LINEAR}


@pytest.mark.once
@pytest.mark.parametrize('keep', [0.0, 0.03, 0.4, 0.97, 1.0])
def test_a_linear_cost_is_weighted_transport(x64, keep):
  z, target = 3 * _normal(_N), _normal(_N, seed=1)

  def ops(z, keep, family):
    iterates = {**family, 'degree': 1} if 'cost' in family else family
    soft = lambda z: transport.soft_topk(z, keep=keep, epsilon=0.7, **family)
    mask, pullback = jax.vjp(soft, z)
    return {
      'soft_topk': mask,
      'gradient': pullback(target)[0],
      'project': jax.nn.sigmoid(transport.project(z, keep=keep, **family)),
      'sinkhorn_step': transport.sinkhorn_step(z, keep=keep, **iterates),
    }

  weighted, priced = (jax.jit(functools.partial(ops, family=f))(z, keep) for f in _FAMILIES)
  for name, expected in weighted.items():
    np.testing.assert_allclose(priced[name], expected, atol=1e-12, err_msg=name)


@pytest.mark.once
@pytest.mark.parametrize('projection', ['sinkhorn', 'exact'])
@pytest.mark.parametrize('ceiling', [None, 1.0, 0.05])
def test_a_linear_cost_takes_the_weighted_proximal_steps(x64, ceiling, projection):
  scores, state, target = _normal(_N), _normal(_N, seed=1), _normal(_N, seed=2)

  @jax.jit
  def weighted(scores, state, keep):
    options = {'epsilon': 0.5, 'memory': 0.9, 'weights': _MASSES, 'projection': projection}
    return transport.proximal_step(scores, state, keep=keep, ceiling=ceiling, **options)

  priced = lambda scores, state, keep: _step(scores, state, keep, ceiling, _LINEAR, projection)

  @functools.partial(jax.jit, static_argnums=0)
  def gradient(step, state, keep):
    return jax.grad(lambda s: target @ step(s, state, keep)[0])(scores)

  ours, theirs = state, state
  for keep in (0.8, 0.5, 0.3):
    slopes = gradient(priced, ours, keep), gradient(weighted, theirs, keep)
    np.testing.assert_allclose(*slopes, rtol=1e-7, atol=1e-9)
    mask, ours = priced(scores, ours, keep)
    expected, theirs = weighted(scores, theirs, keep)
    np.testing.assert_allclose(mask, expected, atol=1e-9)
    np.testing.assert_allclose(ours, theirs, rtol=1e-8, atol=1e-9)


def test_a_linear_cost_has_the_weighted_gain(x64):
  z = _normal(_N)
  for ceiling in (0.6, 0.1, 0.01):
    expected = transport.deadline_gain(z, keep=0.4, ceiling=ceiling, weights=_MASSES)
    np.testing.assert_allclose(_gain(z, 0.4, ceiling, _LINEAR), expected, rtol=1e-9)


@_POLYNOMIALS
@pytest.mark.parametrize('spread', [0.0, 1.0, 20.0])
def test_the_mask_costs_what_is_asked(x64, cost, spread):
  least = _exact_cost(cost, np.zeros(_N))
  for keep in (least + 1e-4, 0.3, 0.6, 0.999):
    mask = jax.nn.sigmoid(_project(spread * _normal(_N), keep, cost))
    np.testing.assert_allclose(_exact_cost(cost, mask), keep, rtol=1e-12)


@_POLYNOMIALS
def test_float32_meets_the_budget_to_its_rounding(cost):
  least = _exact_cost(cost, np.zeros(_N))
  for keep in (least + 1e-2, 0.3, 0.999):
    z = _project(5 * _normal(_N), keep, cost)
    assert z.dtype == jnp.float32
    np.testing.assert_allclose(_exact_cost(cost, jax.nn.sigmoid(z)), keep, rtol=3e-6)


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16])
def test_half_precision_scores_are_solved_in_float32(dtype):
  scores = _normal(_N).astype(dtype)
  solve = functools.partial(transport.soft_topk, keep=0.4, epsilon=1.0, cost=_SQUARE)
  mask = solve(scores)
  assert mask.dtype == jnp.float32
  np.testing.assert_array_equal(mask, solve(scores.astype(jnp.float32)))


def _unrolled(z, keep, cost):
  """The same mask from damped Sinkhorn iterations, for autodiff to go through each of them."""

  def iterate(z, _):
    return transport.sinkhorn_step(z, keep=keep, cost=cost, degree=3), None

  return jax.nn.sigmoid(jax.lax.scan(iterate, z, length=300)[0])


@_POLYNOMIALS
@pytest.mark.parametrize('jacobian', [jax.jacfwd, jax.jacrev])
def test_derivatives_match_the_unrolled_solve(x64, cost, jacobian):
  z, keep = _normal(_N), 0.35
  mask = lambda z, keep: jax.nn.sigmoid(transport.project(z, keep=keep, cost=cost))
  ours = jax.jit(jacobian(mask, (0, 1)))(z, keep)
  unrolled = jax.jit(jacobian(functools.partial(_unrolled, cost=cost), (0, 1)))(z, keep)
  for derivative, expected in zip(ours, unrolled, strict=True):
    np.testing.assert_allclose(derivative, expected, atol=1e-10)


def test_derivatives_match_finite_differences_to_second_order(x64):
  project = jax.jit(lambda z, keep: transport.project(z, keep=keep, cost=_CUBIC))
  check_grads(project, (_normal(_N), 0.35), order=2, modes=('rev',), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('projection', ['exact', 'sinkhorn'])
def test_gradients_of_a_step_match_finite_differences(x64, projection):
  scores, state, target = _normal(_N), _normal(_N, seed=1), _normal(_N, seed=2)
  loss = lambda s: target @ _step(s, state, 0.4, None, _SQUARE, projection)[0]
  ours = jax.jit(lambda s: (jax.grad(loss)(s), _central_differences(loss, s)))(scores)
  np.testing.assert_allclose(*ours, atol=1e-8)


def test_masks_move_within_the_budget(x64):
  """Along the marginal costs a mask cannot move; a larger budget moves it by that much."""
  z = _normal(_N)
  mask = lambda z, keep: jax.nn.sigmoid(transport.project(z, keep=keep, cost=_CUBIC))
  prices = jax.jit(lambda z, keep: jax.grad(_CUBIC)(mask(z, keep)))(z, 0.35)
  by_z, by_keep = jax.jit(jax.jacrev(mask, (0, 1)))(z, 0.35)
  np.testing.assert_allclose(prices @ by_z, 0.0, atol=1e-13)
  np.testing.assert_allclose(prices @ by_keep, 1.0, rtol=1e-12)


def test_the_state_holds_no_gradient():
  scores, state = _normal(_N), _normal(_N, seed=1)
  jacobians = jax.jit(jax.jacrev(lambda s, z: _step(s, z, 0.4, 0.3, _SQUARE), (0, 1)))
  (mask_by_scores, mask_by_state), into_state = jacobians(scores, state)
  assert np.any(mask_by_scores)
  for zero in (mask_by_state, *into_state):
    np.testing.assert_array_equal(zero, 0.0)


# Multiples of 1/64, so that adding an integer to them is exact in float32.
_GRID = st.lists(st.integers(-128, 128), min_size=_N, max_size=_N).map(
  lambda x: np.asarray(x, np.float32) / 64
)
_KEEP = st.floats(0.15, 0.98)


@given(_GRID, st.integers(-16, 16), _KEEP)
def test_adding_a_constant_changes_nothing(scores, shift, keep):
  state = np.zeros(_N, np.float32)
  mask, shifted = (
    _step(s, state, keep, None, _SQUARE)[0] for s in (scores, scores + np.float32(shift))
  )
  np.testing.assert_allclose(mask, shifted, atol=3e-5)


@given(_GRID, st.permutations(range(3)), st.permutations(range(5)), _KEEP)
def test_permuting_a_group_permutes_its_mask(scores, first, last, keep):
  order = np.array([*first, *range(3, 7), *(7 + i for i in last)])
  state = np.zeros(_N, np.float32)
  mask, permuted = (_step(s, state, keep, None, _SQUARE)[0] for s in (scores, scores[order]))
  np.testing.assert_allclose(permuted, mask[order], atol=3e-5)


@given(_GRID, _KEEP)
def test_masks_rise_with_scores_across_groups(scores, keep):
  mask = np.asarray(_step(scores, np.zeros(_N, np.float32), keep, None, _SQUARE)[0])
  assert np.all(np.diff(mask[np.argsort(scores)]) >= -1e-6)


def test_scan_is_the_loop_forward_and_backward(x64):
  scores, keeps = _normal(_N), jnp.linspace(0.9, 0.4, 4)

  def step(carry, keep):
    s, state = carry
    mask, state = _step(s, state, keep, None, _SQUARE)
    return (s + mask, state), None

  def scanned(s):
    return jax.lax.scan(step, (s, jnp.zeros(_N)), keeps)[0][0]

  def looped(s):
    carry = s, jnp.zeros(_N)
    for keep in keeps:
      carry, _ = step(carry, keep)
    return carry[0]

  np.testing.assert_allclose(jax.jit(scanned)(scores), jax.jit(looped)(scores), rtol=1e-12)
  gradients = (jax.jit(jax.grad(lambda s, f=f: f(s)[0]))(scores) for f in (scanned, looped))
  np.testing.assert_allclose(*gradients, atol=1e-12)


def _iterates(cost, degree, steps, keep):
  """F(m) / keep along Sinkhorn's iteration, from log-odds that have begun to spread."""

  def iterate(z, _):
    z = transport.sinkhorn_step(z, keep=keep, cost=cost, degree=degree)
    return z, cost(jax.nn.sigmoid(z)) / keep

  return np.asarray(jax.jit(lambda z: jax.lax.scan(iterate, z, length=steps)[1])(_normal(_N)))


def test_the_plain_shift_overshoots_on_a_product_where_the_damped_one_converges(x64):
  product = _share({('a', 'b'): 1, ('b', 'c'): 1})
  plain, damped = (_iterates(product, degree, 12, 0.01) for degree in (1, 2))
  # The first step loses most of the budget, and every next one overshoots to the other side.
  assert plain[0] < 0.25
  assert np.all((plain[1:] > 1) != (plain[:-1] > 1))
  assert np.abs(plain[-1] - 1) > 0.02
  # Divided by the degree it comes down to the budget from one side and stays.
  assert np.all(np.diff(damped) <= 1e-12)
  np.testing.assert_allclose(damped[-1], 1.0, rtol=1e-6)


def test_the_plain_shift_never_converges_at_degree_three(x64):
  volume = _share({('a', 'b', 'c'): 1})
  plain, damped = (_iterates(volume, degree, 200, 0.01) for degree in (1, 3))
  assert np.abs(np.log(plain[-20:])).min() > 1
  np.testing.assert_allclose(damped[-1], 1.0, rtol=1e-9)


@_POLYNOMIALS
def test_damped_iterates_converge_to_the_projection(x64, cost):
  z = 3 * _normal(_N)
  mask = jax.jit(functools.partial(_unrolled, cost=cost))(z, 0.35)
  np.testing.assert_allclose(mask, jax.nn.sigmoid(_project(z, 0.35, cost)), atol=1e-11)


@pytest.mark.parametrize('keep', [0.0, 1e-3, 1.0, 1.5])
def test_a_budget_that_no_mask_attains_gives_the_nearest_mask(keep):
  value = jax.jit(jax.value_and_grad(lambda z, k: _project(z, k, _SQUARE)[0], (0, 1)))
  for spread in (0.0, 1.0, 1e4):
    z = spread * _normal(_N)
    shifted = _project(z, jnp.float32(keep), _SQUARE)
    np.testing.assert_allclose(jax.nn.sigmoid(shifted), float(keep >= 1), atol=1e-3)
    leaves = jax.tree.leaves(value(z, jnp.float32(keep)))
    assert all(np.all(np.isfinite(leaf)) for leaf in leaves)


@pytest.mark.parametrize('keep', [0.0, 1e-3, 1.0])
@pytest.mark.parametrize('projection', ['exact', 'sinkhorn'])
def test_a_budget_out_of_reach_leaves_a_state_to_go_on_from(keep, projection):
  scores, state = _normal(_N), jnp.zeros(_N)
  for _ in range(5):
    _, state = _step(scores, state, keep, 0.5, _SQUARE, projection)
    assert np.all(np.isfinite(state))
  for _ in range(10):
    mask, state = _step(scores, state, 0.4, 0.5, _SQUARE, projection)
  np.testing.assert_allclose(_exact_cost(_SQUARE, mask), 0.4, rtol=1e-4)


@_POLYNOMIALS
def test_the_gain_meets_the_ceiling_and_is_no_larger_than_it_must(cost):
  z = _normal(_N)
  softness = lambda gain: transport.softness(jax.nn.sigmoid(_project(gain * z, 0.4, cost)))
  for ceiling in (0.3, 0.1):
    gain = _gain(z, 0.4, ceiling, cost)
    assert gain > 1
    assert softness(gain) <= ceiling
    assert softness(0.99 * gain) > ceiling


@_POLYNOMIALS
def test_a_mask_that_is_hard_enough_has_gain_one(cost):
  z = _normal(_N)
  soft = transport.softness(jax.nn.sigmoid(_project(z, 0.4, cost)))
  for ceiling in (1.0, 1.001 * soft):
    assert _gain(z, 0.4, ceiling, cost) == 1.0


@_POLYNOMIALS
def test_a_long_run_through_ramp_and_deadline_stays_finite(cost):
  """From some step on the ceiling cannot be met: the budget cuts a channel."""
  keep, steps = 0.3, 500

  def step(carry, t):
    scores, state, key = carry
    key, noise = jax.random.split(key)
    scores = scores + 0.05 * jax.random.normal(noise, (_N,))
    rho = keep + (0.9 - keep) * jnp.maximum(1 - t / 0.4, 0) ** 3
    ceiling = jnp.maximum(1 - t / 0.6, 0)
    (mask, state), pullback = jax.vjp(lambda s: _step(s, state, rho, ceiling, cost), scores)
    (gradient,) = pullback((mask, state))
    return (scores, state, key), (jnp.all(jnp.isfinite(gradient)), cost(mask) / rho)

  carry = jnp.zeros(_N), jnp.zeros(_N), jax.random.key(0)
  # Near a hard mask float32 meets the budget to its rounding, which is coarser unoptimized.
  options = {'xla_backend_optimization_level': 1}
  run = jax.jit(
    lambda carry: jax.lax.scan(step, carry, jnp.arange(steps) / steps), compiler_options=options
  )
  (_, state, _), (finite, spent) = run(carry)
  assert np.all(finite)
  assert np.all(np.isfinite(state))
  np.testing.assert_allclose(spent, 1.0, rtol=1e-4)
  # Beside the one channel that the budget may cut, everything is hard.
  assert np.sum(np.abs(state) < 15) <= 1


@pytest.mark.parametrize('keep', [0.0, 1.0])
@pytest.mark.parametrize('projection', ['exact', 'sinkhorn'])
def test_keep_nothing_and_everything_are_exact(keep, projection):
  mask = transport.soft_topk(_normal(_N), keep=keep, epsilon=5.0, cost=_SQUARE)
  np.testing.assert_array_equal(mask, keep)
  mask, _ = _step(_normal(_N), jnp.zeros(_N), keep, None, _SQUARE, projection)
  np.testing.assert_array_equal(mask, keep)


def test_infinite_scores_are_kept_first_and_last():
  scores = _normal(_N).at[jnp.array([1, 5])].set(jnp.array([jnp.inf, -jnp.inf]))
  mask = transport.soft_topk(scores, keep=0.4, epsilon=1.0, cost=_SQUARE)
  np.testing.assert_allclose(mask[jnp.array([1, 5])], [1, 0], atol=1e-6)
  np.testing.assert_allclose(_exact_cost(_SQUARE, mask), 0.4, rtol=1e-5)
  state = transport.init(scores)
  for _ in range(5):
    mask, state = _step(scores, state, 0.4, None, _SQUARE)
  np.testing.assert_allclose(mask[jnp.array([1, 5])], [1, 0], atol=1e-6)
  assert np.all(np.isfinite(state))


@pytest.mark.parametrize('projection', ['exact', 'sinkhorn'])
@pytest.mark.parametrize('ceiling', [None, 0.5])
def test_nan_propagates(projection, ceiling):
  scores = _normal(_N).at[4].set(jnp.nan)
  for value in _step(scores, jnp.zeros(_N), 0.4, ceiling, _SQUARE, projection):
    assert np.all(np.isnan(value))


@pytest.mark.parametrize('projection', ['exact', 'sinkhorn'])
def test_vmap_is_the_loop(x64, projection):
  scores, states, keeps = _normal(3, _N), _normal(3, _N, seed=1), jnp.array([0.3, 0.5, 0.8])
  step = lambda s, z, keep: _step(s, z, keep, 0.5, _SQUARE, projection)
  masks, after = jax.jit(jax.vmap(step))(scores, states, keeps)
  for i, problem in enumerate(zip(scores, states, keeps, strict=True)):
    mask, state = step(*problem)
    np.testing.assert_allclose(masks[i], mask, atol=1e-10)
    np.testing.assert_allclose(after[i], state, atol=1e-9)


def test_a_cost_flat_at_the_whole_is_centred_uniformly():
  share = lambda mask: 1 - (1 - jnp.mean(mask)) ** 2  # no marginal price at mask 1
  step = functools.partial(
    transport.proximal_step, state=np.zeros(_N), keep=0.4, epsilon=0.5, cost=share, degree=1
  )
  (mask, state), (shifted, _) = step(_normal(_N)), step(_normal(_N) + 3)
  assert np.all(np.isfinite(state))
  np.testing.assert_allclose(mask, shifted, atol=1e-5)
