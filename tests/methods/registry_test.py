"""Methods by name: one line from outside makes a function a method."""

import sys

import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

import dtp_jax as dtp
from dtp_jax import methods
from tests.train.conftest import tiny_config


@pytest.fixture
def module(tmp_path, monkeypatch):
  """A user's module with a method of their own, importable as `my_method`."""
  (tmp_path / 'my_method.py').write_text('''
import jax.numpy as jnp
import dtp_jax as dtp
from dtp_jax import methods


@dtp.register
def by_index(elements, budget, *, steps, last=False):
  """Keeps the first elements, or the last."""

  def start(magnitudes):
    sign = 1.0 if last else -1.0
    ranking = lambda x: sign * jnp.arange(x.size, dtype=jnp.float32).reshape(x.shape)
    return {}, {name: ranking(x) for name, x in magnitudes.items()}

  def rule(problem, now):
    return problem.hard(now.state, now.keep).astype(now.state.dtype), now.state

  return methods.bundle(
    elements, budget, start=start, rule=rule, ramp=methods.cubic(steps, 0.5, initial=1.0)
  )
''')
  monkeypatch.syspath_prepend(tmp_path)
  yield 'my_method'
  sys.modules.pop('my_method', None)
  methods.METHODS.pop('by_index', None)


def test_a_method_from_outside_is_built_by_name(module):
  __import__(module)
  params = {'w': jnp.ones((4, 5))}
  pruner = methods.build('by_index', dtp.weights(params), dtp.Budget(3), steps=4, last=True)
  pruned = pruner.shrink(params, pruner.init(params))
  np.testing.assert_array_equal(np.flatnonzero(pruned['w']), [17, 18, 19])
  assert not methods.one_shot('by_index')
  assert methods.options_of('by_index') == {'last': False}


def test_a_method_from_outside_trains_by_config(module, tmp_path):
  """config.imports names its module; the recipe knows its stages and its options."""
  from dtp_jax.data import load
  from dtp_jax.train.recipe import build

  config = tiny_config()
  with config.unlocked():
    config.imports = (module,)
  config.method = 'by_index'
  config.methods = ml_collections.ConfigDict({'by_index': {'last': True}})
  recipe, _ = build(config, load(config.data))
  assert recipe.stages.soft > 0
  name = next(iter(recipe.pruner.elements.shapes))
  assert recipe.pruner.init(_zeros(recipe))['transport'][name].ravel()[-1] > 0


def _zeros(recipe):
  tree: dict = {}
  for name, shape in recipe.pruner.elements.shapes.items():
    *branches, last = name.split('/')
    place = tree
    for branch in branches:
      place = place.setdefault(branch, {})
    place[last] = jnp.zeros(shape)
  return tree


@pytest.mark.parametrize(
  ('make', 'words'),
  [
    (lambda p: methods.build('magnitud', p, dtp.Budget(3), steps=1), ['magnitud', 'spartan']),
    (lambda p: methods.build('pdp', p, dtp.Budget(3), steps=1, tau=1), ["'tau'", 'temperature']),
    (lambda p: methods.build('magnitude', p, dtp.Budget(3), steps=1, ramp=1), ["'ramp'", '[]']),
    (lambda p: methods.one_shot('nothing'), ['nothing']),
  ],
)
def test_unknown_names_and_options_are_refused(make, words):
  with pytest.raises(ValueError) as error:
    make(dtp.weights({'w': jnp.ones((4, 5))}))
  assert all(word in str(error.value) for word in words), error.value


def test_two_methods_cannot_share_a_name():
  def magnitude(elements, budget):
    del elements, budget

  with pytest.raises(ValueError, match=r"'magnitude' already.*rename yours"):
    dtp.register(magnitude)
  assert methods.METHODS['magnitude'] is methods.magnitude


def test_the_ones_without_a_soft_stage_are_known():
  assert {m for m in methods.METHODS if methods.one_shot(m)} == {'dense', 'magnitude', 'random'}
