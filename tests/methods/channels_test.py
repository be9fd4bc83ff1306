"""Channels of a small residual network: every method, exact cost budgets, importances, refusals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import dtp_jax as dtp
from dtp_jax import methods
from dtp_jax.budget import Budget, resolve
from dtp_jax.budget.problem import CostProblem
from dtp_jax.graph import shrink, trace
from dtp_jax.graph.cost import Polynomial
from dtp_jax.methods.pruner import keep_at
from dtp_jax.models import CifarResNet
from dtp_jax.prunable import channels, weights
from tests.graph.agreement import QUICK
from tests.graph.models import CASES, randomized

STEPS = 20
DEADLINE, RAMP = 18, 8  # of the default preset at 20 steps
BUILD = {
  name: functools.partial(methods.build, name, steps=STEPS)
  for name in methods.METHODS
  if name not in ('dense', 'acdc', 'rigl')
} | {'paper': functools.partial(methods.transportation, steps=STEPS, preset='paper')}
BUDGETS = [
  Budget(0.4, of='macs'),
  Budget(0.25, of='params'),
  Budget(0.5, of='count'),
  Budget(0.4, of='macs', scope='layer'),
  Budget(0.3, of='params', scope='layer', min_keep=2),
  Budget(0.5, of='macs', multiple_of=2),
]
LEARNED, UNIFORM = BUDGETS[0], BUDGETS[3]
_IDS = [f'{b.of} {b.scope} {b.min_keep} {b.multiple_of}' for b in BUDGETS]


@pytest.fixture(scope='module')
def net():
  """(graph, variables): 6 groups of 4 to 16 channels."""
  model, x = CifarResNet(depth=8, width=4), jnp.ones((2, 8, 8, 3))
  variables = randomized(jax.eval_shape(lambda: model.init(jax.random.key(0), x)))
  return trace(model.apply, variables, x, train=False), variables


@pytest.fixture(scope='module')
def prunable(net):
  return channels(net[0])


@pytest.fixture(scope='module')
def magnitudes(net, prunable):
  return jax.jit(prunable.magnitude, compiler_options=QUICK)(net[1]['params'])


def _hard(name, budget, net, prunable, magnitudes):
  """The method's hard mask at the start, from magnitudes computed once."""
  pruner = BUILD[name](prunable._replace(magnitude=lambda params: magnitudes), budget)
  return pruner.harden(pruner.init(net[1]['params']))


def _counts(hard):
  return {name: int(np.count_nonzero(mask)) for name, mask in hard.items()}


