"""Test models of gates, norms, attention and tokens."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class Gated(nn.Module):
  """Halves of one kernel multiply each other; a remat block; a custom gradient at zero."""

  @nn.compact
  def __call__(self, x, train):
    x = x.reshape(x.shape[0], -1)
    a, b = jnp.split(nn.Dense(10, name='both')(x), 2, axis=-1)
    x = a * nn.sigmoid(b)
    x = jax.checkpoint(lambda v: nn.gelu(v) + clipped(v))(x)
    x = nn.relu6(nn.Dense(6, name='hidden')(x))
    return nn.Dense(3, name='head')(x)


@jax.custom_vjp
def clipped(x):
  """min(x, 0), with the gradient of the identity (straight through)."""
  return jnp.minimum(x, 0)


clipped.defvjp(lambda x: (clipped(x), ()), lambda residuals, g: (g,))


class Norms(nn.Module):
  """Instance and group norms keep what they do not mix; layer norm freezes its axis."""

  @nn.compact
  def __call__(self, x, train):
    x = nn.relu(nn.InstanceNorm(name='instance')(nn.Conv(5, (3, 3), name='a')(x)))
    x = nn.relu(nn.GroupNorm(3, name='group')(nn.Conv(6, (3, 3), name='b')(x)))
    x = nn.relu(nn.LayerNorm(name='layer')(nn.Conv(5, (3, 3), name='c')(x)))
    x = nn.WeightNorm(nn.Conv(4, (3, 3), name='d'), name='scaled')(x)
    return nn.Dense(3, name='head')(nn.relu(x).mean((1, 2)))


class ViT(nn.Module):
  """A patch embedding, a class token and one block of Linen's attention and MLP."""

  @nn.compact
  def __call__(self, x, train):
    x = nn.Conv(8, (2, 2), strides=(2, 2), name='patches')(x)
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    token = self.param('token', nn.initializers.zeros, (1, 1, 8))
    x = jnp.concatenate([jnp.tile(token, (x.shape[0], 1, 1)), x], axis=1)
    x = x + self.param('positions', nn.initializers.zeros, (1, *x.shape[1:]))
    y = nn.LayerNorm(name='ln1')(x)
    y = nn.MultiHeadDotProductAttention(
      num_heads=3, qkv_features=12, dropout_rate=0.2, deterministic=not train, name='attn'
    )(y)
    x = x + y
    y = nn.Dense(10, name='up')(nn.LayerNorm(name='ln2')(x))
    x = x + nn.Dense(8, name='down')(nn.Dropout(0.2, deterministic=not train)(nn.gelu(y)))
    return nn.Dense(3, name='head')(nn.LayerNorm(name='ln3')(x)[:, 0])


class FusedAttention(nn.Module):
  """Queries, keys and values from one kernel; no norm, so the stream itself can be pruned."""

  @nn.compact
  def __call__(self, x, train):
    x = nn.tanh(nn.Dense(7, name='embed')(x.reshape(x.shape[0], -1, x.shape[-1])))
    q, k, v = jnp.split(nn.Dense(24, name='qkv')(x).reshape(*x.shape[:2], 2, 12), 3, axis=-1)
    scores = nn.softmax(jnp.einsum('bqhd,bkhd->bhqk', q, k) / 2.0)
    y = jnp.einsum('bhqk,bkhd->bqhd', scores, v).reshape(*x.shape[:2], 8)
    x = x + nn.Dense(7, name='out')(y)
    return nn.Dense(3, name='head')(x.max(1))


class Tokens(nn.Module):
  """An embedding table, a causal running mean over time, a pooled head."""

  @nn.compact
  def __call__(self, tokens, train):
    x = nn.Embed(11, 6, name='embed')(tokens)
    x = jnp.cumsum(x, axis=1) / jnp.arange(1.0, x.shape[1] + 1)[None, :, None]
    x = nn.relu(nn.Conv(5, (3,), name='conv')(x))
    x = jnp.where((tokens > 3)[..., None], x, -1.0)
    return nn.Dense(3, name='head')(jnp.sort(x, axis=1)[:, -2])


class Llama(nn.Module):
  """RMS norms, rotary embeddings, grouped queries, a gated MLP."""

  @nn.compact
  def __call__(self, x, train):
    def rotated(u):
      angle = jnp.arange(6.0)[None, None, None]
      turned = jnp.concatenate([-u[..., 3:], u[..., :3]], -1)
      return u * jnp.cos(angle) + turned * jnp.sin(angle)

    x = nn.Dense(8, name='embed')(x.reshape(x.shape[0], -1, x.shape[-1]))
    y = nn.RMSNorm(name='norm1')(x)
    q, k, v = (
      nn.DenseGeneral((heads, 6), name=name, use_bias=False)(y)
      for name, heads in (('q', 4), ('k', 2), ('v', 2))
    )
    y = jax.nn.dot_product_attention(rotated(q), rotated(k), v)
    x = x + nn.DenseGeneral(8, axis=(-2, -1), name='o', use_bias=False)(y)
    y = nn.RMSNorm(name='norm2')(x)
    y = nn.silu(nn.Dense(10, name='gate')(y)) * nn.Dense(10, name='up')(y)
    return nn.Dense(3, name='head')((x + nn.Dense(8, name='down')(y)).mean(1))


class Mixer(nn.Module):
  """Tokens and channels take turns; the tokens come from space and stay."""

  @nn.compact
  def __call__(self, x, train):
    x = nn.Conv(8, (2, 2), strides=2, name='stem')(x)
    x = x.reshape(x.shape[0], -1, 8)
    y = nn.gelu(nn.Dense(5, name='mix')(x.swapaxes(1, 2)))
    x = x + nn.Dense(x.shape[1], name='back')(y).swapaxes(1, 2)
    return nn.Dense(3, name='head')(x.mean(1))


class Tied(nn.Module):
  """The embedding table is also the output layer."""

  @nn.compact
  def __call__(self, tokens, train):
    embed = nn.Embed(11, 6, name='embed')
    x = embed(tokens)
    x = x + nn.Dense(6, name='down')(nn.relu(nn.Dense(9, name='up')(x)))
    return embed.attend(x)


class Experts(nn.Module):
  """A softly mixed layer of experts, made by nn.vmap."""

  @nn.compact
  def __call__(self, x, train):
    x = x.reshape(x.shape[0], -1)
    experts = nn.vmap(
      nn.Dense,
      variable_axes={'params': 0},
      split_rngs={'params': True},
      in_axes=None,
      out_axes=0,
      axis_size=3,
    )
    gates = nn.softmax(nn.Dense(3, name='gates')(x))
    x = jnp.einsum('ebf,be->bf', nn.relu(experts(6, name='experts')(x)), gates)
    return nn.Dense(3, name='head')(x)
