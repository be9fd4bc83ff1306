"""Test models whose residual stream runs through norms: decoders, encoders, other libraries."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx


class Decoder(nn.Module):
  """GPT: learned positions, norms before attention and MLP, a causal mask, a tied head."""

  width: int = 8

  @nn.compact
  def __call__(self, tokens, train):
    embed = nn.Embed(11, self.width, name='embed')
    places = jnp.arange(tokens.shape[1])
    x = embed(tokens) + nn.Embed(5, self.width, name='places')(places)[None]
    x = nn.Dropout(0.2, deterministic=not train)(x)
    for i in (1, 2):
      x = nn.remat(DecoderBlock, static_argnums=(2,))(name=f'block{i}')(x, train)
    return embed.attend(nn.LayerNorm(name='norm')(x))


class DecoderBlock(nn.Module):
  """Queries, keys and values from one kernel."""

  @nn.compact
  def __call__(self, x, train):
    y = nn.DenseGeneral((3, 2, 4), name='qkv')(nn.LayerNorm(name='norm1')(x))
    q, k, v = (y[:, :, i] for i in range(3))
    y = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    x = x + nn.DenseGeneral(x.shape[-1], axis=(-2, -1), name='out')(y)
    y = nn.LayerNorm(use_fast_variance=False, name='norm2')(x)
    y = nn.Dense(x.shape[-1], name='down')(nn.gelu(nn.Dense(10, name='up')(y)))
    return x + nn.Dropout(0.2, deterministic=not train)(y)


class Encoder(nn.Module):
  """BERT: three embeddings, norms behind attention and MLP, in two passes; a pooler."""

  width: int = 8

  @nn.compact
  def __call__(self, tokens, train):
    x = nn.Embed(11, self.width, name='word')(tokens)
    x = x + self.param('positions', nn.initializers.normal(), (5, self.width))[: x.shape[1]][None]
    x = x + nn.Embed(2, self.width, name='type')(jnp.zeros_like(tokens))
    x = nn.LayerNorm(use_fast_variance=False, name='norm')(x)
    x = nn.Dropout(0.2, deterministic=not train)(x)
    for i in (1, 2):
      y = nn.MultiHeadDotProductAttention(2, qkv_features=8, name=f'attention{i}')(x)
      x = nn.LayerNorm(use_fast_variance=False, name=f'attention{i}_norm')(x + y)
      y = nn.gelu(nn.Dense(10, name=f'up{i}')(x))
      y = nn.Dropout(0.2, deterministic=not train)(nn.Dense(self.width, name=f'down{i}')(y))
      x = nn.LayerNorm(name=f'mlp{i}_norm')(x + y)
    return nn.Dense(3, name='head')(nn.tanh(nn.Dense(self.width, name='pooler')(x[:, 0])))


class UNet(nn.Module):
  """Group norms over a concatenation, whose second group has channels of both parts."""

  @nn.compact
  def __call__(self, x, train):
    skip = nn.Conv(6, (3, 3), name='down')(x)
    x = nn.Conv(10, (3, 3), strides=2, name='bottom')(nn.silu(nn.GroupNorm(3, name='n1')(skip)))
    x = nn.silu(nn.GroupNorm(5, name='n2')(x))
    x = jnp.concatenate([skip, jax.image.resize(x, (*skip.shape[:3], 10), 'nearest')], -1)
    x = nn.Conv(6, (1, 1), name='up')(nn.silu(nn.GroupNorm(4, name='n3')(x)))
    return nn.Dense(3, name='head')(nn.GroupNorm(3, name='n4')(x).mean((1, 2)))


class Standardised(nn.Module):
  """BiT: kernels standardised over their in-axis, group norms before them, a plain stream."""

  width: int = 8

  @nn.compact
  def __call__(self, x, train):
    x = self.conv(x, self.width, 'stem')
    for i in (1, 2):
      y = self.conv(nn.relu(nn.GroupNorm(2, name=f'{i}a')(x)), 6, f'in{i}')
      x = x + self.conv(nn.relu(nn.GroupNorm(3, name=f'{i}b')(y)), self.width, f'out{i}')
    return nn.Dense(3, name='head')(nn.relu(nn.GroupNorm(2, name='last')(x)).mean((1, 2)))

  def conv(self, x, features, name):
    kernel = self.param(name, nn.initializers.lecun_normal(), (3, 3, x.shape[-1], features))
    mean, var = kernel.mean((0, 1, 2)), kernel.var((0, 1, 2))
    kernel = (kernel - mean[None, None, None]) / jnp.sqrt(var + 1e-4)[None, None, None]
    numbers = ('NHWC', 'HWIO', 'NHWC')
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', dimension_numbers=numbers)


class EquinoxBlock(eqx.Module):
  """Attention and MLP of one sequence, with Equinox's layer and RMS norms."""

  embed: eqx.nn.Embedding
  norm1: eqx.nn.LayerNorm
  attention: eqx.nn.MultiheadAttention
  norm2: eqx.nn.RMSNorm
  up: eqx.nn.Linear
  down: eqx.nn.Linear
  norm3: eqx.nn.LayerNorm
  head: eqx.nn.Linear

  def __init__(self, key):
    self.embed = eqx.nn.Embedding(11, 8, key=key)
    self.norm1, self.norm2, self.norm3 = (
      eqx.nn.LayerNorm(8),
      eqx.nn.RMSNorm(8),
      eqx.nn.LayerNorm(8),
    )
    self.attention = eqx.nn.MultiheadAttention(2, 8, key=key)
    self.up, self.down = eqx.nn.Linear(8, 10, key=key), eqx.nn.Linear(10, 8, key=key)
    self.head = eqx.nn.Linear(8, 3, key=key)

  def __call__(self, tokens):
    x = jax.vmap(self.embed)(tokens)
    y = jax.vmap(self.norm1)(x)
    x = x + self.attention(y, y, y)
    y = jax.vmap(self.up)(jax.vmap(self.norm2)(x))
    x = x + jax.vmap(self.down)(jax.nn.gelu(y))
    return self.head(self.norm3(x.mean(0)))


class NnxBlock(nnx.Module):
  """The same of NNX."""

  def __init__(self, rngs):
    self.embed = nnx.Embed(11, 8, rngs=rngs)
    self.norm1, self.norm2 = nnx.LayerNorm(8, rngs=rngs), nnx.RMSNorm(8, rngs=rngs)
    self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
    self.up, self.down = nnx.Linear(8, 10, rngs=rngs), nnx.Linear(10, 8, rngs=rngs)
    self.norm3 = nnx.LayerNorm(8, use_fast_variance=False, rngs=rngs)

  def __call__(self, tokens):
    x = self.embed(tokens)
    x = x + self.attention(self.norm1(x))
    x = x + self.down(nnx.silu(self.up(self.norm2(x))))
    return self.embed.attend(self.norm3(x))


def plain_block(params, tokens):
  """Plain JAX, normed as Haiku does it: a two-pass variance, the scale times the inverse first."""

  def norm(x, p):
    mean, var = jnp.mean(x, -1, keepdims=True), jnp.var(x, -1, keepdims=True)
    inv = p['scale'][None, None] * jax.lax.rsqrt(var + 1e-5)
    return inv * (x - mean) + p['offset'][None, None]

  x = params['embed'][tokens]
  x = norm(x + jax.nn.relu(x @ params['up']) @ params['down'], params['norm1'])
  y = x / jnp.linalg.norm(x, axis=-1, keepdims=True)
  return norm(x + jnp.cos(y @ params['in']), params['norm2']).mean(1) @ params['head']
