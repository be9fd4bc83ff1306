"""Loops and branches: what they carry, what they cost, and the whole way to an export."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dtp_jax as dtp
from dtp_jax.export import load_slim, save_slim
from dtp_jax.graph import shrink, trace
from dtp_jax.graph.cost import counts_of
from tests.graph.agreement import assert_agreement, one_left, random_masks
from tests.graph.loops import PLAIN_STACK, Recurrent, Scanned, plain_stack
from tests.graph.models import SMALL, images, randomized
from tests.graph.trace_test import frozen_reasons, mlp_around, shuffled, weights


def structs(shapes):
  return jax.tree.map(
    lambda s: jax.ShapeDtypeStruct(s, jnp.float32), shapes, is_leaf=lambda s: isinstance(s, tuple)
  )


def linen_graph(module, x):
  variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), x)
  return trace(module.apply, variables, x, train=False)


UNROLLED = {
  'embed': 'embed',
  'blocks/attn/query:2': 'block{}/attn/query:1',
  'blocks/attn/query:3': 'block{}/attn/query:2',
  'blocks/attn/value': 'block{}/attn/value',
  'blocks/up': 'block{}/up',
}


def test_a_scan_costs_what_its_layers_cost():
  """MACs and parameters of the unrolled network, at any width."""
  graph = linen_graph(Scanned(), images(*SMALL))
  unrolled = linen_graph(Scanned(unrolled=True), images(*SMALL))
  counts = counts_of(random_masks(graph, 0))
  same = {name.format(i): counts[stacked] for stacked, name in UNROLLED.items() for i in range(3)}
  assert set(same) == set(unrolled.groups)
  for cost, other in ((graph.macs, unrolled.macs), (graph.params, unrolled.params)):
    assert cost.total == other.total
    assert cost.at(counts) == other.at(same)


SHARES = {'lstm': nn.LSTMCell, 'gru': nn.GRUCell, 'fused lstm': nn.OptimizedLSTMCell}


@pytest.mark.parametrize('name', SHARES)
def test_the_state_of_a_recurrent_cell_is_one_group(name):
  graph = linen_graph(Recurrent(SHARES[name]), images(*SMALL))
  (group,) = graph.groups.values()
  gates = 3 if name == 'gru' else 4
  assert group.size == 6
  assert graph.macs.total == 16 * gates * (3 * 6 + 6 * 6) + 6 * 3
  assert graph.macs.at({group.name: 0}) == 0


def test_layers_share_their_channels_and_the_stack_is_kept_whole():
  graph = trace(plain_stack, structs(PLAIN_STACK), images(2, 3))
  stream, inner = graph.groups['in'], graph.groups['layers']
  assert [str(s) for s in inner.slices] == ['layers/up:2', 'layers/down:1']
  assert {str(s) for s in stream.masked} >= {'in:1', 'layers/down:2', 'layers/scale:1'}
  assert frozen_reasons(graph)['layers/down:0'] == 'scan runs along it'


def delayed(h):
  """Zeros that are gone after three steps."""

  def step(s, _):
    return (s[1], s[2], s[2] + 1.0), s[0]

  return jax.lax.scan(step, (jnp.zeros_like(h),) * 3, None, 5)[0][0]


COUPLING = {
  'promise that ends late': (
    lambda h: h * (jnp.square(h) + delayed(h)).sum(1, keepdims=True),
    'reduce_sum over it',
  ),
  'scan along channels': (
    lambda h: jax.lax.scan(lambda c, x: (c + x, c), h[:, 0], h.T)[1].T,
    'scan runs along it',
  ),
  'roll by one place': (
    lambda h: jax.lax.scan(lambda c, _: (jnp.roll(c, 1, 1), None), h, None, 4)[0],
    'scan whose body gives what it carries other dims: a single channel',
  ),
  'while': (
    lambda h: jax.lax.while_loop(lambda c: c.sum() < 9.0, lambda c: shuffled(c) + 1, jnp.abs(h)),
    'while whose body gives what it carries other dims',
  ),
  'test of a while': (
    lambda h: jax.lax.while_loop(lambda c: c.max() < 9.0, lambda c: c + 1, jnp.abs(h)),
    'reduce_max over it',
  ),
  'cond': (
    lambda h: jax.lax.cond(jnp.square(h).sum() > 1, shuffled, jnp.tanh, h),
    'cond whose branches give other dims',
  ),
}


@pytest.mark.parametrize('name', COUPLING)
def test_what_a_loop_couples_freezes(name):
  middle, reason = COUPLING[name]
  fn, params, x = mlp_around(middle)
  graph = trace(fn, params, x)
  assert 'a' not in graph.groups
  assert reason in str(graph)


def test_a_roll_ties_the_channels_that_follow_each_other():
  fn, params, x = mlp_around(
    lambda h: jax.lax.scan(lambda c, _: (jnp.roll(c, 2, 1), None), h, None, 4)[0]
  )
  graph = trace(fn, params, x)
  assert graph.sizes == {'a': 2}
  assert_agreement(graph, params, (x,), {}, one_left(graph), grads=False)


def test_a_while_loop_runs_on_what_is_left():
  """A state that starts at zero, and a kernel from outside."""

  def fn(w, x):
    h = jnp.tanh(x @ w['a'])

    def step(state):
      i, c = state
      return i + 1, jnp.tanh(h + c @ w['again'])

    start = (0, jnp.zeros((x.shape[0], 6)))
    c = jax.lax.while_loop(lambda state: state[0] < 1 + jnp.int32(x[0, 0] > 0), step, start)[1]
    return c @ w['b']

  params, x = weights(a=(3, 6), again=(6, 6), b=(6, 2)), images(4, 3)
  graph = trace(fn, params, x)
  assert list(graph.groups) == ['a']
  assert graph.macs.total == 3 * 6 + 6 * 6 + 6 * 2
  assert_agreement(graph, params, (x,), {}, random_masks(graph, 0), grads=False)


@pytest.fixture(scope='module')
def stack():
  """Parameters, inputs and graph of a plain stack of layers."""
  params, x = randomized(structs(PLAIN_STACK)), images(4, 3)
  return params, x, trace(plain_stack, params, x)


METHODS = {
  'magnitude': dtp.magnitude,
  'transportation': lambda graph, budget: dtp.transportation(graph, budget, steps=10),
}


@pytest.mark.parametrize('name', METHODS)
def test_a_budget_of_a_scan_is_met_and_it_stays_a_scan(name, stack):
  params, x, graph = stack
  pruner = METHODS[name](graph, dtp.Budget(0.5, of='macs'))
  slim = pruner.shrink(params, pruner.init(params))
  again = trace(slim.apply, slim.variables, x)
  counts = {name: len(kept) for name, kept in slim.kept.items()}
  assert again.macs.total == graph.macs.at(counts) <= graph.macs.total / 2
  more = [{**counts, name: n + 1} for name, n in counts.items() if n < graph.sizes[name]]
  assert more
  assert all(graph.macs.at(one) > graph.macs.total / 2 for one in more)
  assert {leaf.shape[0] for leaf in jax.tree.leaves(slim.variables['layers'])} == {4}
  assert 'scan' in str(jax.make_jaxpr(slim.apply)(slim.variables, x))


def test_a_scan_is_exported(stack, tmp_path):
  params, x, graph = stack
  hard = random_masks(graph, 1)
  save_slim(tmp_path / 'slim', graph, params, hard, (x,))
  slim = shrink(graph, params, hard)
  np.testing.assert_allclose(
    load_slim(tmp_path / 'slim')(x), slim.apply(slim.variables, x), rtol=1e-5, atol=1e-6
  )
