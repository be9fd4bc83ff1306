"""Decoder-only transformers as Llama has them (Touvron et al. 2023; Dubey et al. 2024)."""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

__all__ = ['Decoder', 'Stretch']

_init = nn.initializers.normal(0.02)


class Stretch(NamedTuple):
  """How Llama 3.1 and later stretch the slow rotations over a longer context.

  Attributes:
    factor: by which the slowest rotations are slowed.
    low: turns over `context`; what turns less often is slowed by the whole factor.
    high: turns over `context`; what turns more often stays. Between the two the frequency is
      interpolated.
    context: tokens of the first training.
  """

  factor: float
  low: float
  high: float
  context: int


class Decoder(nn.Module):
  """Tokens to the logits of the next: RMS norms, rotary positions, grouped queries, a gated MLP.

  Attributes:
    num_classes: tokens of the vocabulary.
    width: channels of the residual stream.
    depth: number of layers.
    heads: query heads, a multiple of `kv_heads`.
    kv_heads: heads of keys and values; each serves heads / kv_heads query heads.
    head_width: channels of a head, even; None: width / heads.
    hidden: units of the MLP; None: 8/3 of the width, up to a multiple of 8.
    tied: whether the embedding is the output layer as well.
    scan: whether the layers are one body under `nn.scan`, with stacked parameters: compiled once
      however many they are.
    theta: base of the wave lengths of the rotations.
    stretch: of the rotations, or None.
    epsilon: of the norms.
  """

  num_classes: int = 256
  width: int = 128
  depth: int = 4
  heads: int = 4
  kv_heads: int = 2
  head_width: int | None = None
  hidden: int | None = None
  tied: bool = True
  scan: bool = False
  theta: float = 10_000.0
  stretch: Stretch | None = None
  epsilon: float = 1e-5

  @classmethod
  def llama_3_2_1b(cls, **fields: Any) -> 'Decoder':
    """Llama 3.2 of 1,235,814,400 parameters; `fields` are further attributes."""
    sizes = {'width': 2048, 'depth': 16, 'heads': 32, 'kv_heads': 8, 'hidden': 8192}
    stretch = Stretch(factor=32.0, low=1.0, high=4.0, context=8192)
    return cls(**{'num_classes': 128_256, **sizes, 'theta': 5e5, 'stretch': stretch, **fields})

  @classmethod
  def tinyllama_1_1b(cls, **fields: Any) -> 'Decoder':
    """TinyLlama of 1,100,048,384 parameters; `fields` are further attributes."""
    sizes = {'width': 2048, 'depth': 22, 'heads': 32, 'kv_heads': 4, 'hidden': 5632}
    return cls(**{'num_classes': 32_000, **sizes, 'tied': False, **fields})

  @nn.compact
  def __call__(self, tokens: jax.Array, train: bool = False) -> jax.Array:
    """Logits (batch, length, num_classes) of integer tokens (batch, length)."""
    del train  # nothing here is random
    self._check()
    embed = nn.Embed(self.num_classes, self.width, embedding_init=_init, name='embed')
    x = embed(tokens)
    turns = _turns(tokens.shape[1], self._head_width, self.theta, self.stretch)
    make = lambda name: Layer(
      self.kv_heads, self.heads // self.kv_heads, self._head_width, self._hidden, self.epsilon,
      name=name,
    )  # fmt: skip
    if self.scan:
      stacked = nn.scan(
        lambda layer, x, _: (layer(x, turns), None),
        variable_axes={'params': 0},
        split_rngs={'params': True},
        length=self.depth,
      )
      x, _ = stacked(make('layers'), x, None)
    else:
      for i in range(self.depth):
        x = make(f'layer{i}')(x, turns)
    x = nn.RMSNorm(self.epsilon, name='norm')(x)
    if self.tied:
      return embed.attend(x)
    return nn.Dense(self.num_classes, use_bias=False, kernel_init=_init, name='head')(x)

  @property
  def _head_width(self) -> int:
    return self.width // self.heads if self.head_width is None else self.head_width

  @property
  def _hidden(self) -> int:
    return 8 * math.ceil(self.width / 3) if self.hidden is None else self.hidden

  def _check(self) -> None:
    """Raises ValueError where the attributes do not fit each other."""
    if self.heads % self.kv_heads:
      raise ValueError(f'heads is {self.heads}; expected a multiple of kv_heads, {self.kv_heads}.')
    if self.head_width is None and self.width % self.heads:
      raise ValueError(f'width is {self.width}; expected a multiple of heads, {self.heads}.')
    if self._head_width % 2:
      raise ValueError(
        f'a head has {self._head_width} channels; expected an even number, two a rotation.'
      )


