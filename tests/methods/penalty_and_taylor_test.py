"""A growing penalty, and the first-order saliency."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dtp_jax as dtp
from dtp_jax import methods

STEPS = 8


@pytest.fixture
def params():
  return {'w': jax.random.normal(jax.random.key(0), (8, 10))}


def _steps(pruner, params, loss, steps=STEPS):
  """The masks of a soft stage of gradient steps on the scores alone; and the last extra."""
  extra = pruner.init(params)
  tx = pruner.score_optimizer
  history = []
  for i in range(steps):

    def of(scores, extra=extra, i=i):
      masks, after = pruner.masks(params, {**extra, 'scores': scores}, i)
      return loss(pruner.apply_masks(params, masks)['w']), (masks['w'], after)

    grads, (mask, after) = jax.grad(of, has_aux=True)(extra['scores'])
    scores = extra['scores']
    if tx is not None:
      scores = optax.apply_updates(scores, tx.update(grads, tx.init(scores), scores)[0])
    extra = {'scores': scores, 'transport': after}
    history.append(np.asarray(mask))
  return history, extra


def _largest(w, k):
  return np.abs(w) >= np.sort(np.abs(w), axis=None)[-k]


def test_greg_shrinks_the_smallest_and_them_alone(params):
  pruner = methods.greg(dtp.weights(params), dtp.Budget(8), steps=STEPS, ramp=1.0)
  history, extra = _steps(pruner, params, jnp.sum)
  largest = _largest(params['w'], 8)
  for before, after in itertools.pairwise(history):
    assert np.all(after[largest] == 1)
    assert np.all(after[~largest] < before[~largest])
  np.testing.assert_allclose(history[-1][~largest], np.exp(-0.5 * 3.5**2), rtol=1e-4)
  np.testing.assert_array_equal(pruner.harden(extra)['w'], largest)


def test_taylor_ranks_by_the_size_of_w_times_its_gradient(params):
  slopes = jax.random.normal(jax.random.key(1), params['w'].shape)
  pruner = methods.taylor(dtp.weights(params), dtp.Budget(8), steps=STEPS, wait=0.5)
  history, extra = _steps(pruner, params, lambda masked: jnp.sum(slopes * masked))
  assert history[3].sum() == 80
  np.testing.assert_array_equal(
    pruner.harden(extra)['w'], _largest(np.asarray(params['w'] * slopes), 8)
  )
