"""Equinox: its own layers, and the vision models of equimo."""

# The libraries are an extra.
# pyright: reportMissingImports=false
from collections.abc import Callable
from typing import Any

import jax

from experiments.zoo_models.model import Model, images, tokens


def _of(make: Callable[[], Any], inputs: tuple[Any, ...], call: Any = None) -> Model:
  """A module over a batch, its arrays apart from the rest of it."""
  import equinox as eqx

  arrays, rest = eqx.partition(
    eqx.filter_eval_shape(make), lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct)
  )
  call = call or (lambda module, *example: module(*example))

  def fn(arrays: Any, *batch: Any) -> Any:
    module = eqx.nn.inference_mode(eqx.combine(arrays, rest))
    return jax.vmap(lambda *example: call(module, *example))(*batch)

  return Model(fn, arrays, inputs)


def _mlp() -> Model:
  import equinox as eqx

  return _of(lambda: eqx.nn.MLP(12, 5, 48, 3, key=jax.random.key(0)), (images(2, 12),))


def _convolutions() -> Model:
  """Depthwise and dense convolutions, group norms, pooling."""
  import equinox as eqx

  def make() -> Any:
    a, b, c, d = jax.random.split(jax.random.key(0), 4)
    return eqx.nn.Sequential(
      [
        eqx.nn.Conv2d(3, 16, 3, stride=2, padding=1, key=a),
        eqx.nn.GroupNorm(4, 16),
        eqx.nn.Lambda(jax.nn.silu),
        eqx.nn.Conv2d(16, 16, 3, padding=1, groups=16, key=b),
        eqx.nn.Conv2d(16, 32, 1, key=c),
        eqx.nn.GroupNorm(4, 32),
        eqx.nn.Lambda(jax.nn.silu),
        eqx.nn.MaxPool2d(2, 2),
        eqx.nn.Lambda(lambda x: x.mean((1, 2))),
        eqx.nn.Linear(32, 10, key=d),
      ]
    )

  return _of(make, (images(2, 3, 16, 16),))


def _attention() -> Model:
  """An encoder block over tokens: Equinox's attention, rotary positions, layer and RMS norms."""
  import equinox as eqx

  def make() -> Any:
    a, b, c, d, e = jax.random.split(jax.random.key(0), 5)
    return {
      'embed': eqx.nn.Embedding(96, 32, key=a),
      'norm1': eqx.nn.LayerNorm(32),
      'attention': eqx.nn.MultiheadAttention(4, 32, key=b),
      'rotary': eqx.nn.RotaryPositionalEmbedding(8),
      'norm2': eqx.nn.RMSNorm(32),
      'up': eqx.nn.Linear(32, 64, key=c),
      'down': eqx.nn.Linear(64, 32, key=d),
      'norm3': eqx.nn.LayerNorm(32),
      'head': eqx.nn.Linear(32, 10, key=e),
    }

  def call(m: Any, ids: Any) -> Any:
    turn = jax.vmap(m['rotary'], in_axes=1, out_axes=1)
    x = jax.vmap(m['embed'])(ids)
    y = jax.vmap(m['norm1'])(x)
    x = x + m['attention'](y, y, y, process_heads=lambda q, k, v: (turn(q), turn(k), v))
    y = jax.vmap(m['up'])(jax.vmap(m['norm2'])(x))
    x = x + jax.vmap(m['down'])(jax.nn.gelu(y))
    return m['head'](m['norm3'](x.mean(0)))

  return _of(make, (tokens(2, 12),), call)


def _gru() -> Model:
  """A recurrent cell under scan, and the state it ends with."""
  import equinox as eqx

  def make() -> Any:
    a, b = jax.random.split(jax.random.key(0))
    return {'cell': eqx.nn.GRUCell(8, 32, key=a), 'head': eqx.nn.Linear(32, 5, key=b)}

  def call(m: Any, x: Any) -> Any:
    start = jax.numpy.zeros(32)
    state, _ = jax.lax.scan(lambda h, row: (m['cell'](row, h), None), start, x)
    return m['head'](state)

  return _of(make, (images(2, 12, 8),), call)


_EQUIMO: dict[str, tuple[str, dict[str, Any]]] = {
  'vit': (
    'VisionTransformer',
    {'img_size': 32, 'in_channels': 3, 'dim': 32, 'patch_size': 8, 'num_heads': 4, 'depths': [2]},
  ),
  'convnext': ('ConvNeXt', {'depths': [1, 1, 2, 1], 'dims': [16, 24, 32, 48]}),
  'mobilenetv3': (
    'MobileNetv3',
    {
      'in_channels': 3,
      'layers_config': [
        (16, 16, 3, 2, True, 'relu'),
        (24, 72, 3, 2, False, 'relu'),
        (24, 96, 5, 1, True, 'hard_swish'),
      ],
    },
  ),
  'lowformer': (
    'LowFormer',
    {
      'in_channels': 3,
      'widths': [8, 16, 32],
      'depths': [1, 1, 1],
      'att_strides': [2, 2, 2],
      'block_types': ['conv', 'conv', 'attention'],
      'attention_type': 'softmax',
      'fuse_mbconv': True,
    },
  ),
  'reduceformer': (
    'ReduceFormer',
    {
      'in_channels': 3,
      'widths': [8, 16, 32],
      'depths': [1, 1, 1],
      'block_types': ['conv', 'conv', 'attention'],
      'head_dim': 8,
    },
  ),
  'iformer': (
    'IFormer',
    {
      'in_channels': 3,
      'modules': ['iformerblock', 'shmablock'],
      'module_kwargs': [
        {'kernel_size': 7, 'expand_ratio': 3.0},
        {'num_heads': 1, 'head_dim_reduce_ratio': 2, 'attn_ratio': 1.0, 'ffn_ratio': 2.0},
      ],
      'downsamplers': ['iformerstem', 'convnormdownsampler'],
      'downsampler_kwargs': [{}, {}],
      'dims': [16, 32],
      'depths': [1, 2],
      'norm_layer': 'layernorm',
    },
  ),
  'vssd': (
    'Vssd',
    {
      'img_size': 32,
      'in_channels': 3,
      'dim': 16,
      'd_state': 8,
      'depths': [1, 1, 1, 1],
      'num_heads': [2, 2, 4, 4],
    },
  ),
  'mlla': (
    'Mlla',
    {'img_size': 32, 'in_channels': 3, 'dim': 16, 'depths': [1, 1], 'num_heads': [2, 4]},
  ),
}


def _equimo(name: str) -> Callable[[], Model]:
  def build() -> Model:
    import equimo.models

    kind, options = _EQUIMO[name]
    kind = getattr(equimo.models, kind)
    make = lambda: kind(**options, num_classes=10, key=jax.random.key(0))
    call = lambda module, x: module(x, key=jax.random.key(0))
    size = 64 if name in ('convnext', 'lowformer', 'reduceformer') else 32
    return _of(make, (images(2, 3, size, size),), call)

  return build


MODELS: dict[str, Callable[[], Model]] = {
  'equinox/mlp': _mlp,
  'equinox/convolutions': _convolutions,
  'equinox/attention': _attention,
  'equinox/gru': _gru,
  **{f'equimo/{name}': _equimo(name) for name in _EQUIMO},
}
