"""Every config builds at full size, trains in miniature, and meets its budget exactly."""

import functools
import importlib
import itertools
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import configs
from configs import default
from configs.arguments import parse
from dtp_jax.budget import resolve
from dtp_jax.data import Resident, Text
from dtp_jax.train import recipe
from dtp_jax.train.step import enter_stage, train_step
from tests.graph.agreement import QUICK
from tests.graph.models import randomized

HELPERS = ('__init__', 'arguments', 'default', 'grid')
NAMES = sorted(
  path.stem for path in pathlib.Path(configs.__path__[0]).glob('*.py') if path.stem not in HELPERS
)
GRID = [
  name
  for name in NAMES
  if ('channels', 'macs') in getattr(importlib.import_module(f'configs.{name}'), 'BUDGETS', ())
]
SHAPES = {  # (H, W, C), classes, training images
  'mnist_mini': ((28, 28, 1), 10, 4_000),
  'mnist_crowded': ((28, 28, 1), 10, 16_000),
  'fashion_mnist': ((28, 28, 1), 10, 60_000),
  'cifar10': ((32, 32, 3), 10, 50_000),
  'cifar100': ((32, 32, 3), 100, 50_000),
  'imagenet2012': ((224, 224, 3), 1000, 1_281_167),
}
SLOW_TO_TRACE = ('imagenet_mobilenetv2', 'imagenet_resnet50')


def module(name):
  return importlib.import_module(f'configs.{name}')


def dataset(name, examples=None):
  """Examples of the shape and number of the real ones, all the same byte: they take no memory."""
  if name == 'python_stdlib':
    split = {'tokens': np.broadcast_to(np.uint8(7), (examples or 75_000, 33))}
    return Text(name, split, split, 256, verified=False)
  shape, classes, count = SHAPES[name]
  examples = examples or count
  split = {
    'image': np.broadcast_to(np.uint8(7), (examples, *shape)),
    'label': np.broadcast_to(np.int32(1), (examples,)),
  }
  channels = (0.5,) * shape[-1]
  return Resident(name, split, split, classes, channels, channels, verified=False)


@functools.cache
def elements(name, granularity, runlocal):
  """What a config prunes, from shapes alone."""
  config = module(name).get_config(f'granularity={granularity}' + ',runlocal' * runlocal)
  shape, classes, _ = SHAPES[config.data.name]
  model = recipe.build_model(config, classes)
  x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
  variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)
  return recipe.build_elements(config, model, variables, x)


def cells(name):
  """(granularity, budget, kept fraction) of a config of the grid, all of them."""
  return [(*cell, keep) for cell, keeps in module(name).BUDGETS.items() for keep in keeps]


def test_arguments_follow_their_spec():
  choice = parse('size=4,big,rate=0.5', size=1, big=False, rate=1.0, kind=('a', 'b'), text='x')
  assert vars(choice) == {
    'runlocal': False, 'size': 4, 'big': True, 'rate': 0.5, 'kind': 'a', 'text': 'x'
  }  # fmt: skip
  choice = parse('runlocal,kind=b,big=false,text=a=b', kind=('a', 'b'), big=True, text='')
  assert (choice.runlocal, choice.kind, choice.big, choice.text) == (True, 'b', False, 'a=b')


@pytest.mark.parametrize(
  ('arguments', 'words'),
  [
    ('siz=4', ["'siz'", "'size'", "'runlocal'"]),
    ('size=4,size=5', ["'size'", 'twice']),
    ('size=four', ["size='four'", 'int']),
    ('size', ["size='true'", 'int']),
    ('kind=c', ["kind='c'", "'a', 'b'"]),
    ('big=yes', ["big='yes'", 'true']),
  ],
)
def test_arguments_outside_the_spec_are_refused(arguments, words):
  with pytest.raises(ValueError) as error:
    parse(arguments, size=1, big=False, kind=('a', 'b'))
  assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize('name', NAMES)
def test_the_header_says_what_it_is_and_whether_it_was_run(name):
  text = module(name).__doc__
  for word in ('Paper', 'Command', 'Hardware', r'Time( and expected result)?', '(E|e)xpected'):
    assert re.search(rf'\b{word}\b[^\n]*:', text), word
  assert f'configs/{name}.py' in text
  assert re.search(r'not run|README|docs/', text)


