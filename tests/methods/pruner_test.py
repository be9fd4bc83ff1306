"""One way to prune, whatever was traced: init, prune, shrink; and options refused at once."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import dtp_jax as dtp
from tests.graph.agreement import QUICK
from tests.graph.models import is_struct, plain_mlp, randomized

X = jax.random.normal(jax.random.key(7), (4, 6))
STEPS = 3
PAPER = {'preset': 'paper'}


class _Linen(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.Dense(3)(nn.relu(nn.BatchNorm(use_running_average=True)(nn.Dense(8)(x))))


class _Nnx(nnx.Module):
  def __init__(self, rngs):
    self.hidden = nnx.Linear(6, 8, rngs=rngs)
    self.out = nnx.Linear(8, 3, rngs=rngs)

  def __call__(self, x):
    return self.out(nnx.relu(self.hidden(x)))


def _linen():
  variables = randomized(jax.eval_shape(_Linen().init, jax.random.key(0), X))
  return _Linen().apply, variables, variables


def _linen_params():
  fn, variables, _ = _linen()
  return fn, variables, variables['params']


def _nnx():
  graphdef, state = nnx.split(nnx.eval_shape(lambda: _Nnx(nnx.Rngs(0))))
  state = randomized(state)
  return lambda state, x: nnx.merge(graphdef, state)(x), state, state


def _equinox():
  import equinox as eqx

  net = lambda key: eqx.nn.MLP(6, 3, 8, 1, key=key)
  arrays, rest = eqx.partition(eqx.filter_eval_shape(net, jax.random.key(0)), is_struct)
  model = eqx.combine(randomized(arrays), rest)
  return lambda model, x: jax.vmap(model)(x), model, model


def _dict():
  def fn(params, x):
    return jax.nn.relu(x @ params['in']['w'] + params['in']['b'][None]) @ params['out']

  shapes = {'in': {'w': (6, 8), 'b': (8,)}, 'out': (8, 3)}
  params = randomized(_structs(shapes))
  return fn, params, params


def _tuple():
  params = randomized(_structs((((6, 8), (8,)), ((8, 3), (3,)))))
  return plain_mlp, params, params


def _structs(shapes):
  is_shape = lambda s: isinstance(s, tuple) and all(isinstance(n, int) for n in s)
  make = lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32)
  return jax.tree.map(make, shapes, is_leaf=is_shape)


@pytest.mark.parametrize(
  'make', [_linen, _linen_params, _nnx, _equinox, _dict, _tuple], ids=lambda f: f.__name__[1:]
)
def test_any_tree_is_pruned_as_it_was_traced(make):
  """The loop that the README shows, without a wrapper around anything."""
  fn, variables, params = make()
  graph = dtp.trace(fn, variables, X)
  pruner = dtp.transportation(graph, dtp.Budget(0.5, of='macs'), steps=STEPS)
  extra = pruner.init(params)
  whole = lambda params: {**variables, 'params': params} if make is _linen_params else params
  is_float = lambda leaf: hasattr(leaf, 'dtype') and jnp.issubdtype(leaf.dtype, jnp.floating)
  leaves, treedef = jax.tree.flatten(params)
  floats = [leaf for leaf in leaves if is_float(leaf)]

  def rebuilt(floats):
    given = iter(floats)
    return jax.tree.unflatten(treedef, [next(given) if is_float(x) else x for x in leaves])

  tx = pruner.optimizer(optax.sgd(0.01))
  opt_state = tx.init({'params': floats, 'scores': extra['scores']})

  @functools.partial(jax.jit, compiler_options=QUICK)
  def step(floats, extra, opt_state, t):
    def loss_fn(trained):
      pruned, transport = pruner.prune(
        rebuilt(trained['params']), {**extra, 'scores': trained['scores']}, t
      )
      return jnp.mean(fn(whole(pruned), X) ** 2), transport

    trained = {'params': floats, 'scores': extra['scores']}
    grads, transport = jax.grad(loss_fn, has_aux=True)(trained)
    updates, opt_state = tx.update(grads, opt_state, trained)
    trained = optax.apply_updates(trained, updates)
    extra = {'scores': trained['scores'], 'transport': transport}
    return trained['params'], extra, opt_state, grads

  for t in range(STEPS):
    floats, extra, opt_state, grads = step(floats, extra, opt_state, t)
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(grads))
    assert any(np.any(g) for g in jax.tree.leaves(grads['scores']))
    assert all(np.all(s >= 0) for s in jax.tree.leaves(extra['scores']))  # running means of squares
  params = rebuilt(floats)
  hard = pruner.harden(extra)
  account = pruner.resolved.account(hard)
  assert 0 < account.achieved <= account.requested == graph.macs.total // 2
  slim = pruner.shrink(whole(params), extra)
  masked = whole(pruner.apply_masks(params, hard))  # Equinox has functions among its leaves
  expected, found = jax.jit(lambda x: (fn(masked, x), slim.apply(slim.variables, x)))(X)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
  again = dtp.trace(slim.apply, slim.variables, X)
  assert again.macs.total == account.achieved


def test_a_step_may_be_given_all_it_carries_as_donated_arguments():
  """Scores and state start as arrays of their own: no buffer is given away twice."""
  fn, variables, params = _dict()
  pruner = dtp.transportation(dtp.trace(fn, variables, X), dtp.Budget(0.5), steps=STEPS)
  step = jax.jit(lambda params, extra: (pruner.prune(params, extra, 0)[0], extra), donate_argnums=1)
  extra = pruner.init(params)
  expected = pruner.prune(params, extra, 0)[0]
  jax.tree.map(np.testing.assert_allclose, step(params, extra)[0], expected)
  assert all(x.is_deleted() for x in jax.tree.leaves(extra))


def test_complex_channels_are_ranked_by_their_absolute_values():
  w = {'in': jnp.array([[3 + 4j, 1j, -2]]), 'out': jnp.ones((3, 1), jnp.complex64)}
  graph = dtp.trace(lambda w, x: jnp.abs(x @ w['in'] @ w['out']), w, jnp.ones((2, 1)))
  assert graph.params.total == 6
  found = dtp.channels(graph).magnitude(w)['in']
  np.testing.assert_allclose(found, np.array([5, 1, 2]) / np.mean([5, 1, 2]), rtol=1e-6)
  pruner = dtp.magnitude(graph, dtp.Budget(2))
  slim = pruner.shrink(w, pruner.init(w))
  np.testing.assert_array_equal(slim.variables['in'], w['in'][:, [0, 2]])


def test_single_weights_shrink_to_exact_zeros():
  _, params, _ = _dict()
  pruner = dtp.magnitude(dtp.weights(params), dtp.Budget(20))
  pruned = pruner.shrink(params, pruner.init(params))
  kernels = [pruned['in']['w'], pruned['out']]
  assert sum(int(np.count_nonzero(w)) for w in kernels) == 20
  np.testing.assert_array_equal(pruned['in']['b'], params['in']['b'])


def test_dtp_prunes_as_its_masks_and_state_say():
  """prune is masks and apply_masks, no more."""
  _, params, _ = _tuple()
  pruner = dtp.transportation(dtp.weights(params), dtp.Budget(0.3), steps=STEPS)
  extra = pruner.init(params)
  pruned, transport = pruner.prune(params, extra, 0)
  masks, following = pruner.masks(params, extra, 0)
  jax.tree.map(np.testing.assert_array_equal, pruned, pruner.apply_masks(params, masks))
  jax.tree.map(np.testing.assert_array_equal, transport, following)


@pytest.mark.parametrize('elements', ['channels', 'weights'])
@pytest.mark.parametrize(
  ('method', 'options', 'words'),
  [
    ('transportation', {**PAPER, 'epsilon': -1.0}, ['epsilon is -1.0', '> 0']),
    ('transportation', {**PAPER, 'projection': 'typo'}, ["'typo'", 'sinkhorn', 'exact']),
    ('transportation', {**PAPER, 'memory': 7.0}, ['memory is 7.0', '[0.0, 1.0]']),
    ('transportation', {**PAPER, 'share': 0.5}, ["no option 'share'", 'epsilon', 'memory']),
    ('transportation', {'share': 2.0}, ['share is 2.0', '[0, 1]']),
    ('transportation', {'decay': 1.0}, ['decay is 1.0', '[0, 1)']),
    ('transportation', {'epsilon': 1.0}, ["no option 'epsilon'", 'share', 'deadline']),
    ('fisher', {'wait': 1.0}, ['wait is 1.0']),
    ('transportation', {'preset': 'best'}, ['best', 'paper']),
    ('transportation', {'deadline': 0}, ['deadline is 0']),
    ('transportation', {'steps': 0}, ['steps is 0']),
    ('gradual_magnitude', {'steps': 0}, ['steps is 0']),
    ('gradual_magnitude', {'ramp': 1.5}, ['ramp is 1.5', '[0, 1]']),
    ('spartan', {'beta': (0.0, 2.0)}, ['beta is (0.0, 2.0)']),
    ('spartan', {'ramp': -0.1}, ['ramp is -0.1']),
    ('pdp', {'temperature': 0.0}, ['temperature is 0.0']),
  ],
)
def test_a_wrong_option_is_refused_where_it_is_given(elements, method, options, words):
  fn, params, _ = _tuple()
  elements = dtp.trace(fn, params, X) if elements == 'channels' else dtp.weights(params)
  with pytest.raises(ValueError) as error:
    getattr(dtp, method)(elements, dtp.Budget(0.5), **{'steps': STEPS, **options})
  assert all(word in str(error.value) for word in words), error.value


def test_steps_is_the_soft_stage_of_every_gradual_method():
  """The options that fix the end of a ramp are shares of it: twice the steps, the same path."""
  _, params, _ = _tuple()
  for name in ('gradual_magnitude', 'transportation', 'straight_through', 'pdp'):
    spent = []
    for steps in (20, 40):
      pruner = dtp.methods.build(name, dtp.weights(params), dtp.Budget(0.2), steps=steps)
      masks = jax.jit(pruner.masks, compiler_options=QUICK)
      found = [masks(params, pruner.init(params), t)[0] for t in (0, steps // 5, steps)]
      spent.append([sum(float(jnp.sum(m > 0.5)) for m in one.values()) for one in found])
    np.testing.assert_allclose(*spent, atol=3)


def test_norms_are_refitted_where_that_is_asked_for():
  def fn(w, x):
    h = x @ w['in']
    h = (h - jnp.mean(h, -1, keepdims=True)) / (jnp.std(h, -1, keepdims=True) + 1e-3)
    return jnp.tanh(h * w['scale']) @ w['out']

  rng = np.random.default_rng(3)
  w = {'in': (6, 8), 'scale': (8,), 'out': (8, 3)}
  w = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in w.items()}
  fn = lambda w, x, fn=fn: fn({**w, 'scale': w['scale'][None]}, x)
  pruner = dtp.magnitude(dtp.trace(fn, w, X), dtp.Budget(0.5))
  extra = pruner.init(w)
  exact, refit = (pruner.shrink(w, extra, norms=norms) for norms in ('exact', 'refit'))
  plain = jax.jit(fn, compiler_options=QUICK)(refit.variables, X)
  np.testing.assert_allclose(refit.apply(refit.variables, X), plain, rtol=1e-4, atol=1e-5)
  assert np.max(np.abs(exact.apply(exact.variables, X) - plain)) > 1e-2
  single = dtp.magnitude(dtp.weights(w), dtp.Budget(0.5))
  with pytest.raises(ValueError, match="norms is 'refit'; nothing is deleted"):
    single.shrink(w, single.init(w), norms='refit')
