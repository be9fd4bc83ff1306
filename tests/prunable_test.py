"""Elements of a parameter tree: what they are, how their masks multiply it, what is refused."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dtp_jax as dtp


@pytest.fixture
def params():
  key = jax.random.key(0)
  return {
    'conv': {'kernel': jax.random.normal(key, (3, 3, 8, 16)), 'bias': jnp.ones(16)},
    'fc': {'kernel': jax.random.normal(key, (16, 4))},
  }


def _random_masks(prunable):
  key = jax.random.key(1)
  return {
    n: jax.random.bernoulli(key, 0.5, s).astype(jnp.float32) for n, s in prunable.shapes.items()
  }


def test_weights_are_the_kernels_and_masks_multiply_them_alone(params):
  prunable = dtp.weights(params)
  assert prunable.shapes == {'conv/kernel': (3, 3, 8, 16), 'fc/kernel': (16, 4)}
  masks = _random_masks(prunable)
  masked = prunable.apply_masks(params, masks)
  np.testing.assert_array_equal(
    masked['conv']['kernel'], params['conv']['kernel'] * masks['conv/kernel']
  )
  np.testing.assert_array_equal(masked['conv']['bias'], params['conv']['bias'])
  np.testing.assert_array_equal(
    prunable.magnitude(params)['fc/kernel'], np.abs(params['fc']['kernel'])
  )


def test_biases_of_attention_are_not_kernels():
  attention = nn.MultiHeadDotProductAttention(num_heads=2)
  params = jax.eval_shape(attention.init, jax.random.key(0), jnp.ones((1, 3, 4)))['params']
  assert params['query']['bias'].shape == (2, 2)
  kernels = {f'{name}/kernel' for name in ('query', 'key', 'value', 'out')}
  assert dtp.weights(params).shapes.keys() == kernels


def test_nm_rows_are_consecutive_inputs_of_one_output(params):
  prunable = dtp.nm(params, 4)
  masks = {
    n: jnp.arange(np.prod(s), dtype=jnp.float32).reshape(s) for n, s in prunable.shapes.items()
  }
  ones = jax.tree.map(jnp.ones_like, params)
  applied = prunable.apply_masks(ones, masks)
  for name in ('conv', 'fc'):
    kernel, rows = applied[name]['kernel'], prunable.magnitude(applied)[f'{name}/kernel']
    # Reading the masked ones back gives the rows that were put in: the layout is its own inverse.
    np.testing.assert_array_equal(rows, masks[f'{name}/kernel'])
    # Four inputs in a row of one output hold four consecutive numbers.
    np.testing.assert_array_equal(np.diff(np.asarray(kernel)[..., :4, :], axis=-2), 1.0)


def test_a_block_is_a_tile_of_inputs_and_outputs(params):
  prunable = dtp.blocks(params, (4, 2))
  assert prunable.shapes == {'conv/kernel': (3, 3, 2, 8), 'fc/kernel': (4, 2)}
  norm = prunable.magnitude(params)['fc/kernel'][1, 1]
  tile = np.asarray(params['fc']['kernel'])[4:8, 2:4]
  np.testing.assert_allclose(norm, np.sqrt(np.mean(tile**2)), rtol=1e-6)
  mask = jnp.zeros((4, 2)).at[1, 1].set(1.0)
  masked = prunable.apply_masks(params, {'fc/kernel': mask})['fc']['kernel']
  np.testing.assert_array_equal(masked[4:8, 2:4], tile)
  assert np.count_nonzero(masked) == 8


def test_the_norm_of_an_all_zero_block_has_a_finite_gradient(params):
  prunable = dtp.blocks(params, (4, 4))
  zeros = jax.tree.map(jnp.zeros_like, params)
  grads = jax.grad(lambda p: sum(jnp.sum(m) for m in prunable.magnitude(p).values()))(zeros)
  assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(grads))


def test_patterns_leave_kernels_dense(params):
  assert list(dtp.weights(params, exclude=('fc/*',)).shapes) == ['conv/kernel']


def test_abstract_parameters_are_enough(params):
  abstract = jax.eval_shape(lambda: params)
  assert dtp.nm(abstract, 2).shapes == dtp.nm(params, 2).shapes


@pytest.mark.parametrize(
  ('build', 'words'),
  [
    (lambda p: dtp.weights(p, exclude=('convolution/*',)), ['convolution/*', 'conv/kernel']),
    (lambda p: dtp.weights(p, exclude=('*',)), ['no kernel']),
    (lambda p: dtp.nm(p, 1), ['m is 1']),
    (lambda p: dtp.nm(p, 16), ['conv/kernel', '(8, 16)', 'exclude']),
    (lambda p: dtp.blocks(p, (4, 3)), ['conv/kernel', 'exclude']),
  ],
)
def test_bad_input_is_named(params, build, words):
  with pytest.raises(ValueError) as error:
    build(params)
  assert all(word in str(error.value) for word in words), error.value
