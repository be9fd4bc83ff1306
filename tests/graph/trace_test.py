"""trace: what is prunable, what is frozen and why, names, roles and the report."""

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.ode import odeint

from dtp_jax.graph import shrink, trace
from tests.graph import convnets
from tests.graph.agreement import assert_agreement, one_left, random_masks
from tests.graph.models import CASES, SMALL, images, linen, randomized


def weights(**shapes):
  return randomized({k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()})


def mlp_around(middle):
  """x @ a, the given function, @ b: whether the hidden axis survives depends on the middle."""

  def fn(w, x):
    return middle(x @ w['a']) @ w['b']

  return fn, weights(a=(3, 6), b=(6, 2)), images(4, 3)


def frozen_reasons(graph):
  return {group.name: group.reason for group in graph.frozen}


def shuffled(h):
  return h.reshape(-1, 2, 3).swapaxes(1, 2).reshape(-1, 6)


FREEZING = {
  'product': (lambda h: h * h.prod(-1, keepdims=True), 'reduce_prod over it'),
  'cumsum': (lambda h: jnp.cumsum(h, -1), 'cumsum runs along it'),
  'sort': (jnp.sort, 'sort runs along it'),
  'flip': (lambda h: h[:, ::-1], 'rev reverses it'),
  'stride': (lambda h: jnp.pad(h[:, ::4], ((0, 0), (0, 4))), 'slice with a stride'),
  'take': (lambda h: jnp.take(h, jnp.array([5, 1, 0, 2, 4, 3]), axis=1), 'gather looks up'),
  'gram': (lambda h: (h @ h.T) @ h, None),
  'scatter': (lambda h: h.at[:, 0].add(1.0), 'scatter-add writes parts of it'),
  'scatter of a function': (lambda h: h.at[0].apply(jnp.cos), 'scatter (no rule for it)'),
  'fft': (lambda h: jnp.fft.fft(h, axis=0).real, 'fft (no rule for it)'),
  'scan': (
    lambda h: jax.lax.scan(lambda c, _: (shuffled(c), None), h, None, 3)[0],
    'scan whose body gives what it carries other dims',
  ),
  'argmax': (lambda h: h * jnp.argmax(h, 1)[:, None], 'argmax over it'),
}


@pytest.mark.parametrize('name', FREEZING)
def test_what_mixes_channels_freezes_them_and_is_named(name):
  middle, reason = FREEZING[name]
  fn, params, x = mlp_around(middle)
  graph = trace(fn, params, x)
  if reason is None:  # a linear product is masked on the kernel before it: sound, so prunable
    assert_agreement(graph, params, (x,), {}, random_masks(graph, 0))
    return
  assert not graph.groups
  assert reason in frozen_reasons(graph)['a:1']
  assert reason in str(graph)
  with pytest.raises(ValueError, match='no prunable group\n'):
    shrink(graph, params, {})


