"""Methods whose dropped weights are 0 and return from there, through the training loop."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from dtp_jax.data import load
from dtp_jax.train.loop import train_and_evaluate
from dtp_jax.train.metrics import MetricsWriter, read_metrics
from dtp_jax.train.recipe import build
from dtp_jax.train.step import enter_stage, hard_masks, train_step
from dtp_jax.trees import paths
from tests.train.conftest import tiny_config

DENSE, SOFT, HARD = 6, 12, 6
OPTIONS = {'acdc': {'cycles': 2}, 'rigl': {'every': 0.25, 'drop': 0.5}}


def config_of(method):
  config = tiny_config()
  config.baselines = ()
  config.stages.soft = 0.192
  config.method = method
  config.methods = ml_collections.ConfigDict(OPTIONS)
  return config


@pytest.mark.parametrize('method', OPTIONS)
def test_dropped_weights_are_zero_in_the_state_itself(method):
  """After every step of the soft and the hard stage, and the optimizer remembers nothing of them.

  The loop of a run in miniature, so that the weights behind the masks are seen.
  """
  config = config_of(method)
  data = load(config.data)
  recipe, create = build(config, data)
  assert recipe.stages == (DENSE, SOFT, HARD)
  state, batches = create(), data.train_batches(config.data.batch_size, seed=0)

  def take_step(state, batch, stage):
    return train_step(recipe, state, batch, stage=stage)

  take, total, kept = jax.jit(take_step, static_argnums=2), 2010, []
  for step in range(recipe.stages.total):
    stage = recipe.stages.name(step)
    state = enter_stage(recipe, state, step)
    after, metrics = take(state, data.batch(*next(batches)), stage)
    kept.append(round(float(metrics['kept']) * total))
    # RigL's mask is the ranking that a step begins with, AC/DC's the one it leaves.
    masks = hard_masks(recipe, state if method == 'rigl' else after)
    state = after
    if kept[-1] == total:
      continue
    weights = paths(state.params)
    momentum = paths(optax.tree.get(state.opt_state['params'], 'trace'))
    for name, mask in masks.items():
      assert not np.any(weights[name][~mask])
      assert not np.any(momentum[name][~mask])
    assert sum(int(mask.sum()) for mask in masks.values()) == kept[-1]
  budget = round(0.05 * total)
  assert kept[:DENSE] == [total] * DENSE
  assert kept[-HARD:] == [budget] * HARD
  soft = kept[DENSE:-HARD]
  if method == 'acdc':
    assert soft == [total] * 3 + [budget] + [total] * 4 + [budget] * 4
  else:
    assert soft == [budget] * SOFT


@pytest.mark.parametrize('method', OPTIONS)
def test_a_resumed_run_equals_the_uninterrupted_one(method, tmp_path, monkeypatch):
  """Interrupted in a dense and in a sparse phase, between moves, and when it is hard."""
  config = config_of(method)
  whole = train_and_evaluate(config, tmp_path / 'whole')
  write, stops = MetricsWriter.write, [11, 16, 20]

  def interrupt(self, kind, step, values):
    if kind == 'train' and stops and step == stops[0]:
      stops.pop(0)
      raise KeyboardInterrupt
    write(self, kind, step, values)

  monkeypatch.setattr(MetricsWriter, 'write', interrupt)
  for _ in range(3):
    with pytest.raises(KeyboardInterrupt):
      train_and_evaluate(config, tmp_path / 'parts')
  parts = train_and_evaluate(config, tmp_path / 'parts')
  assert {**parts, 'seconds': 0} == {**whole, 'seconds': 0}
  assert parts['achieved'] == parts['requested'] == round(0.05 * parts['total'])
  assert read_metrics(tmp_path / 'parts') == read_metrics(tmp_path / 'whole')
  for file in ('masks.npz', 'pruned.npz'):
    with np.load(tmp_path / 'parts' / file) as ours, np.load(tmp_path / 'whole' / file) as theirs:
      for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name])
  with np.load(tmp_path / 'parts' / 'masks.npz') as masks:
    assert sum(int(jnp.sum(masks[name])) for name in masks) == parts['requested']
