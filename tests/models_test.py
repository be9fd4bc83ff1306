"""The models have the published sizes, and their slim networks are their masked networks."""

import jax
import jax.numpy as jnp
import pytest

from dtp_jax.graph import trace
from dtp_jax.models import VGG, CifarResNet, LeNet, MobileNetV2, ResNet, ViT
from dtp_jax.models.mobilenet import _divisible
from dtp_jax.train import recipe
from tests.graph.agreement import (
  QUICK,
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


def vgg(layers, classes):
  """32x32, halved between five stages of so many layers; the last two are as wide."""
  widths = [w for w, n in zip((64, 128, 256, 512, 512), layers, strict=True) for _ in range(n)]
  sides = [s for s, n in zip((32, 16, 8, 4, 2), layers, strict=True) for _ in range(n)]
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


def transformer(width):
  """224x224 in patches of 16 and a class token; 12 blocks, whose MLP is four times as wide."""
  tokens, square = 14 * 14 + 1, width * width
  embed = (16 * 16 * 3 + 1) * width + width + tokens * width
  block = 4 * (square + width) + (4 * square + 4 * width) + (4 * square + width) + 4 * width
  params = embed + 12 * block + 2 * width + (width + 1) * 1000
  # Every token meets 4 and 8 square kernels, and every other token twice: scores and mean.
  block_macs = tokens * 12 * square + 2 * tokens * tokens * width
  return params, 14 * 14 * 16 * 16 * 3 * width + 12 * block_macs + width * 1000


# name: module, side of its images, parameters, MACs, the same by arithmetic.
COUNTS = {
  'resnet18': (ResNet(18), 224, 11_689_512, 1_814_073_344, basic((2, 2, 2, 2))),
  'resnet34': (ResNet(34), 224, 21_797_672, 3_663_761_408, basic((3, 4, 6, 3))),
  'resnet50': (ResNet(50), 224, 25_557_032, 4_089_184_256, bottlenecks((3, 4, 6, 3))),
  'mobilenet_v2': (MobileNetV2(), 224, 3_504_872, 300_774_272, mobile()),
  'resnet20': (CifarResNet(20), 32, 272_474, 40_813_184, cifar(20)),
  'resnet56': (CifarResNet(56), 32, 855_770, 125_747_840, cifar(56)),
  'resnet110': (CifarResNet(110), 32, 1_730_714, 253_149_824, cifar(110)),
  'vgg16': (VGG(16), 32, 14_728_266, 313_201_664, vgg((2, 2, 3, 3, 3), 10)),
  'vgg19': (VGG(19, 100), 32, 20_086_692, 398_182_400, vgg((2, 2, 4, 4, 4), 100)),
  'vit_tiny': (ViT.tiny(), 224, 5_717_416, 1_253_683_200, transformer(192)),
  'vit_small': (ViT.small(), 224, 22_050_664, 4_598_882_304, transformer(384)),
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
  'vit': (ViT(3, width=12, depth=1, heads=3, mlp=2, patch=4, dropout=0.1), 8),
  'vit_mean': (ViT(3, width=6, depth=1, heads=2, mlp=1, patch=4, pool='mean'), 8),
}

# The colours and the logits; for a ViT the residual stream, normalised over its channels, and the
# rows and columns of patches too.
FROZEN = dict.fromkeys(TINY, 2) | {'vit': 4, 'vit_mean': 4}

SLOW = ('vgg', 'resnet_basic', 'vit_mean')


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
  assert len(graph.frozen) == FROZEN[name]
  reference = compiled(masked(graph), case.eval, grads=False)
  for masks in (random_masks(graph, 2), one_left(graph), all_but_one(graph)):
    assert_agreement(graph, case.variables, case.inputs, case.eval, masks, False, reference)


@pytest.mark.once
@pytest.mark.parametrize(
  'name',
  [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in TINY],
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


def test_vit_prunes_heads_their_channels_and_the_mlp():
  graph = traced(ViT.tiny(), 224)
  parts = {'attention/query:1': 3, 'attention/query:2': 64, 'attention/value': 64, 'up': 768}
  expected = {f'block{i}/{part}': n for i in range(1, 13) for part, n in parts.items()}
  assert graph.sizes == {'patches': 192, **expected}  # and the residual stream


def test_vit_sees_where_a_patch_is_by_its_position_alone(tiny):
  case, _ = tiny('vit')
  (x,) = case.inputs
  moved = jnp.roll(x, 4, axis=1)  # by one patch
  apply = jax.jit(case.fn, compiler_options=QUICK)
  assert not jnp.allclose(apply(case.variables, x), apply(case.variables, moved), atol=1e-3)
  params = case.variables['params']
  blind = {'params': {**params, 'positions': jnp.zeros_like(params['positions'])}}
  assert jnp.allclose(apply(blind, x), apply(blind, moved), atol=1e-5)


def test_the_config_names_them():
  assert recipe.MODELS['vgg'] is VGG
  assert recipe.MODELS['resnet'] is ResNet
  assert recipe.MODELS['mobilenet_v2'] is MobileNetV2
  assert recipe.MODELS['vit'] is ViT


@pytest.mark.parametrize(
  ('module', 'size', 'message'),
  [
    (VGG(12), 32, 'depth is 12; expected one of 11, 13, 16, 19'),
    (VGG(16), 8, 'images are 8x8; expected 16x16'),
    (ResNet(20), 32, 'depth is 20; expected one of 18, 34, 50'),
    (ViT(), 40, 'images are 40x40; expected multiples of patch, 16'),
    (ViT(width=10, heads=4), 32, 'width is 10; expected a multiple of heads, 4'),
    (ViT(pool='max'), 32, "pool is 'max'; expected 'token' or 'mean'"),
  ],
)
def test_errors_name_what_is_wrong(module, size, message):
  with pytest.raises(ValueError, match=message):
    traced(module, size)
