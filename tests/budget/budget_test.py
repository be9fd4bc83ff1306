"""Budgets add up in exact integers and say what they cannot meet."""

import fnmatch
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dtp_jax as dtp
from dtp_jax import methods
from dtp_jax.budget import resolve
from dtp_jax.budget.device import device_name
from dtp_jax.budget.latency.cost import Curve
from dtp_jax.budget.latency.table import Timed
from dtp_jax.budget.widths import choice
from dtp_jax.graph.cost import Polynomial
from dtp_jax.models import LeNet
from tests.graph.agreement import QUICK
from tests.graph.models import randomized

sizes = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=6)


def _prunable(shapes):
  return dtp.weights({f'w{i}': jnp.zeros(shape) for i, shape in enumerate(shapes)})


@given(sizes, st.floats(0, 1), st.sampled_from(['global', 'layer', 'erk']))
def test_counts_add_up_to_the_rounded_fraction(shapes, keep, scope):
  prunable = _prunable(shapes)
  problems = resolve(dtp.Budget(keep, scope=scope), prunable).problems
  total = sum(math.prod(s) for s in shapes)
  assert sum(p.k for p in problems) == round(keep * total)
  assert all(0 <= p.k <= p.n for p in problems)


@given(sizes, st.floats(0, 1))
def test_layers_keep_the_same_fraction_to_one_element(shapes, keep):
  for problem in resolve(dtp.Budget(keep, scope='layer'), _prunable(shapes)).problems:
    assert abs(problem.k - keep * problem.n) <= 1


def test_erk_follows_the_density_rule_and_caps_full_layers():
  shapes = [(4, 4), (100, 100), (200, 50)]
  problems = resolve(dtp.Budget(0.1, scope='erk'), _prunable(shapes)).problems
  assert problems[0].k == 16  # its density would be 1.4: it is full
  density = [p.k / p.n for p in problems[1:]]
  expected = (200 / 10_000) / (250 / 10_000)
  np.testing.assert_allclose(density[0] / density[1], expected, rtol=2e-2)


def test_an_int_is_an_absolute_count():
  (problem,) = resolve(dtp.Budget(7), _prunable([(10, 10)])).problems
  assert problem.k == 7


@pytest.mark.parametrize('number', [np.float32, np.float64])
def test_numbers_of_numpy_are_those_of_python(number):
  """0.4 in float32 is the fraction 0.4, as it is written."""
  assert dtp.Budget(number(0.4)) == dtp.Budget(0.4)
  by_pattern = dtp.Budget({'*': number(0.3)}, scope='layer')
  assert by_pattern == dtp.Budget({'*': 0.3}, scope='layer')
  budget = dtp.Budget(np.int64(30), min_keep=np.int32(2), multiple_of=np.int64(8))
  assert budget == dtp.Budget(30, min_keep=2, multiple_of=8)
  assert budget.count(100) == 30


def test_large_counts_are_exact():
  n = 2**24 + 3
  assert dtp.Budget(n).count(n) == n
  assert dtp.Budget(1.0).count(n) == n


@given(sizes)
def test_scatter_is_the_inverse_of_gather(shapes):
  prunable = _prunable(shapes)
  arrays = {
    name: jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    for name, shape in prunable.shapes.items()
  }
  for scope in ('global', 'layer', 'row'):
    back = {}
    for problem in resolve(dtp.Budget(1.0, scope=scope), prunable).problems:
      back |= problem.scatter(problem.gather(arrays))
    for name, array in arrays.items():
      np.testing.assert_array_equal(back[name], array)


