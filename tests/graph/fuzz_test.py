"""Random small networks from the covered primitives: slim == masked, and the costs are exact."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dtp_jax.graph import rank_layers, trace
from dtp_jax.graph.cost import counts_of
from tests.graph.agreement import assert_agreement, assert_close, compiled, masked, random_masks
from tests.graph.models import images, randomized

NHWC = ('NHWC', 'HWIO', 'NHWC')


def conv(x, w, **kwargs):
  options = {'window_strides': (1, 1), 'padding': 'SAME', **kwargs}
  return jax.lax.conv_general_dilated(x, w, dimension_numbers=NHWC, **options)


def divisor(n, choice):
  divisors = [d for d in range(1, n + 1) if n % d == 0]
  return divisors[choice % len(divisors)]


def convolve(x, seen, get, a, b):
  return conv(x, get((3, 3, x.shape[-1], 2 + a)), window_strides=(1 + b % 2,) * 2)


def dilated(x, seen, get, a, b):
  return conv(
    x,
    get((3, 3, x.shape[-1], 2 + a)),
    padding=((2, 2), (1, 1)),
    rhs_dilation=(1 + b % 2, 1),
    lhs_dilation=(1, 1 + b // 2),
  )


def grouped(x, seen, get, a, b):
  groups = divisor(x.shape[-1], a)
  w = get((3, 3, x.shape[-1] // groups, groups * (1 + b)))
  return conv(x, w, feature_group_count=groups)


def batch_norm(x, seen, get, a, b):
  mean, var = x.mean((0, 1, 2), keepdims=True), x.var((0, 1, 2), keepdims=True)
  y = (x - mean) / jnp.sqrt(var + 1e-2)
  return y * get((x.shape[-1],))[None, None, None] + get((x.shape[-1],))[None, None, None]


def activate(x, seen, get, a, b):
  return [jax.nn.relu, jax.nn.gelu, jnp.tanh, jax.nn.silu, jnp.abs][a % 5](x)


def shortcut(x, seen, get, a, b):
  old = seen[a % len(seen)]
  if old.shape[:-1] != x.shape[:-1]:
    return x
  return x + old if old.shape == x.shape else x + conv(old, get((1, 1, old.shape[-1], x.shape[-1])))


def concat(x, seen, get, a, b):
  same = [old for old in seen if old.shape[:-1] == x.shape[:-1]]
  return jnp.concatenate([x, same[a % len(same)]] if same else [x, x], axis=-1)


def gate(x, seen, get, a, b):
  half = x.shape[-1] // 2
  return x[..., :half] * jax.nn.sigmoid(x[..., half : 2 * half]) if half else x


def cut(x, seen, get, a, b):
  start = a % x.shape[-1]
  return x[..., start : start + 1 + b % (x.shape[-1] - start)]


def shuffle(x, seen, get, a, b):
  groups = divisor(x.shape[-1], a)
  return x.reshape(*x.shape[:-1], groups, -1).swapaxes(-1, -2).reshape(x.shape)


def pool(x, seen, get, a, b):
  return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 1 + b % 2, 1, 1), 'SAME')


def pad(x, seen, get, a, b):
  return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (a % 3, b % 3)))


def excite(x, seen, get, a, b):
  s = jax.nn.relu(x.mean((1, 2)) @ get((x.shape[-1], 3)))
  return x * jax.nn.sigmoid(s @ get((3, x.shape[-1])))[:, None, None]


def attend(x, seen, get, a, b):
  heads, dim = 1 + a % 2, 2 + b % 2
  t = x.reshape(x.shape[0], -1, x.shape[-1])
  q, k, v = (jnp.einsum('btc,chd->bthd', t, get((x.shape[-1], heads, dim))) for _ in range(3))
  y = jnp.einsum('bhqk,bkhd->bqhd', jax.nn.softmax(jnp.einsum('bqhd,bkhd->bhqk', q, k)), v)
  return jnp.einsum('bqhd,hdc->bqc', y, get((heads, dim, x.shape[-1]))).reshape(x.shape) + x


def norm(x, axes, centred, two_passes):
  mean = x.mean(axes, keepdims=True) if centred else 0.0
  square = jnp.square(x - mean) if two_passes else jnp.square(x)
  var = square.mean(axes, keepdims=True) - (0.0 if two_passes else jnp.square(mean))
  return (x - mean) * jax.lax.rsqrt(jnp.maximum(var, 0) + 1e-2)


def affine(x, get):
  return x * get((x.shape[-1],))[None, None, None] + get((x.shape[-1],))[None, None, None]


def layer_norm(x, seen, get, a, b):
  y = norm(x, -1, centred=a % 3, two_passes=b % 2)
  return affine(y, get) if a % 2 else y


def group_norm(x, seen, get, a, b):
  groups = divisor(x.shape[-1], a)
  y = norm(x.reshape(*x.shape[:-1], groups, -1), (1, 2, 4), centred=True, two_passes=b % 2)
  return affine(y.reshape(x.shape), get)


def normed_residual(x, seen, get, a, b):
  """A stream that is normed before or behind what is added to it."""
  y = layer_norm(x, seen, get, a, b) if b < 2 else x
  y = x + conv(activate(y, seen, get, a, b), get((1, 1, x.shape[-1], x.shape[-1])))
  return y if b < 2 else layer_norm(y, seen, get, a, b)


def standardised(x, seen, get, a, b):
  w = get((3, 3, x.shape[-1], 2 + a))
  return conv(x, norm(w, (0, 1, 2), centred=True, two_passes=b % 2))


def placed(x, seen, get, a, b):
  """Fixed sines are added, and a norm sums over them."""
  rows, width = x.shape[1], x.shape[-1]
  sines = np.sin(np.outer(np.arange(1.0, rows + 3), np.arange(1.0, width + 1)) / 3)
  sines = jnp.asarray(sines, jnp.float32)
  if b % 2:
    sines = jnp.take(sines, jnp.arange(rows) + a % 2, axis=0)
  return layer_norm(x + sines[None, :rows, None], seen, get, 1 + a, b)


def written(x, seen, get, a, b):
  """Rows are overwritten, added to or multiplied."""
  place, row = a % x.shape[1], b % x.shape[1]
  at = x.at[:, place]
  return [at.set, at.add, at.multiply, at.max][a % 4](jnp.tanh(x[:, row]))


def softmax(x, seen, get, a, b):
  return jax.nn.softmax(x) if a % 2 else x - jax.nn.logsumexp(x, axis=-1, keepdims=True)


def weight_norm(x, seen, get, a, b):
  w = get((1, 1, x.shape[-1], 2 + a))
  return conv(x, w / jnp.sqrt(jnp.square(w).sum(2, keepdims=True) + 1e-3))


def space_first(x, seen, get, a, b):
  return jnp.cumsum(x, axis=1) * jax.lax.iota(jnp.float32, x.shape[-1])[None, None, None]


def stacked(x, seen, get, a, b):
  """Residual layers under scan, normed or not, some of them under remat, with kernels by layer."""
  c, hidden = x.shape[-1], 2 + b
  kernels = get((3, c, hidden)), get((3, hidden, c)), get((3, c))

  def layer(h, ks):
    up, down, scale = ks
    y = norm(h, -1, True, a % 2) * scale[None, None, None] if b % 2 else h
    y = activate(conv(y, up[None, None]), seen, get, a, b)
    h = h + conv(y, down[None, None])
    return (shuffle(h, seen, get, 1 + a, b) if a == 5 else h), y.mean((1, 2))

  x, ys = jax.lax.scan(jax.checkpoint(layer) if a % 3 == 2 else layer, x, kernels)
  return x + conv(jnp.tanh(ys).mean(0)[:, None, None], get((1, 1, hidden, c)))


def deep(x, seen, get, a, b):
  """Residual layers under scan whose hidden channels are each layer's own."""
  c, hidden = x.shape[-1], 2 + b
  kernels = get((3, c, hidden)), get((3, hidden)), get((3, hidden, c))

  def layer(h, ks):
    up, bias, down = ks
    y = conv(norm(h, -1, True, a % 2) if b % 2 else h, up[None, None]) + bias[None, None, None]
    return h + conv(activate(y, seen, get, a, b), down[None, None]), None

  return jax.lax.scan(layer, x, kernels)[0]