class Layer(nn.Module):
  """x + attention(norm(x)), then x + mlp(norm(x)).

  Query heads stand by the key head that serves them, (width, kv_heads, queries, head_width): a key
  head goes with its query heads, and so does a query head of each.

  Attributes:
    kv_heads: heads of keys and values.
    queries: query heads of each.
    head_width: channels of a head.
    hidden: units of the MLP.
    epsilon: of the norms.
  """

  kv_heads: int
  queries: int
  head_width: int
  hidden: int
  epsilon: float

  @nn.compact
  def __call__(self, x: jax.Array, turns: np.ndarray) -> jax.Array:
    """(batch, length, width) to the same shape; `turns` is of `_turns`."""
    width = x.shape[-1]

    def dense(name: str, *features: int, axis: int | tuple[int, ...] = -1) -> nn.Module:
      return nn.DenseGeneral(features, axis, use_bias=False, kernel_init=_init, name=name)

    y = nn.RMSNorm(self.epsilon, name='norm1')(x)
    q_BxTxKxQxH = dense('query', self.kv_heads, self.queries, self.head_width)(y)
    k_BxTxKxH = dense('key', self.kv_heads, self.head_width)(y)
    v_BxTxKxH = dense('value', self.kv_heads, self.head_width)(y)
    y = _attend(_rotated(q_BxTxKxQxH, turns), _rotated(k_BxTxKxH, turns), v_BxTxKxH)
    x = x + dense('out', width, axis=(-3, -2, -1))(y)
    y = nn.RMSNorm(self.epsilon, name='norm2')(x)
    y = nn.silu(dense('gate', self.hidden)(y)) * dense('up', self.hidden)(y)
    return x + dense('down', width)(y)


def _attend(q_BxTxKxQxH: jax.Array, k_BxSxKxH: jax.Array, v_BxSxKxH: jax.Array) -> jax.Array:
  """Causal attention, softmax in float32: (B, T, K, Q, H)."""
  _, length, _, _, head_width = q_BxTxKxQxH.shape
  scores = jnp.einsum('btkqh,bskh->bkqts', q_BxTxKxQxH, k_BxSxKxH) / math.sqrt(head_width)
  seen_TxS = np.tri(length, dtype=bool)
  scores = jnp.where(seen_TxS[None, None, None], scores.astype(jnp.float32), -jnp.inf)
  shares = jax.nn.softmax(scores).astype(v_BxSxKxH.dtype)
  return jnp.einsum('bkqts,bskh->btkqh', shares, v_BxSxKxH)


def _rotated(x: jax.Array, turns_2xTxR: np.ndarray) -> jax.Array:
  """Turns channels r and r + H / 2 of x (B, T, ..., H) by the angle of position and r."""
  shape = (1, turns_2xTxR.shape[1], *(1,) * (x.ndim - 3), turns_2xTxR.shape[2])
  cos, sin = (jnp.asarray(turn, x.dtype).reshape(shape) for turn in turns_2xTxR)
  a, b = jnp.split(x, 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def _turns(length: int, head_width: int, theta: float, stretch: Stretch | None) -> np.ndarray:
  """Cosines and sines (2, length, head_width / 2) of the rotations at every position."""
  speed = theta ** -(np.arange(0, head_width, 2) / head_width)
  if stretch is not None:
    turns = stretch.context * speed / (2 * np.pi)
    stays = np.clip((turns - stretch.low) / (stretch.high - stretch.low), 0, 1)
    speed = speed * (stays + (1 - stays) / stretch.factor)
  angles = np.arange(length)[:, None] * speed
  return np.stack([np.cos(angles), np.sin(angles)]).astype(np.float32)
