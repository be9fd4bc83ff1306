"""Latency tables: interpolated exactly, rising whatever was measured, a unit of budgets."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads
from scipy.interpolate import RegularGridInterpolator

from dtp_jax import methods, prunable
from dtp_jax.budget import Budget
from dtp_jax.budget.latency.cost import Curve, LatencyCost, Term
from dtp_jax.budget.latency.measure import grid, resizable, time_calls
from dtp_jax.budget.latency.table import LatencyTable
from dtp_jax.graph import trace
from dtp_jax.graph.cost import Polynomial, add

_SIZES = {'a': 12, 'b': 9, 'c': 5}


def _count(name):
  return Polynomial.count(name, _SIZES[name])


def _curve(knots, seed=0, noise=0):
  """Rising over its widths, at 1 us and 200 ns per unit of the product, and disturbed."""
  product = 1
  for axis in np.meshgrid(*knots, indexing='ij'):
    product = product * axis
  noises = np.random.default_rng(seed).integers(-noise, noise + 1, tuple(map(len, knots)))
  return Curve(knots, np.maximum(1000 + 200 * product + noises, 0))


def _cost(noise=0):
  """A constant, one width, two, three, one group in two widths, a concatenation."""
  a, b, c = map(_count, _SIZES)
  terms = [
    Term(Curve((), np.asarray(700)), ()),
    Term(_curve(((1, 6, 12),), 1, noise), (a,)),
    Term(_curve(((1, 3, 6, 12), (1, 4, 9)), 2, noise), (a, b)),
    Term(_curve(((1, 12), (1, 9), (1, 5)), 3, noise), (a, b, c)),
    Term(_curve(((1, 7, 14), (1, 5)), 4, noise), (add([b, c]), c)),
    Term(_curve(((1, 5, 25),), 5, noise), (c * c,)),
  ]
  return LatencyCost(terms, _SIZES)


def _expected(cost, kept):
  """The sum from scipy's interpolation on the same grids, at real counts."""
  value = 0.0
  for term in cost.terms:
    if not term.widths:
      value += term.curve.full
      continue
    widths = [
      sum(n * np.prod([kept[g] for g in names]) for names, n in w.terms.items())
      for w in term.widths
    ]
    value += RegularGridInterpolator(term.curve.grid, term.curve.values.astype(float))(widths)[0]
  return value


def _masks(counts):
  return {name: jnp.arange(_SIZES[name]) < n for name, n in counts.items()}


_NOISY = _cost(noise=300)
_SHARE = jax.jit(_NOISY.fraction)
_SLOPES = jax.jit(jax.grad(_NOISY.fraction))
_COUNTS = st.fixed_dictionaries({name: st.integers(0, n) for name, n in _SIZES.items()})


@given(_COUNTS)
def test_exact_interpolation_is_that_of_scipy_rounded_up(counts):
  cost = _cost()
  expected = _expected(cost, counts)
  assert expected - 1e-6 <= cost.at(counts) < expected + 1 + 1e-6


@given(_COUNTS)
def test_soft_interpolation_is_that_of_scipy(counts):
  cost = _NOISY
  masks = {name: jnp.full(n, 0.999 * counts[name] / n + 5e-4) for name, n in _SIZES.items()}
  kept = {name: float(np.sum(np.asarray(m, np.float64))) for name, m in masks.items()}
  np.testing.assert_allclose(_SHARE(masks) * cost.total, _expected(cost, kept), rtol=2e-5)


@given(_COUNTS)
def test_soft_and_exact_cost_agree_at_whole_channels(counts):
  nanoseconds = float(_SHARE(_masks(counts))) * _NOISY.total
  np.testing.assert_allclose(nanoseconds, _NOISY.at(counts), rtol=1e-6, atol=1.01)


def test_at_the_knots_the_table_speaks():
  curve = _curve(((1, 3, 6, 12), (1, 4, 9)))
  cost = LatencyCost([Term(curve, (_count('a'), _count('b')))], _SIZES)
  for i, a in enumerate((1, 3, 6, 12)):
    for j, b in enumerate((1, 4, 9)):
      assert cost.at({'a': a, 'b': b}) == curve.measured[i, j]
  assert cost.total == curve.measured[-1, -1]
  assert cost.at({'a': 0}) == 0
  assert LatencyCost([Term(Curve((), np.asarray(7)), ())], _SIZES).total == 7


@given(st.lists(st.integers(0, 10**6), min_size=24, max_size=24))
def test_curves_rise_whatever_was_measured(measured):
  measured = np.asarray(measured).reshape(2, 4, 3)
  curve = Curve(((1, 2), (1, 3, 6, 12), (1, 4, 9)), measured)
  inside = curve.values[1:, 1:, 1:]
  for axis in range(3):
    assert np.all(np.diff(inside, axis=axis) >= 1)
  assert inside.min() >= max(measured.min() - 6, 1)  # 6: the steps of 1 ns along the grid
  assert inside.max() <= measured.max() + 7


