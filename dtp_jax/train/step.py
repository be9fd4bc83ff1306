"""One training step and one evaluation step, pure and shared by every method and stage."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh

from dtp_jax import transport as ops
from dtp_jax.data.dataset import Task
from dtp_jax.methods import Pruner
from dtp_jax.parts import split_axis, to_parts
from dtp_jax.prunable import Masks
from dtp_jax.train import mesh as meshes
from dtp_jax.train.stages import Stage, Stages
from dtp_jax.train.state import TrainState
from dtp_jax.trees import finite

__all__ = [
  'Batch',
  'Recipe',
  'enter_stage',
  'eval_step',
  'hard_masks',
  'masked_params',
  'train_step',
]

Batch = dict[str, Array]  # of a data set, see `dtp_jax.data.Dataset.batch`


class Recipe(NamedTuple):
  """What a step is made of; built once from a config.

  Attributes:
    apply: Linen's module.apply, with a `train` argument.
    task: (key, batch, train) -> (what the network reads, labels of its logits).
    pruner: the pruning method, on the elements of this network.
    optimizers: {'params': of the weights, 'scores': of the scores}.
    stages: stage lengths.
    mesh: of the devices.
    label_smoothing: in [0, 1).
    accumulate: parts that the gradient of a batch is computed in.
    skip_nonfinite: whether a step whose loss or weights are not finite changes nothing.
  """

  apply: Callable[..., Any]
  task: Task
  pruner: Pruner
  optimizers: Mapping[str, optax.GradientTransformation]
  stages: Stages
  mesh: Mesh
  label_smoothing: float = 0.0
  accumulate: int = 1
  skip_nonfinite: bool = False


def enter_stage(recipe: Recipe, state: TrainState, step: int) -> TrainState:
  """The state that a step begins with: a new one at the first step of the soft and hard stages.

  The soft stage starts from the weights of the moment, and the ranking is frozen at its end: not a
  part of `train_step`, which would carry both through every step.

  Args:
    recipe: static.
    state: at the step, concrete.
    step: `state.step`, known without waiting for the device.

  Returns:
    The state; the same at every other step.
  """
  stages, extra = recipe.stages, state.extra
  if step == stages.soft_start:
    where = meshes.of_state(recipe.mesh, extra)
    extra = jax.jit(recipe.pruner.init, out_shardings=where)(state.params)
  if step == stages.hard_start:
    where = meshes.of_state(recipe.mesh, extra['transport'])
    frozen = jax.jit(_frozen, out_shardings=where)(extra['transport'], hard_masks(recipe, state))
    extra = {**extra, 'transport': frozen}
  return replace(state, scores=extra['scores'], transport=extra['transport'])


def train_step(
  recipe: Recipe, state: TrainState, batch: Batch, *, stage: Stage
) -> tuple[TrainState, dict[str, Array]]:
  """One step of a stage, which `enter_stage` began.

  Each stage is a program of its own that holds only what it needs: no mask is multiplied in the
  dense stage, and scores are learned in the soft one alone.

  Args:
    recipe: static.
    state: donated by the caller's jit.
    batch: of the data set that the task is of.
    stage: static; `recipe.stages.name(step)` of the step that the state is at.

  Returns:
    The next state and scalar metrics: loss, accuracy, softness S (mean of 4 m (1 - m)) and kept
    (mean of the mask) of the masks used; with `recipe.skip_nonfinite` also skipped, 1 or 0.
  """
  key_task, key_model = jax.random.split(jax.random.fold_in(state.rngs['train'], state.step))
  asked = recipe.task(key_task, batch, True)
  learned = ('params', 'scores') if stage == 'soft' else ('params',)
  trained = {name: getattr(state, name) for name in learned}

  def pruned(trained):
    params, masks, transport = _pruned(recipe, replace(state, **trained), state.step, stage)
    return params, (masks, transport)

  # One plan a step, however many parts its batch has: they share the pruned parameters.
  params, pull_back, (masks, transport) = jax.vjp(pruned, trained, has_aux=True)
  grads, batch_stats, metrics = _gradient(recipe, params, state.batch_stats, asked, key_model)
  (grads,) = pull_back(grads)
  opt_state = dict(state.opt_state)
  for name in learned:
    update = optax.with_extra_args_support(recipe.optimizers[name]).update
    updates, opt_state[name] = update(grads[name], opt_state[name], trained[name], masks=masks)
    trained[name] = optax.apply_updates(trained[name], updates)
  following = {
    'batch_stats': batch_stats,
    'transport': transport,
    'opt_state': opt_state,
    **trained,
  }
  metrics |= _mask_metrics(masks, meshes.model_parts(recipe.mesh))
  if recipe.skip_nonfinite:
    sound = finite((metrics['loss'], trained))
    following = {k: _select(sound, new, getattr(state, k)) for k, new in following.items()}
    metrics['skipped'] = 1 - sound.astype(jnp.int32)
  return replace(state, step=state.step + 1, **following), metrics


def masked_params(recipe: Recipe, state: TrainState, *, stage: Stage) -> dict[str, Any]:
  """The network as it was last trained.

  Args:
    recipe: static.
    state: after a step, or at step 0.
    stage: static; that of the last step: at the bound of two stages the network is still that of
      the first.

  Returns:
    'params' multiplied by their masks, the 'metrics' of these, and 'kept_per_array' {name: mean of
    the mask}.
  """
  params, masks, _ = _pruned(recipe, state, state.step - 1, stage)
  metrics = _mask_metrics(masks, meshes.model_parts(recipe.mesh))
  kept = {name: jnp.mean(masks[name]) if masks else jnp.ones(()) for name in state.transport}
  return {'params': params, 'metrics': metrics, 'kept_per_array': kept}


def eval_step(
  apply: Callable[..., Any],
  task: Task,
  params: Any,
  batch_stats: Any,
  batch: Batch,
) -> dict[str, Array]:
  """Sums over the labels of a batch whose 'mask' is true: loss, correct, count.

  Args:
    apply: of the `Recipe`.
    task: of the `Recipe`.
    params: masked parameters.
    batch_stats: running statistics, or {}.
    batch: of the data set, with 'mask' (B,).

  Returns:
    Scalars.
  """
  inputs, labels = task(jax.random.key(0), batch, False)
  logits = apply(_collections(params, batch_stats), inputs, train=False)
  # An example may have many labels, as a text has.
  valid = jnp.broadcast_to(jnp.expand_dims(batch['mask'], range(1, labels.ndim)), labels.shape)
  loss = _cross_entropy(logits, labels, 0.0)
  correct = jnp.argmax(logits, -1) == labels
  return {
    'loss': jnp.sum(jnp.where(valid, loss, 0.0)),
    'correct': jnp.sum(valid & correct, dtype=jnp.int32),
    'count': jnp.sum(valid, dtype=jnp.int32),
  }


def hard_masks(recipe: Recipe, state: TrainState) -> Masks:
  """The hard masks of the present ranking, on every device.

  Every process ranks all elements by the same numbers, so that all of them keep the same.
  """
  return recipe.pruner.harden(meshes.whole(recipe.mesh, state.extra))


def _frozen(transport, hard):
  """The hard masks as log-odds of +1 and -1."""
  return {name: jnp.where(hard[name], 1.0, -1.0).astype(z.dtype) for name, z in transport.items()}


def _gradient(recipe: Recipe, params, batch_stats, asked: tuple[Array, Array], key: Array):
  """(gradient of the mean loss, the next batch_stats, metrics) at pruned parameters."""

  def loss_fn(params, batch_stats, asked, key):
    inputs, labels = asked
    logits, updated = recipe.apply(
      _collections(params, batch_stats),
      inputs,
      train=True,
      mutable=['batch_stats'],
      rngs={'dropout': key},
    )
    loss = jnp.mean(_cross_entropy(logits, labels, recipe.label_smoothing))
    accuracy = jnp.mean(jnp.argmax(logits, -1) == labels)
    return loss, (updated.get('batch_stats', {}), {'loss': loss, 'accuracy': accuracy})

  gradient = jax.grad(loss_fn, has_aux=True)
  parts = recipe.accumulate
  if parts == 1:
    grads, (batch_stats, metrics) = gradient(params, batch_stats, asked, key)
    return grads, batch_stats, metrics

  def deal(x):
    # Row i goes to part i mod parts: each part has rows of every device.
    return jnp.swapaxes(x.reshape(-1, parts, *x.shape[1:]), 0, 1)

  def add(carry, part):
    batch_stats, total = carry
    i, asked = part
    grads, (batch_stats, metrics) = gradient(params, batch_stats, asked, jax.random.fold_in(key, i))
    return (batch_stats, jax.tree.map(jnp.add, total, (grads, metrics))), None

  nothing = jax.tree.map(jnp.zeros_like, params), {'loss': jnp.zeros(()), 'accuracy': jnp.zeros(())}
  dealt = jnp.arange(parts), jax.tree.map(deal, asked)
  (batch_stats, total), _ = jax.lax.scan(add, (batch_stats, nothing), dealt)
  grads, metrics = jax.tree.map(lambda x: x / parts, total)
  return grads, batch_stats, metrics


def _pruned(recipe: Recipe, state: TrainState, step, stage: Stage):
  """(pruned parameters, masks, the next transport collection); the dense stage has no masks."""
  present = state.transport
  if stage == 'dense':
    return state.params, {}, present
  if stage == 'soft':
    masks, following = recipe.pruner.masks(state.params, state.extra, step - recipe.stages.dense)
    masks = {name: mask.astype(present[name].dtype) for name, mask in masks.items()}
  else:
    masks, following = {name: (z > 0).astype(z.dtype) for name, z in present.items()}, present
  return recipe.pruner.apply_masks(state.params, masks), masks, following


def _select(which: Array, ours, theirs):
  return jax.tree.map(lambda a, b: jnp.where(which, a, b), ours, theirs)


def _mask_metrics(masks: Masks, parts: int) -> dict[str, Array]:
  if not masks:
    return {'softness': jnp.zeros(()), 'kept': jnp.ones(())}
  # A row for each device: of a split mask every device would gather a flat copy.
  rows = [to_parts(m, 1 if split_axis(m.shape, parts) is None else parts) for m in masks.values()]
  size = sum(m.size for m in rows)
  return {
    'softness': sum((jnp.mean(ops.softness(m)) * m.size for m in rows), jnp.zeros(())) / size,
    'kept': sum((jnp.sum(m) for m in rows), jnp.zeros(())) / size,
  }


def _collections(params, batch_stats):
  return {'params': params, 'batch_stats': batch_stats} if batch_stats else {'params': params}


def _cross_entropy(logits, labels, smoothing):
  targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), smoothing)
  return optax.softmax_cross_entropy(logits.astype(jnp.float32), targets)
