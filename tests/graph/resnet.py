"""Residual networks whose counts are known (torchvision's v1.5 and CIFAR's)."""

import flax.linen as nn
import jax.numpy as jnp


class ResNet(nn.Module):
  """Basic or bottleneck blocks; the stride is in the 3x3 convolution, shortcuts are 1x1."""

  depths: tuple[int, ...]
  widths: tuple[int, ...]
  classes: int
  bottleneck: bool = False
  cifar: bool = False

  @nn.compact
  def __call__(self, x, train):
    def conv(x, features, kernel=3, stride=1, relu=True):
      pad = kernel // 2
      x = nn.Conv(features, (kernel, kernel), stride, [(pad, pad)] * 2, use_bias=False)(x)
      x = nn.BatchNorm(use_running_average=not train)(x)
      return nn.relu(x) if relu else x

    x = conv(x, self.widths[0], 3) if self.cifar else conv(x, self.widths[0], 7, 2)
    if not self.cifar:
      x = nn.max_pool(x, (3, 3), (2, 2), [(1, 1), (1, 1)])
    for i, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
      for j in range(depth):
        stride = 2 if i and not j else 1
        out = 4 * width if self.bottleneck else width
        y = conv(x, width, 1) if self.bottleneck else x
        y = conv(y, width, 3, stride)
        y = conv(y, out, 1 if self.bottleneck else 3, relu=False)
        if x.shape != y.shape:
          x = conv(x, out, 1, stride, relu=False)
        x = nn.relu(x + y)
    return nn.Dense(self.classes)(jnp.mean(x, (1, 2)))


def resnet20():
  return ResNet((3, 3, 3), (16, 32, 64), 10, cifar=True)


def resnet18():
  return ResNet((2, 2, 2, 2), (64, 128, 256, 512), 1000)