def test_a_slow_width_does_not_make_wider_ones_dear():
  """A kernel that takes ten times as long at one width says nothing about the next."""
  curve = Curve(((8, 16, 24, 32, 40),), np.asarray([100, 140, 1400, 180, 200]))
  np.testing.assert_array_less(curve.values[1:], [101, 141, 226, 226, 226])
  assert curve.at((24,), curve.unsmoothed) == (1400 * 8, 8)


@given(st.lists(st.integers(1, 1000), min_size=12, max_size=12))
def test_curves_that_rise_are_left_alone(rises):
  measured = np.cumsum(np.cumsum(np.asarray(rises).reshape(4, 3), 0), 1)
  curve = Curve(((1, 3, 6, 12), (1, 4, 9)), measured)
  np.testing.assert_array_equal(curve.values, np.pad(measured, [(1, 0), (1, 0)]))


@given(_COUNTS, st.integers(0, 10**6))
def test_costs_rise_with_every_count_under_noise(counts, seed):
  terms = [
    Term(_curve(((1, 3, 6, 12), (1, 4, 9)), seed, 3000), (_count('a'), _count('b'))),
    Term(_curve(((1, 7, 14),), seed + 1, 3000), (add([_count('b'), _count('c')]),)),
  ]
  cost = LatencyCost(terms, _SIZES)
  for name, size in _SIZES.items():
    exact = [cost.at({**counts, name: n}) for n in range(size + 1)]
    assert exact == sorted(exact)


@given(_COUNTS)
def test_soft_costs_rise_with_every_mask(counts):
  slopes = _SLOPES({name: mask.astype(jnp.float32) for name, mask in _masks(counts).items()})
  assert all(np.all(np.asarray(slope) >= -1e-7) for slope in slopes.values())


def test_gradients_match_finite_differences(x64):
  cost = _cost(noise=300)
  masks = {name: jnp.linspace(0.3, 0.9, n) for name, n in _SIZES.items()}
  check_grads(jax.jit(cost.fraction), (masks,), order=1, eps=1e-5)


def test_the_degree_bounds_the_elasticity():
  cost = _cost(noise=2000)
  scale = jnp.linspace(0.02, 1, 197)
  share = lambda s: cost.fraction({name: jnp.full(n, s) for name, n in _SIZES.items()})
  value, slope = jax.jit(jax.vmap(jax.value_and_grad(share)))(scale)
  assert np.all(scale * slope / value <= cost.degree + 1e-4)
  proportional = Term(Curve(((1, 12), (1, 9)), np.asarray([[10, 90], [120, 1080]])), ())
  widths = (_count('a'), _count('b'))
  assert LatencyCost([proportional._replace(widths=widths)], _SIZES).degree == 2
  steep = Curve(((1, 11, 12),), np.asarray([1, 100, 400]))
  assert LatencyCost([Term(steep, (_count('a'),))], _SIZES).degree == 33  # from 100 to 400 at 11


def test_masks_that_are_absent_or_odd():
  cost = _cost()
  assert cost.fraction({}) == 1
  assert cost.fraction({'elsewhere': jnp.zeros(3)}) == 1
  np.testing.assert_allclose(cost.fraction({'a': jnp.ones(12, jnp.bfloat16)}), 1, rtol=1e-6)
  with pytest.raises(ValueError, match=r"'a' has shape \(5,\); expected \(12,\)"):
    cost.fraction({'a': jnp.ones(5)})
  for count in (13, -1, 1.5):
    with pytest.raises(ValueError, match=r"'a' cannot keep .* \[0, 12\]"):
      cost.at({'a': count})


def test_grids():
  assert grid((64, 10), 5) == ((1, 16, 32, 48, 64), (1, 2, 5, 8, 10))
  assert grid((2,), 5) == ((1, 2),)
  assert grid((30,), 3) == ((1, 4, 8, 11, 15, 19, 22, 26, 30),)
  assert grid((), 5) == ()
  assert grid((64, 64, 64), 5) == ((1, 32, 64),) * 3
  assert grid((8,) * 6, 5) == ((1, 8),) * 6
  # of tiles of 8
  assert grid((96, 10), 5, 8) == ((1, 24, 48, 72, 96), (1, 2, 5, 8, 10))
  assert grid((24, 72), 5, 8) == ((1, 8, 16, 24), (1, 16, 32, 56, 72))
  assert grid((64,), 5, 8) == ((1, 8, 16, 24, 32, 40, 48, 56, 64),)


