"""LeNet-5 (LeCun et al. 1998) in its rectified, max-pooled form."""

from collections.abc import Sequence

import flax.linen as nn
import jax

__all__ = ['LeNet']


class LeNet(nn.Module):
  """Two 5x5 convolutions and a stack of dense layers.

  Attributes:
    num_classes: number of logits.
    features: channels of the convolutions.
    hidden: units of the hidden dense layers. (6, 16) and (120, 84) is LeNet-5; (20, 50) and (500,)
      the wider one of the pruning literature.
  """

  num_classes: int = 10
  features: Sequence[int] = (6, 16)
  hidden: Sequence[int] = (120, 84)

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    """Logits (batch, num_classes) of images (batch, height, width, channels)."""
    del train
    for i, features in enumerate(self.features):
      # LeNet-5 reads 28x28 digits in a 32x32 frame: its first convolution keeps their size.
      padding = 'VALID' if i else 'SAME'
      x = nn.relu(nn.Conv(features, (5, 5), padding=padding, name=f'conv{i + 1}')(x))
      x = nn.max_pool(x, (2, 2), strides=(2, 2))
    x = x.reshape(x.shape[0], -1)
    for i, units in enumerate(self.hidden):
      x = nn.relu(nn.Dense(units, name=f'fc{i + 1}')(x))
    return nn.Dense(self.num_classes, name='head')(x)
