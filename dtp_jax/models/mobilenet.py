"""MobileNetV2 (Sandler et al. 2018) with torchvision's widths."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax

__all__ = ['MobileNetV2']

# torch's kaiming_normal_(mode='fan_out'), as in torchvision.
_he = nn.initializers.variance_scaling(2.0, 'fan_out', 'truncated_normal')


class MobileNetV2(nn.Module):
  """Inverted residuals: a 1x1 expansion, a depthwise 3x3, a linear 1x1 projection.

  Attributes:
    num_classes: number of logits.
    width: multiplies all channels, which are then rounded to multiples of 8.
    stages: (expansion, channels, blocks, strides of the first block), as in the paper's table 2.
    stem: channels of the first convolution, before `width`.
    last: channels of the last convolution, which a width below 1 does not narrow.
    stem_strides: of the first convolution; 1 suits small images.
    dropout: rate in front of the classifier; 0 needs no random key in training.
  """

  num_classes: int = 1000
  width: float = 1.0
  stages: Sequence[tuple[int, int, int, int]] = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
  )
  stem: int = 32
  last: int = 1280
  stem_strides: int = 2
  dropout: float = 0.2

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Logits (batch, num_classes) of images (batch, height, width, channels)."""
    norm = functools.partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
    conv = functools.partial(nn.Conv, use_bias=False, kernel_init=_he)
    stem = _divisible(self.stem * self.width)
    x = conv(stem, (3, 3), self.stem_strides, padding=1, name='stem')(x)
    x = nn.relu6(norm(name='stem_bn')(x))
    for stage, (expansion, channels, blocks, strides) in enumerate(self.stages):
      for i in range(blocks):
        block = InvertedResidual(
          features=_divisible(channels * self.width),
          expansion=expansion,
          strides=1 if i else strides,
          norm=norm,
          name=f'stage{stage + 1}_{i}',
        )
        x = block(x)
    x = conv(_divisible(self.last * max(1.0, self.width)), (1, 1), name='last')(x)
    x = nn.relu6(norm(name='last_bn')(x)).mean((1, 2))
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    return nn.Dense(self.num_classes, kernel_init=nn.initializers.normal(0.01), name='classifier')(
      x
    )


class InvertedResidual(nn.Module):
  """Wide inside, narrow outside; the input is added where the shape stays.

  Attributes:
    features: output channels.
    expansion: hidden channels per input channel; at 1 there is no expanding convolution.
    strides: of the depthwise convolution.
    norm: the normalisation layer.
  """

  features: int
  expansion: int
  strides: int
  norm: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """(batch, height, width, channels) to (batch, height / strides, width / strides, features)."""
    conv = functools.partial(nn.Conv, use_bias=False, kernel_init=_he)
    hidden = self.expansion * x.shape[-1]
    y = x
    if self.expansion != 1:
      y = nn.relu6(self.norm(name='expand_bn')(conv(hidden, (1, 1), name='expand')(y)))
    depthwise = conv(
      hidden, (3, 3), self.strides, padding=1, feature_group_count=hidden, name='depthwise'
    )
    y = nn.relu6(self.norm(name='depthwise_bn')(depthwise(y)))
    y = self.norm(name='project_bn')(conv(self.features, (1, 1), name='project')(y))
    return x + y if self.strides == 1 and x.shape[-1] == self.features else y


def _divisible(channels: float) -> int:
  """The nearest multiple of 8, at least 8, that takes away no more than a tenth."""
  rounded = max(8, int(channels + 4) // 8 * 8)
  return rounded if rounded >= 0.9 * channels else rounded + 8