def test_an_operator_that_no_group_changes_has_a_time():
  """A product whose width something froze."""

  def net(w, x):
    return jnp.tanh(jnp.sort(x @ w['fixed'])[..., :1] @ w['in']) @ w['out']

  weights = {'fixed': jnp.ones((5, 6)), 'in': jnp.ones((1, 4)), 'out': jnp.ones((4, 3))}
  table = LatencyTable.measure(trace(net, weights, jnp.zeros((2, 5))), points=2, repeats=2)
  (fixed,) = [o for o in table.operators if o.name == 'fixed']
  assert fixed.widths == ()
  assert table.curves[fixed.curve].measured.shape == ()


def _net(w, x):
  """Two equal convolutions, a depthwise and a grouped one, a concatenation, a flatten."""

  def conv(x, kernel, groups=1):
    return jax.lax.conv_general_dilated(
      x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      feature_group_count=groups,
    )  # fmt: skip

  x = jnp.tanh(conv(x, w['stem']))
  x = jnp.tanh(conv(x, w['first']))
  x = jnp.tanh(conv(x, w['second']))
  x = jnp.tanh(conv(x, w['depthwise'], groups=8))
  x = jnp.tanh(conv(x, w['mix']))
  x = jnp.tanh(conv(x, w['grouped'], groups=2))
  x = jnp.concatenate([x, jnp.tanh(conv(x, w['beside']))], -1)
  x = x.reshape(x.shape[0], -1) @ w['flat']
  return jnp.tanh(x) @ w['out']


def _weights():
  shapes = {
    'stem': (3, 3, 3, 8), 'first': (3, 3, 8, 8), 'second': (3, 3, 8, 8),
    'depthwise': (3, 3, 1, 8), 'mix': (1, 1, 8, 8), 'grouped': (3, 3, 4, 4),
    'beside': (1, 1, 4, 6),
    'flat': (160, 12), 'out': (12, 5),
  }  # fmt: skip
  return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}


@pytest.fixture(scope='module')
def graph():
  return trace(_net, _weights(), jnp.zeros((2, 4, 4, 3)))


@pytest.fixture(scope='module')
def table(graph):
  return LatencyTable.measure(graph, batch_size=3, points=3, repeats=2)


def test_operators_have_the_shapes_that_kept_counts_give(graph):
  """Against the shapes of the traced equations, and of the equations of a narrower network."""
  bare = {op.name: op.bare for op in graph.operators}
  sized = {name: resizable(b, 7) for name, b in bare.items()}
  for p in sized.values():
    dense = [tuple(var.aval.shape) for var in p.eqn.invars]
    assert p.shapes(p.full) == tuple((7, *s[1:]) if i == 0 else s for i, s in enumerate(dense))
  assert sized['depthwise'].shapes((5,)) == ((7, 4, 4, 5), (3, 3, 1, 5))
  assert sized['flat'].widths[0].groups == ('beside', 'grouped', 'mix:3.0')
  assert sized['flat'].shapes((3, 2)) == ((7, 48), (48, 2))
  assert sized['first'].signature == sized['second'].signature
  assert sized['first'].signature != sized['stem'].signature


def test_equal_signatures_share_a_curve_and_nothing_is_timed_twice(graph, table):
  curve = {o.name: o.curve for o in table.operators}
  assert curve['first'] == curve['second']
  assert len(table.curves) == len(graph.operators) - 1
  p = resizable(next(op.bare for op in graph.operators if op.name == 'out'), 2)
  points = [w for n in (3, 2) for w in itertools.product(*grid(p.full, n))]
  found, _ = time_calls(((p.operator, p.eqn, p.shapes(w)) for w in points), repeats=2)
  assert len(found) == len(set(points)) < len(points)
  assert all(isinstance(ns, int) and ns >= 0 for ns in found.values())


@pytest.mark.parametrize('scope', ['global', 'layer'])
@pytest.mark.parametrize('name', ['transportation', 'magnitude'])
def test_a_budget_of_nanoseconds_is_met(graph, table, scope, name):
  elements = prunable.channels(graph)
  cost = table.cost(elements.sizes)
  # Half way to the narrowest network: on a busy machine the widths hardly tell in such small times.
  narrowest = cost.at(dict.fromkeys(elements.sizes, 1))
  thousandths = 500 * (narrowest + cost.total) // cost.total
  budget = Budget(thousandths / 1000, of=table, scope=scope)
  options = (
    {'steps': 4, 'preset': 'paper', 'projection': 'exact'} if name == 'transportation' else {}
  )
  pruner = getattr(methods, name)(elements, budget, **options)
  rng = np.random.default_rng(0)
  params = {leaf: rng.normal(size=s.shape).astype('float32') for leaf, s in _weights().items()}
  extra = jax.jit(pruner.init)(params)
  if name == 'transportation' and scope == 'global':
    soft, extra['transport'] = jax.jit(pruner.masks)(params, extra, 4)
    share = jax.jit(cost.fraction)(soft)
    np.testing.assert_allclose(share, budget.keep, atol=1e-4)
  hard = pruner.harden(extra)
  spent = pruner.resolved.account(hard)
  assert spent.unit == 'ns'
  assert 0 < spent.achieved <= spent.requested
  assert 1000 * spent.requested <= thousandths * spent.total  # in integers: 0.7 is not a float
  counts = {name: int(mask.sum()) for name, mask in hard.items()}
  assert cost.at(counts) == spent.achieved
  if scope == 'global':
    wider = [{**counts, g: n + 1} for g, n in counts.items() if n < graph.sizes[g]]
    assert wider
    assert all(cost.at(c) > spent.requested for c in wider)


