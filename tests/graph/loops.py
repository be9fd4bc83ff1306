"""Test models with layers and time steps under scan, loops and branches."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx


class Block(nn.Module):
  """A pre-norm transformer block, as nn.scan wants it."""

  width: int
  train: bool

  @nn.compact
  def __call__(self, x, _):
    y = nn.MultiHeadDotProductAttention(num_heads=3, qkv_features=12, name='attn')(
      nn.LayerNorm(name='ln1')(x)
    )
    x = x + y
    y = nn.gelu(nn.Dense(10, name='up')(nn.LayerNorm(name='ln2')(x)))
    y = nn.Dropout(0.2, deterministic=not self.train)(y)
    return x + nn.Dense(self.width, name='down')(y), None


class Scanned(nn.Module):
  """Blocks under remat under scan; an unrolled twin of the same layers for comparison."""

  unrolled: bool = False
  width: int = 8

  @nn.compact
  def __call__(self, x, train):
    x = nn.Dense(self.width, name='embed')(x.reshape(x.shape[0], -1, x.shape[-1]))
    if self.unrolled:
      for i in range(3):
        x, _ = Block(self.width, train, name=f'block{i}')(x, None)
    else:
      layers = nn.scan(
        nn.remat(Block, prevent_cse=False),
        variable_axes={'params': 0},
        split_rngs={'params': True, 'dropout': True},
        length=3,
      )
      x, _ = layers(self.width, train, name='blocks')(x, None)
    return nn.Dense(3, name='head')(nn.LayerNorm(name='ln')(x).mean(1))


class Recurrent(nn.Module):
  """A recurrent layer over time, backwards."""

  cell: type = nn.LSTMCell

  @nn.compact
  def __call__(self, x, train):
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    x = nn.RNN(self.cell(6, name='cell'), reverse=True, keep_order=True)(x)
    return nn.Dense(3, name='head')(x[:, 0])


def plain_stack(w, x):
  """Residual layers with a hand-written layer norm, of stacked kernels."""

  def layer(h, k):
    mean = h.mean(-1, keepdims=True)
    y = (h - mean) * jax.lax.rsqrt(jnp.square(h - mean).mean(-1, keepdims=True) + 1e-3)
    y = y * k['scale'][None] + k['offset'][None]
    return h + jax.nn.relu(y @ k['up']) @ k['down'], y.mean(-1)

  x = jnp.tanh(x @ w['in'])
  x, means = jax.lax.scan(layer, x, w['layers'])
  return x @ w['out'] + means.sum(0)[:, None]


PLAIN_STACK = {
  'in': (3, 6),
  'layers': {'scale': (4, 6), 'offset': (4, 6), 'up': (4, 6, 7), 'down': (4, 7, 6)},
  'out': (6, 2),
}


class NnxStack(nnx.Module):
  """Stacked layers with batch statistics, made by nnx.vmap and run by nnx.scan."""

  class Layer(nnx.Module):
    def __init__(self, rngs):
      self.up = nnx.Linear(6, 7, rngs=rngs)
      self.norm = nnx.BatchNorm(7, epsilon=0.1, use_fast_variance=False, rngs=rngs)
      self.down = nnx.Linear(7, 6, rngs=rngs)

  def __init__(self, rngs):
    @nnx.split_rngs(splits=3)
    @nnx.vmap(in_axes=(0,), out_axes=0)
    def made(rngs):
      return self.Layer(rngs)

    self.embed = nnx.Linear(3, 6, rngs=rngs)
    self.layers = made(rngs)
    self.head = nnx.Linear(6, 2, rngs=rngs)

  def __call__(self, x):
    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    def run(x, layer):
      return x + layer.down(nnx.relu(layer.norm(layer.up(x))))

    return self.head(run(nnx.tanh(self.embed(x)), self.layers))
