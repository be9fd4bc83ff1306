"""Budgets add up in exact integers and say what they cannot meet."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dtp_jax as dtp
from dtp_jax.budget import problems

sizes = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=6)


def _prunable(shapes):
  return dtp.weights({f'w{i}': jnp.zeros(shape) for i, shape in enumerate(shapes)})


@given(sizes, st.floats(0, 1), st.sampled_from(['global', 'layer', 'erk']))
def test_counts_add_up_to_the_rounded_fraction(shapes, keep, scope):
  prunable = _prunable(shapes)
  plan = problems(prunable, dtp.Budget(keep, scope=scope))
  total = sum(math.prod(s) for s in shapes)
  assert sum(p.k for p in plan) == round(keep * total)
  assert all(0 <= p.k <= p.n for p in plan)


@given(sizes, st.floats(0, 1))
def test_layers_keep_the_same_fraction_to_one_element(shapes, keep):
  for problem in problems(_prunable(shapes), dtp.Budget(keep, scope='layer')):
    assert abs(problem.k - keep * problem.n) <= 1


def test_erk_follows_the_density_rule_and_caps_full_layers():
  shapes = [(4, 4), (100, 100), (200, 50)]
  plan = problems(_prunable(shapes), dtp.Budget(0.1, scope='erk'))
  assert plan[0].k == 16  # its density would be 1.4: it is full
  density = [p.k / p.n for p in plan[1:]]
  expected = (200 / 10_000) / (250 / 10_000)
  np.testing.assert_allclose(density[0] / density[1], expected, rtol=2e-2)


def test_an_int_is_an_absolute_count():
  (problem,) = problems(_prunable([(10, 10)]), dtp.Budget(7))
  assert problem.k == 7


def test_large_counts_are_exact():
  n = 2**24 + 3
  assert dtp.Budget(n).count(n) == n
  assert dtp.Budget(1.0).count(n) == n


@given(sizes)
def test_scatter_is_the_inverse_of_gather(shapes):
  prunable = _prunable(shapes)
  arrays = {
    name: jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    for name, shape in prunable.shapes.items()
  }
  for scope in ('global', 'layer', 'row'):
    back = {}
    for problem in problems(prunable, dtp.Budget(1.0, scope=scope)):
      back |= problem.scatter(problem.gather(arrays))
    for name, array in arrays.items():
      np.testing.assert_array_equal(back[name], array)


@pytest.mark.parametrize(
  ('make', 'words'),
  [
    (lambda p: dtp.Budget(1.5), ['keep is 1.5', '[0, 1]']),
    (lambda p: dtp.Budget(-3), ['keep is -3']),
    (lambda p: dtp.Budget(float('nan')), ['keep is nan']),
    (lambda p: dtp.Budget(True), ['keep is True']),
    (lambda p: dtp.Budget(0.5, scope='galactic'), ['galactic', 'global']),
    (lambda p: problems(p, dtp.Budget(101)), ['101', '100']),
    (lambda p: problems(p, dtp.Budget(0.33, scope='row')), ['0.33', '3.3 elements', '2:4']),
  ],
)
def test_bad_budgets_are_named(make, words):
  with pytest.raises(ValueError) as error:
    make(_prunable([(10, 10)]))
  assert all(word in str(error.value) for word in words), error.value
