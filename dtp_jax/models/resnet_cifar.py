"""ResNets for 32x32 images (He et al. 2016, section 4.2): depth 6 n + 2 in three stages."""

import functools
from typing import Any

import flax.linen as nn
import jax

__all__ = ['CifarResNet']

# torch's kaiming_normal_(mode='fan_out'), as in the reference implementations.
_he = nn.initializers.variance_scaling(2.0, 'fan_out', 'truncated_normal')


class CifarResNet(nn.Module):
  """Basic blocks of width, 2 width and 4 width, with 1x1 projections where the shape changes.

  Attributes:
    depth: 6 n + 2, as in 20, 56 and 110.
    num_classes: number of logits.
    width: channels of the first stage.
    stem_strides: of the first convolution; 2 quarters the cost of everything behind it.
  """

  depth: int = 20
  num_classes: int = 10
  width: int = 16
  stem_strides: int = 1

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Logits (batch, num_classes) of images (batch, height, width, channels)."""
    if self.depth < 8 or (self.depth - 2) % 6:
      raise ValueError(f'depth is {self.depth}; expected 6 n + 2, as in 20, 56 or 110.')
    norm = functools.partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
    stem = nn.Conv(
      self.width, (3, 3), self.stem_strides, use_bias=False, kernel_init=_he, name='conv1'
    )
    x = stem(x)
    x = nn.relu(norm(name='bn1')(x))
    for stage in range(3):
      for block in range((self.depth - 2) // 6):
        strides = 2 if stage and not block else 1
        name = f'layer{stage + 1}_{block}'
        x = BasicBlock(self.width * 2**stage, strides, norm, name=name)(x)
    return nn.Dense(self.num_classes, name='fc')(x.mean((1, 2)))


class BasicBlock(nn.Module):
  """Two 3x3 convolutions and a shortcut.

  Attributes:
    features: output channels.
    strides: of the first convolution and the shortcut.
    norm: the normalisation layer.
  """

  features: int
  strides: int
  norm: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """(batch, height, width, channels) to (batch, height / strides, width / strides, features)."""
    conv = functools.partial(nn.Conv, self.features, use_bias=False, kernel_init=_he)
    y = conv((3, 3), strides=self.strides, padding=1, name='conv1')(x)
    y = nn.relu(self.norm(name='bn1')(y))
    y = self.norm(name='bn2')(conv((3, 3), name='conv2')(y))
    if x.shape != y.shape:
      x = conv((1, 1), strides=self.strides, name='shortcut')(x)
      x = self.norm(name='shortcut_bn')(x)
    return nn.relu(x + y)
