"""shrink: the slim network is the masked network, for every model and mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtp_jax.graph import shrink, trace
from tests.graph.agreement import (
  all_but_one,
  assert_agreement,
  compiled,
  masked,
  one_left,
  random_masks,
)
from tests.graph.models import CASES, SMALL, images


@pytest.fixture(scope='module')
def traced():
  """Cases and their graphs, made once each."""
  made = {}

  def get(name):
    if name not in made:
      case = CASES[name]()
      made[name] = case, trace(case.fn, case.variables, *case.inputs, **case.eval)
    return made[name]

  return get


@pytest.mark.parametrize('name', CASES)
def test_groups_are_the_ones_expected(traced, name):
  case, graph = traced(name)
  assert set(graph.groups) == case.groups


@pytest.mark.parametrize('name', CASES)
def test_slim_is_masked_at_the_extremes(traced, name):
  case, graph = traced(name)
  reference = compiled(masked(graph), case.eval, grads=False)
  for masks in (one_left(graph), all_but_one(graph)):
    assert_agreement(graph, case.variables, case.inputs, case.eval, masks, False, reference)


@pytest.mark.parametrize('name', CASES)
def test_slim_is_masked_in_training_with_gradients_and_new_state(traced, name):
  case, graph = traced(name)
  kwargs = case.eval if case.train is None else case.train
  assert_agreement(graph, case.variables, case.inputs, kwargs, random_masks(graph, 1))
