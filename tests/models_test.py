"""The models have the published sizes, and their slim networks are their masked networks."""

import jax
import jax.numpy as jnp
import pytest

from dtp_jax.graph import trace
from dtp_jax.models import VGG, CifarResNet, LeNet, MobileNetV2, ResNet
from dtp_jax.models.mobilenet import _divisible
from dtp_jax.train import recipe
from tests.graph.agreement import (
  all_but_one,
  assert_agreement,
  compiled,
  masked,
  one_left,
  random_masks,
)
from tests.graph.models import images, linen


def traced(module, size):
  """The graph of a module at size x size images, from shapes alone."""
  x = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), x)
  return trace(module.apply, variables, x, train=False)


def total(layers, *head):
  """(parameters, MACs) of (in, out, kernel, side, biased) convolutions with norms and a head."""
  inputs, classes = head
  params = sum(k * k * a * b + (3 if biased else 2) * b for a, b, k, _, biased in layers)
  macs = sum(k * k * a * b * side * side for a, b, k, side, _ in layers)
  return params + (inputs + 1) * classes, macs + inputs * classes


def vgg19(classes):
  """32x32: two layers at full size, two at half, four each at a quarter, an eighth and less."""
  widths = [64] * 2 + [128] * 2 + [256] * 4 + [512] * 8
  sides = [32] * 2 + [16] * 2 + [8] * 4 + [4] * 4 + [2] * 4
  pairs = zip([3, *widths], widths, sides, strict=False)
  return total([(a, b, 3, side, True) for a, b, side in pairs], 512, classes)


def cifar(depth):
  """A stem, 2 n convolutions a stage, of which the first may see half the channels, shortcuts."""
  n = (depth - 2) // 6
  layers = [(3, 16, 3, 32, False)]
  for width, side in ((16, 32), (32, 16), (64, 8)):
    first = width if width == 16 else width // 2
    layers += [(first, width, 3, side, False)] + [(width, width, 3, side, False)] * (2 * n - 1)
    layers += [(first, width, 1, side, False)] * (width > 16)
  return total(layers, 64, 10)


def basic(blocks):
  """The same at 224x224 with four stages behind a 7x7 convolution and a pooling."""
  layers = [(3, 64, 7, 112, False)]
  for i, n in enumerate(blocks):
    width, side = 64 << i, 56 >> i
    first = width // 2 if i else width
    layers += [(first, width, 3, side, False)] + [(width, width, 3, side, False)] * (2 * n - 1)
    layers += [(first, width, 1, side, False)] * (i > 0)
  return total(layers, 512, 1000)


def bottlenecks(blocks):
  """1x1, 3x3, 1x1; the first 1x1 of a stage stands in front of its stride."""
  layers, inputs = [(3, 64, 7, 112, False)], 64
  for i, n in enumerate(blocks):
    width, side = 64 << i, 56 >> i
    layers += [(inputs, 4 * width, 1, side, False)]
    for j in range(n):
      before = side if j or not i else 2 * side
      layers += [(inputs, width, 1, before, False), (width, width, 3, side, False)]
      layers += [(width, 4 * width, 1, side, False)]
      inputs = 4 * width
  return total(layers, 2048, 1000)


def mobile():
  """(inputs, hidden, outputs, side in front of the depthwise convolution, side behind it)."""
  layers = [(3, 32, 3, 112, False), (1, 32, 3, 112, False), (32, 16, 1, 112, False)]
  for inputs, outputs, n, before, side in (
    (16, 24, 2, 112, 56),
    (24, 32, 3, 56, 28),
    (32, 64, 4, 28, 14),
    (64, 96, 3, 14, 14),
    (96, 160, 3, 14, 7),
    (160, 320, 1, 7, 7),
  ):
    for i in range(n):
      a, size = (outputs, side) if i else (inputs, before)
      layers += [(a, 6 * a, 1, size, False), (1, 6 * a, 3, side, False)]
      layers += [(6 * a, outputs, 1, side, False)]
  return total([*layers, (320, 1280, 1, 7, False)], 1280, 1000)


# name: module, side of its images, parameters, MACs, the same by arithmetic.
COUNTS = {
  'resnet18': (ResNet(18), 224, 11_689_512, 1_814_073_344, basic((2, 2, 2, 2))),
  'resnet34': (ResNet(34), 224, 21_797_672, 3_663_761_408, basic((3, 4, 6, 3))),
  'resnet50': (ResNet(50), 224, 25_557_032, 4_089_184_256, bottlenecks((3, 4, 6, 3))),
  'mobilenet_v2': (MobileNetV2(), 224, 3_504_872, 300_774_272, mobile()),
  'resnet20': (CifarResNet(20), 32, 272_474, 40_813_184, cifar(20)),
  'resnet56': (CifarResNet(56), 32, 855_770, 125_747_840, cifar(56)),
  'vgg19': (VGG(19, 100), 32, 20_086_692, 398_182_400, vgg19(100)),
}