def _next(count, size, multiple):
  return min(size, (count // multiple + 1) * multiple)


@pytest.mark.parametrize('budget', BUDGETS, ids=_IDS)
@pytest.mark.parametrize('name', BUILD)
def test_every_method_keeps_the_most_that_the_budget_holds(net, prunable, magnitudes, name, budget):
  hard = _hard(name, budget, net, prunable, magnitudes)
  counts, cost = _counts(hard), prunable.costs[budget.of]
  assert {name: (mask.shape, mask.dtype) for name, mask in hard.items()} == {
    name: (shape, jnp.bool_) for name, shape in prunable.shapes.items()
  }
  report = resolve(budget, prunable).account(hard)
  assert report.requested == int(budget.keep * cost.total)
  assert report.achieved == cost.at(counts) <= report.requested
  assert min(counts.values()) >= budget.min_keep
  for name, size in prunable.sizes.items():
    assert counts[name] == size or counts[name] % budget.multiple_of == 0
    more = _next(counts[name], size, budget.multiple_of)
    fits = more > counts[name] and cost.at({**counts, name: more}) <= report.requested
    # Uniform groups are widened once: one that could grow again has had its channel.
    had = counts[name] > _common_share(cost, report.requested, budget.min_keep) * size
    assert not fits or (budget.scope == 'layer' and had)


def _common_share(cost, limit, floor):
  """The largest share of every group that fits, whole channels and floors considered."""

  def fits(share):
    return cost.at({g: max(floor, int(share * n + 1e-9)) for g, n in cost.sizes.items()}) <= limit

  return max(filter(fits, {k / n for n in cost.sizes.values() for k in range(n + 1)}))


@pytest.mark.parametrize('keep', [0.1, 0.25, 0.4, 0.6, 0.9])
@pytest.mark.parametrize('of', ['macs', 'params', 'count'])
def test_layer_scope_keeps_one_share_of_every_group(prunable, of, keep):
  budget = Budget(keep, of=of, scope='layer')
  problems, cost = resolve(budget, prunable).problems, prunable.costs[of]
  share = _common_share(cost, budget.count(cost.total), 1)
  assert all(max(1, int(share * p.n + 1e-9)) <= p.k for p in problems)
  # Any two groups agree in their share to one channel of each, unless held at the floor.
  above = max(((p.k - 1) / p.n for p in problems if p.k > 1), default=0.0)
  assert above <= min((p.k + 1) / p.n for p in problems)


def test_layer_scope_does_not_spend_what_is_left_on_one_cheap_group(prunable):
  """A group whose channels cost next to nothing is not widened beyond the others."""
  shapes = {'dear': (8,), 'cheap': (8,)}
  cost = Polynomial({('dear',): 100, ('cheap',): 1}, {'dear': 8, 'cheap': 8})
  elements = prunable._replace(shapes=shapes, costs={'macs': cost})
  problems = resolve(Budget(499, of='macs', scope='layer'), elements).problems
  assert [problem.k for problem in problems] == [4, 5]


def test_dense_keeps_every_channel(net, prunable, magnitudes):
  pruner = methods.dense(prunable._replace(magnitude=lambda params: magnitudes), LEARNED)
  extra = pruner.init(net[1]['params'])
  masks, _ = pruner.masks(net[1]['params'], extra, 3)
  assert all(np.all(mask == 1) for mask in masks.values())
  report = pruner.resolved.account(pruner.harden(extra))
  assert report.achieved == report.total == net[0].macs.total


@pytest.mark.parametrize('budget', [LEARNED, UNIFORM], ids=['global', 'layer'])
def test_hardening_under_jit_is_hardening(net, prunable, magnitudes, budget):
  pruner = methods.magnitude(prunable, budget)
  variables = {'transport': magnitudes}
  for eager, jitted in zip(
    *(jax.tree.leaves(f(variables)) for f in (pruner.harden, jax.jit(pruner.harden))), strict=True
  ):
    np.testing.assert_array_equal(eager, jitted)


@pytest.mark.parametrize(
  ('name', 'budget'),
  [*((name, LEARNED) for name in BUILD), ('paper', UNIFORM)],
  ids=[*BUILD, 'paper layer'],
)
def test_masks_are_shares_and_gradients_through_them_are_finite(net, prunable, name, budget):
  pruner = BUILD[name](prunable, budget)
  params = net[1]['params']
  variables = {'params': params, **jax.jit(pruner.init, compiler_options=QUICK)(params)}

  @functools.partial(jax.jit, compiler_options=QUICK)
  def step(trainable, transport, i):
    def loss(trainable):
      extra = {'scores': trainable['scores'], 'transport': transport}
      masks, after = pruner.masks(trainable['params'], extra, i)
      masked = pruner.apply_masks(trainable['params'], masks)
      return sum(jnp.sum((w - 0.1) ** 2) for w in jax.tree.leaves(masked)), (masks, after)

    return jax.grad(loss, has_aux=True)(trainable)

  trainable = {key: variables[key] for key in ('params', 'scores')}
  for i in (0, STEPS // 2, STEPS):
    grads, (masks, transport) = step(trainable, variables['transport'], i)
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(grads))
    for key, mask in masks.items():
      assert mask.shape == prunable.shapes[key]
      assert np.all((mask >= 0) & (mask <= 1))
      assert np.all(np.isfinite(transport[key]))
  learned = name in ('straight_through', 'transportation', 'paper', 'fisher', 'taylor')
  assert set(grads['scores']) == (set(prunable.shapes) if learned else set())


@pytest.fixture(scope='module')
def trained(net, prunable):
  """A default run on the network's own loss: (pruner, masks of each step, last transport)."""
  graph, variables = net
  pruner = methods.transportation(prunable, LEARNED, steps=STEPS)
  x = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))
  tx = pruner.score_optimizer

  @functools.partial(jax.jit, compiler_options=QUICK)
  def step(scores, state, transport, i):
    def loss(scores):
      extra = {'scores': scores, 'transport': transport}
      masks, after = pruner.masks(variables['params'], extra, i)
      params = pruner.apply_masks(variables['params'], masks)
      logits = graph.fn({**variables, 'params': params}, x, train=False)
      return jnp.mean((logits - 1) ** 2), (masks, after)

    grads, aux = jax.grad(loss, has_aux=True)(scores)
    updates, state = tx.update(grads, state, scores)
    return optax.apply_updates(scores, updates), state, grads, aux

  extra = jax.jit(pruner.init, compiler_options=QUICK)(variables['params'])
  scores, transport = extra['scores'], extra['transport']
  state, history = tx.init(scores), []
  for i in range(STEPS):
    scores, state, grads, (masks, transport) = step(scores, state, transport, i)
    history.append((masks, grads))
  return pruner, history, transport