SINES = np.sin(np.outer(np.arange(1.0, 6.0), np.arange(1.0, 7.0))).astype(np.float32)
PASSING = {
  'cumsum over the batch': lambda h: jnp.cumsum(h, 0),
  'where': lambda h: jnp.where(h > 0, h, 0.1 * h),
  'one hot of the batch': lambda h: jnp.eye(4) @ h,
  'bfloat16': lambda h: h.astype(jnp.bfloat16).astype(jnp.float32),
  'tile': lambda h: jnp.tile(h, (2, 1))[3:7],
  'stack': lambda h: jnp.stack([h, jnp.tanh(h)], 1).max(1),
  'roll of the batch': lambda h: jnp.roll(h, 1, axis=0),
  'dynamic slice': lambda h: jax.lax.dynamic_slice(h, (1, 0), (3, 6)),
  'dynamic update': lambda h: jax.lax.dynamic_update_slice(h, jnp.ones((1, 6)), (2, 0)),
  'scatter': lambda h: h.at[1].set(-h[0]).at[2:].multiply(h[2:]),
  'scatter a number': lambda h: h.at[0].add(1.0),
  'scatter into rows of a batch': lambda h: jax.vmap(
    lambda column, row: column.at[jnp.argmax(column)].min(row[0]), (1, 1), 1
  )(h, h[0][None]),
  'scan': lambda h: jax.lax.scan(lambda c, _: (jnp.tanh(c), None), h, None, 3)[0],
  'scan over the batch': lambda h: jax.lax.map(lambda row: row * jnp.tanh(row), h),
  'cond': lambda h: jax.lax.cond(jnp.square(h).sum() > 1, jnp.tanh, lambda h: h * h, h),
  'clip': lambda h: jnp.clip(h, -0.5, 0.5),
  'iota': lambda h: h * jax.lax.iota(jnp.float32, 6)[None],
  'constant': lambda h: h * jnp.arange(1.0, 7.0)[None],
  'vmap': jax.vmap(lambda v: jnp.tanh(v) * 2),
  'einsum': lambda h: jnp.einsum('bc,bc,dc->dc', h, h, h),
  'unstack': lambda h: sum(jnp.unstack(jnp.stack([h, -2 * h]))),
  'any reduction': lambda h: h * jax.lax.reduce(h, 0.0, lambda a, b: a + 2 * b, (0,))[None],
  'top of the batch': lambda h: jax.lax.top_k(h.T, 2)[0].T,
  'log softmax over the batch': lambda h: jax.nn.log_softmax(h, axis=0),
  'softmax': jax.nn.softmax,
  'log sum exp': lambda h: h * jax.nn.logsumexp(h, axis=-1, keepdims=True),
  'largest and smallest': lambda h: h - h.max(1, keepdims=True) * h.min(1, keepdims=True),
  'centred': lambda h: h - h.mean(-1, keepdims=True),
  'standardised': jax.nn.standardize,
  'standardised in two passes': lambda h: (
    (h - h.mean(-1, keepdims=True)) / (h.std(-1, ddof=1, keepdims=True) + 1e-3)
  ),
  'centred twice': lambda h: jnp.cos(h - h.mean(0)[None]) - jnp.cos(h).mean(1, keepdims=True),
  'positions in a norm': lambda h: jnp.square(h + jnp.arange(6.0)[None]).sum(-1, keepdims=True) * h,
  'captured sines in a norm': lambda h: (
    jax.nn.standardize(h + jnp.take(SINES, jnp.arange(4), axis=0)) * h.max(1, keepdims=True)
  ),
  'part of a table in a norm': lambda h: jax.nn.standardize(
    jax.jit(lambda h, table: jnp.sin(h) + table[1:5])(h, SINES)
  ),
  'sines beside a token in a norm': lambda h: jax.nn.standardize(
    jnp.concatenate([2 * h[:1], jnp.sin(h[1:]) + SINES[:3]])
  ),
  'a window of sines in a norm': lambda h: jax.nn.standardize(
    h + jax.lax.dynamic_slice(SINES, (jnp.argmax(h.sum(1)) // 3, 0), (4, 6))
  ),
  'moments of a square': lambda h: h * jnp.exp(h[:, :, None] - h[:, None]).mean((1, 2))[:, None],
}


@pytest.mark.parametrize('name', PASSING)
def test_what_leaves_channels_apart_keeps_them_prunable(name):
  fn, params, x = mlp_around(PASSING[name])
  graph = trace(fn, params, x)
  assert list(graph.groups) == ['a']
  assert_agreement(graph, params, (x,), {}, {'a': np.array([0, 1, 1, 0, 0, 1])})


PARTS = {
  'even and odd': (lambda h: jnp.concatenate([h[:, ::2], -h[:, 1::2]], 1), 3),
  'rows of a batch': (lambda h: jnp.take_along_axis(h, jnp.argsort(h, 0), 0), 6),
  'a batched row': (lambda h: jnp.take_along_axis(h, jnp.argmax(h, 0)[None], 0), 6),
  'a column': (lambda h: h * h[:, 2:3], 5),
}


@pytest.mark.parametrize('name', PARTS)
def test_slices_and_gathers_divide_channels(name):
  middle, channels = PARTS[name]
  fn, params, x = mlp_around(middle)
  graph = trace(fn, params, x)
  assert sum(group.size for group in graph.groups.values()) == channels
  for hard in (random_masks(graph, 0), one_left(graph)):
    assert_agreement(graph, params, (x,), {}, hard)


def test_tables_that_are_looked_up_side_by_side():
  """A gather with a batch of tables: their axis and their columns are groups, not their rows."""

  def fn(w, x):
    rows = jax.vmap(lambda table, places: table[places])(w['tables'], PLACES)
    return jnp.einsum('bc,tpc,tc->bt', x @ w['a'], jnp.tanh(rows), w['b']) @ w['c']

  params = weights(tables=(3, 5, 6), a=(4, 6), b=(3, 6), c=(3, 2))
  graph = trace(fn, params, images(2, 4))
  assert sorted(graph.sizes.values()) == [3, 6]
  assert 'gather looks up rows' in frozen_reasons(graph)['tables:1']
  for hard in (random_masks(graph, 0), one_left(graph)):
    assert_agreement(graph, params, (images(2, 4),), {}, hard)


PLACES = np.array([[0, 2], [4, 4], [1, 3]])


@pytest.mark.parametrize('spacing', [1, 3])
def test_an_ode_solver_keeps_its_channels_and_its_derivative(spacing):
  """A loop of adaptive steps with a hand-written derivative, which closes over its coefficients."""

  def fn(w, x):
    times = jnp.linspace(0.0, 0.5, 1 + spacing)
    states = odeint(lambda y, t, k: jnp.tanh(y @ k), jnp.tanh(x @ w['a']), times, w['again'])
    return states[-1] @ w['b']

  params, x = weights(a=(3, 6), again=(6, 6), b=(6, 2)), images(4, 3)
  graph = trace(fn, params, x)
  assert list(graph.groups) == ['a']
  assert_agreement(graph, params, (x,), {}, {'a': np.array([0, 1, 1, 0, 0, 1])}, scale=1e-4)


def test_what_cannot_be_differentiated_is_traced_and_says_so_when_it_is():
  @jax.custom_vjp
  def forward_only(h):
    return jnp.sin(h)

  def refuse(*_):
    raise NotImplementedError('no derivative was written')

  forward_only.defvjp(lambda h: (jnp.sin(h), ()), refuse)
  fn, params, x = mlp_around(forward_only)
  graph = trace(fn, params, x)
  hard = random_masks(graph, 0)
  slim = assert_agreement(graph, params, (x,), {}, hard, grads=False)
  with pytest.raises(NotImplementedError, match='no derivative was written'):
    jax.grad(lambda v: slim.apply(v, x).sum())(slim.variables)

  def closing_over(w, x):
    scaled = jax.custom_vjp(lambda h: h * w['a'].sum())
    scaled.defvjp(lambda h: (scaled(h), ()), lambda _, g: (g,))
    return jnp.sin(scaled(x @ w['b'])) @ w['c']

  params = weights(a=(3,), b=(3, 6), c=(6, 2))
  graph = trace(closing_over, params, x)
  slim = assert_agreement(graph, params, (x,), {}, random_masks(graph, 0), grads=False)
  with pytest.raises(TypeError, match='no derivative by the values it has closed over'):
    jax.grad(lambda v: slim.apply(v, x).sum())(slim.variables)


ALONE = {
  'a roll by one place ties every channel to its neighbour': (
    lambda h: h * jnp.roll(h, 1, 1),
    {('a:1', 1, 'mul of dims that do not line up: a single channel')},
  ),
  'every channel is taken by itself': (
    lambda h: sum(h[:, i] for i in range(6))[:, None] * jnp.ones((1, 6)),
    {('a:1', 6, 'slice cuts it: a single channel')},
  ),
}


@pytest.mark.parametrize('name', ALONE)
def test_single_channels_are_frozen_by_name(name):
  middle, expected = ALONE[name]
  fn, params, x = mlp_around(middle)
  graph = trace(fn, params, x)
  assert not graph.groups
  assert expected <= {(group.name, group.size, group.reason) for group in graph.frozen}


def halves(h):
  return jnp.concatenate([-h[:, 3:], h[:, :3]], 1) * h + h[:, -1][:, None] * h[:, 2][:, None]


def neighbours(h):
  """Pairs that are turned by a quarter, as in GPT-J's rotary positions."""
  return jnp.stack((-h[:, 1::2], h[:, ::2]), -1).reshape(-1, 6) * jnp.sin(h)


@pytest.mark.parametrize(
  ('middle', 'mask'), [(halves, [False, True]), (neighbours, [True, False, True])]
)
def test_static_slices_under_a_symbolic_batch(middle, mask):
  """There jax writes them as gathers: from a constant place on, or at counted places."""
  fn, params, x = mlp_around(middle)
  graph = trace(fn, params, x)
  (batch,) = jax.export.symbolic_shape('batch')
  symbolic = trace(fn, params, jax.ShapeDtypeStruct((batch, 3), jnp.float32))
  assert symbolic.sizes == graph.sizes == {'a': len(mask)}
  slim = shrink(graph, params, {'a': np.array(mask)})
  exported = jax.export.export(jax.jit(slim.apply))(
    slim.variables, jax.ShapeDtypeStruct((batch, 3), jnp.float32)
  )
  expected = slim.apply(slim.variables, x)
  np.testing.assert_allclose(exported.call(slim.variables, x), expected, rtol=1e-5)
  assert_agreement(graph, params, (x,), {}, {'a': np.array(mask)})


def test_a_custom_derivative_does_not_decide_about_channels():
  """A norm with a hand-written backward pass, which sums over channels of cotangents."""

  @jax.custom_vjp
  def centred(h):
    return h - h.mean(1, keepdims=True)

  centred.defvjp(lambda h: (centred(h), ()), lambda _, g: (g - g.mean(1, keepdims=True),))
  fn, params, x = mlp_around(lambda h: jnp.sin(h) + jnp.square(centred(jnp.sin(h))))
  graph = trace(fn, params, x)
  assert list(graph.groups) == ['a']
  assert_agreement(graph, params, (x,), {}, random_masks(graph, 0))


def test_roles_of_a_residual_network():
  case = CASES['residual']()
  graph = trace(case.fn, case.variables, *case.inputs, **case.eval)
  stem = graph.groups['stem']
  assert [str(s) for s in stem.producers] == [
    'params/stem/kernel:3',
    'params/block0_conv2/kernel:3',
  ]
  assert [str(s) for s in stem.consumers] == [
    'params/block0_conv1/kernel:2',
    'params/block1_conv1/kernel:2',
    'params/block1_proj/kernel:2',
  ]
  assert {s.path[1] for s in stem.carriers} == {'stem_bn', 'block0_conv2_bn'}
  assert stem.params == 4 * (27 + 45 + 2 * 2 + 45 + 45 + 6)
  assert frozen_reasons(graph)['params/head/kernel:1'] == 'an output'
  assert frozen_reasons(graph)['params/stem/kernel:2'] == 'an input'


def test_a_flattened_consumer_knows_its_channels():
  for name, layout in (('vgg', (1, 1, 5)), ('flatten_chw', (6, 4, 4))):
    case = CASES[name]()
    graph = trace(case.fn, case.variables, *case.inputs, **case.eval)
    (consumer,) = graph.groups['b' if name == 'vgg' else 'a'].consumers
    channel = np.arange(layout[2])[None, None] if name == 'vgg' else np.arange(6)[:, None, None]
    np.testing.assert_array_equal(consumer.index, np.broadcast_to(channel, layout).ravel())
    assert set(frozen_reasons(graph).values()) == {'an input', 'an output'}  # no word of pixels


def test_a_normed_stream_is_masked_where_it_is_made():
  """And where it is read, behind the norms; their scales and biases need no mask there."""
  case = CASES['vit']()
  graph = trace(case.fn, case.variables, *case.inputs, **case.eval)
  stream = graph.groups['patches']
  made = {
    'params/patches/kernel:3',
    'params/patches/bias:0',
    'params/token:2',
    'params/positions:2',
    'params/attn/out/kernel:2',
    'params/attn/out/bias:0',
    'params/down/kernel:1',
    'params/down/bias:0',
  }
  read = {
    *(f'params/attn/{name}/kernel:0' for name in ('query', 'key', 'value')),
    'params/up/kernel:0',
    'params/head/kernel:0',
  }
  assert {str(s) for s in stream.masked} == made | read
  assert {str(s) for s in stream.consumers} == read
  norms = {f'params/ln{i}/{name}:0' for i in (1, 2, 3) for name in ('scale', 'bias')}
  assert {str(s) for s in stream.slices} == made | read | norms
  heads, values = graph.groups['attn/query:1'], graph.groups['attn/value']
  assert [str(s) for s in heads.masked] == ['params/attn/out/kernel:0']
  assert [str(s) for s in values.masked] == ['params/attn/out/kernel:1']
  assert (stream.size, heads.size, values.size) == (8, 3, 4)


def test_query_and_key_dims_are_masked_on_the_keys():
  case = CASES['vit']()
  graph = trace(case.fn, case.variables, *case.inputs, **case.eval)
  inner = graph.groups['attn/query:2']
  assert {str(s) for s in inner.masked} == {'params/attn/key/kernel:2', 'params/attn/key/bias:1'}
  assert not inner.consumers


def test_tied_weights_agree_or_freeze():
  def autoencoder(w, x):
    return jnp.tanh(x @ w['code']) @ w['code'].T

  params = weights(code=(3, 6))
  graph = trace(autoencoder, params, images(2, 3))
  assert list(graph.groups) == ['code']
  assert_agreement(graph, params, (images(2, 3),), {}, random_masks(graph, 2))

  def twisted(w, x):  # the same axis as channels and as (2, 3): heads survive what channels do not
    h = jnp.tanh(x @ w['a'])
    y = jnp.sort(jnp.tanh(x @ w['a']).reshape(-1, 2, 3))
    return h @ w['b'] + y.reshape(-1, 6) @ w['c']

  params = weights(a=(3, 6), b=(6, 2), c=(6, 2))
  graph = trace(twisted, params, images(2, 3))
  assert [g.size for g in graph.groups.values()] == [2]
  assert_agreement(graph, params, (images(2, 3),), {}, {'a': np.array([False, True])})


def test_a_captured_kernel_cannot_be_masked():
  """Where it reads zeros it need not be; the cosine of zero is not zero."""
  kernel = np.ones((6, 2), np.float32)
  graph = trace(lambda w, x: jnp.tanh(x @ w['a']) @ kernel, weights(a=(3, 6)), images(2, 3))
  assert_agreement(graph, weights(a=(3, 6)), (images(2, 3),), {}, random_masks(graph, 0))
  graph = trace(lambda w, x: jnp.cos(x @ w['a']) @ kernel, weights(a=(3, 6)), images(2, 3))
  assert not graph.groups
  assert 'dot_general sums over it' in frozen_reasons(graph)['a:1']


def test_a_dead_branch_does_not_freeze():
  def fn(w, x):
    h = jnp.tanh(x @ w['a'])
    jax.nn.softmax(h)  # its result goes nowhere
    return h @ w['b']

  assert list(trace(fn, weights(a=(3, 6), b=(6, 2)), images(2, 3)).groups) == ['a']


def test_unread_weights_are_frozen():
  graph = trace(lambda w, x: x @ w['a'], weights(a=(3, 6), spare=(4, 4)), images(2, 3))
  assert frozen_reasons(graph)['spare:0'] == 'no weight reads it'


def test_abstract_variables_and_inputs_trace_alike():
  case = linen(convnets.Residual(), images(*SMALL), set())
  structs = jax.eval_shape(lambda v: v, case.variables)
  graph = trace(case.fn, structs, jax.ShapeDtypeStruct((8, 4, 4, 3), jnp.float32), train=False)
  same = trace(case.fn, case.variables, *case.inputs, **case.eval)
  assert str(graph) == str(same)


def test_one_trace_in_train_mode_finds_the_same_groups():
  for name in ('residual_pre', 'densenet', 'mobile'):
    case = CASES[name]()
    assert str(trace(case.fn, case.variables, *case.inputs, **case.train)) == str(
      trace(case.fn, case.variables, *case.inputs, **case.eval)
    )


def test_report_adds_up():
  case = CASES['vgg']()
  graph = trace(case.fn, case.variables, *case.inputs, **case.eval)
  text = str(graph)
  assert text.startswith('3 prunable channel groups')
  assert 'consumers  params/b/kernel:2' in text
  assert (
    f'{graph.macs.total:,} MACs' in text.replace('% of ', '') or f'{graph.macs.total:,}' in text
  )
  (last,) = [g for g in graph.groups.values() if g.name == 'c']
  assert (last.params, last.macs) == (5 * 7 + 7 + 7 * 3, 5 * 7 + 7 * 3)
  half = trace(
    lambda w, x: jnp.tanh(x @ w['a']) @ w['b'] + x @ w['c'],
    weights(a=(3, 6), b=(6, 2), c=(3, 2)),
    images(2, 3),
  )
  assert 'prunable: 83.3 % of 36 MACs for one example, 83.3 % of 36 parameters' in str(half)


def test_masks_are_checked():
  case = CASES['vgg']()
  graph = trace(case.fn, case.variables, *case.inputs, **case.eval)
  params = case.variables['params']
  with pytest.raises(ValueError, match=r"'stem' is not a prunable group.*the groups are"):
    graph.apply_masks(params, {'stem': jnp.ones(6)})
  with pytest.raises(ValueError, match=r'has shape \(5,\); expected \(6,\)'):
    graph.apply_masks(params, {'a': jnp.ones(5)})
  with pytest.raises(ValueError, match="the tree has no 'params/b/kernel'"):
    graph.apply_masks(case.variables['batch_stats'], {'a': jnp.ones(6)})
  with pytest.raises(ValueError, match='variables without arrays'):
    trace(lambda v, x: x, {}, jnp.ones(3))


def test_masks_multiply_consumers_only_and_differentiate():
  case = CASES['vgg']()
  graph = trace(case.fn, case.variables, *case.inputs, **case.eval)
  params = case.variables['params']
  mask = jnp.linspace(0.0, 1.0, 6)
  masked = jax.jit(graph.apply_masks)(params, {'a': mask})
  whole = graph.apply_masks(case.variables, {'a': mask})
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    name = jax.tree_util.keystr(path)
    expected = leaf * mask[None, None, :, None] if name == "['b']['kernel']" else leaf
    got = {jax.tree_util.keystr(k): v for k, v in jax.tree_util.tree_leaves_with_path(masked)}
    np.testing.assert_array_equal(got[name], expected)
  assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), whole['params'], masked))
  slope = jax.grad(lambda m: graph.apply_masks(params, {'a': m})['b']['kernel'].sum())(mask)
  np.testing.assert_allclose(slope, params['b']['kernel'].sum((0, 1, 3)), rtol=1e-5, atol=1e-6)


