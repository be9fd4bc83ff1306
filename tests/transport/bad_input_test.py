"""Bad arguments raise before tracing, naming the argument, its value and what is allowed."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtp_jax import transport


def _share(mask):
  return jnp.mean(mask) ** 2


_GOOD = {'keep': 0.5, 'epsilon': 1.0}
# Either way of counting: masses, or a cost with its degree where an iteration needs it.
_FAMILIES = pytest.mark.parametrize('cost', [None, _share], ids=['weights', 'cost'])
_WRAPS = pytest.mark.parametrize('wrap', [lambda f: f, jax.jit], ids=['eager', 'in jit'])


def _soft(s, **bad):
  return transport.soft_topk(s, **{**_GOOD, **bad})


def _step(s, **bad):
  degree = {'degree': 2} if bad.get('cost') else {}
  return transport.proximal_step(s, bad.pop('state', jnp.zeros(3)), **{**_GOOD, **degree, **bad})


def _shift(s, *, cost=None, **bad):
  return transport.sinkhorn_step(s, **{'keep': 0.5, 'cost': cost, 'degree': cost and 2, **bad})


def _project(s, **bad):
  return transport.project(s, **{'keep': 0.5, **bad})


def _gain(s, **bad):
  return transport.deadline_gain(s, **{'keep': 0.5, 'ceiling': 0.5, **bad})


_KEEPS = [('keep', value, 'expected a number in [0.0, 1.0]') for value in (-0.1, 1.5, 2, np.nan)]
_EPSILONS = [
  ('epsilon', value, 'expected a finite number > 0') for value in (0.0, -1.0, np.nan, np.inf)
]
_CEILINGS = [
  ('ceiling', value, 'expected a number in [0.0, 1.0]') for value in (-1e-3, 1.5, np.nan)
]
_STEP_VALUES = [
  ('memory', 1.01, 'expected a number in [0.0, 1.0]'),
  ('memory', 7.0, 'expected a number in [0.0, 1.0]'),
  ('memory', np.nan, 'expected a number in [0.0, 1.0]'),
  ('projection', 'newton', "expected 'sinkhorn' or 'exact'"),
  ('projection', 'typo', "expected 'sinkhorn' or 'exact'"),
]
_VALUES = {
  _soft: _KEEPS + _EPSILONS,
  _step: _KEEPS + _EPSILONS + _CEILINGS + _STEP_VALUES,
  _shift: _KEEPS,
  _project: _KEEPS,
  _gain: _KEEPS + _CEILINGS,
}
_VALUE_CASES = [(function, *case) for function, cases in _VALUES.items() for case in cases]


@_WRAPS
@_FAMILIES
@pytest.mark.parametrize(('function', 'name', 'value', 'allowed'), _VALUE_CASES)
def test_a_bad_value_is_named(wrap, cost, function, name, value, allowed):
  said = re.escape(f'{name} is {value!r}; {allowed}')
  with pytest.raises(ValueError, match=said):
    wrap(lambda s: function(s, cost=cost, **{name: value}))(jnp.ones(3))


_WEIGHTS = {
  'smallest value -1.0': [1.0, -1.0, 1.0],
  'sums from 0.0 to 0.0': [0.0, 0.0, 0.0],
  'smallest value nan': [1.0, np.nan, 1.0],
  'sums from inf to inf': [1.0, np.inf, 1.0],
  'shape (2,); expected (3,)': [1.0, 1.0],
  'shape (); expected (3,)': 1.0,
}


@_WRAPS
@pytest.mark.parametrize('function', _VALUES)
@pytest.mark.parametrize('said', _WEIGHTS)
def test_bad_weights_are_named(wrap, function, said):
  with pytest.raises(ValueError, match=rf'^weights has .*{re.escape(said)}'):
    wrap(lambda s: function(s, weights=np.array(_WEIGHTS[said])))(jnp.ones(3))


_COSTS = {
  'weights and cost are both given': {'cost': _share, 'weights': np.ones(3)},
  'cost is 0.5; expected a function': {'cost': 0.5},
  'cost is [0.5]; expected a function': {'cost': [0.5]},
}


@_WRAPS
@pytest.mark.parametrize('function', _VALUES)
@pytest.mark.parametrize('said', _COSTS)
def test_a_bad_cost_is_named(wrap, function, said):
  with pytest.raises(ValueError, match=f'^{re.escape(said)}'):
    wrap(lambda s: function(s, **_COSTS[said]))(jnp.ones(3))


@pytest.mark.parametrize('function', _VALUES)
def test_a_cost_is_a_scalar(function):
  with pytest.raises(ValueError, match=r'^cost gives shape \(3,\) .* expected a scalar'):
    function(jnp.ones(3), cost=jnp.square)


@pytest.mark.parametrize('function', _VALUES)
def test_a_cost_has_one_problem(function):
  state = {'state': jnp.zeros((2, 3))} if function is _step else {}
  with pytest.raises(ValueError, match=r'has shape \(2, 3\); expected one problem .* jax.vmap'):
    function(jnp.ones((2, 3)), cost=_share, **state)


@pytest.mark.parametrize('function', [_shift, _step])
@pytest.mark.parametrize('degree', [None, 0, -2, 1.5, True, '2'])
def test_an_iteration_under_a_cost_asks_for_its_degree(function, degree):
  said = re.escape(f'degree is {degree!r}; expected an integer >= 1')
  with pytest.raises(ValueError, match=f'^{said}'):
    function(jnp.ones(3), cost=_share, degree=degree)


@pytest.mark.parametrize('function', [_shift, _step])
def test_a_degree_without_a_cost_is_refused(function):
  with pytest.raises(ValueError, match=r'^degree is 2 without a cost'):
    function(jnp.ones(3), degree=2)


def test_the_exact_projection_needs_no_degree():
  mask, _ = _step(jnp.arange(3.0), cost=_share, degree=None, projection='exact')
  np.testing.assert_allclose(_share(mask), 0.5, rtol=1e-5)


_SCORE_FUNCTIONS = {
  'soft_topk': _soft,
  'init': lambda s, **_: transport.init(s),
  'hard_topk': lambda s, **_: transport.hard_topk(s, k=0),
  'proximal_step': _step,
}


@_FAMILIES
@pytest.mark.parametrize('function', _SCORE_FUNCTIONS.values(), ids=_SCORE_FUNCTIONS)
@pytest.mark.parametrize(
  ('scores', 'said'),
  [
    (np.ones((2, 0), np.float32), 'scores has shape (2, 0); expected (..., n) with at least 1'),
    (np.float32(1), 'scores has shape (); expected (..., n)'),
    (np.arange(3), 'scores has dtype int32; expected floats'),
    (np.ones(3, bool), 'scores has dtype bool; expected floats'),
  ],
)
def test_empty_and_integer_scores_are_refused(cost, function, scores, said):
  with pytest.raises(ValueError, match=re.escape(said)):
    function(scores, cost=cost)


@_FAMILIES
@pytest.mark.parametrize('function', [_shift, _project, _gain])
def test_log_odds_are_checked_by_their_name(cost, function):
  with pytest.raises(ValueError, match='log_odds has dtype int32; expected floats'):
    function(np.arange(3), cost=cost)


@pytest.mark.parametrize('k', [-1, 4, 1.0, True, np.float32(2)])
def test_a_count_is_an_integer_from_0_to_n(k):
  with pytest.raises(ValueError, match=rf'^k is {k}.*expected'):
    transport.hard_topk(jnp.ones(3), k=k)


def test_a_traced_count_must_be_an_integer():
  with pytest.raises(ValueError, match=r'^k is .*float32; expected an integer'):
    jax.jit(lambda k: transport.hard_topk(jnp.ones(3), k=k))(1.0)


def test_values_of_a_batch_have_the_batch_shape():
  with pytest.raises(ValueError, match=r'^keep has shape \(3,\); expected a scalar or .* \(2,\)'):
    transport.soft_topk(jnp.ones((2, 3)), keep=jnp.full(3, 0.5), epsilon=1.0)


@_FAMILIES
def test_the_state_has_the_shape_of_the_scores(cost):
  with pytest.raises(ValueError, match=r'^state has shape \(2,\); expected .* \(3,\)'):
    _step(jnp.ones(3), state=jnp.zeros(2), cost=cost)
