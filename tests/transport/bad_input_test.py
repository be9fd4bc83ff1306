"""Bad arguments raise before tracing, naming the argument, its value and what is allowed."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtp_jax import transport

_GOOD = {'keep': 0.5, 'epsilon': 1.0}


def _soft(s, **bad):
  return transport.soft_topk(s, **{**_GOOD, **bad})


def _step(s, **bad):
  return transport.proximal_step(s, bad.pop('state', jnp.zeros(3)), **{**_GOOD, **bad})


_VALUES = [
  ('keep', -0.1, 'expected a number in [0.0, 1.0]'),
  ('keep', 1.5, 'expected a number in [0.0, 1.0]'),
  ('keep', np.nan, 'expected a number in [0.0, 1.0]'),
  ('epsilon', 0.0, 'expected a finite number > 0'),
  ('epsilon', -1.0, 'expected a finite number > 0'),
  ('epsilon', np.nan, 'expected a finite number > 0'),
  ('epsilon', np.inf, 'expected a finite number > 0'),
]
_STEP_VALUES = [
  ('memory', 1.01, 'expected a number in [0.0, 1.0]'),
  ('memory', np.nan, 'expected a number in [0.0, 1.0]'),
  ('ceiling', -1e-3, 'expected a number in [0.0, 1.0]'),
  ('projection', 'newton', "expected 'sinkhorn' or 'exact'"),
]
_VALUE_CASES = [(_soft, *case) for case in _VALUES] + [
  (_step, *case) for case in _VALUES + _STEP_VALUES
]


@pytest.mark.parametrize('wrap', [lambda f: f, jax.jit], ids=['eager', 'in jit'])
@pytest.mark.parametrize(('function', 'name', 'value', 'allowed'), _VALUE_CASES)
def test_a_bad_value_is_named(wrap, function, name, value, allowed):
  said = re.escape(f'{name} is {value!r}; {allowed}')
  with pytest.raises(ValueError, match=said):
    wrap(lambda s: function(s, **{name: value}))(jnp.ones(3))


_WEIGHTS = {
  'smallest value -1.0': [1.0, -1.0, 1.0],
  'sums from 0.0 to 0.0': [0.0, 0.0, 0.0],
  'smallest value nan': [1.0, np.nan, 1.0],
  'sums from inf to inf': [1.0, np.inf, 1.0],
  'shape (2,); expected (3,)': [1.0, 1.0],
  'shape (); expected (3,)': 1.0,
}


@pytest.mark.parametrize('wrap', [lambda f: f, jax.jit], ids=['eager', 'in jit'])
@pytest.mark.parametrize('function', [_soft, _step])
@pytest.mark.parametrize('said', _WEIGHTS)
def test_bad_weights_are_named(wrap, function, said):
  with pytest.raises(ValueError, match=rf'^weights has .*{re.escape(said)}'):
    wrap(lambda s: function(s, weights=np.array(_WEIGHTS[said])))(jnp.ones(3))


_SCORE_FUNCTIONS = {
  'soft_topk': _soft,
  'init': transport.init,
  'hard_topk': lambda s: transport.hard_topk(s, k=0),
  'proximal_step': _step,
}


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
def test_empty_and_integer_scores_are_refused(function, scores, said):
  with pytest.raises(ValueError, match=re.escape(said)):
    function(scores)


@pytest.mark.parametrize('function', [transport.sinkhorn_step, transport.project])
def test_log_odds_are_checked_by_their_name(function):
  with pytest.raises(ValueError, match='log_odds has dtype int32; expected floats'):
    function(np.arange(3), keep=0.5)
  with pytest.raises(ValueError, match=r'keep is 2; expected a number in \[0.0, 1.0\]'):
    function(np.ones(3, np.float32), keep=2)


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


def test_the_state_has_the_shape_of_the_scores():
  with pytest.raises(ValueError, match=r'^state has shape \(2,\); expected .* \(3,\)'):
    _step(jnp.ones(3), state=jnp.zeros(2))


def test_deadline_gain_names_the_ceiling():
  with pytest.raises(ValueError, match=r'^ceiling is 1.5; expected a number in \[0.0, 1.0\]'):
    transport.deadline_gain(jnp.ones(3), keep=0.5, ceiling=1.5)
