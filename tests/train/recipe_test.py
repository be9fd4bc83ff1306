"""Learning rates step by step, and runs that start from pretrained weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from configs import imagenet_resnet34
from dtp_jax.data import Resident
from dtp_jax.models import from_torch
from dtp_jax.train import recipe
from dtp_jax.train.stages import Stages
from tests.from_torch_test import resnet_state
from tests.train.conftest import tiny_config


def rates(config, stages):
  """The learning rate of every step, read off the updates of plain SGD."""
  config.optimizer.update({'momentum': 0.0, 'nesterov': False, 'weight_decay': 0.0})
  tx = recipe.build_optimizer(config, stages)
  tree = {'w': jnp.ones(1)}
  state, seen = tx.init(tree), []
  update = jax.jit(tx.update)
  for _ in range(stages.total):
    updates, state = update(tree, state, tree)
    seen.append(-updates['w'][0])
  return np.asarray(seen)


def stepped(**fields):
  config = tiny_config()
  config.optimizer.update({'schedule': 'steps', 'learning_rate': 0.5, 'prune_learning_rate': 0.2})
  config.optimizer.update({'warmup': 0.0, **fields})
  return config


def test_rates_fall_to_a_tenth_at_the_given_fractions_of_each_part():
  config = stepped(steps=(0.5, 0.75), prune_steps=(0.6,))
  dense = [0.5] * 4 + [0.05] * 2 + [0.005] * 2
  pruned = [0.2] * 6 + [0.02] * 4
  np.testing.assert_allclose(rates(config, Stages(8, 3, 7)), dense + pruned, rtol=1e-5)


def test_a_warm_up_is_a_line_and_no_step_is_a_constant_rate():
  config = stepped(steps=(), prune_steps=(), warmup=0.5)
  expected = [0.0, 0.125, 0.25, 0.375] + [0.5] * 4 + [0.2] * 2
  np.testing.assert_allclose(rates(config, Stages(8, 1, 1)), expected, rtol=1e-5)


def test_the_default_is_a_cosine_to_zero_in_each_part():
  config = tiny_config()
  config.optimizer.update({'warmup': 0.0, 'learning_rate': 0.5, 'prune_learning_rate': 0.2})
  wave = lambda rate, n: [rate * (1 + np.cos(np.pi * i / n)) / 2 for i in range(n)]
  expected = wave(0.5, 8) + wave(0.2, 10)
  np.testing.assert_allclose(rates(config, Stages(8, 3, 7)), expected, atol=1e-6)


@pytest.mark.parametrize('steps', [(0.0,), (1.0,), (0.5, 0.5), (0.7, 0.3)])
def test_steps_that_do_not_rise_within_a_part_are_refused(steps):
  with pytest.raises(ValueError, match='rising fractions'):
    recipe.build_optimizer(stepped(steps=steps), Stages(8, 3, 7))


def test_an_unknown_schedule_is_answered_with_those_there_are():
  with pytest.raises(ValueError, match=r"optimizer.schedule is 'linear'.*'cosine', 'steps'"):
    recipe.build_optimizer(stepped(schedule='linear'), Stages(8, 3, 7))


def test_a_run_starts_at_the_pretrained_weights(tmp_path):
  path = tmp_path / 'resnet.safetensors'
  safetensors.numpy.save_file(resnet_state(), path)
  config = imagenet_resnet34.get_config(f'granularity=weights,pretrained={path}')
  config.model.update({'width': 4, 'blocks': (1, 1)})
  split = {'image': np.zeros((512, 32, 32, 3), np.uint8), 'label': np.zeros(512, np.int32)}
  data = Resident('tiny', split, split, 3, (0.5,) * 3, (0.2,) * 3, verified=False)
  built, create = recipe.build(config, data)
  assert built.stages == (0, 60, 180)  # two steps an epoch, none of them dense
  expected = from_torch(path, recipe.build_model(config, 3))
  state = create()
  for name in ('params', 'batch_stats'):
    jax.tree.map(np.testing.assert_array_equal, getattr(state, name), expected[name])
  assert jax.tree.structure(jax.eval_shape(create)) == jax.tree.structure(state)
  other = jax.tree.map(jnp.zeros_like, expected)  # a fork brings its own
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(create(other).params))
