"""The traced rounding keeps what the host's keeps, to the last channel."""

import functools
from typing import NamedTuple

import jax
import numpy as np
import pytest

from dtp_jax.budget import rounding, rounding_traced
from dtp_jax.budget.latency.cost import Curve, LatencyCost, Term
from dtp_jax.budget.problem import CostProblem
from dtp_jax.graph.cost import Polynomial


class Network(NamedTuple):
  cost: Polynomial
  sizes: dict
  floors: dict


def _chain(sizes, coefficients, frozen=0, **floors):
  """A network whose operators each read one group and write the next, of other group sizes."""
  named = {f'g{i}': n for i, n in enumerate(sizes)}
  names = list(named)
  pairs = zip(names, names[1:], coefficients, strict=False)
  terms = {tuple(sorted((a, b))): c for a, b, c in pairs} | {(names[0], names[0]): 3, (): frozen}
  return Network(Polynomial(terms, named), named, {'min_keep': 1, 'multiple_of': 1, **floors})


_SIZES = np.random.default_rng(0).choice([64, 128, 256, 512, 1024, 2048], 24).tolist()
_MACS = (np.random.default_rng(1).choice([1, 9, 49], 24) * 7**2 * 4**4).tolist()
_FREE = Polynomial({('a', 'b'): 6, ('out',): 2, ('a', 'a', 'b'): 1}, {'a': 5, 'b': 7, 'out': 4})
NETWORKS = {
  'small': _chain([3, 5, 4], [7, 2], frozen=11),
  'no_floor': _chain([6, 2, 9], [1, 30], min_keep=0),
  'multiples': _chain([9, 8, 13, 5], [4, 1, 6], multiple_of=4, min_keep=3),
  'own_widths': _chain(
    [5, 9, 4], [3, 8], multiple_of={'g0': (0, 2, 5), 'g1': (0, 9), 'g2': (0, 1, 4)}
  ),
  'resnet50_size': _chain(_SIZES, _MACS, frozen=10**7),
  'huge': _chain([40, 70, 30], [10**18 + 1, 10**18 + 7], frozen=2**61),
  'one_that_costs_nothing_and_one_not_pruned': Network(
    _FREE, {'a': 5, 'free': 3, 'b': 7}, {'min_keep': 1, 'multiple_of': 1}
  ),
}


def _rankings(n, rng):
  """Draws and ties, infinities, NaN and zeros of both signs."""
  few = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-38, 1.0], np.float32)
  drawn = rng.normal(size=n).astype(np.float32)
  return [drawn, rng.choice(few, n), np.where(rng.random(n) < 0.3, rng.choice(few, n), drawn)]


def _split(flat, sizes):
  return dict(zip(sizes, np.split(flat, np.cumsum(list(sizes.values()))[:-1]), strict=True))


def _least(network):
  widths = rounding.Widths.of(network.sizes, **network.floors)
  counts = {name: widths.above(name, widths.min_keep) for name in network.sizes}
  return network.cost.at(counts)


@pytest.mark.parametrize('name', NETWORKS)
def test_it_keeps_what_the_host_keeps(name):
  network = NETWORKS[name]
  cost, sizes, floors = network
  least, n, rng = _least(network), sum(sizes.values()), np.random.default_rng(0)
  assert name != 'resnet50_size' or cost.total > 2**32
  traced = jax.jit(
    lambda z, limit: rounding_traced.round_to_budget(z, cost, limit, sizes, floors=floors)
  )
  shares = [0.0, 1e-6, 1.0, *rng.random(6)]
  limits = [*(least + int(s * (cost.total - least)) for s in shares), cost.total + 1]
  for limit in limits:
    for ranking in _rankings(n, rng):
      expected = rounding.round_to_budget(_split(ranking, sizes), cost, limit, **floors)
      found = traced(ranking, rounding_traced.as_limbs(limit, cost))
      np.testing.assert_array_equal(found, np.concatenate(list(expected.values())))


@pytest.mark.parametrize('name', ['small', 'resnet50_size', 'huge'])
def test_limits_of_a_ramp_are_those_of_the_host(name):
  cost = NETWORKS[name].cost
  keeps = np.float32([0.0, 1e-9, 1e-3, 0.1, 1 / 3, 0.5, 0.7, 1 - 2**-24, 1.0, 1.5])
  limbs = jax.jit(jax.vmap(functools.partial(rounding_traced.limit_at, cost)))(keeps)
  for keep, found in zip(keeps, np.asarray(limbs).tolist(), strict=True):
    expected = rounding.limit_at(cost, keep)
    assert sum(digit << (12 * i) for i, digit in enumerate(found)) == expected
    assert 0 <= min(float(keep), 1) - expected / cost.total <= 2**-23 + 1 / cost.total


def test_an_array_of_the_problem_is_rounded_alike_in_and_out_of_jit():
  network = NETWORKS['resnet50_size']
  limit = int(0.3 * network.cost.total)
  problem = CostProblem(network.sizes, network.cost, limit, **network.floors)
  ranking = np.random.default_rng(0).normal(size=problem.size).astype(np.float32)
  traced = jax.jit(problem.hard)
  for keep in (1.0, 0.8, 0.4, problem.keep + 1e-7, problem.keep):
    found = traced(ranking, keep)
    np.testing.assert_array_equal(found, problem.hard(ranking, keep))
  kept = {name: int(mask.sum()) for name, mask in problem.scatter(np.asarray(found)).items()}
  assert network.cost.at(kept) <= limit
  assert 'callback' not in str(jax.make_jaxpr(problem.hard)(ranking, 0.5))


def test_a_measured_cost_stays_within_its_limit_and_close_to_it():
  """Its curves are no polynomial: evaluated in float32, with a margin."""
  rng = np.random.default_rng(0)
  sizes = {'a': 40, 'b': 60, 'c': 50}
  count = {name: Polynomial.count(name, n) for name, n in sizes.items()}
  terms = []
  for first, second in (('a', 'b'), ('b', 'c'), ('c', 'a')):
    knots = tuple((1, sizes[g] // 3, sizes[g] // 2, sizes[g]) for g in (first, second))
    measured = np.outer(knots[0], knots[1]) * 10**4 + rng.integers(0, 10**4, (4, 4))
    terms.append(Term(Curve(knots, measured), (count[first], count[second])))
  cost, floors = LatencyCost(terms, sizes), {'min_keep': 1, 'multiple_of': 1}
  traced = jax.jit(
    lambda z, limit: rounding_traced.round_to_budget(z, cost, limit, sizes, floors=floors)
  )
  for share in (0.1, 0.3, 0.5, 0.9, 1.0):
    limit = int(share * cost.total)
    ranking = rng.normal(size=150).astype(np.float32)
    masks = _split(np.asarray(traced(ranking, rounding_traced.as_limbs(limit, cost))), sizes)
    counts = {name: int(mask.sum()) for name, mask in masks.items()}
    assert cost.at(counts) <= limit
    for name, size in sizes.items():
      if counts[name] < size:
        assert cost.at({**counts, name: counts[name] + 1}) > limit * (1 - 3e-5)
