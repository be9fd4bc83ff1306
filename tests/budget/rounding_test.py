"""round_to_budget: within the limit, maximal, exact, and the best of the ranking by brute force."""

import itertools
import math
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtp_jax.budget.rounding import round_to_budget
from dtp_jax.graph.cost import Polynomial

_NAMES = ('a', 'b', 'c')
_RANKS = st.one_of(
  st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, 2.0]), st.floats(-2, 2)
)
_COEFFICIENTS = st.one_of(st.integers(0, 30), st.integers(10**18, 2 * 10**18))


class Case(NamedTuple):
  ranking: dict
  cost: Polynomial
  limit: int
  floors: dict

  @property
  def sizes(self):
    return {name: len(z) for name, z in self.ranking.items()}

  def levels(self, name):
    """The counts that a group may keep."""
    size, m = len(self.ranking[name]), self.floors['multiple_of']
    allowed = sorted({*range(0, size, m), size}) if isinstance(m, int) else m[name]
    return [k for k in allowed if k >= min(self.floors['min_keep'], size)]

  def rounded(self):
    return round_to_budget(self.ranking, self.cost, self.limit, **self.floors)


@st.composite
def cases(draw, size=9, multiples=(1, 2, 4)):
  """A polynomial of degree <= 3 with a frozen part, a ranking with ties, and a budget that fits."""
  names = _NAMES[: draw(st.integers(1, 3))]
  ranking = {n: np.array(draw(st.lists(_RANKS, min_size=1, max_size=size))) for n in names}
  sizes = {name: len(z) for name, z in ranking.items()}
  monomials = [
    m for degree in range(4) for m in itertools.combinations_with_replacement(names, degree)
  ]
  terms = draw(st.dictionaries(st.sampled_from(monomials), _COEFFICIENTS, max_size=5))
  own = {g: sorted({0, n, *draw(st.sets(st.integers(0, n)))}) for g, n in sizes.items()}
  steps = multiples if len(multiples) == 1 else (*multiples, own)
  floors = {
    'min_keep': draw(st.integers(0, 3)),
    'multiple_of': draw(st.sampled_from(steps)),
  }
  case = Case(ranking, Polynomial(terms, sizes), 0, floors)
  least = case.cost.at({name: case.levels(name)[0] for name in names})
  return case._replace(limit=draw(st.integers(least, case.cost.total + 1)))


def _counts(masks):
  return {name: int(mask.sum()) for name, mask in masks.items()}


def _by_rank(z):
  """Indices from best to worst; Python's sort is stable, so ties go by index."""
  return sorted(range(len(z)), key=lambda i: math.inf if math.isnan(z[i]) else -z[i])


@settings(max_examples=200)
@given(cases())
def test_the_cost_is_within_the_limit_and_no_group_can_grow(case):
  counts = _counts(case.rounded())
  assert case.cost.at(counts) <= case.limit
  for name, count in counts.items():
    larger = [k for k in case.levels(name) if k > count]
    assert not larger or case.cost.at({**counts, name: larger[0]}) > case.limit


@settings(max_examples=200)
@given(cases())
def test_every_group_keeps_an_allowed_number_of_its_best(case):
  for name, mask in case.rounded().items():
    count = int(mask.sum())
    assert count in case.levels(name)
    assert set(np.flatnonzero(mask)) == set(_by_rank(case.ranking[name])[:count])


@settings(max_examples=200)
@given(cases(size=4, multiples=(1,)))
def test_the_choice_is_the_first_of_all_that_fit(case):
  """Brute force: of all sets that hold the floors and fit, the one the ranking prefers.

  The preferred set is the first in lexicographic order of the channels from best to worst: that is
  the longest prefix of the ranking, and after it each channel that still fits.
  """
  channels = [(name, i) for name, z in case.ranking.items() for i in range(len(z))]
  rank = _by_rank([case.ranking[name][i] for name, i in channels])
  channels = [channels[r] for r in rank]
  floor = {
    (name, i)
    for name, z in case.ranking.items()
    for i in _by_rank(z)[: case.levels(name)[0]]
  }  # fmt: skip

  def fits(chosen):
    kept = {name: sum(n == name for n, _ in chosen) for name in case.ranking}
    return floor <= chosen and case.cost.at(kept) <= case.limit

  for bits in itertools.product([True, False], repeat=len(channels)):
    chosen = set(itertools.compress(channels, bits))
    if fits(chosen):
      break
  found = {(name, i) for name, mask in case.rounded().items() for i in np.flatnonzero(mask)}
  assert found == chosen


