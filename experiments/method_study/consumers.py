"""Least-squares updates of layers that have lost inputs."""

import jax.numpy as jnp
from jax import Array, lax

from experiments.method_study.nets import Layer

__all__ = ['correction', 'windows']

_RIDGE = 1e-3  # of the mean square of a layer's inputs


def windows(layer: Layer, kernel: Array) -> Array:
  """(places, inputs of the kernel), each less its mean, which the next normalisation takes away."""
  x = layer.inputs
  if x.ndim == 4:
    layout = ('NHWC', 'HWIO', 'NHWC')
    sides, strides = kernel.shape[:2], (layer.strides,) * 2
    x = lax.conv_general_dilated_patches(x, sides, strides, layer.padding, dimension_numbers=layout)
  x = x.reshape(-1, x.shape[-1])
  return x - x.mean(0, keepdims=True)


def correction(given: Array, wanted: Array, kernel: Array) -> Array:
  """D that makes given (W + D) closest to wanted W, with a ridge, in the shape of the kernel W."""
  order = (2, 0, 1, 3) if kernel.ndim == 4 else (0, 1)  # of windows: channels before places
  weights = kernel.transpose(order).reshape(-1, kernel.shape[-1])
  gram = given.T @ given
  ridge = _RIDGE * jnp.trace(gram) / len(gram) * jnp.eye(len(gram))
  found = jnp.linalg.solve(gram + ridge, given.T @ ((wanted - given) @ weights))
  back = [kernel.shape[i] for i in order]
  return found.reshape(back).transpose([order.index(i) for i in range(len(order))])
