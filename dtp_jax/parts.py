"""Arrays as equal parts, one a device: the axis they are split along, and flat without moving data.

A kernel, its scores, its log-odds and its moments have one shape, so one rule that looks at shapes
alone puts them in the same place. Read part by part, split arrays make one flat array of which
every device still holds its own share: sums over it are all that devices tell each other.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array

__all__ = ['from_parts', 'split_axis', 'to_parts']


def split_axis(shape: Sequence[int], parts: int) -> int | None:
  """The largest axis that `parts` divides, the first of equal ones; None if none is to be split."""
  divisible = [axis for axis, size in enumerate(shape) if parts > 1 and size % parts == 0]
  return max(divisible, key=lambda axis: shape[axis], default=None)


def to_parts(array: Array, parts: int) -> Array:
  """An array (...) as (parts, n / parts): each row is a slice along its `split_axis`, flat.

  Args:
    array: of a size that `parts` divides. Without an axis to split, rows are shares of the flat
      array.
    parts: >= 1; for 1 the row is the flat array.

  Returns:
    (parts, size / parts).
  """
  axis = split_axis(array.shape, parts)
  if axis is not None:
    before, size, behind = array.shape[:axis], array.shape[axis], array.shape[axis + 1 :]
    array = jnp.moveaxis(array.reshape(*before, parts, size // parts, *behind), axis, 0)
  return array.reshape(parts, -1)


def from_parts(rows: Array, shape: Sequence[int]) -> Array:
  """Inverse of `to_parts`: rows (parts, n / parts) as an array of `shape`."""
  parts = rows.shape[0]
  axis = split_axis(shape, parts)
  if axis is None:
    return rows.reshape(shape)
  rows = rows.reshape(parts, *shape[:axis], shape[axis] // parts, *shape[axis + 1 :])
  return jnp.moveaxis(rows, 0, axis).reshape(shape)
