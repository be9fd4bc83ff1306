"""Linen and NNX in the manner of flax's examples, layers under scan, the networks of dtp_jax."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from flax import nnx

from dtp_jax import models
from experiments.zoo_models.model import Model, images, tokens


def _linen(module: nn.Module, *inputs: Any, train: bool = True) -> Model:
  """A Linen module in evaluation; `train` says that it takes the flag."""
  flag: dict[str, Any] = {'train': False} if train else {}
  variables = jax.eval_shape(lambda *x: module.init(jax.random.key(0), *x, **flag), *inputs)
  return Model(lambda v, *x: module.apply(v, *x, **flag), variables, inputs)


class _CNN(nn.Module):
  """That of the MNIST example."""

  @nn.compact
  def __call__(self, x: Any) -> Any:
    x = nn.avg_pool(nn.relu(nn.Conv(32, (3, 3))(x)), (2, 2), strides=(2, 2))
    x = nn.avg_pool(nn.relu(nn.Conv(64, (3, 3))(x)), (2, 2), strides=(2, 2))
    return nn.Dense(10)(nn.relu(nn.Dense(256)(x.reshape(x.shape[0], -1))))


class _Recurrent(nn.Module):
  """A text classifier as in the SST-2 example: an LSTM in both directions over embeddings."""

  @nn.compact
  def __call__(self, ids: Any) -> Any:
    x = nn.Embed(96, 24)(ids)
    there, back = nn.RNN(nn.OptimizedLSTMCell(32)), nn.RNN(nn.GRUCell(32))
    x: Any = nn.Bidirectional(there, back)(x)
    return nn.Dense(5)(nn.tanh(nn.Dense(24)(x.max(1))))


class _Block(nn.Module):
  """A block of an encoder, as nn.scan takes it."""

  width: int = 32

  @nn.compact
  def __call__(self, x: Any, _: Any) -> Any:
    x = x + nn.MultiHeadDotProductAttention(num_heads=4)(nn.LayerNorm()(x))
    y = nn.gelu(nn.Dense(2 * self.width)(nn.LayerNorm()(x)))
    return x + nn.Dense(self.width)(y), None


class _ScannedViT(nn.Module):
  """A ViT whose blocks run under nn.scan and remat, as big_vision has it."""

  width: int = 32

  @nn.compact
  def __call__(self, x: Any) -> Any:
    x = nn.Conv(self.width, (8, 8), strides=8)(x)
    x = x.reshape(x.shape[0], -1, self.width)
    x = x + self.param('positions', nn.initializers.normal(0.02), (1, *x.shape[1:]))
    blocks = nn.scan(
      nn.remat(_Block, prevent_cse=False),
      variable_axes={'params': 0},
      split_rngs={'params': True},
      length=3,
    )
    x, _ = blocks(self.width)(x, None)
    return nn.Dense(10)(nn.LayerNorm()(x).mean(1))


class _VAE(nn.Module):
  """That of the VAE example, at its mean."""

  @nn.compact
  def __call__(self, x: Any) -> Any:
    code = nn.Dense(8)(nn.relu(nn.Dense(64)(x)))
    return nn.sigmoid(nn.Dense(x.shape[-1])(nn.relu(nn.Dense(64)(code))))


class _NnxDecoder(nnx.Module):
  """A decoder of NNX: embeddings, causal attention, an MLP, norms in front of both."""

  def __init__(self, rngs: nnx.Rngs):
    self.embed, self.places = nnx.Embed(96, 32, rngs=rngs), nnx.Embed(12, 32, rngs=rngs)
    self.norm1, self.norm2 = nnx.LayerNorm(32, rngs=rngs), nnx.RMSNorm(32, rngs=rngs)
    self.attention = nnx.MultiHeadAttention(4, 32, decode=False, rngs=rngs)
    self.up, self.down = nnx.Linear(32, 64, rngs=rngs), nnx.Linear(64, 32, rngs=rngs)
    self.norm3 = nnx.LayerNorm(32, rngs=rngs)

  def __call__(self, ids: Any) -> Any:
    x = self.embed(ids) + self.places(jax.numpy.arange(ids.shape[1]))
    x = x + self.attention(self.norm1(x), mask=nnx.make_causal_mask(ids))
    x = x + self.down(nnx.gelu(self.up(self.norm2(x))))
    return self.embed.attend(self.norm3(x))


class _NnxCNN(nnx.Module):
  """Convolutions with batch statistics."""

  def __init__(self, rngs: nnx.Rngs):
    self.conv1, self.conv2 = (
      nnx.Conv(3, 16, (3, 3), rngs=rngs),
      nnx.Conv(16, 32, (3, 3), strides=2, rngs=rngs),
    )
    self.norm = nnx.BatchNorm(16, use_running_average=True, rngs=rngs)
    self.head = nnx.Linear(32, 10, rngs=rngs)

  def __call__(self, x: Any) -> Any:
    x = nnx.relu(self.norm(self.conv1(x)))
    return self.head(nnx.relu(self.conv2(x)).mean((1, 2)))


def _nnx(make: Callable[[nnx.Rngs], nnx.Module], *inputs: Any) -> Model:
  """The state of an NNX module."""
  definition, state = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
  return Model(lambda state, *x: nnx.merge(definition, state)(*x), state, inputs)


_DECODER: dict[str, Any] = {'num_classes': 96, 'width': 32, 'depth': 3, 'heads': 4, 'kv_heads': 2}
_PIXELS = (2, 32, 32, 3)

MODELS: dict[str, Callable[[], Model]] = {
  'flax/cnn': lambda: _linen(_CNN(), images(2, 28, 28, 1), train=False),
  'flax/lstm_gru': lambda: _linen(_Recurrent(), tokens(2, 12), train=False),
  'flax/vae': lambda: _linen(_VAE(), images(2, 96), train=False),
  'flax/vit_scan': lambda: _linen(_ScannedViT(), images(*_PIXELS), train=False),
  'nnx/cnn': lambda: _nnx(_NnxCNN, images(*_PIXELS)),
  'nnx/decoder': lambda: _nnx(_NnxDecoder, tokens(2, 12)),
  'dtp_jax/decoder_scan': lambda: _linen(models.Decoder(**_DECODER, scan=True), tokens(2, 12)),
  'dtp_jax/vit': lambda: _linen(
    models.ViT(num_classes=10, width=32, depth=2, heads=4, patch=8), images(*_PIXELS)
  ),
  'dtp_jax/resnet': lambda: _linen(
    models.ResNet(depth=50, width=8, blocks=(1, 1, 1, 1), num_classes=10), images(*_PIXELS)
  ),
  'dtp_jax/mobilenet': lambda: _linen(
    models.MobileNetV2(width=0.25, num_classes=10, last=64), images(*_PIXELS)
  ),
  'dtp_jax/lenet': lambda: _linen(models.LeNet(num_classes=10), images(2, 28, 28, 1)),
}