def recurrent(x, seen, get, a, b):
  """A gated cell that runs along the rows, from a state of zeros or a learnt one."""
  c, width = x.shape[-1], 2 + a
  again, read = get((width, 2 * width)), get((c, 2 * width))
  start = jnp.zeros((width,)) if b % 2 else get((width,))

  def cell(h, row):
    gate, new = jnp.split(row @ read + h @ again, 2, axis=-1)
    gate = jax.nn.sigmoid(gate)
    h = gate * h + (1 - gate) * jnp.tanh(new)
    return h, h

  rows = jnp.moveaxis(x, 1, 0)
  state = jnp.broadcast_to(start[None, None], (*rows.shape[1:3], width))
  return jnp.moveaxis(jax.lax.scan(cell, state, rows, reverse=b > 1)[1], 0, 1)


LAYERS = [
  convolve,
  convolve,
  dilated,
  grouped,
  batch_norm,
  activate,
  activate,
  shortcut,
  concat,
  gate,
  cut,
  shuffle,
  pool,
  pad,
  excite,
  attend,
  layer_norm,
  layer_norm,
  group_norm,
  group_norm,
  normed_residual,
  normed_residual,
  standardised,
  softmax,
  weight_norm,
  space_first,
  placed,
  written,
  stacked,
  deep,
  recurrent,
  recurrent,
]
PROGRAMS = st.lists(
  st.tuples(st.sampled_from(LAYERS), st.integers(0, 5), st.integers(0, 3)), min_size=2, max_size=7
)


