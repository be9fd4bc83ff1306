"""hard_topk against a stable argsort."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dtp_jax import transport


def _oracle(scores, k):
  """NumPy sorts NaN last and -0.0 with 0.0; a stable sort leaves ties in the order of the index."""
  mask = np.zeros(scores.shape, bool)
  mask[np.argsort(-scores, kind='stable')[:k]] = True
  return mask


_ONE = np.float32(1)
_TINY = np.float32(1e-45)  # the smallest denormal
_FEW = [-np.inf, -1, -_TINY, -0.0, 0.0, _TINY, 1, np.nextafter(_ONE, 2 * _ONE), np.inf, np.nan]


@given(arrays(np.float32, 12, elements=st.sampled_from(_FEW)), st.integers(0, 12))
def test_heavy_ties_and_special_values_match_a_stable_sort(scores, k):
  np.testing.assert_array_equal(transport.hard_topk(scores, k=k), _oracle(scores, k))


@given(arrays(np.float32, 12, elements=st.floats(width=32)), st.integers(0, 12))
def test_any_float32_matches_a_stable_sort(scores, k):
  np.testing.assert_array_equal(transport.hard_topk(scores, k=k), _oracle(scores, k))


@given(arrays(np.float32, 9, elements=st.floats(-4, 4, width=32), unique=True), st.randoms())
def test_permuting_distinct_scores_permutes_the_mask(scores, random):
  order = np.array(random.sample(range(9), 9))
  mask = transport.hard_topk(scores, k=4)
  np.testing.assert_array_equal(transport.hard_topk(scores[order], k=4), mask[order])


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16, jnp.float32])
def test_every_float_dtype_matches_a_stable_sort(dtype):
  scores = jnp.asarray(np.random.default_rng(0).normal(size=5000), dtype)
  mask = transport.hard_topk(scores, k=1234)
  np.testing.assert_array_equal(mask, _oracle(np.asarray(scores, np.float32), 1234))


def test_adjacent_float64_values_are_told_apart(x64):
  scores = np.array([1.0, np.nextafter(1, 2), -np.nextafter(1, 2), -1.0])
  for k in range(5):
    np.testing.assert_array_equal(transport.hard_topk(scores, k=k), _oracle(scores, k))


def test_a_batch_has_its_own_counts():
  scores, k = np.float32(np.random.default_rng(0).integers(0, 4, (2, 3, 8))), np.arange(6)
  mask = transport.hard_topk(scores, k=k.reshape(2, 3))
  loop = [_oracle(row, n) for row, n in zip(scores.reshape(6, 8), k, strict=True)]
  np.testing.assert_array_equal(mask, np.reshape(loop, (2, 3, 8)))


def test_a_batch_of_problems_with_and_without_ties():
  rng, n = np.random.default_rng(0), 5000
  distinct = rng.permutation(n)
  crowded = np.where(np.arange(n) < n - 40, distinct - 2 * n, 7)  # all ties at the end
  few = np.where(np.isin(np.arange(n), [3, 2500, 4999]), 10 * n, distinct)
  cases = [(distinct, 1234), (crowded, 17), (few, 2), (0 * distinct, 4000), (few, 0), (few, n)]
  scores = np.stack([row for row, _ in cases]).astype(np.float32)
  mask = transport.hard_topk(scores, k=np.array([k for _, k in cases]))
  loop = [_oracle(row, k) for row, (_, k) in zip(scores, cases, strict=True)]
  np.testing.assert_array_equal(mask, loop)


def test_one_trace_serves_every_count():
  traces = []

  @jax.jit
  def topk(scores, k):
    traces.append(k)
    return transport.hard_topk(scores, k=k)

  scores = np.random.default_rng(0).normal(size=10).astype(np.float32)
  for k in range(11):
    np.testing.assert_array_equal(topk(scores, k), _oracle(scores, k))
  assert len(traces) == 1


def test_vmap_is_the_batch():
  scores = jnp.asarray(np.random.default_rng(0).integers(0, 4, (5, 8)), jnp.float32)
  mask = jax.vmap(lambda s, k: transport.hard_topk(s, k=k))(scores, jnp.arange(5))
  np.testing.assert_array_equal(mask, transport.hard_topk(scores, k=jnp.arange(5)))


_LARGE = 2**24 + 3  # float32 cannot count this far


@pytest.mark.once
@pytest.mark.parametrize('k', [1, 2**24 + 1])
def test_large_counts_are_exact_among_ties(k):
  mask = np.asarray(transport.hard_topk(jnp.zeros(_LARGE), k=k))
  assert mask[:k].all()
  assert not mask[k:].any()


@pytest.mark.once
def test_large_counts_are_exact_among_a_few_levels():
  scores = np.arange(_LARGE) % 3
  k = 2**23 + 1  # all of level 2, then a part of level 1 in the order of the index
  mask = np.asarray(transport.hard_topk(jnp.asarray(scores, jnp.float32), k=k))
  assert mask.sum() == k
  assert mask[scores == 2].all()
  assert np.all(np.diff(mask[scores == 1].astype(int)) <= 0)
  assert not mask[scores == 0].any()


@pytest.mark.parametrize('axes', [('x', None), (None, 'x')])
def test_sharded_scores_give_the_same_mask(axes):
  if jax.device_count() == 1:
    pytest.skip('one device')
  mesh = jax.make_mesh((jax.device_count(),), ('x',), axis_types=(jax.sharding.AxisType.Auto,))
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
  shape = (jax.device_count(), 16 * jax.device_count())
  scores = jnp.asarray(np.random.default_rng(0).integers(0, 4, shape), jnp.float32)
  mask = transport.hard_topk(jax.device_put(scores, sharding), k=37)
  np.testing.assert_array_equal(mask, transport.hard_topk(scores, k=37))


@pytest.mark.parametrize('power', [1, 3])
@pytest.mark.parametrize('k', [0, 1, 49, 5000, 15000, 29999, 30000])
def test_many_elements_of_uneven_density_match_a_stable_sort(power, k):
  """More than the sample holds: to both sides of a gap, and crowded around zero."""
  x = np.random.default_rng(0).normal(size=30000) ** power
  x = np.where(x > 1, x + 1e6, x).astype(np.float32)
  np.testing.assert_array_equal(transport.hard_topk(x, k=k), _oracle(x, k))
  ties = np.round(x, 1)
  np.testing.assert_array_equal(transport.hard_topk(ties, k=k), _oracle(ties, k))