def test_channel_sums_are_norms_of_the_slices():
  case = CASES['densenet']()
  graph = trace(case.fn, case.variables, *case.inputs, **case.eval)
  params = case.variables['params']
  l1 = graph.channel_sums(params)['grow0']
  expected = jnp.abs(params['grow0']['kernel']).sum((0, 1, 2)) + jnp.abs(params['grow0']['bias'])
  np.testing.assert_allclose(l1, expected, rtol=1e-5)
  read = graph.channel_sums(case.variables, jnp.square, roles=('consumer',))['stem']
  expected = sum(
    jnp.square(params[k]['kernel'][:, :, :4]).sum((0, 1, 3))
    for k in ('grow0', 'grow1', 'transition')
  )
  np.testing.assert_allclose(read, expected, rtol=1e-5)


class NamedTwice(nn.Module):
  @nn.compact
  def __call__(self, x):
    a = self.param('a', nn.initializers.ones, (3, 4))
    b = self.param('b', nn.initializers.ones, (4, 5))
    return nn.Dense(2)(jnp.tanh(jnp.tanh(x @ a) @ b))


def test_two_kernels_of_one_module_are_told_apart():
  module, x = NamedTwice(), images(2, 3)
  graph = trace(module.apply, jax.eval_shape(module.init, jax.random.key(0), x), x)
  assert list(graph.groups) == ['a', 'b']