@given(
  sizes,
  st.lists(
    st.tuples(st.sampled_from(['w0', 'w[12]', 'w[2-5]', '?5', 'w*']), st.decimals(0, 1, places=3)),
    min_size=1,
    unique_by=lambda pair: pair[0],
  ),
)
def test_every_array_keeps_the_fraction_of_the_first_pattern_that_matches(shapes, ratios):
  """Against the rule read aloud, name by name; in exact decimals, where floats would fall short."""
  prunable = _prunable(shapes)
  first = {
    name: next((i for i, (glob, _) in enumerate(ratios) if fnmatch.fnmatch(name, glob)), None)
    for name in prunable.shapes
  }
  budget = dtp.Budget({glob: float(keep) for glob, keep in ratios}, scope='layer')
  if set(range(len(ratios))) - set(first.values()):
    with pytest.raises(ValueError, match='matches none of'):
      resolve(budget, prunable)
    return
  for problem in resolve(budget, prunable).problems:
    (name,) = problem.names
    keep = Fraction(1) if first[name] is None else Fraction(ratios[first[name]][1])
    assert problem.k <= keep * problem.n < problem.k + 1


STEPS = 4
METHODS = tuple(name for name in methods.METHODS if name not in ('dense', 'acdc', 'rigl'))


@pytest.fixture(scope='module')
def lenet():
  """{granularity: elements} of a small LeNet, and its variables."""
  model, x = LeNet(3, features=(4, 6), hidden=(8, 5)), jnp.ones((2, 12, 12, 1))
  variables = randomized(jax.eval_shape(lambda: model.init(jax.random.key(0), x)))
  graph = dtp.trace(model.apply, variables, x)
  assert graph.sizes == {'conv1': 4, 'conv2': 6, 'fc1': 8, 'fc2': 5}
  return {'channels': dtp.channels(graph), 'weights': dtp.weights(variables['params'])}, variables


RATIOS = {
  'channels': ({'conv?': 0.5, 'fc1': 0.3}, {'conv1': 2, 'conv2': 3, 'fc1': 2, 'fc2': 5}),
  'weights': (
    {'conv1/*': 1.0, 'head/kernel': 0.5, '*': 0.1},
    # 5 5 1 4, 5 5 4 6, 6 8, 8 5 and 5 3 weights
    {'conv1': 100, 'conv2': 60, 'fc1': 4, 'fc2': 4, 'head': 7},
  ),
}


@pytest.mark.parametrize(
  ('name', 'granularity'),
  [(name, 'channels') for name in METHODS] + [('pdp', 'weights'), ('transportation', 'weights')],
)
def test_every_method_meets_fractions_by_layer(lenet, granularity, name):
  elements, variables = lenet[0][granularity], lenet[1]
  magnitudes = jax.jit(elements.magnitude, compiler_options=QUICK)(variables['params'])
  elements = elements._replace(magnitude=lambda params: magnitudes)  # only masks are looked at
  ratios, expected = RATIOS[granularity]
  budget = dtp.Budget(ratios, scope='layer')
  pruner = methods.build(name, elements, budget, steps=STEPS)
  params, extra = variables['params'], pruner.init(variables['params'])
  masks_at = jax.jit(pruner.masks, compiler_options=QUICK)
  for step in range(STEPS):
    masks, extra['transport'] = masks_at(params, extra, step)
    assert all(np.all((m >= 0) & (m <= 1)) for m in masks.values())
    if granularity == 'weights':
      np.testing.assert_allclose(masks['conv1/kernel'], 1.0, atol=1e-5)  # nothing of it competes
  hard = pruner.harden(extra)
  counts = {key.split('/')[0]: int(np.count_nonzero(mask)) for key, mask in hard.items()}
  assert counts == expected
  report = pruner.resolved.account(hard)
  assert report.requested == report.achieved == sum(expected.values())
  assert report.total == sum(elements.sizes.values())


def test_the_ramp_passes_a_full_layer_by_and_takes_the_others_along(lenet):
  """Half way, every layer has lost half of what it will lose, also where it loses nothing."""
  elements, variables = lenet[0]['weights'], lenet[1]
  budget = dtp.Budget({'conv1/*': 1.0, 'conv2/*': 0.5, '*': 0.1}, scope='layer')
  pruner = methods.gradual_magnitude(elements, budget, steps=100, ramp=1.0)
  extra = pruner.init(variables['params'])
  step = 100 * (1 - 0.5 ** (1 / 3))  # where the cubic is half way
  masks, _ = jax.jit(pruner.masks, compiler_options=QUICK)(variables['params'], extra, step)
  for problem in pruner.resolved.problems:
    (name,) = problem.names
    kept = int(np.count_nonzero(masks[name]))
    assert abs(kept - (problem.n + problem.k) / 2) <= 1, name


