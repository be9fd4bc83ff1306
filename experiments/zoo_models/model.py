"""What a network of the zoo is, and its random weights."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dtp_jax.trees import path_name


class Model(NamedTuple):
  """A function, and what it is called with.

  Attributes:
    fn: the traced function, `fn(variables, *inputs)`.
    variables: its variables, as ShapeDtypeStructs.
    inputs: two examples.
  """

  fn: Callable[..., Any]
  variables: Any
  inputs: tuple[Any, ...]


def drawn(structs: Any, seed: int = 0) -> Any:
  """Random arrays of the given shapes with nothing special in them: no zeros, no ones.

  Kernels are scaled by their first axes, so that activations stay moderate; what is named a
  variance is positive.
  """
  rng = np.random.default_rng(seed)

  def leaf(keys: Any, struct: Any) -> Any:
    if not jnp.issubdtype(struct.dtype, jnp.floating):
      return jnp.zeros(struct.shape, struct.dtype)
    normal = rng.normal(size=struct.shape)
    if 'var' in '/'.join(path_name(keys).split('/')[-2:]):
      values = 0.5 + np.abs(normal)
    elif len(struct.shape) < 2:
      values = 0.6 + 0.4 * normal
    else:
      values = normal / np.sqrt(max(1, np.prod(struct.shape[:-1])))
    return jax.device_put(values.astype(struct.dtype))

  return jax.tree_util.tree_map_with_path(leaf, structs)


def images(*shape: int) -> np.ndarray:
  """Standard normal pixels."""
  return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def tokens(*shape: int, below: int = 96) -> np.ndarray:
  """Random token numbers from 3 on: lower ones are padding, begin and end in many vocabularies."""
  return np.random.default_rng(2).integers(3, below, shape).astype(np.int32)