def test_a_weight_divided_by_its_own_norm():
  """Along the in-axis it can be masked; per in-channel, 0 / 0 would follow: what it reads is."""

  def normed(axis, activation):
    def fn(w, x):
      b = w['b'] / jnp.sqrt(jnp.square(w['b']).sum(axis, keepdims=True))
      return activation(x @ w['a']) @ b

    return fn

  params, x = weights(a=(3, 6), b=(6, 2)), images(2, 3)
  for axis, activation, masked in (
    (0, jnp.cos, ['b:0']),
    (1, jnp.tanh, ['a:1']),
  ):
    graph = trace(normed(axis, activation), params, x)
    assert [str(s) for s in graph.groups['a'].masked] == masked
    assert_agreement(graph, params, (x,), {}, random_masks(graph, 0))
  assert not trace(normed(1, jnp.cos), params, x).groups


def test_a_mask_of_single_weights_goes_with_a_mask_of_channels():
  def fn(variables, x):
    w = jax.tree.map(jnp.multiply, variables['params'], variables['sparsity'])
    return jnp.tanh(x @ w['a']) @ w['b']

  sparsity = {'a': jnp.ones((3, 6)).at[0, 1].set(0), 'b': jnp.ones((6, 2)).at[2].set(0)}
  variables = {'params': weights(a=(3, 6), b=(6, 2)), 'sparsity': sparsity}
  graph = trace(fn, variables, images(2, 3))
  assert graph.params.total == 30
  assert_agreement(graph, variables, (images(2, 3),), {}, random_masks(graph, 0))