def test_a_saved_table_is_the_same_table(table, tmp_path):
  table.save(tmp_path / 'latency.json')
  loaded = LatencyTable.load(tmp_path / 'latency.json')
  assert str(loaded) == str(table)
  loaded.save(tmp_path / 'again.json')
  assert (tmp_path / 'again.json').read_bytes() == (tmp_path / 'latency.json').read_bytes()
  ours, theirs = table.cost(table.groups), loaded.cost(loaded.groups)
  for seed in range(5):
    rng = np.random.default_rng(seed)
    counts = {name: int(rng.integers(0, n + 1)) for name, n in table.groups.items()}
    assert ours.at(counts) == theirs.at(counts)


def test_what_is_no_table_of_this_device_is_refused(table, tmp_path):
  path = tmp_path / 'latency.json'
  table.save(path)
  data = json.loads(path.read_text())

  def written(**changes):
    path.write_text(json.dumps({**data, **changes}))
    return path

  with pytest.raises(ValueError, match=r"measured on 'abacus', this is .* any_device=True"):
    LatencyTable.load(written(device='abacus'))
  assert LatencyTable.load(path, any_device=True).device == 'abacus'
  with pytest.raises(ValueError, match=r'version 99; expected .* version 1'):
    LatencyTable.load(written(version=99))
  with pytest.raises(ValueError, match=r"no latency table \(KeyError: 'curves'\)"):
    LatencyTable.load(written_without(path, data, 'curves'))
  bent = [{**data['curves'][0], 'measured_ns': [[1, 2]]}, *data['curves'][1:]]
  with pytest.raises(ValueError, match=r'shape \(1, 2\); expected integers of shape'):
    LatencyTable.load(written(curves=bent))
  with pytest.raises(ValueError, match=r'widths .* and a curve up to'):
    LatencyTable.load(written(operators=[{**data['operators'][0], 'widths': []}]))


def written_without(path, data, key):
  path.write_text(json.dumps({k: v for k, v in data.items() if k != key}))
  return path


def test_other_networks_and_odd_arguments_are_refused(graph, table):
  with pytest.raises(ValueError, match=r"'first' has 9 channels; the latency table knows 8"):
    table.cost({'first': 9})
  with pytest.raises(ValueError, match='knows no such group'):
    table.cost({'elsewhere': 8})
  for option in ({'points': 1}, {'repeats': 1}, {'points': 2.5}, {'batch_size': 0}):
    with pytest.raises(ValueError, match=rf'{next(iter(option))} is .* expected an integer >= '):
      LatencyTable.measure(graph, **option)
  single = trace(_net, _weights(), jnp.zeros((1, 4, 4, 3)))
  with pytest.raises(ValueError, match='traced with one example, or a product sums over the batch'):
    LatencyTable.measure(single, batch_size=2)
  assert table.cost(single.sizes).total == table.cost(graph.sizes).total
  empty = trace(lambda w, x: x * w, jnp.ones(()), jnp.ones((2, 3)))
  with pytest.raises(ValueError, match='no operator that can be timed'):
    LatencyTable.measure(empty)
  for knots, measured in ((((0, 2),), [1, 2]), (((2, 1),), [1, 2]), (((1, 2),), [-1, 2])):
    with pytest.raises(ValueError, match='expected'):
      Curve(knots, np.asarray(measured))


def test_operators_in_a_loop_are_named_and_not_timed():
  def fn(w, x):
    x = jnp.tanh(x @ w['in']) @ w['out']
    return jax.lax.scan(lambda h, _: (jnp.tanh(h @ w['loop']), None), x, length=3)[0]

  weights = {'in': jnp.ones((3, 4)), 'out': jnp.ones((4, 3)), 'loop': jnp.ones((3, 3))}
  table = LatencyTable.measure(trace(fn, weights, jnp.ones((2, 3))), points=2, repeats=2)
  assert [o.name for o in table.operators] == ['in', 'out']
  assert table.untimed == ('loop',)
  assert 'not timed' in str(table)