def test_gradients_of_the_networks_loss_reach_every_score(trained):
  _, history, _ = trained
  for _, grads in history:
    assert all(np.all(np.isfinite(g)) for g in grads.values())
  assert all(np.any(history[0][1][name]) for name in history[0][1])


def test_dtp_spends_the_requested_share_after_its_ramp(net, trained):
  pruner, history, _ = trained
  spent = [float(net[0].macs.fraction(masks)) for masks, _ in history]
  assert np.all(np.diff(spent[:RAMP]) < 0)
  # Near the deadline log-odds are up to 2^24, and the channel that the budget cuts is one of them.
  np.testing.assert_allclose(spent[RAMP:], pruner.resolved.problems[0].keep, rtol=1e-3)
  np.testing.assert_allclose(
    spent[RAMP : DEADLINE // 2 + 2], pruner.resolved.problems[0].keep, rtol=1e-5
  )


def test_dtp_is_nearly_hard_at_its_deadline(trained):
  """A hundredth of the softness it began with is left; what is hardened is what was kept."""
  pruner, history, transport = trained
  for masks, _ in history[DEADLINE - 1 :]:
    flat = np.concatenate(list(masks.values()))
    rest = pruner.resolved.problems[0].rest_softness(pruner.resolved.keep)
    assert dtp.transport.softness(flat) <= 0.0101 * rest
  assert dtp.transport.softness(np.concatenate(list(history[0][0].values()))) > 0.1
  hard = pruner.harden({'transport': transport})
  kept = np.concatenate(list(hard.values()))
  assert np.all(kept[flat > 1 - 1e-3])


@pytest.mark.parametrize(
  'budget', [LEARNED, UNIFORM, BUDGETS[1]], ids=['macs', 'uniform', 'params']
)
def test_the_account_is_the_count_of_the_shrunk_model(net, prunable, magnitudes, budget):
  graph, variables = net
  hard = _hard('magnitude', budget, net, prunable, magnitudes)
  slim = shrink(graph, jax.eval_shape(lambda: variables), hard)
  again = trace(slim.apply, slim.variables, jnp.ones((1, 8, 8, 3)), train=False)
  parameters = sum(int(np.prod(p.shape)) for p in jax.tree.leaves(slim.variables['params']))
  counted = {'macs': again.macs.total, 'params': parameters}[budget.of]
  assert resolve(budget, prunable).account(hard).achieved == counted


def test_a_global_budget_never_empties_a_group(prunable):
  """Even where the ranking puts one group behind all others."""
  for name in prunable.sizes:
    ranking = {key: jnp.full(n, float(key != name)) for key, n in prunable.sizes.items()}
    for min_keep in (1, 3):
      (problem,) = resolve(Budget(0.4, of='macs', min_keep=min_keep), prunable).problems
      hard = problem.scatter(problem.hard(problem.gather(ranking)))
      assert int(hard[name].sum()) >= min_keep


def _by_hand(params, importance):
  """Importances of three groups from the raw kernels: one producer, and a stream with two."""
  power = {'l1': 1, 'l2': 2}[importance]
  total = lambda *path: np.sum(np.abs(params[path[0]][path[1]]['kernel']) ** power, (0, 1, 2))
  stem = np.sum(np.abs(params['conv1']['kernel']) ** power, (0, 1, 2))
  found = {
    'conv1': stem + total('layer1_0', 'conv2'),
    'layer1_0/conv1': total('layer1_0', 'conv1'),
    'layer3_0/conv2': total('layer3_0', 'conv2') + total('layer3_0', 'shortcut'),
  }
  return {name: x ** (1 / power) / np.mean(x ** (1 / power)) for name, x in found.items()}


@pytest.mark.parametrize('importance', ['l1', 'l2'])
def test_norms_are_numpys_over_everything_that_produces_a_channel(net, importance):
  graph, variables = net
  params = jax.tree.map(lambda w: np.asarray(w, np.float64), variables['params'])
  found = jax.jit(channels(graph, importance=importance).magnitude)(variables['params'])
  for name, expected in _by_hand(params, importance).items():
    np.testing.assert_allclose(found[name], expected, rtol=1e-5)


@pytest.mark.parametrize('importance', ['l1', 'l2', 'bn'])
def test_the_scale_of_a_layer_does_not_move_the_global_ranking(net, importance):
  graph, variables = net
  magnitude = jax.jit(channels(graph, importance=importance).magnitude)
  scaled = jax.tree.map(lambda w: w, variables['params'])
  scaled['layer2_0']['conv1'] = jax.tree.map(lambda w: 100 * w, scaled['layer2_0']['conv1'])
  scaled['layer2_0']['bn1'] = jax.tree.map(lambda w: 100 * w, scaled['layer2_0']['bn1'])
  before, after = magnitude(variables['params']), magnitude(scaled)
  for name, x in before.items():
    np.testing.assert_allclose(after[name], x, rtol=1e-5)
    np.testing.assert_allclose(np.mean(x), 1.0, rtol=1e-5)


def test_bn_is_the_sum_of_the_scales_that_a_channel_carries(net):
  graph, variables = net
  params = variables['params']
  found = jax.jit(channels(graph, importance='bn').magnitude)(params)
  stream = np.abs(params['bn1']['scale']) + np.abs(params['layer1_0']['bn2']['scale'])
  np.testing.assert_allclose(found['conv1'], stream / stream.mean(), rtol=1e-5)


def _traced(name):
  case = CASES[name]()
  return trace(case.fn, case.variables, *case.inputs, **case.eval), case.variables['params']


def test_bn_reads_the_part_of_a_scale_that_belongs_to_a_group():
  """After a concatenation one scale lies along several groups."""
  graph, params = _traced('densenet')
  found = jax.jit(channels(graph, importance='bn', exclude=('transition',)).magnitude)(params)
  scales = [np.abs(params[f'BatchNorm_{i}']['scale']) for i in range(3)]
  stem = sum(scale[:4] for scale in scales)
  grow0, grow1 = scales[1][4:7] + scales[2][4:7], scales[2][7:]
  for name, expected in (('stem', stem), ('grow0', grow0), ('grow1', grow1)):
    np.testing.assert_allclose(found[name], expected / expected.mean(), rtol=1e-5)


def test_bn_finds_the_scales_of_an_nnx_state():
  graph, params = _traced('nnx')
  found = jax.jit(channels(graph, importance='bn', exclude=('hidden',)).magnitude)(params)
  scale = np.abs(np.asarray(params['norm']['scale'].get_value()))
  np.testing.assert_allclose(found['conv'], scale / scale.mean(), rtol=1e-5)


def test_an_all_zero_group_has_finite_importance_and_gradient(net, prunable):
  zeros = jax.tree.map(jnp.zeros_like, net[1]['params'])
  total = lambda params: sum(jnp.sum(m) for m in prunable.magnitude(params).values())
  value, grads = jax.jit(jax.value_and_grad(total), compiler_options=QUICK)(zeros)
  assert value == 0
  assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(grads))