@pytest.mark.parametrize('name', NAMES)
def test_the_fields_are_those_of_the_base_where_each_is_explained(name):
  """But for attributes of the network, options of methods and rows, which have their own names."""
  base, config = default.get_config(), module(name).get_config()
  assert config.keys() == base.keys()
  for section in ('prune', 'data', 'stages', 'optimizer'):
    assert config[section].keys() == base[section].keys()
  text = pathlib.Path(default.__file__).read_text()
  for line in re.findall(r'^  config\.(?:.*) = .*', text, re.M):
    assert '  # ' in line or line.endswith('= ml_collections.ConfigDict()'), line


@pytest.mark.parametrize('name', NAMES)
def test_no_config_starts_from_the_file_of_another(name):
  text = pathlib.Path(module(name).__file__).read_text()
  imported = {
    n for line in re.findall(r'^from configs import (.*)', text, re.M) for n in line.split(', ')
  }
  assert imported <= {'default', 'grid'}
  assert imported


@pytest.mark.parametrize('name', NAMES)
def test_unknown_arguments_are_refused(name):
  with pytest.raises(ValueError, match='fast'):
    module(name).get_config('fast')


@pytest.mark.parametrize('name', GRID)
def test_arguments_that_do_not_go_together_are_refused(name):
  get_config = module(name).get_config
  wrong = {
    'granularity=weights,budget=macs': 'granularity=weights,budget=params',
    'granularity=channels,budget=macs,method=random': 'random_uniform',
    'granularity=channels,budget=ratios,keep=0.01': 'ratios|channels,budget=macs',
  }
  for arguments, words in wrong.items():
    with pytest.raises(ValueError, match=words):
      get_config(arguments)


@pytest.mark.parametrize('name', GRID)
def test_a_published_point_is_the_default(name):
  published = module(name).BUDGETS['channels', 'macs']
  config = module(name).get_config()
  assert (config.prune.granularity, config.prune.of) == ('channels', 'macs')
  assert config.prune.keep == published[0]
  assert config.method == 'transportation'
  assert set(config.baselines) == {'dense', 'l1_uniform', 'random_uniform'}


@pytest.mark.parametrize('name', GRID)
def test_the_sweep_has_every_method_at_every_budget_once(name):
  points = list(module(name).get_sweep())
  names = [point for point, _ in points]
  assert len(set(names)) == len(names)
  seen = {}
  for point, config in points:
    granularity, budget, keep, row = point.split('/')
    seen.setdefault((granularity, budget, float(keep)), set()).add(row)
    assert config.row == row
    assert config.prune.keep == float(keep)
    assert config.prune.granularity == granularity
    assert bool(config.prune.ratios) == (budget == 'ratios')
    recipe.build_budget(config)
    json.dumps(json.loads(config.to_json_best_effort()))
  assert set(seen) == set(cells(name))
  learned = {'transportation', 'gradual_magnitude', 'straight_through', 'spartan', 'pdp'}
  for (granularity, budget, _), rows in seen.items():
    assert rows > learned
    uniform = granularity == 'channels' and budget != 'ratios'
    assert 'random_uniform' in rows if uniform else 'random' in rows
  one = dict(module(name).get_sweep('runlocal,granularity=weights,budget=erk,keep=0.1,method=pdp'))
  assert list(one) == ['weights/erk/0.1/pdp']
  assert one['weights/erk/0.1/pdp'].data.name == 'mnist_mini'


@pytest.mark.parametrize('name', NAMES)
def test_a_config_builds_at_full_size(name):
  """The state of the real network on images of the real shape, without a number computed."""
  config = module(name).get_config('granularity=weights' if name in GRID else '')
  data = dataset(config.data.name)
  built, create = recipe.build(config, data)
  state = jax.eval_shape(create)
  epochs = config.stages.soft + config.stages.hard
  steps = epochs * data.examples / config.data.batch_size
  assert abs(built.stages.soft + built.stages.hard - steps) <= 1
  assert {k: v.shape for k, v in state.transport.items()} == built.pruner.elements.shapes


