"""Widths by path: modules built anew with them are the slim network, in three libraries."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dtp_jax.graph import layer_widths, shrink, trace
from tests.graph.agreement import assert_close
from tests.graph.models import TOKENS, is_struct, randomized

WIDTHS = {
  'embed': 8,
  'norm1': 8,
  'query': (2, 4),
  'key': (2, 4),
  'value': (2, 4),
  'out': 8,
  'norm2': 8,
  'up': 10,
  'down': 8,
  'head': 3,
}
HARD = {
  'embed': np.array([1, 0, 1, 1, 0, 1, 0, 1]),
  'query:1': np.array([0, 1]),
  'query:2': np.array([1, 1, 0, 1]),
  'value': np.array([0, 1, 0, 1]),
  'up': np.arange(10) < 7,
}
SLIM = {
  'embed': 5,
  'norm1': 5,
  'query': (1, 3),
  'key': (1, 3),
  'value': (1, 2),
  'out': 5,
  'norm2': 5,
  'up': 7,
  'down': 5,
  'head': 3,
}


def attend(query, key, value):
  scores = jnp.einsum('bthd,bshd->bhts', query, key) / 2
  return jnp.einsum('bhts,bshd->bthd', jax.nn.softmax(scores), value)


class LinenBlock(nn.Module):
  """A block every layer of which has a width of its own."""

  widths: dict

  @nn.compact
  def __call__(self, tokens):
    w = self.widths
    heads = lambda name: nn.DenseGeneral(w[name], name=name)
    x = nn.Embed(11, w['embed'], name='embed')(tokens)
    y = nn.LayerNorm(name='norm1')(x)
    y = attend(*(heads(name)(y) for name in ('query', 'key', 'value')))
    x = x + nn.DenseGeneral(w['out'], axis=(-2, -1), name='out')(y)
    y = nn.gelu(nn.Dense(w['up'], name='up')(nn.RMSNorm(name='norm2')(x)))
    x = x + nn.Dense(w['down'], name='down')(y)
    return nn.Dense(w['head'], name='head')(x.mean(1))


class NnxBlock(nnx.Module):
  """The same of NNX."""

  def __init__(self, w, rngs):
    self.embed = nnx.Embed(11, w['embed'], rngs=rngs)
    self.norm1, self.norm2 = nnx.LayerNorm(w['norm1'], rngs=rngs), nnx.RMSNorm(
      w['norm2'], rngs=rngs
    )  # fmt: skip
    self.query, self.key, self.value = (
      nnx.LinearGeneral(w['embed'], w[name], rngs=rngs) for name in ('query', 'key', 'value')
    )
    self.out = nnx.LinearGeneral(w['value'], w['out'], axis=(-2, -1), rngs=rngs)
    self.up = nnx.Linear(w['embed'], w['up'], rngs=rngs)
    self.down = nnx.Linear(w['up'], w['down'], rngs=rngs)
    self.head = nnx.Linear(w['down'], w['head'], rngs=rngs)

  def __call__(self, tokens):
    x = self.embed(tokens)
    y = self.norm1(x)
    x = x + self.out(attend(self.query(y), self.key(y), self.value(y)))
    x = x + self.down(nnx.gelu(self.up(self.norm2(x))))
    return self.head(x.mean(1))


class EquinoxBlock(eqx.Module):
  """Its like of Equinox, where heads and their channels lie on one axis."""

  embed: eqx.nn.Embedding
  norm1: eqx.nn.LayerNorm
  attention: eqx.nn.MultiheadAttention
  norm2: eqx.nn.RMSNorm
  up: eqx.nn.Linear
  down: eqx.nn.Linear
  head: eqx.nn.Linear

  def __init__(self, w, heads, key):
    self.embed = eqx.nn.Embedding(11, w['embed'], key=key)
    self.norm1, self.norm2 = eqx.nn.LayerNorm(w['norm1']), eqx.nn.RMSNorm(w['norm2'])
    self.attention = eqx.nn.MultiheadAttention(
      heads,
      w['embed'],
      output_size=w['attention/output_proj'],
      qk_size=w['attention/query_proj'] // heads,
      vo_size=w['attention/value_proj'] // heads,
      key=key,
    )
    self.up = eqx.nn.Linear(w['embed'], w['up'], key=key)
    self.down = eqx.nn.Linear(w['up'], w['down'], key=key)
    self.head = eqx.nn.Linear(w['down'], w['head'], key=key)

  def __call__(self, tokens):
    x = jax.vmap(self.embed)(tokens)
    y = jax.vmap(self.norm1)(x)
    x = x + self.attention(y, y, y)
    x = x + jax.vmap(self.down)(jax.nn.gelu(jax.vmap(self.up)(jax.vmap(self.norm2)(x))))
    return self.head(x.mean(0))


def test_linen():
  variables = randomized(jax.eval_shape(LinenBlock(WIDTHS).init, jax.random.key(0), TOKENS))
  graph = trace(LinenBlock(WIDTHS).apply, variables, TOKENS)
  assert layer_widths(graph, {}) == WIDTHS
  slim = shrink(graph, variables, HARD, norms='refit')
  assert layer_widths(graph, slim.kept) == SLIM
  small = LinenBlock(layer_widths(graph, slim.kept))
  built = jax.eval_shape(small.init, jax.random.key(0), TOKENS)
  assert jax.tree.map(jnp.shape, built) == jax.tree.map(jnp.shape, slim.variables)
  results = (jax.jit(fn)(slim.variables, TOKENS) for fn in (small.apply, slim.apply))
  assert_close(*results, 1e-5)


def test_nnx():
  definition, state = nnx.split(nnx.eval_shape(lambda: NnxBlock(WIDTHS, nnx.Rngs(0))))
  state = randomized(state)
  graph = trace(lambda state, x: nnx.merge(definition, state)(x), state, TOKENS)
  slim = shrink(graph, state, HARD, norms='refit')
  assert layer_widths(graph, slim.kept) == SLIM
  small = nnx.eval_shape(lambda: NnxBlock(layer_widths(graph, slim.kept), nnx.Rngs(0)))
  model = nnx.merge(nnx.split(small)[0], slim.variables)
  assert (model.up.out_features, model.down.in_features) == (7, 7)
  assert_close(model(TOKENS), slim.apply(slim.variables, TOKENS), 1e-5)


def test_equinox():
  widths = {k: w for k, w in WIDTHS.items() if k not in ('query', 'key', 'value', 'out')}
  widths |= {f'attention/{name}_proj': 8 for name in ('query', 'key', 'value', 'output')}
  build = lambda widths, heads: eqx.filter_eval_shape(
    EquinoxBlock, widths, heads, jax.random.key(0)
  )
  arrays, rest = eqx.partition(build(widths, 2), is_struct)
  dense = eqx.combine(randomized(arrays), rest)
  graph = trace(lambda model, x: jax.vmap(model)(x), dense, TOKENS)
  assert layer_widths(graph, {}) == widths
  names = {'query:1': 'attention/query_proj:0.0', 'query:2': 'attention/query_proj:0.1'}
  names['value'] = 'attention/value_proj'
  hard = {names.get(name, name): mask for name, mask in HARD.items()}
  slim = shrink(graph, dense, hard, norms='refit')
  kept = layer_widths(graph, slim.kept)
  assert kept == {
    **{name: SLIM[name] for name in widths if name in SLIM},
    'attention/query_proj': 3, 'attention/key_proj': 3, 'attention/value_proj': 2,
    'attention/output_proj': 5,
  }  # fmt: skip
  small = build(kept, len(slim.kept['attention/query_proj:0.0']))
  model = jax.tree.unflatten(jax.tree.structure(small), jax.tree.leaves(slim.variables))
  assert (model.up.out_features, model.attention.qk_size, model.norm1.shape) == (7, 3, (5,))
  assert jax.tree.map(jnp.shape, model) == jax.tree.map(jnp.shape, small)
  # Equinox divides scores by the root of a head's width, which now is another.
  weight = model.attention.query_proj.weight * np.sqrt(3 / 4)
  model = eqx.tree_at(lambda model: model.attention.query_proj.weight, model, weight)
  expected = slim.apply(slim.variables, TOKENS)
  assert_close(jax.vmap(model)(TOKENS), expected, 1e-5)


@pytest.mark.parametrize(
  ('shape', 'width'), [((3, 8), 8), ((2, 2, 3, 8), 8), ((3, 2, 4), (2, 4)), ((3, 3, 2, 4), (2, 4))]
)
def test_kernels_of_several_layouts(shape, width):
  features = {
    2: lambda w, x: jnp.einsum('bi,io->bo', x[:, 0, 0], w),
    3: lambda w, x: jnp.einsum('bi,ihd->bhd', x[:, 0, 0], w),
    4: lambda w, x: (
      jnp.einsum('bi,iqhd->bqhd', x[:, 0, 0], w)[:, 0]
      if shape[1] == 3
      else jax.lax.conv_general_dilated(
        x, w, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
      ).mean((1, 2))
    ),
  }[len(shape)]
  out = (*(width if isinstance(width, tuple) else (width,)), 5)
  params = {'layer': {'kernel': np.ones(shape, np.float32)}, 'out': np.ones(out, np.float32)}

  def fn(params, x):
    y = jnp.tanh(features(params['layer']['kernel'], x))
    return jnp.tensordot(y, params['out'], y.ndim - 1)

  graph = trace(fn, params, np.ones((2, 4, 4, 3), np.float32))
  assert layer_widths(graph, {}) == {'layer': width, 'out': 5}