def test_excluded_groups_keep_their_width_and_count_in_the_budget(net, magnitudes):
  graph, _ = net
  some = channels(graph, exclude=('layer3_0/*',))
  assert set(some.shapes) == {'conv1', 'layer1_0/conv1', 'layer2_0/conv1', 'layer2_0/conv2'}
  hard = _hard('magnitude', LEARNED, net, some, {name: magnitudes[name] for name in some.shapes})
  report = resolve(LEARNED, some).account(hard)
  assert report.total == graph.macs.total
  assert report.achieved == graph.macs.at(_counts(hard)) <= report.requested


@pytest.mark.parametrize(
  ('keep', 'total', 'requested'),
  [(0.29, 100, 29), (0.3, 10, 3), (0.999, 10, 9), (1.0, 2**60 + 1, 2**60 + 1), (1e-05, 10**6, 10)],
)
def test_a_fraction_of_a_cost_is_taken_as_written_and_rounded_down(keep, total, requested):
  assert Budget(keep, of='macs').count(total) == requested


@pytest.mark.parametrize('dear', [1, 2, 3, 5, 8])
def test_the_end_of_a_float32_ramp_is_the_budget_itself(dear):
  """In float32 1 - (1 - keep) is off by many channels of a large network's cheapest group."""
  cost = Polynomial({('dear',): 10**7, ('cheap',): 1}, {'dear': 100, 'cheap': 1000})
  problem = CostProblem(cost.sizes, cost, dear * 10**7 + 500, min_keep=1, multiple_of=1)
  ramp = methods.cubic_ramp(problem.keep, STEPS, initial=1.0)
  late = jax.jit(lambda step: keep_at(problem, ramp(step), problem.keep))(STEPS)
  ranking = -np.arange(1100.0)
  assert problem.hard(ranking, late).sum() == problem.hard(ranking).sum() == dear + 500


