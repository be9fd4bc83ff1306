"""AC/DC and RigL: what is dropped, kept and grown, and that what returns starts at 0."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dtp_jax as dtp
from dtp_jax import methods
from dtp_jax.methods.restarting import restarting, with_dense_gradient
from tests.graph.agreement import QUICK
from tests.graph.models import plain_mlp, randomized

RATE = 0.1


def _run(pruner, params, loss, steps, weights=None):
  """(params before, masks, params after, momentum after) of each step, and the last extra.

  The step is as the documentation has it: the masks go to the optimizer.
  """
  tx = pruner.optimizer(weights or optax.sgd(RATE, momentum=0.9))

  @functools.partial(jax.jit, compiler_options=QUICK)
  def step(trained, transport, state, t):
    def of(trained):
      extra = {'scores': trained['scores'], 'transport': transport}
      masks, after = pruner.masks(trained['params'], extra, t)
      return loss(pruner.apply_masks(trained['params'], masks)), (masks, after)

    grads, (masks, after) = jax.grad(of, has_aux=True)(trained)
    updates, state = tx.update(grads, state, trained, masks=masks)
    return optax.apply_updates(trained, updates), after, state, masks

  extra = pruner.init(params)
  trained, transport = {'params': params, 'scores': extra['scores']}, extra['transport']
  state, history = tx.init(trained), []
  for t in range(steps):
    before = trained['params']
    trained, transport, state, masks = step(trained, transport, state, t)
    trace = optax.tree.get(state, 'trace')
    momentum = None if trace is None else trace['params']
    history.append((before, masks, trained['params'], momentum))
  return history, {'scores': trained['scores'], 'transport': transport}


def _largest(w, k):
  return np.abs(w) >= np.sort(np.abs(w), axis=None)[-k]


# --- AC/DC


@pytest.fixture
def params():
  return {'w': jax.random.normal(jax.random.key(0), (6, 10))}


def _slope(masked):
  """A loss whose gradient is 1 everywhere."""
  return jnp.sum(masked['w'])


def test_the_phases_of_acdc_are_those_of_the_paper(params):
  """ImageNet, 100 epochs: pruned at 10, 20, ... 70 and 85, restored at 15, 25, ... 65 and 75."""
  pruner = methods.acdc(dtp.weights(params), dtp.Budget(6), steps=100)
  extra = pruner.init(params)
  masks = jax.jit(pruner.masks, compiler_options=QUICK)
  sparse = [float(jnp.mean(masks(params, extra, t)[0]['w'])) < 1 for t in range(100)]
  begins = [t for t in range(1, 100) if sparse[t] and not sparse[t - 1]]
  restored = [t for t in range(1, 100) if sparse[t - 1] and not sparse[t]]
  assert begins == [10, 20, 30, 40, 50, 60, 70, 85]
  assert restored == [15, 25, 35, 45, 55, 65, 75]


@pytest.mark.parametrize('steps', [1, 2, 3, 5, 16, 33])
@pytest.mark.parametrize('cycles', [1, 2, 8])
def test_acdc_ends_sparse_however_short_it_is(params, steps, cycles):
  pruner = methods.acdc(dtp.weights(params), dtp.Budget(6), steps=steps, cycles=cycles)
  masks, transport = pruner.masks(params, pruner.init(params), steps - 1)
  assert int(jnp.sum(masks['w'])) == 6
  np.testing.assert_array_equal(pruner.harden({'transport': transport})['w'], masks['w'] == 1)


def test_acdc_step_by_step(params):
  """Against NumPy: SGD with momentum, dense and sparse in turn, what is dropped at 0."""
  steps, k = 16, 6  # two cycles: dense to 4, sparse to 6, dense to 10, sparse from there
  pruner = methods.acdc(dtp.weights(params), dtp.Budget(k), steps=steps, cycles=2)
  history, extra = _run(pruner, params, _slope, steps)
  w, v, mask = np.asarray(params['w'], np.float64), np.zeros((6, 10)), np.ones((6, 10))
  for t, (_, masks, after, momentum) in enumerate(history):
    if t in (4, 10):
      mask = _largest(w, k)
    elif t == 6:
      mask = np.ones((6, 10))
      assert np.count_nonzero(w) == k  # the others start from 0
    np.testing.assert_array_equal(masks['w'], mask)
    v = mask * (mask + 0.9 * v)  # the gradient is the mask
    w = mask * (w - RATE * v)
    np.testing.assert_allclose(after['w'], w, atol=1e-5)
    np.testing.assert_allclose(momentum['w'], v, atol=1e-5)
    assert not np.any(after['w'][masks['w'] == 0])
  np.testing.assert_array_equal(pruner.harden(extra)['w'], history[-1][1]['w'] == 1)


# --- RigL


def _far(masked):
  """Gradients that differ: the slope of entry i is i."""
  return jnp.vdot(jnp.arange(60.0).reshape(6, 10), masked['w'])


def _coupled(masked):
  """The slopes of all entries change with each of them."""
  mixing = jax.random.normal(jax.random.key(5), (60, 60)) / 4
  return jnp.sum(jnp.sin(mixing @ masked['w'].ravel()))


def test_rigl_drops_the_smallest_and_grows_by_the_dense_gradient(params):
  steps, k, end = 20, 20, 15
  pruner = methods.rigl(dtp.weights(params), dtp.Budget(k), steps=steps, every=0.2, drop=1.0)
  history, extra = _run(pruner, params, _coupled, steps)
  masks = [np.asarray(masks['w'] == 1) for _, masks, _, _ in history]
  # The dense gradient of each step, from the weights that the loss saw.
  slopes = [
    np.asarray(jax.grad(_coupled)({'w': before['w'] * mask})['w'])
    for (before, _, _, _), mask in zip(history, masks, strict=True)
  ]
  np.testing.assert_array_equal(masks[0], _largest(params['w'], k))
  moved = []
  for t, (before, _, after, momentum) in enumerate(history):
    assert masks[t].sum() == k
    assert not np.any(after['w'][~masks[t]])
    assert not np.any(momentum['w'][~masks[t]])
    if t == 0 or np.array_equal(masks[t], masks[t - 1]):
      continue
    # Decided in step t - 1: by the weights it began with and the gradient of the step before it.
    moved.append(t - 1)
    number = int(0.5 * (1 + np.cos(np.pi * (t - 1) / end)) * k)
    sizes = np.where(masks[t - 1], np.abs(history[t - 1][0]['w']), np.inf)
    strong = masks[t - 1] & (sizes > np.sort(sizes, axis=None)[number - 1])
    growth = np.where(strong, -1.0, np.abs(slopes[t - 2]))
    grown = growth >= np.sort(growth, axis=None)[-number]
    np.testing.assert_array_equal(masks[t], strong | grown)
    new = masks[t] & ~masks[t - 1]
    assert not np.any(before['w'][new])  # they start at 0, and without momentum
    np.testing.assert_allclose(after['w'][new], -RATE * slopes[t][new], rtol=1e-3, atol=1e-6)
  assert {4, 8} <= set(moved) <= {4, 8, 12}
  np.testing.assert_array_equal(pruner.harden(extra)['w'], masks[-1])


def test_the_gradient_of_a_dropped_weight_is_seen_and_does_not_move_it(params):
  pruner = methods.rigl(dtp.weights(params), dtp.Budget(10), steps=20)
  history, extra = _run(pruner, params, _far, 1)
  np.testing.assert_allclose(extra['scores']['w'], np.arange(60.0).reshape(6, 10), rtol=1e-6)
  _, masks, after, _ = history[0]
  kept = np.asarray(masks['w'] == 1)
  expected = np.where(kept, params['w'] - RATE * np.arange(60.0).reshape(6, 10), 0)
  np.testing.assert_allclose(after['w'], expected, rtol=1e-5)


def test_rigl_grows_by_a_running_mean_where_that_is_asked_for(params):
  pruner = methods.rigl(dtp.weights(params), dtp.Budget(10), steps=20, decay=0.5)
  _, extra = _run(pruner, params, _far, 2)
  expected = 0.75 * np.arange(60.0).reshape(6, 10)
  np.testing.assert_allclose(extra['scores']['w'], expected, rtol=1e-6)


# --- Both


NAMES = ('acdc', 'rigl')
ELEMENTS = {
  'global': (dtp.weights, dtp.Budget(0.1)),
  'layer': (dtp.weights, dtp.Budget(0.1, scope='layer')),
  'erk': (dtp.weights, dtp.Budget(0.1, scope='erk')),
  'whole layer': (dtp.weights, dtp.Budget({'a': 1.0, '*': 0.1}, scope='layer')),
  'rows': (lambda p: dtp.nm(p, 4), dtp.Budget(0.5, scope='row')),
  'blocks': (lambda p: dtp.blocks(p, (4, 2)), dtp.Budget(0.25)),
}


@pytest.mark.parametrize('case', ELEMENTS)
@pytest.mark.parametrize('name', NAMES)
def test_masks_are_exact_for_every_scope(name, case):
  a, b = jax.random.split(jax.random.key(1))
  params = {'a': jax.random.normal(a, (8, 8)), 'b': jax.random.normal(b, (16, 10))}
  elements, budget = ELEMENTS[case]
  pruner = methods.build(name, elements(params), budget, steps=12)
  loss = lambda p: jnp.sum((p['a'] - 1) ** 2) + jnp.sum(jnp.sin(3 * p['b']))
  history, extra = _run(pruner, params, loss, 12, optax.adam(RATE))
  requested, total = pruner.resolved.requested, sum(pruner.elements.sizes.values())
  for _, masks, after, _ in history:
    count = sum(int(jnp.sum(m)) for m in masks.values())
    assert count == requested or (name == 'acdc' and count == total)
    masked = pruner.apply_masks(after, masks)
    jax.tree.map(np.testing.assert_array_equal, masked, after)
  hard = pruner.harden(extra)
  assert sum(int(np.count_nonzero(m)) for m in hard.values()) == requested
  jax.tree.map(lambda m, h: np.testing.assert_array_equal(m == 1, h), history[-1][1], hard)
  if case == 'rows':
    assert all(np.all(m.sum(-1) == 2) for m in hard.values())


def test_rigl_moves_blocks_and_rows_too():
  params = {'w': jax.random.normal(jax.random.key(2), (16, 16))}
  for elements, budget in (ELEMENTS['rows'], ELEMENTS['blocks']):
    pruner = methods.rigl(elements(params), budget, steps=12, drop=1.0)
    history, _ = _run(pruner, params, lambda p: jnp.sum((p['w'] - 1) ** 2), 12)
    assert np.any(history[0][1]['w'] != history[-1][1]['w'])


@pytest.mark.parametrize('name', NAMES)
def test_channels_are_refused_with_what_to_take(name):
  struct = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
  params = randomized(((struct(6, 8), struct(8)), (struct(8, 3), struct(3))))
  graph = dtp.trace(plain_mlp, params, jnp.ones((2, 6)))
  for elements in (graph, dtp.channels(graph)):
    with pytest.raises(ValueError, match=rf'{name} is given channels.*dtp_jax.weights.*greg'):
      methods.build(name, elements, dtp.Budget(0.5, of='macs'), steps=4)


@pytest.mark.parametrize(
  ('name', 'options', 'words'),
  [
    ('acdc', {'cycles': 0}, ['cycles is 0', '>= 1']),
    ('acdc', {'cycles': 2.5}, ['cycles is 2.5']),
    ('acdc', {'steps': 0}, ['steps is 0']),
    ('rigl', {'steps': 0}, ['steps is 0']),
    ('rigl', {'drop': 1.5}, ['drop is 1.5', '[0, 1]']),
    ('rigl', {'every': 0.0}, ['every is 0.0', '(0, 1]']),
    ('rigl', {'until': 2.0}, ['until is 2.0', '(0, 1]']),
    ('rigl', {'decay': 1.0}, ['decay is 1.0', '[0, 1)']),
  ],
)
def test_a_wrong_option_is_refused(params, name, options, words):
  with pytest.raises(ValueError) as error:
    methods.build(name, dtp.weights(params), dtp.Budget(6), **{'steps': 4, **options})
  assert all(word in str(error.value) for word in words), error.value


# --- The optimizer


@pytest.mark.parametrize(
  'weights',
  [
    optax.sgd(RATE, momentum=0.9, nesterov=True),
    optax.adamw(optax.cosine_decay_schedule(RATE, 10), weight_decay=0.1),
    optax.chain(
      optax.add_decayed_weights(0.1, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)),
      optax.clip_by_global_norm(1.0),
      optax.sgd(RATE, momentum=0.9),
    ),
  ],
  ids=['nesterov', 'adamw', 'chain'],
)
def test_an_optimizer_forgets_what_is_dropped_and_nothing_else(weights):
  params = {'w': jax.random.normal(jax.random.key(3), (3, 4)), 'b': jnp.ones(4)}
  elements = dtp.weights(params)
  masks = {'w': jnp.asarray(np.arange(12).reshape(3, 4) % 3 == 0, jnp.float32)}
  grads = jax.tree.map(jnp.cos, params)
  tx = restarting(weights, elements.apply_masks)
  state = plain = weights.init(params)
  for _ in range(2):
    updates, state = tx.update(grads, state, params, masks=masks)
    expected, plain = weights.update(grads, plain, params)
    dropped = np.asarray(masks['w'] == 0)
    after = optax.apply_updates(params, updates)
    assert not np.any(after['w'][dropped])
    np.testing.assert_array_equal(updates['w'][~dropped], expected['w'][~dropped])
    np.testing.assert_array_equal(updates['b'], expected['b'])
  assert jax.tree.structure(state) == jax.tree.structure(plain)
  moments = 0
  for ours, theirs in zip(jax.tree.leaves(state), jax.tree.leaves(plain), strict=True):
    if np.shape(ours) == (3, 4):
      moments += 1
      assert not np.any(ours[dropped])
      assert np.all(theirs[dropped] != 0)
      np.testing.assert_array_equal(ours[~dropped], theirs[~dropped])
    else:
      np.testing.assert_array_equal(ours, theirs)
  assert moments >= 1


@pytest.mark.parametrize('name', NAMES)
def test_an_optimizer_without_masks_is_refused_with_the_line_that_mends_it(params, name):
  pruner = methods.build(name, dtp.weights(params), dtp.Budget(6), steps=4)
  tx = pruner.optimizer(optax.sgd(RATE))
  trained = {'params': params, 'scores': pruner.init(params)['scores']}
  with pytest.raises(ValueError, match=r'masks is missing.*masks=masks'):
    tx.update(trained, tx.init(trained), trained)


def test_masks_have_the_gradient_of_their_weights_and_multiply_as_ever(params):
  """Of the weights in a tree with other leaves, and for a mask of rows too."""
  tree = {'a': {'w': params['w'].reshape(4, 15)}, 'bias': jnp.ones(3)}
  for plain in (dtp.weights(tree), dtp.nm(tree, 4)):
    dense = with_dense_gradient(plain)
    masks = {k: jnp.round(jnp.abs(jnp.sin(jnp.ones(s).cumsum().reshape(s))))
             for k, s in plain.shapes.items()}  # fmt: skip
    outcome, pull_back = jax.vjp(dense.apply_masks, tree, masks)
    jax.tree.map(np.testing.assert_array_equal, outcome, plain.apply_masks(tree, masks))
    slopes = jax.tree.map(lambda x: jnp.cos(7 * x), outcome)
    of_tree, of_masks = pull_back(slopes)
    expected = {**slopes, 'a': plain.apply_masks({'a': slopes['a']}, masks)['a']}
    jax.tree.map(np.testing.assert_array_equal, of_tree, expected)
    # The magnitude of a tree is |w| by element: of slopes, the size of the gradient of each.
    found = jax.tree.map(jnp.abs, of_masks)
    jax.tree.map(np.testing.assert_array_equal, found, plain.magnitude(slopes))
