"""Vision Transformers (Dosovitskiy et al. 2021) in the sizes of DeiT (Touvron et al. 2021)."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

__all__ = ['ViT']

# DeiT's start of every dense layer, of the class token and of the positions.
_init = nn.initializers.truncated_normal(0.02)


class ViT(nn.Module):
  """Patches as tokens, pre-norm blocks of attention and MLP, one linear head.

  The position embedding is learned for the image size of `init`. Dropout is where the paper has it
  (appendix B.1): behind the positions and behind every dense layer but queries, keys and values.

  Attributes:
    num_classes: number of logits.
    width: channels of the residual stream, a multiple of `heads`.
    depth: number of blocks.
    heads: of the attention, of width / heads channels each.
    mlp: hidden units of a block per channel of the stream.
    patch: side of a patch in pixels; it divides the sides of the images.
    pool: what the head reads: 'token', the class token, or 'mean', the mean over the patches, in
      which case there is no class token.
    dropout: rate; 0 needs no random key in training.
  """

  num_classes: int = 1000
  width: int = 192
  depth: int = 12
  heads: int = 3
  mlp: int = 4
  patch: int = 16
  pool: str = 'token'
  dropout: float = 0.0

  @classmethod
  def tiny(cls, num_classes: int = 1000, **fields: Any) -> 'ViT':
    """ViT-Ti of DeiT: 5.7 M parameters at 224x224; `fields` are further attributes."""
    return cls(num_classes, **{'width': 192, 'depth': 12, 'heads': 3, **fields})

  @classmethod
  def small(cls, num_classes: int = 1000, **fields: Any) -> 'ViT':
    """ViT-S of DeiT: 22 M parameters at 224x224; `fields` are further attributes."""
    return cls(num_classes, **{'width': 384, 'depth': 12, 'heads': 6, **fields})

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Logits (batch, num_classes) of images (batch, height, width, channels)."""
    self._check(x)
    dropout = functools.partial(nn.Dropout, self.dropout, deterministic=not train)
    sides = (self.patch, self.patch)
    x = nn.Conv(self.width, sides, strides=sides, padding='VALID', name='patches')(x)
    x = x.reshape(x.shape[0], -1, self.width)
    if self.pool == 'token':
      token = self.param('token', _init, (1, 1, self.width))
      x = jnp.concatenate([jnp.tile(token, (x.shape[0], 1, 1)), x], axis=1)
    x = dropout()(x + self.param('positions', _init, (1, *x.shape[1:])))
    for i in range(self.depth):
      x = Block(self.heads, self.mlp * self.width, dropout, name=f'block{i + 1}')(x)
    x = nn.LayerNorm(name='norm')(x)
    x = x[:, 0] if self.pool == 'token' else x.mean(1)
    return nn.Dense(self.num_classes, kernel_init=_init, name='head')(x)

  def _check(self, x: jax.Array) -> None:
    """Raises ValueError where the attributes do not fit each other or the images."""
    if self.pool not in ('token', 'mean'):
      raise ValueError(f"pool is {self.pool!r}; expected 'token' or 'mean'.")
    if self.width % self.heads:
      raise ValueError(f'width is {self.width}; expected a multiple of heads, {self.heads}.')
    if x.shape[1] % self.patch or x.shape[2] % self.patch:
      raise ValueError(
        f'images are {x.shape[1]}x{x.shape[2]}; expected multiples of patch, {self.patch}.'
      )


class Block(nn.Module):
  """x + attention(norm(x)), then x + mlp(norm(x)).

  Queries, keys, values and the output are kernels of their own, (width, heads, width / heads) and
  back, so that heads and the channels of a head can be pruned.

  Attributes:
    heads: of the attention.
    hidden: units of the MLP.
    dropout: makes the dropout layer.
  """

  heads: int
  hidden: int
  dropout: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """(batch, tokens, width) to the same shape."""
    y = nn.LayerNorm(name='norm1')(x)
    attention = nn.MultiHeadDotProductAttention(self.heads, kernel_init=_init, name='attention')
    x = x + self.dropout()(attention(y))
    y = nn.Dense(self.hidden, kernel_init=_init, name='up')(nn.LayerNorm(name='norm2')(x))
    y = self.dropout()(nn.gelu(y, approximate=False))
    return x + self.dropout()(nn.Dense(x.shape[-1], kernel_init=_init, name='down')(y))