def network(program, get, x, flatten):
  seen = []
  for layer, a, b in program:
    seen.append(x)
    x = layer(x, seen, get, a, b)
  x = jnp.tanh(x)
  x = x.reshape(x.shape[0], -1) if flatten else x.mean((1, 2))
  return x @ get((x.shape[-1], 2))


def model(program, x, flatten):
  """The function of (params, x) and its random parameters."""
  shapes = []

  def record(shape):
    shapes.append(jax.ShapeDtypeStruct(shape, jnp.float32))
    return jnp.zeros(shape)

  jax.eval_shape(lambda x: network(program, record, x, flatten), x)

  def fn(params, x):
    left = iter(params)
    return network(program, lambda shape: next(left), x, flatten)

  return fn, randomized(shapes)


STACKS = st.lists(
  st.tuples(st.sampled_from([deep, recurrent, layer_norm]), st.integers(0, 4), st.integers(0, 3)),
  max_size=2,
)


@settings(max_examples=8)
@given(STACKS, st.integers(0, 4), st.integers(0, 3), st.integers(0, 9))
def test_ranked_layers_are_the_same_network(program, a, b, seed):
  """Stacked groups in another order in each layer: the same outputs, and slim == masked again."""
  x = images(2, 3, 4, 2)
  fn, params = model([(convolve, 2, 0), (deep, a, b), *program], x, False)
  graph = trace(fn, params, x)
  assert any(group.layers == 3 for group in graph.groups.values())
  ranked = rank_layers(graph, params)
  assert_close(jax.jit(fn)(ranked, x), jax.jit(fn)(params, x), 1e-5)
  for group in graph.groups.values():
    if group.layers is not None:
      strengths = _strengths(group, ranked)
      assert np.all(np.diff(strengths, axis=1) <= 1e-6)
  assert_agreement(graph, ranked, (x,), {}, random_masks(graph, seed), False)


def _strengths(group, params):
  """(layers, channels) sums of squares, read off the slices."""
  total = np.zeros((group.layers, group.size))
  for s in group.producers:
    array = np.square(np.asarray(params[int(s.path[0])]))
    entries = (
      np.moveaxis(array, s.axis, 1).reshape(*array.shape[:1], array.shape[s.axis], -1).sum(-1)
    )
    for place, channel in enumerate(s.index):
      if channel >= 0:
        total[:, channel] += entries[:, place]
  return total


@settings(max_examples=20)
@given(PROGRAMS, st.booleans(), st.integers(0, 9))
def test_random_networks(program, flatten, seed):
  x = images(2, 3, 4, 2)
  fn, params = model([(convolve, 2, 0), *program], x, flatten)
  graph = trace(fn, params, x)
  hard = random_masks(graph, seed)
  if not hard:
    return
  slim = assert_agreement(graph, params, (x,), {}, hard, False, compiled(masked(graph), {}, False))
  again = trace(slim.apply, slim.variables, x)
  counts = counts_of(hard)
  assert graph.macs.at(counts) == again.macs.total
  assert graph.params.at(counts) == sum(np.size(leaf) for leaf in slim.variables)
  assert {name: len(kept) for name, kept in slim.kept.items()} == counts
