"""What cannot be pruned is named with its share and the primitive that froze it."""

import re

import jax
import jax.numpy as jnp
import pytest

import dtp_jax as dtp
from dtp_jax.budget import resolve
from dtp_jax.graph.floor import floor_in_words, frozen_costs


def net(w, x):
  """Two layers that can be pruned, and one of which a sort sees every channel."""
  x = jnp.tanh(x @ w['first']) @ w['second']
  x = jnp.sort(x @ w['sorted'], axis=-1)
  return x @ w['head']


SIZES = {'first': (4, 10), 'second': (10, 6), 'sorted': (6, 20), 'head': (20, 3)}


@pytest.fixture(scope='module')
def graph():
  w = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in SIZES.items()}
  return dtp.trace(net, w, jnp.ones((2, 4)))


def test_the_parts_are_those_of_layers_without_a_group(graph):
  assert set(graph.groups) == {'first', 'second'}
  for unit, cost in (('macs', graph.macs), ('params', graph.params)):
    parts = frozen_costs(graph, unit)
    assert [(p.name, p.amount) for p in parts] == [('head', 20 * 3)]
    assert sum(p.amount for p in parts) == cost.at({'first': 0, 'second': 0})
    assert parts[0].reason.startswith('sort')


@pytest.mark.parametrize('unit', ['macs', 'params'])
def test_the_error_says_what_the_floor_is_made_of(graph, unit):
  total, floor = 40 + 60 + 120 + 60, 60 + 4 + 1 + 20
  with pytest.raises(ValueError, match='cannot be met') as error:
    resolve(dtp.Budget(floor - 1, of=unit), dtp.channels(graph))
  said = str(error.value)
  assert f'costs {floor} of {total}' in said
  share = f'{100 * 60 / total:.1f} %'
  assert re.search(rf'{share} of the \w+ cannot be pruned: head by sort.* \({share}\)', said), said
  resolve(dtp.Budget(floor, of=unit), dtp.channels(graph))


def test_groups_that_are_excluded_belong_to_the_floor(graph):
  elements = dtp.channels(graph, exclude=('second',))
  with pytest.raises(ValueError, match=r'excluded groups \(42\.9 %\)') as error:
    resolve(dtp.Budget(0.1, of='macs'), elements)
  assert '64.3 % of the MACs cannot be pruned' in str(error.value)


def test_of_a_network_without_a_frozen_layer_nothing_is_said():
  w = {'in': jnp.ones((3, 8)), 'out': jnp.ones((8, 2))}
  graph = dtp.trace(lambda w, x: jnp.tanh(x @ w['in']) @ w['out'], w, jnp.ones((2, 3)))
  assert floor_in_words(graph, 'macs', graph.groups) == ''
  assert floor_in_words(graph, 'ns', graph.groups) == ''
