"""Haiku: its networks, and a recurrent core."""

# The libraries are an extra.
# pyright: reportMissingImports=false
from collections.abc import Callable
from typing import Any

import jax

from experiments.zoo_models.model import Model, images


def _of(net: Callable[..., Any], inputs: tuple[Any, ...], **training: bool) -> Model:
  """A function of Haiku modules: parameters and state are its variables.

  With is_training=True it takes this flag, and makes its statistics when it is set.
  """
  import haiku as hk

  pure, evaluation = hk.transform_with_state(net), dict.fromkeys(training, False)
  init = lambda *inputs: pure.init(jax.random.key(0), *inputs, **training)
  params, state = jax.eval_shape(init, *inputs)

  def fn(variables: Any, *inputs: Any) -> Any:
    return pure.apply(variables['params'], variables['state'], None, *inputs, **evaluation)[0]

  return Model(fn, {'params': params, 'state': state}, inputs)


def _resnet(v2: bool) -> Callable[[], Model]:
  def build() -> Model:
    import haiku as hk

    def net(x: Any, is_training: bool) -> Any:
      return hk.nets.ResNet(
        (1, 1, 1, 1), 10, resnet_v2=v2, bottleneck=v2, channels_per_group=(16, 24, 32, 48)
      )(x, is_training)

    return _of(net, (images(2, 32, 32, 3),), is_training=True)

  return build


def _mobilenet() -> Model:
  import haiku as hk

  def net(x: Any, is_training: bool) -> Any:
    strides, channels = (1, 2, 1, 2, 1), (16, 24, 32, 48, 64)
    return hk.nets.MobileNetV1(strides, channels, num_classes=10)(x, is_training)

  return _of(net, (images(2, 32, 32, 3),), is_training=True)


def _lstm() -> Model:
  import haiku as hk

  def net(x: Any) -> Any:
    core = hk.LSTM(32)
    rows, _ = hk.dynamic_unroll(core, x, core.initial_state(x.shape[0]), time_major=False)
    return hk.Linear(5)(rows[:, -1])

  return _of(net, (images(2, 12, 8),))


def _attention() -> Model:
  """A block of Haiku's attention and layer norm."""
  import haiku as hk

  def net(x: Any) -> Any:
    norm = lambda: hk.LayerNorm(-1, create_scale=True, create_offset=True)
    init = hk.initializers.VarianceScaling(1.0)
    x = hk.Linear(32)(x)
    y = norm()(x)
    x = x + hk.MultiHeadAttention(4, 8, w_init=init, model_size=32)(y, y, y)
    x = x + hk.nets.MLP([64, 32], activation=jax.nn.gelu)(norm()(x))
    return hk.Linear(5)(norm()(x).mean(1))

  return _of(net, (images(2, 12, 8),))


MODELS: dict[str, Callable[[], Model]] = {
  'haiku/resnet': _resnet(False),
  'haiku/resnet_v2': _resnet(True),
  'haiku/mobilenet': _mobilenet,
  'haiku/lstm': _lstm,
  'haiku/attention': _attention,
}