def test_widths_by_layer_are_multiples_above_the_floor(lenet):
  elements = lenet[0]['channels']

  def widths(ratios, **options):
    problems = resolve(dtp.Budget(ratios, scope='layer', **options), elements).problems
    return {p.names[0]: p.k for p in problems}

  ratios = {'conv2': 0.99, 'fc1': 0.99, 'fc2': 0.5}
  assert widths(ratios) == {'conv1': 4, 'conv2': 5, 'fc1': 7, 'fc2': 2}
  assert widths(ratios, multiple_of=2) == {'conv1': 4, 'conv2': 4, 'fc1': 6, 'fc2': 2}
  assert widths(ratios, min_keep=2)['fc2'] == 2
  assert widths({'fc2': 0.0}, min_keep=0)['fc2'] == 0
  report = resolve(dtp.Budget(ratios, scope='layer', multiple_of=2), elements).account(
    {'conv1': [1] * 4, 'conv2': [1] * 4, 'fc1': [1] * 6, 'fc2': [1] * 2},
  )
  assert (report.requested, report.achieved) == (4 + 5 + 7 + 2, 4 + 4 + 6 + 2)
  for options in ({'min_keep': 3}, {'multiple_of': 4}):
    with pytest.raises(ValueError, match=r"'fc2'.*below min_keep"):
      widths(ratios, **options)


GROUPS = {'wide': 512, 'mid': 24, 'small': 16, 'tiny': 6, 'one': 1}


def _table(device, groups=None, **curves):
  """A latency table of some operators of one width each: {group: nanoseconds at 8, 16, 24, ...}."""
  groups = groups or {name: 8 * len(ns) for name, ns in curves.items()}
  found = [Curve((tuple(range(8, 8 * len(ns) + 1, 8)),), np.asarray(ns)) for ns in curves.values()]
  operators = [
    Timed(name, 'dot_general', i, (Polynomial.count(name, groups[name]),))
    for i, name in enumerate(curves)
  ]
  return dtp.LatencyTable(device, 1, 2, 0, groups, tuple(operators), tuple(found))


@pytest.mark.parametrize(
  ('device', 'multiples'),
  [
    ('cpu x86_64, 2 cores', {'wide': 8, 'mid': 8, 'small': 8, 'tiny': 2, 'one': 1}),
    ('NVIDIA H100 80GB HBM3', {'wide': 8, 'mid': 8, 'small': 8, 'tiny': 2, 'one': 1}),
    ('TPU v5 lite', {'wide': 128, 'mid': 8, 'small': 8, 'tiny': 2, 'one': 1}),
  ],
)
def test_auto_takes_the_tile_of_the_device_and_less_of_small_groups(device, multiples):
  """The device is that of the latency table, wherever the table is used."""
  budget = dtp.Budget(0.5, of=_table(device, GROUPS), multiple_of='auto')
  chosen = choice(budget, GROUPS)
  assert chosen.multiple_of == {
    n: (*range(0, GROUPS[n], m), GROUPS[n]) for n, m in multiples.items()
  }
  assert f'multiples of {max(multiples.values())} on {device}' in chosen.why
  assert chosen.why.endswith('of 2 for tiny; of 1 for one')


def test_auto_leaves_out_what_a_wider_one_is_faster_than():
  """24 takes ten times as long as 32; that 40 takes 1 % less than 32 may be noise."""
  table = _table('cpu', stem=[20, 30, 520, 52, 51, 70], other=[20, 30, 40, 50, 60, 70])
  chosen = choice(dtp.Budget(0.5, of=table, multiple_of='auto'), table.groups)
  assert chosen.multiple_of['stem'] == (0, 8, 16, 32, 40, 48)
  assert chosen.multiple_of['other'] == (0, 8, 16, 24, 32, 40, 48)
  assert chosen.why.endswith('without what a wider one is faster than: 24 of stem')


