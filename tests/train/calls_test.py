"""Several steps in one call of the device: the same steps, in the same order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtp_jax.train import calls
from dtp_jax.train.loop import train_and_evaluate
from dtp_jax.train.metrics import read_metrics
from tests.train.conftest import tiny_config


@pytest.mark.parametrize('per_call', [1, 3, 4, 50])
@pytest.mark.parametrize('begin', [0, 5, 11])
def test_every_step_is_taken_once_and_none_jumps_over_a_stop(per_call, begin):
  stops = {6, 12, 18}
  planned = list(calls.plan(begin, 18, per_call, stops))
  steps = [step + i for step, count in planned for i in range(count)]
  assert steps == list(range(begin, 18))
  assert {count for _, count in planned} <= {1, per_call}
  assert not any(step < stop < step + count for step, count in planned for stop in stops)


def test_what_is_one_object_is_passed_once():
  data, rows = {'x': jnp.arange(10.0)}, [jnp.asarray([i, i + 1]) for i in range(3)]
  fixed, moving = calls.share([(data, row) for row in rows])
  assert list(fixed) == [0]
  assert fixed[0] is data

  def step(state, data, row):
    picked = jnp.sum(data['x'][row])
    return 2 * state + picked, {'picked': picked}

  state, metrics = jax.jit(lambda *given: calls.take(step, *given))(1.0, fixed, moving)
  assert metrics['picked'].tolist() == [1, 3, 5]
  assert state == 2 * (2 * (2 * 1.0 + 1) + 3) + 5


def test_a_run_in_calls_of_four_is_the_run_of_single_steps(tmp_path):
  for per_call in (1, 4):
    config = tiny_config()
    config.baselines = ()
    config.eval_every = 0.096  # once a stage, of six steps: a call of 4 and two of 1
    config.steps_per_call = per_call
    train_and_evaluate(config, tmp_path / str(per_call))
  alone, together = (read_metrics(tmp_path / name) for name in ('1', '4'))
  assert [(r['kind'], r['step']) for r in together] == [(r['kind'], r['step']) for r in alone]
  for one, other in zip(alone, together, strict=True):
    np.testing.assert_allclose(other['loss'], one['loss'], rtol=1e-4)
    assert other['kept'] == pytest.approx(one['kept'], abs=1e-5)
  masks = [dict(np.load(tmp_path / name / 'masks.npz')) for name in ('1', '4')]
  for name in masks[0]:
    np.testing.assert_array_equal(masks[0][name], masks[1][name])
