"""VGG for 32x32 images (Simonyan and Zisserman 2015) with batch norm and a single linear head."""

import functools

import flax.linen as nn
import jax

__all__ = ['VGG']

# torch's kaiming_normal_(mode='fan_out'), as in torchvision.
_he = nn.initializers.variance_scaling(2.0, 'fan_out', 'truncated_normal')

_STAGES = {
  11: (1, 1, 2, 2, 2),
  13: (2, 2, 2, 2, 2),
  16: (2, 2, 3, 3, 3),
  19: (2, 2, 4, 4, 4),
}


class VGG(nn.Module):
  """Five stages of 3x3 convolutions of width, 2, 4, 8 and 8 width, halved in size in between.

  The convolutions have biases, as in torchvision; the mean over positions stands in front of one
  linear layer, as in all forms for CIFAR. Images are 16x16 or larger.

  Attributes:
    depth: 11, 13, 16 or 19 layers with weights, in the paper's count (three of them dense).
    num_classes: number of logits.
    width: channels of the first stage.
  """

  depth: int = 19
  num_classes: int = 10
  width: int = 64

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Logits (batch, num_classes) of images (batch, height, width, channels)."""
    if self.depth not in _STAGES:
      raise ValueError(f'depth is {self.depth}; expected one of {", ".join(map(str, _STAGES))}.')
    if min(x.shape[1:3]) < 16:
      raise ValueError(f'images are {x.shape[1]}x{x.shape[2]}; expected 16x16 or larger.')
    norm = functools.partial(nn.BatchNorm, use_running_average=not train, momentum=0.9)
    for stage, layers in enumerate(_STAGES[self.depth]):
      if stage:
        x = nn.max_pool(x, (2, 2), strides=(2, 2))
      features = self.width * min(2**stage, 8)
      for layer in range(layers):
        name = f'{stage + 1}_{layer + 1}'
        x = nn.Conv(features, (3, 3), padding=1, kernel_init=_he, name=f'conv{name}')(x)
        x = nn.relu(norm(name=f'bn{name}')(x))
    return nn.Dense(self.num_classes, name='classifier')(x.mean((1, 2)))
