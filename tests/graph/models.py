"""Small networks for the tests of the graph: one structure each, as plain as users write them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


class Case(NamedTuple):
  """A traced function and what is expected of it."""

  fn: Callable
  variables: Any
  inputs: tuple
  eval: dict
  train: dict | None
  groups: set[str]


def randomized(structs, seed=0):
  """Variables of the given shapes with nothing special in them: no zeros, no ones."""
  rng = np.random.default_rng(seed)

  def leaf(keys, struct):
    if not jnp.issubdtype(struct.dtype, jnp.floating):
      return struct
    fan_in = max(1, int(np.prod(struct.shape[:-1])))
    values = rng.normal(size=struct.shape) / np.sqrt(fan_in)
    if 'var' in jax.tree_util.keystr(keys):
      values = 0.5 + rng.random(struct.shape)
    elif len(struct.shape) < 2:
      values = 0.6 + 0.4 * rng.normal(size=struct.shape)
    return jnp.asarray(values, struct.dtype)

  return jax.tree_util.tree_map_with_path(leaf, structs)


def images(*shape, seed=1):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def linen(module, x, groups, train=True, dropout=False):
  """A Linen module called as module(x, train)."""
  variables = randomized(
    jax.eval_shape(lambda x: module.init({'params': jax.random.key(0)}, x, train=False), x)
  )
  kwargs: dict = {'train': True, 'mutable': ['batch_stats']}
  if dropout:
    kwargs['rngs'] = {'dropout': jax.random.key(3)}
  return Case(
    module.apply, variables, (x,), {'train': False}, kwargs if train else None, set(groups)
  )


def conv_bn(x, features, train, kernel=3, act=nn.relu, name=None, **kwargs):
  x = nn.Conv(features, (kernel, kernel), use_bias=False, name=name, **kwargs)(x)
  x = nn.BatchNorm(use_running_average=not train, name=name and f'{name}_bn')(x)
  return act(x)


class Vgg(nn.Module):
  @nn.compact
  def __call__(self, x, train):
    x = conv_bn(x, 6, train, name='a')
    x = nn.max_pool(x, (2, 2), (2, 2))
    x = nn.relu(nn.Conv(5, (3, 3), name='b')(x))
    x = nn.avg_pool(x, (2, 2), (2, 2))
    x = x.reshape(x.shape[0], -1)
    x = nn.relu(nn.Dense(7, name='c')(x))
    x = nn.Dropout(0.4, deterministic=not train)(x)
    return nn.Dense(3, name='d')(x)


class FlattenChannelsFirst(nn.Module):
  @nn.compact
  def __call__(self, x, train):
    x = conv_bn(x, 6, train, name='a')
    x = jnp.transpose(x, (0, 3, 1, 2)).reshape(x.shape[0], -1)
    return nn.Dense(3, name='d')(x)


class Residual(nn.Module):
  """ResNet-like; `pad` makes the shortcuts parameter-free, `pre` pre-activated blocks."""

  pad: bool = False
  pre: bool = False

  @nn.compact
  def __call__(self, x, train):
    x = conv_bn(x, 4, train, name='stem')
    for i, (features, stride) in enumerate([(4, 1), (6, 2)]):
      x = self.block(x, features, stride, train, f'block{i}')
    return nn.Dense(3, name='head')(x.mean((1, 2)))

  def block(self, x, features, stride, train, name):
    y = x
    if self.pre:
      y = nn.relu(nn.BatchNorm(use_running_average=not train, name=f'{name}_pre')(x))
    y = conv_bn(y, 5, train, strides=stride, name=f'{name}_conv1')
    y = conv_bn(y, features, train, act=lambda v: v, name=f'{name}_conv2')
    if stride > 1 and self.pad:
      x = jnp.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (1, features - x.shape[-1] - 1)))
    elif stride > 1:
      x = conv_bn(x, features, train, 1, act=lambda v: v, strides=stride, name=f'{name}_proj')
    return x + y if self.pre else nn.relu(x + y)


class Dense(nn.Module):
  """DenseNet-like: every layer reads the concatenation of all before it."""

  @nn.compact
  def __call__(self, x, train):
    x = nn.Conv(4, (3, 3), name='stem')(x)
    for i in range(2):
      y = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
      x = jnp.concatenate([x, nn.Conv(3, (3, 3), name=f'grow{i}')(y)], axis=-1)
    x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
    x = nn.avg_pool(nn.Conv(6, (1, 1), name='transition')(x), (2, 2), (2, 2))
    return nn.Dense(3, name='head')(x.mean((1, 2)))


class Inception(nn.Module):
  @nn.compact
  def __call__(self, x, train):
    a = conv_bn(x, 3, train, 1, name='one')
    b = conv_bn(conv_bn(x, 4, train, 1, name='reduce'), 5, train, name='three')
    c = nn.Conv(2, (1, 1), name='pool')(nn.max_pool(x, (3, 3), padding='SAME'))
    x = jnp.concatenate([a, b, c, x], axis=-1)
    x = conv_bn(x, 4, train, name='mix')
    return nn.Dense(3, name='head')(x.reshape(x.shape[0], -1))


class UNet(nn.Module):
  @nn.compact
  def __call__(self, x, train):
    skip = conv_bn(x, 4, train, name='down')
    y = conv_bn(nn.max_pool(skip, (2, 2), (2, 2)), 5, train, kernel_dilation=2, name='bottom')
    y = nn.relu(nn.ConvTranspose(3, (2, 2), strides=(2, 2), name='up')(y))
    y = conv_bn(jnp.concatenate([skip, y], axis=-1), 4, train, name='join')
    y = jax.image.resize(y, (*y.shape[:1], 4, 4, y.shape[-1]), 'nearest')
    return nn.Conv(2, (1, 1), name='out')(y)


class Mobile(nn.Module):
  """Inverted residual with a depthwise kernel, squeeze-and-excite and a linear bottleneck."""

  @nn.compact
  def __call__(self, x, train):
    x = conv_bn(x, 4, train, act=nn.hard_swish, name='stem')
    y = conv_bn(x, 8, train, 1, act=nn.relu6, name='expand')
    y = conv_bn(y, 8, train, act=nn.silu, feature_group_count=8, name='depthwise')
    s = nn.relu(nn.Dense(3, name='squeeze')(y.mean((1, 2), keepdims=True)))
    y = y * nn.sigmoid(nn.Dense(8, name='excite')(s))
    x = x + conv_bn(y, 4, train, 1, act=lambda v: v, name='project')
    x = conv_bn(x, 8, train, feature_group_count=4, name='multiplied')  # multiplier 2
    return nn.Dense(3, name='head')(x.mean((1, 2)))


class Grouped(nn.Module):
  """ResNeXt's grouped kernel and ShuffleNet's shuffle."""

  @nn.compact
  def __call__(self, x, train):
    x = conv_bn(x, 6, train, 1, name='reduce')
    x = conv_bn(x, 12, train, feature_group_count=3, name='grouped')
    x = x.reshape(*x.shape[:-1], 3, 4).swapaxes(-1, -2).reshape(x.shape)
    x = conv_bn(x, 5, train, 1, name='mix')
    return nn.Dense(3, name='head')(x.mean((1, 2)))


class Shared(nn.Module):
  """One kernel called twice: its in and out axes are one group."""

  @nn.compact
  def __call__(self, x, train):
    x = nn.relu(nn.Conv(5, (3, 3), name='stem')(x))
    twice = nn.Conv(5, (3, 3), name='twice')
    x = nn.relu(twice(x))
    x = nn.tanh(twice(x))
    return nn.Dense(3, name='head')(x.mean((1, 2)))


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


def plain_mlp(params, x):
  """Plain JAX: a list of (w, b)."""
  for w, b in params[:-1]:
    x = jax.nn.relu(x @ w + b[None])
  w, b = params[-1]
  return x @ w + b[None]


def plain_channels_first(params, x):
  """Plain JAX in NCHW, a kernel in OIHW, a captured constant along the channels, 1-d windows."""
  dn = ('NCHW', 'OIHW', 'NCHW')
  x = jax.lax.conv_general_dilated(x, params['a'], (1, 1), 'SAME', dimension_numbers=dn)
  x = jnp.maximum(x * SCALE, 0)
  x = jax.lax.conv_general_dilated(
    x,
    params['b'],
    (2, 1),
    [(1, 0), (0, 2)],
    lhs_dilation=(1, 2),
    rhs_dilation=(2, 1),
    dimension_numbers=dn,
  )
  x = jnp.abs(x).sum((2, 3)) + params['shift'][None]
  return jnp.einsum('io,bi->bo', params['c'], jnp.tanh(x))


SCALE = np.linspace(0.5, 1.5, 6, dtype=np.float32).reshape(1, 6, 1, 1)


def nnx_case():
  from flax import nnx

  class Net(nnx.Module):
    def __init__(self, rngs):
      self.conv = nnx.Conv(3, 6, (3, 3), rngs=rngs)
      self.norm = nnx.BatchNorm(6, rngs=rngs)
      self.hidden = nnx.Linear(6, 5, rngs=rngs)
      self.out = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x):
      x = nnx.relu(self.norm(self.conv(x)))
      return self.out(nnx.relu(self.hidden(x.mean((1, 2)))))

  graphdef, params, state = nnx.split(nnx.eval_shape(lambda: Net(nnx.Rngs(0))), nnx.Param, ...)

  def fn(variables, x, train):
    model = nnx.merge(graphdef, variables['params'], variables['state'])
    model.train() if train else model.eval()
    out = model(x)
    return out, {'state': nnx.state(model, nnx.BatchStat)} if train else {}

  variables = randomized({'params': params, 'state': state})
  return Case(
    fn, variables, (images(2, 4, 4, 3),), {'train': False}, {'train': True}, {'conv', 'hidden'}
  )


def equinox_case():
  import equinox as eqx

  def net(key):
    return eqx.nn.Sequential(
      [
        eqx.nn.Conv2d(3, 6, 3, key=key),
        eqx.nn.Lambda(jax.nn.relu),
        eqx.nn.MaxPool2d(2, 1),
        eqx.nn.Lambda(jnp.ravel),
        eqx.nn.Linear(6, 5, key=key),
        eqx.nn.Lambda(jax.nn.silu),
        eqx.nn.Linear(5, 3, key=key),
      ]
    )

  arrays, rest = eqx.partition(eqx.filter_eval_shape(net, jax.random.key(0)), is_struct)
  model = eqx.combine(randomized(arrays), rest)  # functions among its leaves: static
  return Case(
    lambda model, x: jax.vmap(model)(x),
    model,
    (images(2, 3, 4, 4),),
    {},
    None,
    {'layers/0', 'layers/4'},
  )


def is_struct(leaf):
  return isinstance(leaf, jax.ShapeDtypeStruct)


def plain_case():
  shapes = [((3, 8), (8,)), ((8, 7), (7,)), ((7, 3), (3,))]
  params = randomized(
    [tuple(jax.ShapeDtypeStruct(s, jnp.float32) for s in pair) for pair in shapes]
  )
  return Case(plain_mlp, params, (images(2, 3),), {}, None, {'0', '1'})


def channels_first_case():
  shapes = {'a': (6, 3, 3, 3), 'b': (5, 6, 2, 3), 'shift': (5,), 'c': (5, 3)}
  params = randomized({k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()})
  return Case(plain_channels_first, params, (images(2, 3, 5, 5),), {}, None, {'a', 'b'})


SMALL = (2, 4, 4, 3)
CASES: dict[str, Callable[[], Case]] = {
  'vgg': lambda: linen(Vgg(), images(*SMALL), {'a', 'b', 'c'}, dropout=True),
  'flatten_chw': lambda: linen(FlattenChannelsFirst(), images(*SMALL), {'a'}),
  'residual': lambda: linen(
    Residual(), images(*SMALL), {'stem', 'block0_conv1', 'block1_conv1', 'block1_conv2'}
  ),
  'residual_pad': lambda: linen(
    Residual(pad=True), images(*SMALL), {'stem', 'block0_conv1', 'block1_conv1'}
  ),
  'residual_pre': lambda: linen(
    Residual(pre=True), images(*SMALL), {'stem', 'block0_conv1', 'block1_conv1', 'block1_conv2'}
  ),
  'densenet': lambda: linen(Dense(), images(*SMALL), {'stem', 'grow0', 'grow1', 'transition'}),
  'inception': lambda: linen(
    Inception(), images(*SMALL), {'one', 'reduce', 'three', 'pool', 'mix'}
  ),
  'unet': lambda: linen(UNet(), images(*SMALL), {'down', 'bottom', 'up', 'join'}),
  'mobile': lambda: linen(Mobile(), images(*SMALL), {'stem', 'expand', 'squeeze', 'multiplied'}),
  'grouped': lambda: linen(
    Grouped(), images(*SMALL), {'reduce:3.0', 'reduce:3.1', 'grouped', 'mix'}
  ),
  'shared': lambda: linen(Shared(), images(*SMALL), {'stem'}),
  'gated': lambda: linen(Gated(), images(*SMALL), {'both', 'hidden'}),
  'norms': lambda: linen(Norms(), images(*SMALL), {'a', 'b', 'd'}),
  'vit': lambda: linen(
    ViT(), images(*SMALL), {'attn/query:1', 'attn/query:2', 'attn/value', 'up'}, dropout=True
  ),
  'attention': lambda: linen(
    FusedAttention(), images(*SMALL), {'embed', 'qkv:1.0', 'qkv:1.1', 'qkv:1.2'}
  ),
  'tokens': lambda: linen(Tokens(), jnp.asarray([[1, 5, 2, 9], [10, 0, 4, 4]]), {'embed', 'conv'}),
  'nnx': nnx_case,
  'equinox': equinox_case,
  'plain': plain_case,
  'channels_first': channels_first_case,
}
