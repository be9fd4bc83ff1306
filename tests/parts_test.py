"""Arrays as equal parts: the axis, the way there and back, and where the elements come to lie."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtp_jax.parts import from_parts, split_axis, to_parts

SHAPES = st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple)


@pytest.mark.parametrize(
  ('shape', 'parts', 'axis'),
  [
    ((3, 3, 8, 16), 4, 3),
    ((3, 3, 16, 16), 4, 2),
    ((12, 10), 4, 0),
    ((5, 5, 1, 6), 4, None),
    ((5, 5, 1, 6), 2, 3),
    ((64, 64), 1, None),
    ((), 2, None),
  ],
)
def test_the_largest_axis_that_divides_is_split(shape, parts, axis):
  assert split_axis(shape, parts) == axis


@given(shape=SHAPES, parts=st.integers(1, 4))
def test_a_part_is_a_slice_and_the_way_back_is_exact(shape, parts):
  size = math.prod(shape)
  if size % parts:
    return
  array = np.arange(size).reshape(shape)
  rows = to_parts(jnp.asarray(array), parts)
  axis = split_axis(shape, parts)
  expected = np.split(array, parts, axis) if axis is not None else np.split(array.ravel(), parts)
  np.testing.assert_array_equal(rows, [part.ravel() for part in expected])
  np.testing.assert_array_equal(from_parts(rows, shape), array)