@pytest.mark.parametrize(
  ('name', 'granularity'),
  [
    pytest.param(
      name, granularity,
      marks=pytest.mark.slow if granularity == 'channels' and name in SLOW_TO_TRACE else (),
    )
    for name, granularity in itertools.product(GRID, ('channels', 'weights'))
  ],
)  # fmt: skip
def test_every_published_budget_can_be_met_at_full_size(name, granularity):
  prunable = elements(name, granularity, runlocal=False)
  for cell in cells(name):
    if cell[0] == granularity:
      arguments = 'granularity={},budget={},keep={}'.format(*cell)
      budget = recipe.build_budget(module(name).get_config(arguments))
      problems = resolve(budget, prunable).problems
      if cell[1] == 'params' and granularity == 'weights':
        assert sum(p.k for p in problems) == round(cell[2] * sum(prunable.sizes.values()))


# Measured by MACs of convolutions and dense layers; all but VGG's agree to the digits published.
SPEEDUPS = {
  'cifar10_resnet56': {0.392: (2.55, 2.5463)},
  'cifar100_vgg19': {0.113: (8.84, 8.8911)},
  'imagenet_resnet34': {0.758: (1.32, 1.3168)},
  'imagenet_resnet50': {
    0.671: (1.49, 1.4894), 0.433: (2.31, 2.3081), 0.391: (2.56, 2.5641), 0.327: (3.06, 3.0634)
  },
}  # fmt: skip


@pytest.mark.parametrize(
  'name',
  [pytest.param(name, marks=pytest.mark.slow) if name in SLOW_TO_TRACE else name
   for name in SPEEDUPS],
)  # fmt: skip
def test_published_ratios_give_the_published_speed_up(name):
  prunable = elements(name, 'channels', runlocal=False)
  macs, params = prunable.costs['macs'], prunable.costs['params']
  left = {}
  for keep, (published, measured) in SPEEDUPS[name].items():
    config = module(name).get_config(f'granularity=channels,budget=ratios,keep={keep}')
    counts = {p.names[0]: p.k for p in resolve(recipe.build_budget(config), prunable).problems}
    speedup = macs.total / macs.at(counts)
    assert abs(speedup - measured) < 5e-5
    assert abs(speedup - published) < (0.06 if name == 'cifar100_vgg19' else 0.005)
    assert abs(1 / keep - published) < 0.02  # what the file calls the point
    left[keep] = round(params.at(counts) / params.total, 3)
  assert sorted(module(name).BUDGETS['channels', 'params']) == pytest.approx(
    sorted(left.values()), abs=1.1e-3
  )


