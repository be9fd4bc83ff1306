"""LeNet and CifarResNet(depth=8, stem_strides=2) as functions of their parameters, fast on a CPU.

Equal to the Linen modules of `dtp_jax.models`, whose parameters they take. LeNet's thin 5x5
convolutions read 2x2 blocks of pixels as channels and pool over channels, for which XLA needs a
third of the time on one core.
"""

import functools
from operator import getitem
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

__all__ = ['Layer', 'lenet', 'resnet']

_MOMENTUM = 0.9
_EPSILON = 1e-5


class Layer(NamedTuple):
  """What a layer read, and how it goes over the image."""

  inputs: Array
  padding: Any = 'SAME'
  strides: int = 1


def lenet(params: Any, stats: Any, x: Array, train: bool) -> tuple[Array, Any]:
  """Logits of images (B, H, W, C) with H, W even, and the statistics: there are none."""
  del train
  for name, padding in (('conv1', 'SAME'), ('conv2', 'VALID')):
    y = _conv(_blocks(x), _block_kernel(params[name]['kernel']), padding)
    quarters = jnp.split(y, 4, axis=-1)
    y = jnp.maximum(jnp.maximum(*quarters[:2]), jnp.maximum(*quarters[2:]))
    x = jax.nn.relu(y + _row(params[name]['bias'], 4))
  x = x.reshape(x.shape[0], -1)
  for name in ('fc1', 'fc2'):
    x = jax.nn.relu(x @ params[name]['kernel'] + _row(params[name]['bias'], 2))
  return x @ params['head']['kernel'] + _row(params['head']['bias'], 2), stats


def resnet(
  params: Any, stats: Any, x: Array, train: bool, seen: dict[str, Layer] | None = None
) -> tuple[Array, Any]:
  """Logits of images (B, H, W, C), and the running statistics after them.

  What its convolutions and the last layer read is put into `seen` by path, in order.
  """
  new: dict[str, Any] = {}
  layers: dict[str, Layer] = {} if seen is None else seen

  def conv(path: str, x: Array, padding: Any = 'SAME', strides: int = 1) -> Array:
    layers[path] = Layer(x, padding, strides)
    return _conv(x, functools.reduce(getitem, path.split('/'), params)['kernel'], padding, strides)

  def norm(path: tuple[str, ...], x: Array) -> Array:
    p, s = params, stats
    for key in path:
      p, s = p[key], s[key]
    mean, var, now = s['mean'], s['var'], s
    if train:
      mean = x.mean((0, 1, 2))
      var = jnp.maximum((x * x).mean((0, 1, 2)) - mean * mean, 0)
      now = {
        'mean': _MOMENTUM * s['mean'] + (1 - _MOMENTUM) * mean,
        'var': _MOMENTUM * s['var'] + (1 - _MOMENTUM) * var,
      }
    place = new
    for key in path[:-1]:
      place = place.setdefault(key, {})
    place[path[-1]] = now
    scale = p['scale'] * lax.rsqrt(var + _EPSILON)
    return x * _row(scale, 4) + _row(p['bias'] - mean * scale, 4)

  x = jax.nn.relu(norm(('bn1',), conv('conv1', x, strides=2)))
  for stage in range(3):
    name = f'layer{stage + 1}_0'
    y = conv(f'{name}/conv1', x, ((1, 1), (1, 1)), 2 if stage else 1)
    y = jax.nn.relu(norm((name, 'bn1'), y))
    y = norm((name, 'bn2'), conv(f'{name}/conv2', y))
    if stage:
      x = norm((name, 'shortcut_bn'), conv(f'{name}/shortcut', x, strides=2))
    x = jax.nn.relu(x + y)
  x = x.mean((1, 2))
  layers['fc'] = Layer(x)
  return x @ params['fc']['kernel'] + _row(params['fc']['bias'], 2), new


def _row(x: Array, rank: int) -> Array:
  """(C,) with axes in front, up to `rank`."""
  return x.reshape((1,) * (rank - 1) + x.shape)


def _conv(x: Array, kernel: Array, padding: Any = 'SAME', strides: int = 1) -> Array:
  layout = ('NHWC', 'HWIO', 'NHWC')
  return lax.conv_general_dilated(x, kernel, (strides,) * 2, padding, dimension_numbers=layout)


def _blocks(x: Array) -> Array:
  """(B, H, W, C) -> (B, H/2, W/2, 4 C): the pixels of a 2x2 block side by side."""
  b, h, w, c = x.shape
  x = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(b, h // 2, w // 2, 4 * c)


def _block_kernel(kernel: Array) -> Array:
  """5x5 on pixels -> 3x3 from 2x2 blocks to the four outputs of a 2x2 block."""
  i, o = kernel.shape[2:]
  big = jnp.zeros((6, 6, i, 2, 2, o), kernel.dtype)
  for a in range(2):
    for b in range(2):
      big = big.at[a : a + 5, b : b + 5, :, a, b, :].set(kernel)
  big = big.reshape(3, 2, 3, 2, i, 4 * o).transpose(0, 2, 1, 3, 4, 5)
  return big.reshape(3, 3, 4 * i, 4 * o)
