"""Wrong arguments of the library: budgets, methods, graphs, elements, transport, configs."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

import dtp_jax as dtp
from dtp_jax import transport
from dtp_jax.budget import resolve
from dtp_jax.data import load
from dtp_jax.train import recipe
from tests.bad_input.table import Case, assert_refused
from tests.train.conftest import tiny_config

W = {'in': jnp.ones((3, 8)), 'out': jnp.ones((8, 2))}
X = jnp.ones((2, 3))
WIDER = {'in': jnp.ones((3, 9)), 'out': jnp.ones((9, 2))}
START = {name: {'in': jnp.zeros(8)} for name in ('scores', 'transport')}
HALF = dtp.Budget(0.5)


def mlp(w, x):
  return jnp.tanh(x @ w['in']) @ w['out']


@functools.cache
def graph():
  return dtp.trace(mlp, W, X)


@functools.cache
def pruner():
  return dtp.transportation(graph(), HALF, steps=3)


def channels(**budget):
  return resolve(dtp.Budget(**budget), dtp.channels(graph()))


ALL_GROUPS = ("['in']",)
BUDGETS = {
  'a number in quotes': Case(
    lambda _: dtp.Budget('0.4'), ValueError, ("'0.4'", 'fraction (float)')
  ),
  'percent': Case(lambda _: dtp.Budget(40.0), ValueError, ('40.0', '[0, 1]')),
  'negative': Case(lambda _: dtp.Budget(-3), ValueError, ('-3', 'count >= 0')),
  'not a number': Case(lambda _: dtp.Budget(float('nan')), ValueError, ('nan', '[0, 1]')),
  'none': Case(lambda _: dtp.Budget(None), ValueError, ('None', 'count (int)')),
  'a flag': Case(lambda _: dtp.Budget(True), ValueError, ('True', 'fraction (float)')),
  'ratios of the whole': Case(
    lambda _: dtp.Budget({'*': 0.5}), ValueError, ("'global'", "'layer'")
  ),
  'ratios above 1': Case(
    lambda _: dtp.Budget({'*': 2.0}, scope='layer'), ValueError, ('2.0', '[0, 1]')
  ),
  'misspelt scope': Case(
    lambda _: dtp.Budget(0.4, scope='glob'), ValueError, ("'glob'", "'layer'")
  ),
  'a unit that is none': Case(lambda _: dtp.Budget(0.4, of=3), ValueError, ('of is 3', "'macs'")),
  'misspelt unit': Case(
    lambda _: channels(keep=0.4, of='flops'), ValueError, ("'flops'", "'macs'")
  ),
  'more than there is': Case(lambda _: channels(keep=9), ValueError, ('9', '8 there are')),
  'below the floor': Case(
    lambda _: channels(keep=4, of='macs'), ValueError, ('budget of 4', '5 of 40', 'min_keep')
  ),
  'a scope of weights': Case(
    lambda _: channels(keep=0.4, scope='erk'), ValueError, ("'erk'", "'global'")
  ),
  'a floor in quotes': Case(
    lambda _: dtp.Budget(0.4, min_keep='1'), ValueError, ("min_keep is '1'", 'integers >= 0')
  ),
  'half a channel': Case(
    lambda _: dtp.Budget(0.4, min_keep=1.5), ValueError, ('min_keep is 1.5', 'integers >= 0')
  ),
  'a multiple of 2.5': Case(
    lambda _: dtp.Budget(0.4, multiple_of=2.5), ValueError, ('multiple_of 2.5', "'auto'")
  ),
  'a pattern of nothing': Case(
    lambda _: channels(keep={'conv*': 0.5}, scope='layer'), ValueError, ("'conv*'", *ALL_GROUPS)
  ),
  'rows of no whole number': Case(
    lambda _: resolve(dtp.Budget(0.3, scope='row'), dtp.nm(W, 2, exclude=('in',))),
    ValueError,
    ('0.3', '2:4'),
  ),
  'ratios in words': Case(
    lambda _: dtp.Budget({'*': 'half'}, scope='layer'), ValueError, ("'half'", '[0, 1]')
  ),
  'no elements': Case(lambda _: resolve(HALF, W), TypeError, ("{'in'", 'dtp_jax.trace')),
}

METHODS = {
  'a number for a budget': Case(
    lambda _: dtp.transportation(graph(), 0.5, steps=3),
    TypeError,
    ('0.5', "Budget(0.4, of='macs')"),
  ),
  'variables for a graph': Case(
    lambda _: dtp.transportation(W, HALF, steps=3), TypeError, ("{'in'", 'dtp_jax.trace')
  ),
  'no step': Case(
    lambda _: dtp.transportation(graph(), HALF, steps=0), ValueError, ('steps is 0', 'at least 1')
  ),
  'steps in quotes': Case(
    lambda _: dtp.spartan(graph(), HALF, steps='9'), ValueError, ("steps is '9'", 'an integer')
  ),
  'half a step': Case(
    lambda _: dtp.pdp(graph(), HALF, steps=2.5), ValueError, ('steps is 2.5', 'an integer')
  ),
  'one beta': Case(
    lambda _: dtp.spartan(graph(), HALF, steps=3, beta=2.0), ValueError, ('2.0', 'two numbers')
  ),
  'a ramp that is too long': Case(
    lambda _: dtp.greg(graph(), HALF, steps=3, ramp=1.5), ValueError, ('1.5', '[0, 1]')
  ),
  'misspelt preset': Case(
    lambda _: dtp.transportation(graph(), HALF, steps=3, preset='papre'),
    ValueError,
    ("'papre'", "'paper'"),
  ),
  'misspelt option': Case(
    lambda _: dtp.transportation(graph(), HALF, steps=3, shrae=0.5),
    ValueError,
    ("'shrae'", "'share'"),
  ),
  'a softness below 0': Case(
    lambda _: dtp.transportation(graph(), HALF, steps=3, preset='paper', epsilon=-1.0),
    ValueError,
    ('epsilon is -1.0', '> 0'),
  ),
  'parameters of another network': Case(
    lambda _: pruner().init({'a': jnp.ones(3)}), ValueError, ("'in'", 'the traced variables')
  ),
  'half of the parameters': Case(
    lambda _: pruner().apply_masks({'in': W['in']}, {'in': jnp.ones(8)}),
    ValueError,
    ("'out'", 'the traced variables'),
  ),
  'no collections': Case(
    lambda _: pruner().prune(W, {}, 0), ValueError, ("'transport'", 'Pruner.init')
  ),
  'a step in words': Case(
    lambda _: pruner().prune(W, START, 'a'), ValueError, ("step is 'a'", '0, 1, ...')
  ),
  'a step that is no number': Case(
    lambda _: pruner().prune(W, START, float('nan')), ValueError, ('step is nan', 'a number')
  ),
  'a step before the first': Case(
    lambda _: pruner().prune(W, START, -1), ValueError, ('step is -1', '0, 1, ...')
  ),
  'steps in an array': Case(
    lambda _: pruner().prune(W, START, jnp.arange(2)), ValueError, ('[0, 1]', 'a number')
  ),
  'collections of another network': Case(
    lambda _: pruner().harden({'transport': {'a': jnp.ones(3)}}), ValueError, ("['a']", "['in']")
  ),
  'a share in words': Case(
    lambda _: dtp.transportation(graph(), HALF, steps=3, share='half'),
    ValueError,
    ("share is 'half'", '[0, 1]'),
  ),
  'a deadline in words': Case(
    lambda _: dtp.transportation(graph(), HALF, steps=3, deadline='end'),
    ValueError,
    ("deadline is 'end'", '(0, 1]'),
  ),
  'a decay of nothing': Case(
    lambda _: dtp.fisher(graph(), HALF, steps=3, decay=None),
    ValueError,
    ('decay is None', '[0, 1)'),
  ),
  'a ramp of nothing': Case(
    lambda _: dtp.pdp(graph(), HALF, steps=3, ramp=None), ValueError, ('ramp is None', '[0, 1]')
  ),
  'presets in a list': Case(
    lambda _: dtp.transportation(graph(), HALF, steps=3, preset=['paper']),
    ValueError,
    ("['paper']", "'default'"),
  ),
  'parameters of another width': Case(
    lambda _: pruner().init(WIDER), ValueError, ("'in' of shape (3, 9)", 'expected (3, 8)')
  ),
  'masks on another width': Case(
    lambda _: pruner().apply_masks(WIDER, {'in': jnp.ones(8)}),
    ValueError,
    ('(9, 2)', 'expected (8, 2)'),
  ),
  'scores of another width': Case(
    lambda _: pruner().prune(W, {**START, 'scores': {'in': jnp.ones(7)}}, 0),
    ValueError,
    ("'scores'", "'in' has shape (7,)", '(8,)'),
  ),
  'collections of two networks': Case(
    lambda _: pruner().harden({'transport': {'in': jnp.ones((2, 8))}}),
    ValueError,
    ('(2, 8)', '(8,)', 'jax.vmap'),
  ),
  'a ranking that diverged': Case(
    lambda _: pruner().harden({'transport': {'in': jnp.full(8, jnp.nan)}}),
    ValueError,
    ("['in'] is NaN", 'an earlier step'),
  ),
  'a rate for an optimizer': Case(
    lambda _: pruner().optimizer(1e-3), TypeError, ('weights is 0.001', 'optax.adam(1e-3)')
  ),
  'no function registered': Case(
    lambda _: dtp.register('mine'), TypeError, ("'mine'", '(elements, budget)')
  ),
  'two optimizers of the scores': Case(
    lambda _: pruner().optimizer(None, lambda x: x), ValueError, ('scores is given', 'leave it out')
  ),
}

GRAPHS = {
  'no function': Case(lambda _: dtp.trace(3, W, X), TypeError, ('fn is 3', 'model.apply')),
  'a name for the variables': Case(
    lambda _: dtp.trace(mlp, 'params.npz', X), ValueError, ('without arrays', 'first argument')
  ),
  'no inputs': Case(
    lambda _: dtp.trace(mlp, W), TypeError, ("argument: 'x'", 'inputs none', 'Call it once')
  ),
  'variables that lack one': Case(
    lambda _: dtp.trace(mlp, {'in': W['in']}, X), KeyError, ("'out'", 'in [3, 8]', 'Call it once')
  ),
  'variables of other shapes': Case(
    lambda _: dtp.trace(mlp, {**W, 'in': jnp.ones((4, 8))}, X),
    TypeError,
    ('(4,)', 'in [4, 8]', 'float32[2, 3]'),
  ),
  'no graph': Case(lambda _: dtp.shrink(W, W, {}), TypeError, ('is a dict', 'dtp_jax.trace')),
  'masks in a list': Case(
    lambda _: dtp.shrink(graph(), W, [1, 0]), TypeError, ('are a list', '{group: mask}')
  ),
  'a soft mask': Case(
    lambda _: dtp.shrink(graph(), W, {'in': np.full(8, np.nan)}), ValueError, ('nan', 'harden it')
  ),
  'a mask that is too short': Case(
    lambda _: dtp.shrink(graph(), W, {'in': np.ones(7)}), ValueError, ('(7,)', '(8,)')
  ),
  'misspelt group': Case(
    lambda _: dtp.shrink(graph(), W, {'inn': np.ones(8)}), ValueError, ("'inn'", "mean 'in'")
  ),
  'other variables': Case(
    lambda _: dtp.shrink(graph(), {'in': W['in']}, {}), ValueError, ("'out'", '(8, 2)')
  ),
  'misspelt norms': Case(
    lambda _: dtp.shrink(graph(), W, {}, norms='refitted'), ValueError, ("'refitted'", "'refit'")
  ),
  'a floor in words': Case(
    lambda _: dtp.shrink(graph(), W, {}, min_keep='1'), ValueError, ("min_keep is '1'", '>= 0')
  ),
  'a floor below 0': Case(
    lambda _: dtp.shrink(graph(), W, {}, min_keep=-1), ValueError, ('min_keep is -1', '>= 0')
  ),
  'no graph to time': Case(
    lambda _: dtp.LatencyTable.measure(W), TypeError, ('is a dict', 'dtp_jax.trace')
  ),
  'counts out of range': Case(
    lambda _: graph().macs.at({'in': 9}), ValueError, ('cannot keep 9', '[0, 8]')
  ),
}

ELEMENTS = {
  'no graph': Case(lambda _: dtp.channels(W), TypeError, ('is a dict', 'dtp_jax.trace')),
  'misspelt importance': Case(
    lambda _: dtp.channels(graph(), importance='l3'), ValueError, ("'l3'", "'l2'")
  ),
  'no scale': Case(
    lambda _: dtp.channels(graph(), importance='bn'), ValueError, ("'in'", "'l1' or 'l2'")
  ),
  'nothing left': Case(
    lambda _: dtp.channels(graph(), exclude=('*',)), ValueError, ('no channel group', 'frozen')
  ),
  'no kernel': Case(
    lambda _: dtp.weights({'bias': jnp.ones(3)}), ValueError, ("['bias']", 'at least 2 axes')
  ),
  'a pattern without a tuple': Case(
    lambda _: dtp.weights(W, exclude='in'), ValueError, ("'in'", "('in',)")
  ),
  'no patterns': Case(
    lambda _: dtp.weights(W, exclude=None), ValueError, ('exclude is None', '() for none')
  ),
  'a number for a pattern': Case(
    lambda _: dtp.weights(W, exclude=(3,)), ValueError, ('(3,)', 'a tuple of patterns')
  ),
  'a group that does not divide': Case(
    lambda _: dtp.nm(W, 5), ValueError, ('in has', '(3, 8)', 'exclude')
  ),
  'a group in quotes': Case(lambda _: dtp.nm(W, '4'), ValueError, ("m is '4'", 'at least 2')),
  'a block with one side': Case(
    lambda _: dtp.blocks(W, (4,)), ValueError, ('(4,)', '(height, width)')
  ),
  'a block of nothing': Case(
    lambda _: dtp.blocks(W, (0, 2)), ValueError, ('(0, 2)', 'at least (1, 1)')
  ),
}


def soft(scores=(0.1, 0.2, 0.3), keep=0.5, epsilon=1.0, **rest):
  return lambda _: transport.soft_topk(
    scores if isinstance(scores, str) else jnp.asarray(scores), keep=keep, epsilon=epsilon, **rest
  )


# Values out of range, under weights and costs, eager and in jit: tests/transport/bad_input_test.py.
TRANSPORT = {
  'words for scores': Case(soft('abc'), ValueError, ("scores is 'abc'", 'floats')),
  'whole numbers': Case(soft((1, 2, 3)), ValueError, ('int32', 'floats')),
  'no scores': Case(soft(()), ValueError, ('(0,)', 'at least 1')),
  'keep in words': Case(soft(keep='half'), ValueError, ("keep is 'half'", 'numbers')),
  'keep of nothing': Case(soft(keep=None), ValueError, ('keep is None', 'numbers')),
  'keep that is no number': Case(soft(keep=float('nan')), ValueError, ('nan', '[0.0, 1.0]')),
  'epsilon in words': Case(soft(epsilon='small'), ValueError, ("'small'", 'numbers')),
  'weights in words': Case(soft(weights='abc'), ValueError, ("'abc'", 'numbers')),
  'no state': Case(
    lambda _: transport.proximal_step(jnp.ones(3), None, keep=0.5, epsilon=1.0),
    ValueError,
    ('state is None', 'floats'),
  ),
  'a state of another shape': Case(
    lambda _: transport.anneal(jnp.ones(3), jnp.zeros(2), keep=0.5, ceiling=0.1),
    ValueError,
    ('(2,)', '(3,)'),
  ),
  'more than all': Case(
    lambda _: transport.hard_topk(jnp.ones(3), k=4), ValueError, ('k is 4', '[0, 3]')
  ),
}


def config(**changes):
  """A config of single weights, or with `granularity` of others, that `build` refuses."""
  fields = {name.replace('__', '.'): value for name, value in changes.items()}

  def call(_):
    changed = tiny_config()
    changed.update_from_flattened_dict(fields)
    data = load(changed.data) if any(name.startswith('data.') for name in fields) else digits()
    recipe.build(changed, data)

  return call


@functools.cache
def digits():
  return load({'name': 'mnist_mini'})


def misspell(_):
  tiny_config().prune.kep = 0.2


def retype(_):
  tiny_config().prune.keep = 'a tenth'


def drop(_):
  less = tiny_config()
  with less.unlocked():
    del less.optimizer['warmup']
  recipe.build(less, digits())


CHANNELS = {'prune__granularity': 'channels'}
CONFIGS = {
  'unknown field': Case(misspell, AttributeError, ('"kep"', 'Did you mean "keep"')),
  'another type': Case(retype, TypeError, ("'keep'", 'a tenth', 'float')),
  'a missing field': Case(drop, ValueError, ("'optimizer.warmup'", 'configs/default.py')),
  'no image in a batch': Case(config(data__batch_size=0), ValueError, ('batch_size is 0', '>= 1')),
  'no image in evaluation': Case(
    config(data__eval_batch_size=0), ValueError, ('eval_batch_size is 0', '>= 1')
  ),
  'a crop below 0': Case(config(data__crop_padding=-1), ValueError, ('crop_padding is -1', '>= 0')),
  'a seed below 0': Case(config(seed=-1), ValueError, ('seed is -1', '[0, 4294967295]')),
  'a stage below 0': Case(config(stages__dense=-1.0), ValueError, ('stages.dense is -1.0', '>= 0')),
  'a stage that is no number': Case(
    config(stages__soft=float('nan')), ValueError, ('stages.soft is nan', 'finite')
  ),
  'a rate without end': Case(
    config(optimizer__learning_rate=float('inf')), ValueError, ('learning_rate is inf', 'finite')
  ),
  'a rate below 0': Case(
    config(optimizer__prune_learning_rate=-0.1), ValueError, ('prune_learning_rate is -0.1', '>= 0')
  ),
  'a warm-up beyond the end': Case(
    config(optimizer__warmup=2.0), ValueError, ('warmup is 2.0', '[0, 1]')
  ),
  'a momentum above 1': Case(
    config(optimizer__momentum=1.5), ValueError, ('momentum is 1.5', '[0, 1]')
  ),
  'smoothing above 1': Case(
    config(optimizer__label_smoothing=2.0), ValueError, ('label_smoothing is 2.0', '[0, 1]')
  ),
  'a norm below 0': Case(
    config(optimizer__clip_norm=-1.0), ValueError, ('clip_norm is -1.0', '> 0')
  ),
  'rates that fall backwards': Case(
    config(optimizer__schedule='steps', optimizer__steps=(0.9, 0.1)),
    ValueError,
    ('(0.9, 0.1)', 'rising fractions'),
  ),
  'never logged': Case(config(log_every=0), ValueError, ('log_every is 0', '>= 1')),
  'no part of a batch': Case(config(accumulate=0), ValueError, ('accumulate is 0', '>= 1')),
  'misspelt method': Case(
    config(method='transportatoin'), ValueError, ("'transportatoin'", "'transportation'")
  ),
  'misspelt granularity': Case(
    config(prune__granularity='wieghts'), ValueError, ("'wieghts'", "'weights'")
  ),
  'misspelt optimizer': Case(
    config(optimizer__name='sdg'), ValueError, ("optimizer.name is 'sdg'", "'sgd'")
  ),
  'misspelt schedule': Case(
    config(optimizer__schedule='cosin'), ValueError, ("'cosin'", "'cosine'")
  ),
  'misspelt network': Case(
    config(model__name='leenet'), ValueError, ("model.name is 'leenet'", "'lenet'")
  ),
  'a layer of no channel': Case(
    config(model__features=(0, 4)), ValueError, ('model.features is (0, 4)', '>= 1')
  ),
  'a stage of no step': Case(
    config(data__batch_size=10**6), ValueError, ('stages.dense is', '4,000 examples', '1,000,000')
  ),
  'a field of another network': Case(
    config(model__depth=8), ValueError, ('model.depth', "'features'")
  ),
  'misspelt data': Case(config(data__name='mnits'), ValueError, ("'mnits'", "mean 'mnist'")),
  'more held out than there is': Case(
    config(data__validation=4000), ValueError, ('data.validation is 4000', '[1, 4000)')
  ),
  'an unknown type': Case(config(dtype='float8'), ValueError, ("'float8'", "'bfloat16'")),
  'no such module': Case(
    config(imports=('my_mehtods',)), ImportError, ("'my_mehtods'", 'PYTHONPATH')
  ),
  'no such latency table': Case(
    config(prune__of='gone.json', **CHANNELS), FileNotFoundError, ("'gone.json'", '.save(')
  ),
  'more weights than there are': Case(
    config(prune__count=10**9), ValueError, ('1000000000', 'at most the 2010')
  ),
  'channels that cannot be so few': Case(
    config(prune__count=1, prune__of='macs', **CHANNELS),
    ValueError,
    ('budget of 1 cannot', 'Raise the budget'),
  ),
  'a pattern of no layer': Case(
    config(prune__exclude=('conv9/*',)), ValueError, ("'conv9/*'", "'conv1/kernel'")
  ),
  'a multiple in words': Case(
    config(prune__multiple_of='eight', **CHANNELS), ValueError, ("'eight'", "'auto'")
  ),
  'a block with one side': Case(
    config(prune__granularity='blocks', prune__block=(4,)), ValueError, ('(4,)', '(height, width)')
  ),
  'no devices along an axis': Case(config(mesh__model=0), ValueError, ("'model': 0", 'sizes >= 1')),
}

CASES = {
  f'{kind}: {name}': case
  for kind, cases in {
    'budget': BUDGETS,
    'method': METHODS,
    'graph': GRAPHS,
    'elements': ELEMENTS,
    'transport': TRANSPORT,
    'config': CONFIGS,
  }.items()
  for name, case in cases.items()
}


@pytest.mark.parametrize('name', CASES)
def test_a_wrong_argument_is_named_with_what_is_expected(name, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert_refused(CASES[name], tmp_path)
