"""ResNets for ImageNet (He et al. 2016) as in torchvision: v1.5, the stride in the 3x3."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax

__all__ = ['ResNet']

# torch's kaiming_normal_(mode='fan_out'), as in torchvision.
_he = nn.initializers.variance_scaling(2.0, 'fan_out', 'truncated_normal')

_BLOCKS = {
  18: (2, 2, 2, 2),
  34: (3, 4, 6, 3),
  50: (3, 4, 6, 3),
  101: (3, 4, 23, 3),
  152: (3, 8, 36, 3),
}


class ResNet(nn.Module):
  """A 7x7 stem and stages of blocks, each stage of half the size and twice the channels.

  Attributes:
    depth: 18 or 34 for basic blocks; 50, 101 or 152 for bottlenecks.
    num_classes: number of logits.
    width: channels of the stem, and of the 3x3 convolutions of the first stage.
    blocks: of each stage, where it is not to be the depth's; (1, 1) is a small network.
  """

  depth: int = 50
  num_classes: int = 1000
  width: int = 64
  blocks: Sequence[int] | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Logits (batch, num_classes) of images (batch, height, width, channels)."""
    if self.depth not in _BLOCKS:
      raise ValueError(f'depth is {self.depth}; expected one of {", ".join(map(str, _BLOCKS))}.')
    norm = functools.partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
    stem = nn.Conv(self.width, (7, 7), 2, padding=3, use_bias=False, kernel_init=_he, name='conv1')
    x = nn.relu(norm(name='bn1')(stem(x)))
    padding: Any = ((1, 1), (1, 1))  # max_pool takes pairs, though its default reads as a str
    x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=padding)
    blocks = _BLOCKS[self.depth] if self.blocks is None else self.blocks
    for stage, count in enumerate(blocks):
      for i in range(count):
        block = Block(
          features=self.width * 2**stage,
          strides=2 if stage and not i else 1,
          bottleneck=self.depth >= 50,
          norm=norm,
          name=f'layer{stage + 1}_{i}',
        )
        x = block(x)
    return nn.Dense(self.num_classes, name='fc')(x.mean((1, 2)))


class Block(nn.Module):
  """Two 3x3 convolutions, or a bottleneck: 1x1, 3x3 and a 1x1 to four times the channels.

  Attributes:
    features: channels of the 3x3 convolutions.
    strides: of the first 3x3 convolution and the shortcut.
    bottleneck: whether it is a bottleneck.
    norm: the normalisation layer.
  """

  features: int
  strides: int
  bottleneck: bool
  norm: Any

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """(batch, height, width, channels) to (batch, height / strides, width / strides, out)."""
    if self.bottleneck:
      out = 4 * self.features
      layers = [(self.features, 1, 1), (self.features, 3, self.strides), (out, 1, 1)]
    else:
      out = self.features
      layers = [(out, 3, self.strides), (out, 3, 1)]
    conv = functools.partial(nn.Conv, use_bias=False, kernel_init=_he)
    y = x
    for i, (features, kernel, strides) in enumerate(layers):
      if i:
        y = nn.relu(y)
      y = conv(features, (kernel, kernel), strides, padding=kernel // 2, name=f'conv{i + 1}')(y)
      y = self.norm(name=f'bn{i + 1}')(y)
    if self.strides > 1 or x.shape[-1] != out:
      x = conv(out, (1, 1), self.strides, padding=0, name='downsample_0')(x)
      x = self.norm(name='downsample_1')(x)
    return nn.relu(x + y)