def _no_groups():
  return trace(lambda w, x: x @ w['only'], {'only': jnp.ones((3, 2))}, jnp.ones((1, 3)))


@pytest.mark.parametrize(
  ('make', 'words'),
  [
    (lambda g, p: resolve(Budget(0.5, scope='row'), p), ["scope is 'row'", 'global', 'layer']),
    (lambda g, p: Budget(0.5, of='macs', min_keep=-1), ['min_keep is -1', '>= 0']),
    (lambda g, p: Budget(0.5, of='macs', multiple_of=0), ['multiple_of 0', '>= 1']),
    (lambda g, p: resolve(Budget(10**9, of='macs'), p), ['1000000000 macs', '54176']),
    (lambda g, p: resolve(Budget(0.001, of='macs'), p), ['budget of 54', 'floor of 1', '54176']),
    (lambda g, p: channels(_no_groups()), ['no channel group', 'only:0', '0 prunable']),
    (lambda g, p: channels(g, exclude=('head',)), ["'head'", 'groups', 'layer1_0/conv1']),
    (lambda g, p: channels(_traced('vgg')[0], importance='bn'), ["group 'b'", 'l1', 'exclude']),
    (
      lambda g, p: resolve(Budget(0.5, of='macs'), weights({'w': jnp.ones((2, 2))})),
      ["of is 'macs'", "of='count'"],
    ),
  ],
)
def test_bad_input_is_named(net, prunable, make, words):
  with pytest.raises(ValueError) as error:
    make(net[0], prunable)
  assert all(word in str(error.value) for word in words), error.value
