"""Small networks for the tests of the graph: one structure each, as plain as users write them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dtp_jax.models import ViT
from tests.graph import convnets, loops, sequences, transformers


class Case(NamedTuple):
  """A traced function and what is expected of it."""

  fn: Callable
  variables: Any
  inputs: tuple
  eval: dict
  train: dict | None
  groups: set[str]


def randomized(structs, seed=0):
  """Variables of the given shapes with nothing special in them: no zeros, no ones."""
  rng = np.random.default_rng(seed)

  def leaf(keys, struct):
    if not jnp.issubdtype(struct.dtype, jnp.floating):
      return struct
    fan_in = max(1, int(np.prod(struct.shape[:-1])))
    values = rng.normal(size=struct.shape) / np.sqrt(fan_in)
    if 'var' in jax.tree_util.keystr(keys):
      values = 0.5 + rng.random(struct.shape)
    elif len(struct.shape) < 2:
      values = 0.6 + 0.4 * rng.normal(size=struct.shape)
    return jnp.asarray(values, struct.dtype)

  return jax.tree_util.tree_map_with_path(leaf, structs)


def images(*shape, seed=1):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def linen(module, x, groups, train=True, dropout=False):
  """A Linen module called as module(x, train)."""
  variables = randomized(
    jax.eval_shape(lambda x: module.init({'params': jax.random.key(0)}, x, train=False), x)
  )
  kwargs: dict = {'train': True, 'mutable': ['batch_stats']}
  if dropout:
    kwargs['rngs'] = {'dropout': jax.random.key(3)}
  return Case(
    module.apply, variables, (x,), {'train': False}, kwargs if train else None, set(groups)
  )


def plain_mlp(params, x):
  """Plain JAX: a list of (w, b)."""
  for w, b in params[:-1]:
    x = jax.nn.relu(x @ w + b[None])
  w, b = params[-1]
  return x @ w + b[None]


def plain_channels_first(params, x):
  """Plain JAX in NCHW, a kernel in OIHW, a captured constant along the channels, 1-d windows."""
  dn = ('NCHW', 'OIHW', 'NCHW')
  x = jax.lax.conv_general_dilated(x, params['a'], (1, 1), 'SAME', dimension_numbers=dn)
  x = jnp.maximum(x * SCALE, 0)
  x = jax.lax.conv_general_dilated(
    x,
    params['b'],
    (2, 1),
    [(1, 0), (0, 2)],
    lhs_dilation=(1, 2),
    rhs_dilation=(2, 1),
    dimension_numbers=dn,
  )
  x = jnp.abs(x).sum((2, 3)) + params['shift'][None]
  return jnp.einsum('io,bi->bo', params['c'], jnp.tanh(x))


SCALE = np.linspace(0.5, 1.5, 6, dtype=np.float32).reshape(1, 6, 1, 1)


def nnx_case():
  class Net(nnx.Module):
    def __init__(self, rngs):
      self.conv = nnx.Conv(3, 6, (3, 3), rngs=rngs)
      self.norm = nnx.BatchNorm(6, rngs=rngs)
      self.hidden = nnx.Linear(6, 5, rngs=rngs)
      self.out = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x):
      x = nnx.relu(self.norm(self.conv(x)))
      return self.out(nnx.relu(self.hidden(x.mean((1, 2)))))

  graphdef, params, state = nnx.split(nnx.eval_shape(lambda: Net(nnx.Rngs(0))), nnx.Param, ...)

  def fn(variables, x, train):
    model = nnx.merge(graphdef, variables['params'], variables['state'])
    model.train() if train else model.eval()
    out = model(x)
    return out, {'state': nnx.state(model, nnx.BatchStat)} if train else {}

  variables = randomized({'params': params, 'state': state})
  return Case(
    fn, variables, (images(2, 4, 4, 3),), {'train': False}, {'train': True}, {'conv', 'hidden'}
  )


def equinox_case():
  def net(key):
    return eqx.nn.Sequential(
      [
        eqx.nn.Conv2d(3, 6, 3, key=key),
        eqx.nn.Lambda(jax.nn.relu),
        eqx.nn.MaxPool2d(2, 1),
        eqx.nn.Lambda(jnp.ravel),
        eqx.nn.Linear(6, 5, key=key),
        eqx.nn.Lambda(jax.nn.silu),
        eqx.nn.Linear(5, 3, key=key),
      ]
    )

  arrays, rest = eqx.partition(eqx.filter_eval_shape(net, jax.random.key(0)), is_struct)
  model = eqx.combine(randomized(arrays), rest)  # functions among its leaves: static
  return Case(
    lambda model, x: jax.vmap(model)(x),
    model,
    (images(2, 3, 4, 4),),
    {},
    None,
    {'layers/0', 'layers/4'},
  )


def is_struct(leaf):
  return isinstance(leaf, jax.ShapeDtypeStruct)


def plain_case():
  shapes = [((3, 8), (8,)), ((8, 7), (7,)), ((7, 3), (3,))]
  params = randomized(
    [tuple(jax.ShapeDtypeStruct(s, jnp.float32) for s in pair) for pair in shapes]
  )
  return Case(plain_mlp, params, (images(2, 3),), {}, None, {'0', '1'})


def channels_first_case():
  shapes = {'a': (6, 3, 3, 3), 'b': (5, 6, 2, 3), 'shift': (5,), 'c': (5, 3)}
  params = randomized({k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()})
  return Case(plain_channels_first, params, (images(2, 3, 5, 5),), {}, None, {'a', 'b'})


TOKENS = jnp.asarray([[1, 5, 2, 9], [10, 0, 4, 4]])


def equinox_transformer():
  arrays, rest = eqx.partition(
    eqx.filter_eval_shape(transformers.EquinoxBlock, jax.random.key(0)), is_struct
  )
  groups = {
    'embed',
    'attention/query_proj:0.0',
    'attention/query_proj:0.1',
    'attention/value_proj',
    'up',
  }
  return Case(
    lambda model, x: jax.vmap(model)(x),
    eqx.combine(randomized(arrays), rest),
    (TOKENS,),
    {},
    None,
    groups,
  )


def nnx_transformer():
  graphdef, params, rest = nnx.split(
    nnx.eval_shape(lambda: transformers.NnxBlock(nnx.Rngs(0))), nnx.Param, ...
  )
  return Case(
    lambda params, x: nnx.merge(graphdef, params, rest)(x),
    randomized(params),
    (TOKENS,),
    {},
    None,
    {'embed', 'up', 'attention/query:1', 'attention/query:2', 'attention/value'},
  )


def plain_transformer():
  shapes: dict = {'embed': (11, 6), 'up': (6, 7), 'down': (7, 6), 'in': (6, 6), 'head': (6, 3)}
  norm = {'scale': (6,), 'offset': (6,)}
  params = jax.tree.map(
    lambda s: jax.ShapeDtypeStruct(s, jnp.float32),
    {**shapes, 'norm1': norm, 'norm2': norm},
    is_leaf=lambda s: isinstance(s, tuple),
  )
  return Case(transformers.plain_block, randomized(params), (TOKENS,), {}, None, {'embed', 'up'})


def plain_stack():
  structs = jax.tree.map(
    lambda s: jax.ShapeDtypeStruct(s, jnp.float32),
    loops.PLAIN_STACK,
    is_leaf=lambda s: isinstance(s, tuple),
  )
  return Case(loops.plain_stack, randomized(structs), (images(2, 3),), {}, None, {'in', 'layers'})


def nnx_stack():
  graphdef, params, state = nnx.split(
    nnx.eval_shape(lambda: loops.NnxStack(nnx.Rngs(0))), nnx.Param, ...
  )

  def fn(variables, x, train):
    model = nnx.merge(graphdef, variables['params'], variables['state'])
    model.train() if train else model.eval()
    out = model(x)
    return out, {'state': nnx.state(model, nnx.BatchStat)} if train else {}

  return Case(
    fn,
    randomized({'params': params, 'state': state}),
    (images(9, 3),),
    {'train': False},
    {'train': True},
    {'embed', 'layers/up'},
  )


def each(*names):
  """The groups of two blocks."""
  return {name.format(i) for name in names for i in (1, 2)}


SMALL = (2, 4, 4, 3)
CASES: dict[str, Callable[[], Case]] = {
  'vgg': lambda: linen(convnets.Vgg(), images(*SMALL), {'a', 'b', 'c'}, dropout=True),
  'flatten_chw': lambda: linen(convnets.FlattenChannelsFirst(), images(*SMALL), {'a'}),
  'residual': lambda: linen(
    convnets.Residual(), images(*SMALL), {'stem', 'block0_conv1', 'block1_conv1', 'block1_conv2'}
  ),
  'residual_pad': lambda: linen(
    convnets.Residual(pad=True), images(*SMALL), {'stem', 'block0_conv1', 'block1_conv1'}
  ),
  'residual_pre': lambda: linen(
    convnets.Residual(pre=True),
    images(*SMALL),
    {'stem', 'block0_conv1', 'block1_conv1', 'block1_conv2'},
  ),
  'densenet': lambda: linen(
    convnets.Dense(), images(*SMALL), {'stem', 'grow0', 'grow1', 'transition'}
  ),
  'inception': lambda: linen(
    convnets.Inception(), images(*SMALL), {'one', 'reduce', 'three', 'pool', 'mix'}
  ),
  'unet': lambda: linen(convnets.UNet(), images(*SMALL), {'down', 'bottom', 'up', 'join'}),
  'mobile': lambda: linen(
    convnets.Mobile(), images(*SMALL), {'stem', 'expand', 'squeeze', 'multiplied'}
  ),
  'grouped': lambda: linen(
    convnets.Grouped(), images(*SMALL), {'reduce:3.0', 'reduce:3.1', 'grouped', 'mix'}
  ),
  'shared': lambda: linen(convnets.Shared(), images(*SMALL), {'stem'}),
  'gated': lambda: linen(sequences.Gated(), images(*SMALL), {'both', 'hidden'}),
  'norms': lambda: linen(sequences.Norms(), images(*SMALL), {'a', 'b:3.0', 'b:3.1', 'c', 'd'}),
  'vit': lambda: linen(
    sequences.ViT(),
    images(*SMALL),
    {'patches', 'attn/query:1', 'attn/query:2', 'attn/value', 'up'},
    dropout=True,
  ),
  'attention': lambda: linen(
    sequences.FusedAttention(), images(*SMALL), {'embed', 'qkv:1.0', 'qkv:1.1', 'qkv:1.2'}
  ),
  'tokens': lambda: linen(
    sequences.Tokens(), jnp.asarray([[1, 5, 2, 9], [10, 0, 4, 4]]), {'embed', 'conv'}
  ),
  'remat': lambda: linen(convnets.Remat(), images(*SMALL), {'a', 'b', 't'}),
  'convnext': lambda: linen(convnets.ConvNeXt(), images(*SMALL), {'stem', 'up'}),
  'llama': lambda: linen(
    sequences.Llama(), images(*SMALL), {'embed', 'q:1.0', 'q:1.1', 'q:2', 'v', 'gate'}
  ),
  'mixer': lambda: linen(sequences.Mixer(), images(*SMALL), {'stem', 'mix'}),
  'tied': lambda: linen(sequences.Tied(), jnp.asarray([[1, 5], [10, 0]]), {'embed', 'up'}),
  'experts': lambda: linen(sequences.Experts(), images(*SMALL), {'experts', 'gates'}),
  'vit_ti': lambda: linen(
    ViT(3, width=12, depth=2, heads=3, mlp=2, patch=2, dropout=0.2),
    images(*SMALL),
    {'patches', *each('block{}/up', 'block{}/attention/value')}
    | each('block{}/attention/query:1', 'block{}/attention/query:2'),
    dropout=True,
  ),
  'decoder': lambda: linen(
    transformers.Decoder(),
    TOKENS,
    {'embed', *each('block{}/qkv:2', 'block{}/qkv:3', 'block{}/up')},
    dropout=True,
  ),
  'encoder': lambda: linen(
    transformers.Encoder(),
    TOKENS,
    {'word', 'pooler', *each('attention{}/query:1', 'attention{}/query:2', 'attention{}/value')}
    | each('up{}'),
    dropout=True,
  ),
  'unet_norms': lambda: linen(
    transformers.UNet(), images(*SMALL), {'down', 'bottom', 'up:3.0', 'up:3.1'}
  ),
  'standardised': lambda: linen(
    transformers.Standardised(),
    images(*SMALL),
    {'stem:3.0', 'stem:3.1', *each('in{}:3.0', 'in{}:3.1')},
  ),
  'scanned': lambda: linen(
    loops.Scanned(),
    images(*SMALL),
    {'embed', 'blocks/attn/query:2', 'blocks/attn/query:3', 'blocks/attn/value', 'blocks/up'},
    dropout=True,
  ),
  'lstm': lambda: linen(loops.Recurrent(), images(*SMALL), {'cell/ii'}),
  'plain_stack': plain_stack,
  'nnx_stack': nnx_stack,
  'equinox_transformer': equinox_transformer,
  'nnx_transformer': nnx_transformer,
  'plain_transformer': plain_transformer,
  'nnx': nnx_case,
  'equinox': equinox_case,
  'plain': plain_case,
  'channels_first': channels_first_case,
}