@pytest.mark.parametrize('name', COUNTS)
def test_parameters_and_macs_are_the_published_ones(name):
  module, size, params, macs, by_hand = COUNTS[name]
  graph = traced(module, size)
  assert (graph.params.total, graph.macs.total) == (params, macs) == by_hand


def test_resnet18_with_half_of_its_channels():
  graph = traced(ResNet(18), 224)
  halved = {name: size // 2 for name, size in graph.sizes.items()}
  assert graph.params.at(halved) == 3_055_880


def test_mobilenet_widths():
  widths = [_divisible(c * 0.35) for c in (16, 24, 32, 64, 96, 160, 320)]
  assert widths == [8, 8, 16, 24, 32, 56, 112]  # torchvision's _make_divisible
  assert traced(MobileNetV2(width=0.5), 224).params.total == 1_968_680


TINY = {
  'lenet': (LeNet(3, features=(2, 4), hidden=(6, 5)), 16),
  'vgg': (VGG(11, 3, width=4), 16),
  'resnet_basic': (ResNet(18, 3, width=4, blocks=(2, 1)), 16),
  'resnet_bottleneck': (ResNet(50, 3, width=4, blocks=(1, 1)), 16),
  'resnet_cifar': (CifarResNet(8, 3, width=4), 8),
  'mobilenet_v2': (
    MobileNetV2(3, stages=((1, 8, 1, 1), (2, 8, 2, 1), (3, 16, 1, 2)), stem=8, last=16),
    8,
  ),
}


@pytest.fixture(scope='module')
def tiny():
  """Tiny networks with random variables, and their graphs, made once each."""
  made = {}

  def get(name):
    if name not in made:
      module, size = TINY[name]
      case = linen(module, images(2, size, size, 3), set())
      made[name] = case, trace(case.fn, case.variables, *case.inputs, **case.eval)
    return made[name]

  return get


@pytest.mark.parametrize('name', TINY)
def test_slim_is_masked(tiny, name):
  case, graph = tiny(name)
  assert len(graph.groups) > 1
  assert len(graph.frozen) == 2  # the colours and the logits
  reference = compiled(masked(graph), case.eval, grads=False)
  for masks in (random_masks(graph, 2), one_left(graph), all_but_one(graph)):
    assert_agreement(graph, case.variables, case.inputs, case.eval, masks, False, reference)


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=pytest.mark.slow) if name in ('vgg', 'resnet_basic') else name
    for name in TINY
  ],
)
def test_slim_is_masked_in_training_with_gradients_and_new_state(tiny, x64, name):
  """In float64: behind many normalisations of a small batch, float32 gradients are rounding."""
  case, graph = tiny(name)
  training = {'train': True, 'mutable': ['batch_stats'], 'rngs': {'dropout': jax.random.key(0)}}
  variables = jax.tree.map(lambda a: a.astype(jnp.float64), case.variables)
  inputs = (images(4, *case.inputs[0].shape[1:]).astype(jnp.float64),)
  masks = random_masks(graph, 1)
  assert_agreement(graph, variables, inputs, training, masks, scale=1e-8)


@pytest.mark.parametrize('name', TINY)
def test_training_has_the_same_groups(name):
  module, size = TINY[name]
  x = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
  variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x), x)
  rngs = {'dropout': jax.random.key(0)}
  graph = trace(module.apply, variables, x, train=True, mutable=['batch_stats'], rngs=rngs)
  assert graph.sizes == trace(module.apply, variables, x).sizes


def test_the_config_names_them():
  assert recipe.MODELS['vgg'] is VGG
  assert recipe.MODELS['resnet'] is ResNet
  assert recipe.MODELS['mobilenet_v2'] is MobileNetV2


@pytest.mark.parametrize(
  ('module', 'size', 'message'),
  [
    (VGG(12), 32, 'depth is 12; expected one of 11, 13, 16, 19'),
    (VGG(16), 8, 'images are 8x8; expected 16x16'),
    (ResNet(20), 32, 'depth is 20; expected one of 18, 34, 50'),
  ],
)
def test_errors_name_what_is_wrong(module, size, message):
  with pytest.raises(ValueError, match=message):
    traced(module, size)