@settings(max_examples=200)
@given(cases())
def test_no_longer_prefix_of_the_ranking_fits(case):
  """With multiples too: what is kept holds the longest prefix, rounded down, that fits."""
  owners = [name for name, z in case.ranking.items() for _ in z]
  rank = _by_rank(np.concatenate(list(case.ranking.values())))
  for k in range(len(rank), -1, -1):
    within = [owners[r] for r in rank[:k]]
    prefix = {
      name: max([j for j in case.levels(name) if j <= within.count(name)], default=0)
      for name in case.ranking
    }
    prefix = {name: max(j, case.levels(name)[0]) for name, j in prefix.items()}
    if case.cost.at(prefix) <= case.limit:
      break
  counts = _counts(case.rounded())
  assert all(counts[name] >= prefix[name] for name in prefix)


@settings(max_examples=200)
@given(cases(), st.integers(1, 10**18))
def test_a_larger_limit_never_costs_less(case, more):
  """True of the cost alone: a group may lose channels to another when the limit rises."""
  before = case.cost.at(_counts(case.rounded()))
  after = case.cost.at(_counts(case._replace(limit=case.limit + more).rounded()))
  assert after >= before


@given(cases())
def test_the_dense_cost_keeps_everything(case):
  masks = case._replace(limit=case.cost.total).rounded()
  assert _counts(masks) == case.sizes


@pytest.mark.parametrize('k', [1, 3, 9])
def test_costs_beyond_float64_are_exact(k):
  """At 10^36 a float64 is off by 10^19: it would see k channels and one unit less as one limit."""
  price = (10**18 + 1) ** 2
  cost = Polynomial({('a',): price, (): 7}, {'a': 10})
  ranking = {'a': np.arange(10.0)}
  exact, below = (round_to_budget(ranking, cost, k * price + 7 - d, min_keep=0) for d in (0, 1))
  assert float(k * price + 7) == float(k * price + 6)
  assert (exact['a'].sum(), below['a'].sum()) == (k, k - 1)


def test_a_channel_that_does_not_fit_lets_cheaper_ones_pass():
  cost = Polynomial({('dear',): 10, ('cheap',): 1}, {'dear': 2, 'cheap': 3})
  ranking = {'dear': np.array([9.0, 8.0]), 'cheap': np.array([3.0, 1.0, 2.0])}
  masks = round_to_budget(ranking, cost, 12)
  np.testing.assert_array_equal(masks['dear'], [True, False])
  np.testing.assert_array_equal(masks['cheap'], [True, False, True])


def test_ties_go_to_the_first_group_and_then_to_the_first_channel():
  cost = Polynomial({('a',): 1, ('b',): 1}, {'a': 3, 'b': 3})
  masks = round_to_budget({'b': np.zeros(3), 'a': np.zeros(3)}, cost, 4, min_keep=0)
  np.testing.assert_array_equal(masks['b'], [True, True, True])
  np.testing.assert_array_equal(masks['a'], [True, False, False])


def test_a_group_that_costs_nothing_is_kept_whole():
  cost = Polynomial({('a',): 1}, {'a': 4})
  masks = round_to_budget({'a': np.arange(4.0), 'free': np.full(3, -9.0)}, cost, 2)
  assert _counts(masks) == {'a': 2, 'free': 3}


@pytest.mark.parametrize(('multiple_of', 'limit', 'kept'), [(1, 199, 2), (2, 399, 4)])
def test_filling_once_adds_one_level_to_each_group_that_still_fits(multiple_of, limit, kept):
  cost = Polynomial({('dear',): 100, ('cheap',): 1}, {'dear': 4, 'cheap': 8})
  ranking = {'dear': np.full(4, 5.0), 'cheap': np.arange(8.0) - 9}
  once, full = (
    round_to_budget(ranking, cost, limit, multiple_of=multiple_of, fill_once=fill_once)
    for fill_once in (True, False)
  )
  assert _counts(once) == {'dear': multiple_of, 'cheap': kept}
  assert _counts(full) == {'dear': multiple_of, 'cheap': 8}


def test_floors_above_the_budget_are_refused_with_both_numbers():
  cost = Polynomial({('a', 'b'): 10, (): 5}, {'a': 4, 'b': 8})
  ranking = {'a': np.zeros(4), 'b': np.zeros(8)}
  with pytest.raises(ValueError, match=r'budget of 44 .* floor of 2 channels .* costs 45 of 325'):
    round_to_budget(ranking, cost, 44, min_keep=2)
  assert _counts(round_to_budget(ranking, cost, 45, min_keep=2)) == {'a': 2, 'b': 2}
  with pytest.raises(ValueError, match=r'budget of 164 .*\(multiples of 4\) costs 165 of 325'):
    round_to_budget(ranking, cost, 164, multiple_of=4)
