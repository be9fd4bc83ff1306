"""The proximal rule is hard when it was to be, for lengths that are ten times apart."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dtp_jax as dtp
from dtp_jax import transport
from dtp_jax.transport import hardening_epsilon

N, KEEP, LEVEL, RATE = 10_000, 0.1, 0.02, 0.01
LENGTHS = (100, 300, 1000)
TOLERANCE = 0.15  # relative, of the step; some 300 elements of a sample are soft at this level


def _constant(key, steps):
  return jnp.broadcast_to(0.3 * jax.random.normal(key, (1, N)), (steps, N))


def _noisy(key, steps):
  """Constant but for noise of three times its size, anew at every step."""
  a, b = jax.random.split(key)
  return _constant(a, steps) + 0.9 * jax.random.normal(b, (steps, N))


def _wandering(key, steps):
  """A random walk from 0."""
  return RATE * jnp.cumsum(jax.random.normal(key, (steps, N)), axis=0)


def _steady(key, steps):
  """From 0 along a straight line."""
  return RATE * jnp.arange(1, steps + 1)[:, None] * jax.random.normal(key, (1, N))


def _by_adam(key, steps):
  """Scores that Adam moves along gradients that are noise."""
  tx = optax.adam(RATE)

  def step(carry, key):
    scores, state = carry
    updates, state = tx.update(jax.random.normal(key, (N,)), state)
    scores = optax.apply_updates(scores, updates)
    return (scores, state), scores

  zeros = jnp.zeros(N)
  return jax.lax.scan(step, (zeros, tx.init(zeros)), jax.random.split(key, steps))[1]


# Scores by step, the spread of their mean over the steps and its growth, as the docstring has them.
KINDS = {
  'constant': (_constant, lambda steps: 0.3, 1.0),
  'noisy': (_noisy, lambda steps: np.sqrt(0.3**2 + 0.9**2 / steps), 1.0),
  'wandering': (_wandering, lambda steps: RATE * np.sqrt(steps / 3), 1.5),
  'steady': (_steady, lambda steps: RATE * steps / 2, 2.0),
  'by Adam': (_by_adam, lambda steps: RATE * np.sqrt(steps / 3), 1.5),
}


@functools.partial(jax.jit, static_argnames=('kind', 'steps', 'projection'))
def _softness(key, epsilon, kind, steps, projection):
  """The softness after each of twice the steps."""

  def step(state, scores):
    mask, state = transport.proximal_step(
      scores, state, keep=KEEP, epsilon=epsilon, projection=projection
    )
    return state, transport.softness(mask)

  return jax.lax.scan(step, jnp.zeros(N), KINDS[kind][0](key, 2 * steps))[1]


@pytest.mark.parametrize('steps', LENGTHS)
@pytest.mark.parametrize('kind', KINDS)
def test_it_hardens_at_the_chosen_step(kind, steps):
  _, spread, growth = KINDS[kind]
  epsilon = hardening_epsilon(steps, keep=KEEP, spread=spread(steps), growth=growth, softness=LEVEL)
  found = _softness(jax.random.key(steps), epsilon, kind, steps, 'sinkhorn')
  hard_at = 1 + int(np.argmax(np.asarray(found) < LEVEL))
  assert abs(hard_at - steps) <= TOLERANCE * steps, (hard_at, steps)


def test_the_exact_projection_hardens_at_the_chosen_step_too():
  epsilon = hardening_epsilon(100, keep=KEEP, spread=0.3, softness=LEVEL, projection='exact')
  found = _softness(jax.random.key(7), epsilon, 'constant', 100, 'exact')
  assert abs(int(np.argmax(np.asarray(found) < LEVEL)) - 100) <= 15


@pytest.mark.parametrize('keep', [0.02, 0.3, 0.5, 0.9])
def test_the_softness_is_that_of_the_plan_of_normal_scores(keep):
  """Against the exact entropic plan of normal quantiles, at the largest level that is allowed."""
  n = 4001
  scores = jax.scipy.special.ndtri((jnp.arange(n) + 0.5) / n)
  for level, within in ((keep * (1 - keep), 0.05), (0.1 * keep * (1 - keep), 0.01)):
    epsilon = hardening_epsilon(1, keep=keep, spread=1.0, softness=level, projection='exact')
    mask = transport.soft_topk(scores, keep=keep, epsilon=epsilon)
    np.testing.assert_allclose(transport.softness(mask), level, rtol=within)


@pytest.mark.parametrize('steps', LENGTHS)
def test_the_papers_preset_hardens_about_when_it_was_to(steps):
  """Scores that Adam trains through the mask along noise: the docstring has 0.73 T to 0.79 T."""
  weights = {'w': jnp.ones((100, 100))}
  epsilon = hardening_epsilon(
    steps, keep=KEEP, spread=2 * RATE * np.sqrt(steps / 3), growth=1.5, softness=LEVEL
  )
  pruner = dtp.transportation(
    dtp.weights(weights), dtp.Budget(KEEP), steps=steps, preset='paper', epsilon=epsilon
  )
  tx, extra = optax.adam(RATE), pruner.init(weights)

  def step(carry, key):
    extra, state = carry

    def loss(scores):
      masks, after = pruner.masks(weights, {**extra, 'scores': scores}, 0)
      return jnp.vdot(jax.random.normal(key, (100, 100)), masks['w']), (masks, after)

    grads, (masks, after) = jax.grad(loss, has_aux=True)(extra['scores'])
    updates, state = tx.update(grads, state)
    scores = optax.apply_updates(extra['scores'], updates)
    softness = transport.softness(masks['w'].ravel())
    return ({'scores': scores, 'transport': after}, state), softness

  @jax.jit
  def run(extra, key):
    keys = jax.random.split(key, 2 * steps)
    return jax.lax.scan(step, (extra, tx.init(extra['scores'])), keys)[1]

  hard_at = 1 + int(np.argmax(np.asarray(run(extra, jax.random.key(1))) < LEVEL))
  assert 0.65 * steps < hard_at < 0.9 * steps, hard_at


@pytest.mark.parametrize(
  ('steps', 'options', 'words'),
  [
    (0, {}, ['steps is 0', '>= 1']),
    (2.5, {}, ['steps is 2.5', 'an integer']),
    (10, {'keep': 1.0}, ['keep is 1.0', '(0, 1)']),
    (10, {'spread': 0.0}, ['spread is 0.0', '> 0']),
    (10, {'growth': -1.0}, ['growth is -1.0', '>= 0']),
    (10, {'softness': 0.2}, ['softness is 0.2', '(0, 0.09]']),
    (10, {'projection': 'near'}, ["'near'", 'sinkhorn', 'exact']),
  ],
)
def test_what_is_out_of_range_is_refused(steps, options, words):
  with pytest.raises(ValueError) as error:
    hardening_epsilon(steps, **{'keep': KEEP, 'spread': 1.0, **options})
  assert all(word in str(error.value) for word in words), error.value