def test_auto_without_a_table_is_for_the_present_device():
  chosen = choice(dtp.Budget(0.5, multiple_of='auto'), {'wide': 32})
  assert chosen.multiple_of == {'wide': (0, 8, 16, 24, 32)}
  assert f'on {device_name()} (' in chosen.why


@pytest.mark.parametrize(('multiple_of', 'why'), [(1, ''), (3, 'multiples of 3, as asked for')])
def test_a_number_holds_for_every_group(multiple_of, why):
  assert choice(dtp.Budget(0.5, multiple_of=multiple_of), GROUPS) == (multiple_of, why)


@pytest.mark.parametrize('scope', ['global', 'layer'])
def test_auto_is_rounded_to_exactly_and_accounted_for(scope):
  """Every width is a multiple or whole; learned ones could not be one multiple wider."""
  model, x = LeNet(3, features=(8, 32), hidden=(40, 3)), jnp.ones((2, 12, 12, 1))
  graph = dtp.trace(model.apply, jax.eval_shape(lambda: model.init(jax.random.key(0), x)), x)
  elements = dtp.channels(graph)
  resolved = resolve(dtp.Budget(0.4, of='macs', scope=scope, multiple_of='auto'), elements)
  multiples = {'conv1': 4, 'conv2': 8, 'fc1': 8, 'fc2': 1}
  assert resolved.widths.multiple_of == {
    name: (*range(0, n, multiples[name]), n) for name, n in graph.sizes.items()
  }
  hard = {}
  for problem in resolved.problems:
    ranking = np.random.default_rng(0).normal(size=problem.size)
    hard |= problem.scatter(problem.hard(jnp.asarray(ranking)))
  counts = {name: int(mask.sum()) for name, mask in hard.items()}
  account = resolved.account(hard)
  assert account.multiples == resolved.widths.why
  assert account.achieved == graph.macs.at(counts) <= account.requested
  for name, size in graph.sizes.items():
    assert counts[name] in {*range(0, size, multiples[name]), size}
    more = min(size, counts[name] + multiples[name])
    widened = graph.macs.at({**counts, name: more})
    assert scope == 'layer' or counts[name] == size or widened > account.requested


def test_auto_fits_budgets_by_layer(lenet):
  """Groups of 4, 6, 8 and 5 channels: multiples of 2, 2, 4 and 2."""
  ratios = {'conv2': 0.99, 'fc1': 0.99, 'fc2': 0.5}
  budget = dtp.Budget(ratios, scope='layer', multiple_of='auto')
  problems = resolve(budget, lenet[0]['channels']).problems
  assert {p.names[0]: p.k for p in problems} == {'conv1': 4, 'conv2': 4, 'fc1': 4, 'fc2': 2}


@pytest.mark.parametrize(
  ('make', 'words'),
  [
    (lambda p: resolve(dtp.Budget(101), p), ['101', '100']),
    (lambda p: dtp.Budget({}, scope='layer'), ['keep is {}', 'by pattern']),
    (lambda p: dtp.Budget({'w0': 1}, scope='layer'), ["{'w0': 1}", '(float)']),
    (lambda p: dtp.Budget({'w0': 0.5}, 'macs', 'layer'), ["of 'macs'", "of='count'"]),
    (lambda p: dtp.Budget({'w0': 0.5}, scope='layer').count(3), ['per array']),
    (lambda p: resolve(dtp.Budget({'v*': 0.5}, scope='layer'), p), ["'v*'", "['w0']"]),
    (lambda p: resolve(dtp.Budget({'*': 0.5, 'w0': 0.1}, scope='layer'), p), ["'w0'", 'taken']),
    (lambda p: dtp.Budget(0.5, multiple_of='fast'), ["multiple_of 'fast'", "'auto'"]),
    (lambda p: resolve(dtp.Budget(0.5, multiple_of='auto'), p), ["'auto'", 'multiple_of=1']),
    (lambda p: resolve(dtp.Budget(0.33, scope='row'), p), ['0.33', '3.3 elements', '2:4']),
  ],
)
def test_bad_budgets_are_named(make, words):
  with pytest.raises(ValueError) as error:
    make(_prunable([(10, 10)]))
  assert all(word in str(error.value) for word in words), error.value
