"""The parts of a run: optimizer, stages, one trace, checkpoints, metrics, command line."""

import dataclasses
import functools
import itertools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags

from configs import text_decoder
from dtp_jax.data import Resident, Text, load
from dtp_jax.train.checkpoint import Checkpoints
from dtp_jax.train.evaluate import Evaluator
from dtp_jax.train.flags import parse_flags
from dtp_jax.train.metrics import MetricsWriter, read_metrics
from dtp_jax.train.recipe import build, build_model
from dtp_jax.train.stages import Stages
from dtp_jax.train.step import enter_stage, train_step
from tests.train.conftest import tiny_config


@pytest.fixture(scope='module')
def built():
  data = load({'name': 'mnist_mini'})
  recipe, create = build(tiny_config(), data)
  return data, recipe, create


def test_stages_follow_the_step_number():
  stages = Stages(2, 3, 1)
  names = [stages.name(step) for step in range(7)]
  assert names == ['dense'] * 2 + ['soft'] * 3 + ['hard', 'done']


@pytest.fixture(scope='module')
def stepped(built):
  """(states of a whole run on the host, the first one and that after each step, traces of it)."""
  data, recipe, create = built
  traces = []

  def step(stage, state, index):
    traces.append(stage)
    return train_step(recipe, state, Resident.batch(train, index), stage=stage)

  train = jax.tree.map(jnp.asarray, data.train)
  step, state = jax.jit(step, static_argnums=0, donate_argnums=1), create()
  states = [jax.device_get(dataclasses.replace(state, rngs={}))]
  for i in range(recipe.stages.total):
    stage, index = recipe.stages.name(i), np.arange(32, dtype=np.int32) + i
    state, _ = step(stage, enter_stage(recipe, state, i), index)
    states.append(jax.device_get(dataclasses.replace(state, rngs={})))
  return states, traces


def test_one_trace_serves_every_step_of_a_stage(built, stepped):
  states, traces = stepped
  assert [int(state.step) for state in states] == list(range(built[1].stages.total + 1))
  assert traces == ['dense', 'soft', 'hard']


@pytest.mark.parametrize('stage', ['dense', 'soft', 'hard'])
def test_a_stage_touches_only_what_it_needs(built, stage):
  """Scores, their optimizer and the log-odds leave the step as they came, but for the soft one."""
  data, recipe, create = built
  batch = {name: jnp.asarray(x[:8]) for name, x in data.train.items()}
  state = jax.eval_shape(create)
  traced = jax.make_jaxpr(functools.partial(train_step, recipe, stage=stage))(state, batch).jaxpr
  before = jax.tree.unflatten(jax.tree.structure((state, batch)), traced.invars)[0]
  after = traced.outvars[: len(jax.tree.leaves(state))]
  after = jax.tree.unflatten(jax.tree.structure(state), after)
  for name in ('scores', 'transport'):
    pairs = zip(getattr(before, name).values(), getattr(after, name).values(), strict=True)
    assert {a is b for a, b in pairs} == {stage != 'soft'}
  masked = [v.aval.shape for e in traced.eqns if e.primitive.name == 'gt' for v in e.outvars]
  assert all((z.shape in masked) == (stage == 'hard') for z in state.transport.values())
  assert 'callback' not in str(traced)


def test_scores_learn_in_the_soft_stage_alone_and_the_log_odds_freeze(built, stepped):
  states, stages = stepped[0], built[1].stages
  seen = {}
  for i, (state, following) in enumerate(itertools.pairwise(states)):
    pair = (jax.tree.leaves((s.scores, s.opt_state['scores'])) for s in (state, following))
    moved = any(np.any(a != b) for a, b in zip(*pair, strict=True))
    seen.setdefault(stages.name(i), set()).add(moved)
  assert seen == {'dense': {False}, 'soft': {True}, 'hard': {False}}
  frozen = states[stages.hard_start + 1].transport
  for state in states[stages.hard_start + 1 :]:
    for name, z in state.transport.items():
      np.testing.assert_array_equal(z, frozen[name])
      assert set(np.unique(z)) <= {-1.0, 1.0}


def test_evaluation_counts_every_example_once(built):
  data, recipe, create = built
  state = create()

  def evaluate(split, size):
    return Evaluator(recipe, dataclasses.replace(data, held_out=split), size)(state)

  values = {}
  for size in (1000, 300, 7):  # 1,000 images: no remainder, a remainder, a tiny last batch
    split = jax.tree.map(lambda x: x[:100] if size == 7 else x, data.held_out)  # noqa: B023
    values[size] = evaluate(split, size)
  assert values[1000]['accuracy'] == values[300]['accuracy']
  np.testing.assert_allclose(values[1000]['loss'], values[300]['loss'], rtol=1e-5)
  first = jax.tree.map(lambda x: x[:100], data.held_out)
  assert values[7]['accuracy'] == evaluate(first, 100)['accuracy']


def test_checkpoints_restore_into_an_abstract_template(built, tmp_path):
  _, _, create = built
  state = create()
  checkpoints = Checkpoints(tmp_path, keep=1, always=(0,))
  checkpoints.save(state, {'data': {'step': 0}, 'seconds': 1.5})
  restored, position = checkpoints.restore_latest(jax.eval_shape(create))
  checkpoints.close()
  assert position == {'step': 0, 'data': {'step': 0}, 'seconds': 1.5}
  for ours, theirs in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
    if jnp.issubdtype(ours.dtype, jax.dtypes.prng_key):
      ours, theirs = jax.random.key_data(ours), jax.random.key_data(theirs)
    np.testing.assert_array_equal(ours, theirs)
  items = {p.name for p in (tmp_path / '0').iterdir() if p.is_dir()}
  assert items >= {'params', 'scores', 'transport', 'optimizer', 'position'}


