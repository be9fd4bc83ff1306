"""Measures a training step of every stage against a plain Flax and Optax step of the same network.

  python -m experiments.bench.step --networks=resnet20,vit_ti --out=step.csv
  python -m experiments.bench.step --networks=resnet20 --batch_size=16 --repeats=5    # a quick look

The plain step is written below without this package: a loss, its gradient, one optimizer. Every
timed call is a training step that goes on from the last, interleaved with those of the other
stages; images are random, which costs what pictures cost. The late soft step is at 0.85 of the soft
stage, where the mask is nearly hard.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

from dtp_jax import methods, models, prunable
from dtp_jax.budget import Budget
from dtp_jax.graph import trace
from dtp_jax.prunable import Prunable
from dtp_jax.train import mesh as meshes
from dtp_jax.train.flags import checked, names_of
from dtp_jax.train.stages import Stages
from dtp_jax.train.state import create_train_state
from dtp_jax.train.step import Recipe, enter_stage, train_step
from dtp_jax.trees import paths
from experiments.bench.timing import define_out, interleaved, rows, table, write_csv


class Network(NamedTuple):
  """A network, its images and what it is trained with."""

  model: nn.Module
  image: tuple[int, int, int]
  batch_size: int
  optimizer: Callable[[], optax.GradientTransformation]


def _sgd() -> optax.GradientTransformation:
  return optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(1e-3, momentum=0.9, nesterov=True))


def _adamw() -> optax.GradientTransformation:
  return optax.adamw(1e-4, weight_decay=0.05)


NETWORKS = {
  'resnet20': Network(models.CifarResNet(num_classes=10, depth=20), (32, 32, 3), 128, _sgd),
  'resnet56': Network(models.CifarResNet(num_classes=10, depth=56), (32, 32, 3), 128, _sgd),
  'vit_ti': Network(models.ViT.tiny(100, patch=8), (64, 64, 3), 64, _adamw),
}

_STAGES = Stages(1000, 1000, 1000)
_STARTS = {'dense': 0, 'soft': 1100, 'late soft': 1850, 'hard': 2000}

flags.DEFINE_list('networks', list(NETWORKS), f'Some of {", ".join(NETWORKS)}.')
flags.DEFINE_list('granularities', ['channels', 'weights', 'nm'], 'What is pruned.')
flags.DEFINE_string('method', 'transportation', 'A method of the registry.')
flags.DEFINE_integer(
  'batch_size', None, "Images of a step; default: the network's own.", lower_bound=1
)
flags.DEFINE_integer('repeats', 20, 'Timed steps of each.', lower_bound=2)
define_out(None)
checked('networks', names_of(NETWORKS))
checked('granularities', names_of(('channels', 'weights', 'nm')))
checked('method', lambda name: names_of(methods.METHODS)([name]))
FLAGS = flags.FLAGS


def measure(
  name: str, granularity: str, method: str, batch_size: int | None, repeats: int
) -> list[dict[str, Any]]:
  """The rows of one network, pruned in one granularity."""
  network = NETWORKS[name]
  size = batch_size or network.batch_size
  rng = np.random.default_rng(0)
  classes = network.model.num_classes  # pyright: ignore[reportAttributeAccessIssue]
  batch = {
    'image': jnp.asarray(rng.integers(0, 256, (size, *network.image), np.uint8)),
    'label': jnp.asarray(rng.integers(0, classes, size), jnp.int32),
  }
  variables = jax.jit(functools.partial(network.model.init, train=False))(
    jax.random.key(0), jnp.zeros((1, *network.image))
  )
  elements, budget = _elements(network, variables, granularity)
  pruner = methods.build(method, elements, budget, steps=_STAGES.soft)
  scores = pruner.score_optimizer or optax.adam(1e-2)
  optimizers = {'params': network.optimizer(), 'scores': scores}
  mesh = meshes.make({'data': 1, 'model': 1})
  recipe = Recipe(network.model.apply, _task, pruner, optimizers, _STAGES, mesh)
  calls: dict[str, Callable[[], Any]] = {'plain': _plain(network, variables, batch)}
  calls |= {stage: _staged(recipe, variables, batch, start) for stage, start in _STARTS.items()}
  case = {'network': name, 'granularity': granularity, 'method': method, 'batch_size': size}
  case['weights'] = sum(w.size for w in jax.tree.leaves(variables['params']))
  return rows(case, interleaved(calls, repeats=repeats, warmup=5), 'plain', repeats)


def _plain(network: Network, variables: Any, batch: Any) -> Callable[[], Any]:
  tx = network.optimizer()

  @functools.partial(jax.jit, donate_argnums=0)
  def step(state, batch):
    params, stats, opt_state = state
    images, labels = _task(None, batch, True)

    def loss_fn(params):
      logits, updated = network.model.apply(
        {'params': params, **stats}, images, train=True, mutable=['batch_stats']
      )
      targets = jax.nn.one_hot(labels, logits.shape[-1])
      return jnp.mean(optax.softmax_cross_entropy(logits, targets)), (logits, updated)

    (loss, (logits, updated)), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    accuracy = jnp.mean(jnp.argmax(logits, -1) == labels)
    return (optax.apply_updates(params, updates), updated, opt_state), (loss, accuracy)

  params = jax.tree.map(jnp.copy, variables['params'])
  stats = {k: jax.tree.map(jnp.copy, v) for k, v in variables.items() if k != 'params'}
  return _goes_on(lambda state: step(state, batch), (params, stats, tx.init(params)))


def _staged(recipe: Recipe, variables: Any, batch: Any, start: int) -> Callable[[], Any]:
  """The step of the stage that `start` lies in."""
  step = jax.jit(functools.partial(train_step, recipe, stage=_STAGES.name(start)), donate_argnums=0)
  fresh = jax.tree.map(jnp.copy, variables)
  state = create_train_state(fresh, recipe.pruner, recipe.optimizers, jax.random.key(1))
  for bound in (_STAGES.soft_start, _STAGES.hard_start):
    if bound <= start:
      state = enter_stage(recipe, state, bound)
  state = jax.tree.map(jnp.copy, state)  # nothing that is donated twice
  state = dataclasses.replace(state, step=jnp.asarray(start, jnp.int32))
  return _goes_on(lambda state: step(state, batch), state)


def _goes_on(step: Callable[[Any], tuple[Any, Any]], state: Any) -> Callable[[], Any]:
  """A function whose every call is the next step."""

  def call() -> Any:
    nonlocal state
    state, metrics = step(state)
    return metrics

  return call


def _task(key: Any, batch: Any, train: bool) -> tuple[jax.Array, jax.Array]:
  del key, train
  return (batch['image'].astype(jnp.float32) - 127.5) / 64, batch['label']


def _elements(network: Network, variables: Any, granularity: str) -> tuple[Prunable, Budget]:
  params = variables['params']
  if granularity == 'channels':
    images = jnp.zeros((1, *network.image))
    graph = trace(network.model.apply, variables, images, train=False)
    return prunable.channels(graph), Budget(0.3, of='macs')
  if granularity == 'weights':
    return prunable.weights(params), Budget(0.1)
  if granularity == 'nm':
    kernels = {path: w for path, w in paths(params).items() if w.ndim >= 2 and 'bias' not in path}
    odd = [path for path, w in kernels.items() if w.shape[-2] % 4]
    return prunable.nm(params, 4, exclude=odd), Budget(0.5, scope='row')
  raise AssertionError(granularity)  # a flag has checked it


def main(argv: list[str]) -> None:
  """Measures, prints and saves."""
  del argv
  found = []
  try:
    for name in FLAGS.networks:
      for granularity in FLAGS.granularities:
        found += measure(name, granularity, FLAGS.method, FLAGS.batch_size, FLAGS.repeats)
        print(table(found[-len(_STARTS) - 1 :]), flush=True)
    if FLAGS.out:
      write_csv(FLAGS.out, found)
  except (ValueError, KeyError, OSError, ImportError) as error:
    sys.exit(f'{type(error).__name__}: {error}')


if __name__ == '__main__':
  app.run(main)
