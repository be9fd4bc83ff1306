"""A NaN in a batch: the run stops and says where, or the step is skipped and counted."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtp_jax.data import Resident, images, load, order
from dtp_jax.train import loop
from dtp_jax.train.metrics import read_metrics
from dtp_jax.train.recipe import build
from dtp_jax.train.step import enter_stage, train_step
from tests.train.conftest import tiny_config

PLANTED = 8  # the step whose batch holds the NaN, the third of the soft stage


def config_of(on_nan):
  config = tiny_config()
  config.baselines = ()
  config.on_nan = on_nan
  return config


@pytest.fixture(scope='module')
def data():
  """The digits, with one white image in one batch, which becomes NaN."""
  clean = load(tiny_config().data)
  seed, size = tiny_config().seed, tiny_config().data.batch_size
  index = next(order.train_indices(clean.examples, size, seed=seed, step=PLANTED))
  train = {**clean.train, 'image': clean.train['image'].copy()}
  train['image'][index[5]] = 255
  return Resident(
    clean.name, train, clean.held_out, clean.num_classes, clean.mean, clean.std, verified=True
  )


@pytest.fixture(autouse=True)
def white_is_nan(monkeypatch):
  normalise = images.normalise

  def planted(pixels, mean, std):
    middle = pixels[:, 8:20, 8:20]  # wherever it is shifted to
    white = jnp.all(middle == 255, axis=(1, 2, 3), keepdims=True)
    return jnp.where(white, jnp.nan, normalise(pixels, mean, std))

  monkeypatch.setattr(images, 'normalise', planted)


def test_by_default_it_stops_with_step_stage_and_the_last_good_checkpoint(data, tmp_path):
  with pytest.raises(loop.DivergedError) as error:
    loop.train_and_evaluate(config_of('stop'), tmp_path, data=data)
  told = str(error.value)
  assert f'loss is nan at step {PLANTED + 1} of the soft stage' in told
  assert str(tmp_path / 'checkpoints' / '6') in told
  assert "on_nan='skip'" in told
  assert max(int(p.name) for p in (tmp_path / 'checkpoints').iterdir()) == 6
  assert read_metrics(tmp_path)[-1]['loss'] is None


def test_a_step_is_skipped_and_counted(data, tmp_path):
  summary = loop.train_and_evaluate(config_of('skip'), tmp_path, data=data)
  assert summary['skipped_steps'] == 1
  assert summary['achieved'] == summary['requested']
  records = {r['step']: r for r in read_metrics(tmp_path) if r['kind'] == 'train'}
  assert [step for step, r in records.items() if r['skipped']] == [PLANTED + 1]
  assert [step for step, r in records.items() if r['loss'] is None] == [PLANTED + 1]
  with np.load(tmp_path / 'pruned.npz') as pruned:
    assert all(np.isfinite(pruned[name]).all() for name in pruned.files)


@pytest.mark.parametrize('stage', ['dense', 'soft', 'hard'])
def test_of_a_skipped_step_nothing_is_left_but_its_number(data, stage):
  recipe, create = build(config_of('skip'), data)
  at = {'dense': 0, 'soft': recipe.stages.soft_start, 'hard': recipe.stages.hard_start}[stage]
  state = enter_stage(recipe, create(), at)
  state = state.replace(step=state.step + at)
  take = jax.jit(functools.partial(train_step, recipe, stage=stage))
  image = np.array(data.train['image'][:64])
  label = np.asarray(data.train['label'][:64])
  sound, metrics = take(state, {'image': image, 'label': label})
  assert metrics['skipped'] == 0
  assert not np.array_equal(sound.params['head']['kernel'], state.params['head']['kernel'])
  image[3] = 255
  after, metrics = take(state, {'image': image, 'label': label})
  assert metrics['skipped'] == 1
  assert after.step == state.step + 1
  for name in ('params', 'scores', 'transport', 'batch_stats', 'opt_state'):
    jax.tree.map(np.testing.assert_array_equal, getattr(after, name), getattr(state, name))


def test_where_it_stops_the_step_asks_nothing(data):
  asked = {}
  for on_nan in ('stop', 'skip'):
    recipe, create = build(config_of(on_nan), data)
    batch = {'image': data.train['image'][:64], 'label': data.train['label'][:64]}
    step = functools.partial(train_step, recipe, stage='hard')
    asked[on_nan] = 'is_finite' in str(jax.make_jaxpr(step)(jax.eval_shape(create), batch))
  assert asked == {'stop': False, 'skip': True}


def test_another_word_is_refused(data):
  with pytest.raises(ValueError, match=r"on_nan is 'ignore'; expected one of \['skip', 'stop'\]"):
    build(config_of('ignore'), data)