def test_a_missing_checkpoint_is_named(built, tmp_path):
  _, _, create = built
  checkpoints = Checkpoints(tmp_path)
  with pytest.raises(FileNotFoundError, match='no checkpoint of step 7'):
    checkpoints.restore(jax.eval_shape(create), 7)
  checkpoints.close()


def test_metrics_of_a_resumed_run_drop_what_came_after_its_checkpoint(tmp_path):
  writer = MetricsWriter(tmp_path)
  for step in range(5):
    writer.write('train', step, {'loss': np.float32(step), 'bad': float('nan')})
  writer.close()
  with (tmp_path / 'metrics.jsonl').open('a') as file:
    file.write('{"kind": "train", "st')  # killed in mid-line
  assert len(read_metrics(tmp_path)) == 5
  writer = MetricsWriter(tmp_path, resume_step=2)
  writer.write('train', 3, {'loss': 30.0})
  writer.close()
  records = read_metrics(tmp_path)
  assert [r['step'] for r in records] == [0, 1, 2, 3]
  assert records[-1]['loss'] == 30.0
  assert records[0]['bad'] is None


CONFIG = '--config=configs/mnist_mini.py'


@pytest.fixture
def parse(monkeypatch):
  """Parses a command line with flags of its own; returns what it leaves, or the exit message."""
  defined = flags.FlagValues()
  config_flags.DEFINE_config_file('config', None, 'A config.', flag_values=defined)
  flags.DEFINE_string('workdir', None, 'A folder.', flag_values=defined)
  monkeypatch.setattr(flags, 'FLAGS', defined)

  def call(*arguments):
    argv = ['program', *arguments]
    monkeypatch.setattr(sys, 'argv', argv)  # ml_collections looks there
    try:
      return parse_flags(argv), defined
    except SystemExit as stop:
      return str(stop)

  return call


@pytest.mark.parametrize(
  ('arguments', 'words'),
  [
    (['--workdir=x', '--config', 'configs/mnist_mini.py', '--config.sede', '1'],
     ["--config.sede is not a field of the config; did you mean 'seed'?"]),
    ([CONFIG, '--workdir=x', '--config.data.name.first=1'],
     ['--config.data.name.first is not a field of the config.']),
    ([CONFIG, '--workdir=x', '--config.baselines[0]=a'], ['baselines[0]', 'tuple']),
    (['--config=configs/mnist_mini.py:fast', '--workdir=x'], ["'fast'", 'runlocal']),
  ],
)  # fmt: skip
def test_a_wrong_command_line_is_answered_with_what_is_meant(parse, arguments, words):
  message = parse(*arguments)
  assert all(word in message for word in words), message
  assert message.endswith('Try --help.')
  assert 'Traceback' not in message


def test_fields_are_set(parse):
  arguments = ['--config.prune.keep=0.25', '--config.baselines=("random",)', '--noconfig.data.flip']
  rest, defined = parse(CONFIG, '--workdir=x', *arguments)
  config = defined['config'].value
  assert rest == ['program']
  assert (config.prune.keep, config.baselines, config.data.flip) == (0.25, ('random',), False)


@pytest.mark.once
@pytest.mark.parametrize(
  ('arguments', 'words'),
  [
    ([CONFIG, '--config.prune.kep=0.1', '--workdir=x'],
     ['config.prune.kep', "did you mean 'keep'"]),
    (['--help'], ['--config', '--workdir', 'configs/mnist_mini.py']),
  ],
)  # fmt: skip
def test_the_command_line_says_what_is_meant(arguments, words):
  command = [sys.executable, '-m', 'experiments.train', *arguments]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  output = done.stdout + done.stderr
  assert done.returncode != 0
  assert all(word in output for word in words), output
  assert 'Traceback' not in output


@pytest.mark.once
def test_of_a_text_every_next_token_counts_once():
  """Against the mean over all positions of the windows."""
  config = text_decoder.get_config('runlocal')
  config.data.batch_size, config.mesh.data = 4, 1
  tokens = np.random.default_rng(0).integers(0, 256, (7, 6), np.uint8)
  data = Text('seven', {'tokens': tokens}, {'tokens': tokens}, 256, verified=False)
  config.stages.update({'dense': 1.0, 'soft': 1.0, 'hard': 1.0})
  recipe, create = build(config, data)
  state = create()
  logits = build_model(config, 256).apply({'params': state.params}, tokens[:, :-1].astype(np.int32))
  shares = jax.nn.log_softmax(logits)
  picked = np.take_along_axis(np.asarray(shares), tokens[:, 1:, None].astype(np.int64), -1)
  right = np.argmax(logits, -1) == tokens[:, 1:]
  found = Evaluator(recipe, data, 3)(state)  # the last batch has one window
  np.testing.assert_allclose(found['loss'], -picked.mean(), rtol=1e-5)
  np.testing.assert_allclose(found['accuracy'], right.mean(), rtol=1e-6)
