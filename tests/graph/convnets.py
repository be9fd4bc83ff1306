"""Convolutional test models: one structure each, as plain as users write them."""

import flax.linen as nn
import jax
import jax.numpy as jnp


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


class Remat(nn.Module):
  """Layers under remat, circular padding, bilinear resizing, a flipped transposed kernel."""

  @nn.compact
  def __call__(self, x, train):
    conv = nn.remat(nn.Conv)
    x = nn.relu(conv(6, (3, 3), name='a', padding='CIRCULAR')(x))
    x = conv(4, (3, 3), name='b')(x)
    x = nn.relu(nn.BatchNorm(use_running_average=not train, name='norm')(x))
    x = jax.image.resize(x, (x.shape[0], 5, 5, 4), 'bilinear')
    x = nn.ConvTranspose(5, (3, 3), strides=(2, 2), name='t', transpose_kernel=True)(x)
    x = nn.PReLU(name='slope')(x)
    x = x / (0.1 + jnp.sqrt(jnp.square(x).sum((1, 2), keepdims=True)))
    return nn.Dense(3, name='head')(x.max((1, 2)))


class ConvNeXt(nn.Module):
  """Depthwise kernels and layer norms on the stream: only the hidden units can go."""

  @nn.compact
  def __call__(self, x, train):
    x = nn.LayerNorm(name='norm')(nn.Conv(8, (2, 2), strides=2, name='stem')(x))
    y = nn.LayerNorm(name='inner')(nn.Conv(8, (3, 3), feature_group_count=8, name='dw')(x))
    y = nn.Dense(8, name='down')(nn.gelu(nn.Dense(12, name='up')(y)))
    x = x + y * self.param('gain', nn.initializers.ones, (8,))[None, None, None]
    return nn.Dense(3, name='head')(x.mean((1, 2)))
