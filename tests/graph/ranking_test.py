"""rank_layers: the same function, each layer's channels in the order of their strength."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dtp_jax as dtp
from dtp_jax.graph import rank_layers, trace
from tests.graph.loops import PLAIN_STACK, Recurrent, Scanned, plain_stack
from tests.graph.loops_test import linen_graph, structs
from tests.graph.models import SMALL, images, linen, randomized


def test_ranked_layers_are_the_same_network():
  case = linen(Scanned(), images(*SMALL), set())
  graph = trace(case.fn, case.variables, *case.inputs, **case.eval)
  ranked = jax.jit(lambda v: rank_layers(graph, v))(case.variables)
  run = jax.jit(lambda v: case.fn(v, *case.inputs, **case.eval))
  np.testing.assert_allclose(run(ranked), run(case.variables), rtol=1e-4, atol=1e-5)
  stacked = {name for name, group in graph.groups.items() if group.layers}
  assert stacked == set(graph.groups) - {'embed'}
  up = ranked['params']['blocks']['up']
  strengths = jnp.square(up['kernel']).sum(1) + jnp.square(up['bias'])
  assert jnp.all(jnp.diff(strengths, axis=1) <= 0)
  moved = jnp.any(up['kernel'] != case.variables['params']['blocks']['up']['kernel'])
  assert moved
  np.testing.assert_array_equal(
    ranked['params']['head']['kernel'], case.variables['params']['head']['kernel']
  )
  np.testing.assert_allclose(  # the same units of each layer, in another order
    jnp.sort(up['bias'], axis=1), jnp.sort(case.variables['params']['blocks']['up']['bias'], axis=1)
  )


def test_each_layer_keeps_its_own_strongest_channels():
  params, x = randomized(structs(PLAIN_STACK)), images(4, 3)
  graph = trace(plain_stack, params, x)
  pruner = dtp.magnitude(graph, dtp.Budget({'layers': 0.5}, scope='layer'))
  ranked = rank_layers(graph, params)
  slim = pruner.shrink(ranked, pruner.init(ranked))
  kept = slim.variables['layers']['up']
  assert kept.shape == (4, 6, 3)
  for layer, dense in zip(kept, params['layers']['up'], strict=True):
    strongest = np.sort(np.square(dense).sum(0))[::-1][:3]
    np.testing.assert_allclose(np.square(layer).sum(0), strongest, rtol=1e-5)


SCALE = np.linspace(1.0, 2.0, 7, dtype=np.float32)[None]


def stack(inside=jnp.tanh, layers=lambda k: k, out=lambda y: None, after=lambda k, means, x: x):
  """A stack whose hidden units meet something in the body, on their way there, or behind it."""

  def fn(w, x):
    def layer(h, k):
      y = inside(h @ k['up'])
      return h + y @ k['down'], out(y)

    kernels = {name: w['layers'][name] for name in ('up', 'down')}
    x, means = jax.lax.scan(layer, jnp.tanh(x @ w['in']), layers(kernels))
    return after(kernels, means, x) @ w['out']

  return fn


def mean(y):
  return y.mean(0)


UNRANKED = {
  'counted': stack(inside=lambda y: jnp.tanh(y * jnp.arange(7.0)[None])),
  'captured': stack(inside=lambda y: jnp.tanh(y * SCALE)),
  'handed out': stack(out=mean, after=lambda k, means, x: x * means[0, 0]),
  'weighed': stack(out=mean, after=lambda k, means, x: x * (means @ jnp.ones((7, 1))).sum()),
  'backwards': stack(layers=lambda k: {'up': k['up'][::-1], 'down': k['down']}),
  'read outside': stack(
    after=lambda k, means, x: x + jnp.einsum('lij,ljk->ik', k['up'], k['down']).sum()
  ),
  'twice': lambda w, x: stack()(w, x) + stack(inside=jnp.sin)(w, x),
}


@pytest.mark.parametrize('name', UNRANKED)
def test_channels_with_a_meaning_outside_of_their_layer_are_not_ranked(name):
  params, x = randomized(structs(PLAIN_STACK)), images(4, 3)
  graph = trace(UNRANKED[name], params, x)
  assert all(group.layers is None for group in graph.groups.values())
  for old, new in zip(
    jax.tree.leaves(params), jax.tree.leaves(rank_layers(graph, params)), strict=True
  ):
    np.testing.assert_array_equal(old, new)


def test_what_is_ranked_is_said_and_what_is_missing_too():
  params, x = randomized(structs(PLAIN_STACK)), images(4, 3)
  graph = trace(stack(), params, x)
  assert graph.groups['layers'].layers == 4
  assert 'layers     4, each with an order of its own' in str(graph)
  with pytest.raises(ValueError, match="have 'layers/up' of shape None; expected"):
    rank_layers(graph, {'in': params['in']})
  with pytest.raises(TypeError, match='the graph is a dict; expected'):
    rank_layers(params, params)
  assert all(g.layers is None for g in linen_graph(Recurrent(), images(*SMALL)).groups.values())