def test_positions_in_a_tuple_are_no_state():
  """A result is not the new value of params[0] for being the first result and of its shape."""
  params = [randomized(jax.ShapeDtypeStruct((3, 6), jnp.float32))]
  graph = trace(lambda w, x: (jnp.tanh(x @ w[0]), x), params, images(3, 3))
  assert not graph.groups
  assert frozen_reasons(graph)['0:1'] == 'an output'


def test_macs_are_those_of_one_example():
  case = CASES['equinox']()
  (x,) = case.inputs
  batched = trace(case.fn, case.variables, x)
  assert trace(case.fn, case.variables, x[:1]).macs.total == batched.macs.total
  alone = trace(lambda model, x: model(x), case.variables, x[0])  # channels first: no batch at all
  assert alone.macs.total == batched.macs.total == 2 * 2 * 27 * 6 + 6 * 5 + 5 * 3


def test_flags_before_the_batch_leave_macs_those_of_one_example():
  fn, params, x = mlp_around(jnp.tanh)
  alone = trace(fn, params, x).macs.total

  def with_flags(w, inputs):
    return fn(w, inputs['x']) * inputs['a flag']

  assert trace(with_flags, params, {'a flag': jnp.ones(()), 'x': x}).macs.total == alone


def test_running_statistics_are_no_news():
  fn, params, x = mlp_around(jnp.tanh)
  variables = {'params': params, 'stats': {'count': jnp.ones((5,)), 'mean': jnp.ones((3,))}}
  graph = trace(lambda v, x: fn(v['params'], x - v['stats']['mean'][None]), variables, x)
  assert set(frozen_reasons(graph)) == {'params/a:0', 'params/b:1'}


def test_empty_arrays_and_debug_prints_are_no_obstacle():
  def fn(w, x):
    h = jnp.tanh(x @ w['a'])
    jax.debug.callback(lambda v: None, h.sum(0)[:1] * 0 + jnp.zeros((0, 1)).sum(0))
    return jnp.concatenate([h, jnp.zeros((0, 6))]) @ w['b']

  graph = trace(fn, weights(a=(3, 6), b=(6, 2)), images(2, 3))
  assert not graph.groups
  assert 'concatenate' in frozen_reasons(graph)['a:1']
