"""The inputs of an exported program: their shapes with a symbolic batch, their names."""

from typing import Any, NamedTuple

import jax
import jax.export
import numpy as np

from dtp_jax.trees import by_path, is_array

__all__ = ['Signature']


class Signature(NamedTuple):
  """The inputs of a program.

  Attributes:
    inputs: the example inputs: a tuple of trees of arrays.
    batch: leading axis of the first array.
    structs: the same tree of ShapeDtypeStructs; where an array's leading axis is `batch` long it
      is the symbol 'batch'.
  """

  inputs: tuple[Any, ...]
  batch: int
  structs: tuple[Any, ...]

  @classmethod
  def of(cls, inputs: tuple[Any, ...]) -> 'Signature':
    """The signature of example inputs.

    Raises:
      TypeError: an input is no array.
      ValueError: there is no input, or the first has no batch axis.
    """
    leaves = jax.tree.leaves(inputs)
    strange = [leaf for leaf in leaves if not is_array(leaf) or not hasattr(leaf, '__array__')]
    if strange:
      raise TypeError(
        f'inputs hold {strange[0]!r}; expected arrays with values, to check the export with. '
        'Hand flags and numbers over in kwargs.'
      )
    if not leaves or not np.ndim(leaves[0]) or not len(leaves[0]):
      raise ValueError(
        f'inputs are {[np.shape(leaf) for leaf in leaves]} in shape; expected a tuple of arrays, '
        'the first with a batch of examples along its leading axis.'
      )
    inputs = jax.tree.map(np.asarray, inputs)
    batch = len(leaves[0])
    (symbol,) = jax.export.symbolic_shape('batch')

    def struct(array: np.ndarray) -> jax.ShapeDtypeStruct:
      rows = (symbol,) if array.shape[:1] == (batch,) else array.shape[:1]
      return jax.ShapeDtypeStruct(
        (*rows, *array.shape[1:]), jax.dtypes.canonicalize_dtype(array.dtype)
      )

    return cls(inputs, batch, jax.tree.map(struct, inputs))

  def resized(self, batch: int) -> tuple[Any, ...]:
    """The inputs at another batch size: their examples in turn."""

    def rows(array: np.ndarray, struct: jax.ShapeDtypeStruct) -> np.ndarray:
      symbolic = struct.shape and not isinstance(struct.shape[0], int)
      return np.take(array, np.arange(batch) % self.batch, 0) if symbolic else array

    return jax.tree.map(rows, self.inputs, self.structs)

  @property
  def names(self) -> list[str]:
    """A name for each array: 'input_0', or 'input_0_image' for one inside a dict."""
    return ['_'.join(['input', *path]) for path, _ in by_path(self.inputs)[0]]