def test_vgg_by_the_count_of_its_source():
  """GReg adds normalisation, activations, pooling and biases to twice the MACs: 8.85, not 8.89."""
  widths = [64] * 2 + [128] * 2 + [256] * 4 + [512] * 8
  sides = [32] * 2 + [16] * 2 + [8] * 4 + [4] * 4 + [2] * 4
  slim = [64] + [3 * w // 10 for w in widths[1:]]

  def flops(widths):
    layers = zip([3, *widths], widths, sides, strict=False)
    convolutions = sum(side**2 * b * (2 * 9 * a + 1 + 3) for a, b, side in layers)
    pooled = sum(widths[i] * sides[i] ** 2 for i in (1, 3, 7, 11))
    return convolutions + pooled + 2 * widths[-1] * 100 + 100

  assert round(flops(widths) / flops(slim), 2) == 8.85


def test_ratios_of_weights_prune_every_layer_but_the_first_of_resnet50():
  config = module('imagenet_resnet50').get_config('granularity=weights,budget=ratios')
  prunable = elements('imagenet_resnet50', 'weights', runlocal=False)
  problems = resolve(recipe.build_budget(config), prunable).problems
  kept = {p.names[0]: p.k / p.n for p in problems}
  assert kept.pop('conv1/kernel') == 1.0
  assert all(0.172 < keep <= 0.173 for keep in kept.values())


@pytest.mark.once
@pytest.mark.parametrize(
  ('name', 'cell'),
  [(name, cell) for name in GRID for cell in module(name).BUDGETS],
  ids=lambda x: x if isinstance(x, str) else '-'.join(x),
)
def test_the_hard_mask_meets_the_budget(name, cell):
  """In miniature, for the config's own rows: ours, L1 and random, at any ranking."""
  prunable = elements(name, cell[0], runlocal=True)
  arguments = 'runlocal,granularity={},budget={}'.format(*cell)
  config = module(name).get_config(arguments)
  rng = np.random.default_rng(0)
  ranking = {key: rng.normal(size=s).astype(np.float32) for key, s in prunable.shapes.items()}
  seen = []
  for row in ('transportation', *config.rows):
    config = module(name).get_config(f'{arguments},method={row}')
    pruner = recipe.build_pruner(config, prunable, recipe.Stages(0, 10, 0))
    if pruner.resolved.problems in seen:
      continue  # a mask is made of nothing but the ranking and these
    seen.append(pruner.resolved.problems)
    hard = jax.jit(pruner.harden, compiler_options=QUICK)({'transport': ranking})
    report = pruner.resolved.account(hard)
    if cell[0] == 'weights' or cell[1] == 'ratios':
      assert report.achieved == report.requested < report.total
    else:
      assert 0.9 * report.requested < report.achieved <= report.requested
      assert report.requested == int(config.prune.keep * report.total)


@pytest.mark.once
@pytest.mark.parametrize(
  'name', [name if name in GRID else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_runlocal_trains_a_step_of_every_stage(name):
  """Those outside of the grid are what the tests of the training loop run, or a README job."""
  config = module(name).get_config('runlocal')
  if name in GRID:
    assert config.data.name == 'mnist_mini'
  data = dataset(config.data.name, examples=8)
  config.data.batch_size = 8
  config.stages.dense = config.stages.soft = config.stages.hard = 1.0
  built, create = recipe.build(config, data)
  assert built.stages == (1, 1, 1)
  variables = {
    key: randomized(value)
    for key in ('params', 'batch_stats')
    if (value := getattr(jax.eval_shape(create), key))
  }
  state = jax.jit(create, compiler_options=QUICK)(variables)
  rng = np.random.default_rng(0)
  batch = {key: rng.integers(0, 255, a.shape, np.uint8) for key, a in data.train.items()}
  if 'label' in batch:
    batch['label'] = np.arange(8, dtype=np.int32)
  step = functools.partial(train_step, built)
  step = jax.jit(step, static_argnames='stage', compiler_options=QUICK)
  for i, stage in enumerate(('dense', 'soft', 'hard')):
    state, metrics = step(enter_stage(built, state, i), batch, stage=stage)
    assert np.isfinite(metrics['loss'])
  hard = {key: np.asarray(z) > 0 for key, z in state.transport.items()}
  assert all(set(np.unique(z)) <= {-1, 1} for z in state.transport.values())
  report = built.pruner.resolved.account(hard)
  assert 0.5 * report.requested < report.achieved <= report.requested


def test_pretrained_weights_take_the_place_of_the_dense_stage():
  get_config = module('imagenet_resnet50').get_config
  assert get_config().stages.dense == 90.0
  config = get_config('pretrained=weights/resnet50.pth,budget=ratios')
  assert (config.pretrained, config.stages.dense) == ('weights/resnet50.pth', 0.0)
  points = dict(module('imagenet_resnet50').get_sweep('pretrained=a.pth,granularity=weights'))
  assert {point.pretrained for point in points.values()} == {'a.pth'}


@pytest.mark.parametrize('keep', module('text_decoder').BUDGETS)
def test_the_small_dense_decoder_has_what_the_budget_leaves_and_as_many_steps(keep):
  get_config, data = module('text_decoder').get_config, dataset('python_stdlib')

  def parameters(config):
    model = recipe.build_model(config, 256)
    tokens = jax.ShapeDtypeStruct(data.example.shape, data.example.dtype)
    found = jax.eval_shape(model.init, jax.random.key(0), tokens)
    return sum(leaf.size for leaf in jax.tree.leaves(found))

  pruned, small = get_config(f'keep={keep}'), get_config(f'keep={keep},small')
  assert 0.995 * keep < parameters(small) / parameters(pruned) <= keep
  assert sum(small.stages.values()) == pytest.approx(sum(pruned.stages.values()))
  assert (small.method, small.stages.dense) == ('dense', sum(small.stages.values()))
