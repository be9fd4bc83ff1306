"""One training step and one evaluation step, pure and shared by every method and stage."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from dtp_jax import transport as ops
from dtp_jax.methods import Extra, Pruner
from dtp_jax.prunable import Masks
from dtp_jax.train.stages import Stages
from dtp_jax.train.state import TrainState

__all__ = ['Batch', 'Recipe', 'enter_stage', 'eval_step', 'masked_params', 'train_step']

Batch = dict[str, Array]  # 'image' uint8 (B, H, W, C), 'label' int32 (B,), 'mask' bool (B,) in eval


class Recipe(NamedTuple):
  """What a step is made of; built once from a config.

  Attributes:
    apply: Linen's module.apply, with a `train` argument.
    preprocess: (key, uint8 images, train) -> float images.
    pruner: the pruning method, on the elements of this network.
    tx: optimizer over {'params', 'scores'}.
    stages: stage lengths.
    label_smoothing: in [0, 1).
  """

  apply: Callable[..., Any]
  preprocess: Callable[[Array, Array, bool], Array]
  pruner: Pruner
  tx: optax.GradientTransformationExtraArgs
  stages: Stages
  label_smoothing: float = 0.0


def enter_stage(recipe: Recipe, state: TrainState, step: int) -> TrainState:
  """The state that a step begins with: a new one at the first step of the soft and hard stages.

  The soft stage starts from the weights of the moment, and the ranking is frozen at its end. Not a
  part of `train_step`: the rounding to a budget of channels is the host's, and a program that calls
  the host is compiled anew in every process.

  Args:
    recipe: static.
    state: at the step, concrete.
    step: `state.step`, known without waiting for the device.

  Returns:
    The state; the same at every other step.
  """
  stages, extra = recipe.stages, state.extra
  if step == stages.soft_start:
    extra = jax.jit(recipe.pruner.init)(state.params)
  if step == stages.hard_start:
    extra = {**extra, 'transport': _frozen(extra['transport'], recipe.pruner.harden(extra))}
  return dataclasses.replace(state, scores=extra['scores'], transport=extra['transport'])


def train_step(
  recipe: Recipe, state: TrainState, batch: Batch
) -> tuple[TrainState, dict[str, Array]]:
  """One step of whatever stage the step number lies in, which `enter_stage` began.

  Args:
    recipe: static.
    state: donated by the caller's jit.
    batch: 'image' uint8 (B, H, W, C) and 'label' int32 (B,).

  Returns:
    The next state and scalar metrics: loss, accuracy, softness S (mean of 4 m (1 - m)) and kept
    (mean of the mask) of the masks used.
  """
  key_augment, key_model = jax.random.split(jax.random.fold_in(state.rngs['train'], state.step))
  images = recipe.preprocess(key_augment, batch['image'], True)

  def loss_fn(trainable):
    params, extra = trainable['params'], {**state.extra, 'scores': trainable['scores']}
    masks, transport = _stage_masks(recipe, params, extra, state.step)
    params = recipe.pruner.apply_masks(params, masks)
    logits, updated = recipe.apply(
      _collections(params, state.batch_stats),
      images,
      train=True,
      mutable=['batch_stats'],
      rngs={'dropout': key_model},
    )
    loss = jnp.mean(_cross_entropy(logits, batch['label'], recipe.label_smoothing))
    return loss, (logits, masks, transport, updated.get('batch_stats', {}))

  trainable = {'params': state.params, 'scores': state.scores}
  (loss, (logits, masks, transport, batch_stats)), grads = jax.value_and_grad(
    loss_fn, has_aux=True
  )(trainable)
  updates, opt_state = recipe.tx.update(grads, state.opt_state, trainable, train_step=state.step)
  trainable = cast('dict[str, Any]', optax.apply_updates(trainable, updates))
  metrics = {
    'loss': loss,
    'accuracy': jnp.mean(jnp.argmax(logits, -1) == batch['label']),
    **_mask_metrics(masks),
  }
  state = dataclasses.replace(
    state,
    step=state.step + 1,
    params=trainable['params'],
    scores=trainable['scores'],
    batch_stats=batch_stats,
    transport=transport,
    opt_state=opt_state,
  )
  return state, metrics


def masked_params(recipe: Recipe, state: TrainState) -> dict[str, Any]:
  """The network as it was last trained.

  Returns:
    'params' multiplied by their masks, the 'metrics' of these, and 'kept_per_array' {name: mean of
    the mask}.
  """
  last = state.step - 1  # at the bound of two stages the network is still that of the first
  masks, _ = _stage_masks(recipe, state.params, state.extra, last)
  return {
    'params': recipe.pruner.apply_masks(state.params, masks),
    'metrics': _mask_metrics(masks),
    'kept_per_array': {name: jnp.mean(mask) for name, mask in masks.items()},
  }


def eval_step(
  apply: Callable[..., Any],
  preprocess: Callable[[Array, Array, bool], Array],
  params: Any,
  batch_stats: Any,
  batch: Batch,
) -> dict[str, Array]:
  """Sums over the examples of a batch whose 'mask' is true: loss, correct, count.

  Args:
    apply: of the `Recipe`.
    preprocess: of the `Recipe`.
    params: masked parameters.
    batch_stats: running statistics, or {}.
    batch: 'image', 'label' and 'mask' (B,).

  Returns:
    Scalars.
  """
  images = preprocess(jax.random.key(0), batch['image'], False)
  logits = apply(_collections(params, batch_stats), images, train=False)
  valid = batch['mask']
  loss = _cross_entropy(logits, batch['label'], 0.0)
  correct = jnp.argmax(logits, -1) == batch['label']
  return {
    'loss': jnp.sum(jnp.where(valid, loss, 0.0)),
    'correct': jnp.sum(valid & correct, dtype=jnp.int32),
    'count': jnp.sum(valid, dtype=jnp.int32),
  }


@jax.jit
def _frozen(transport, hard):
  """The hard masks as log-odds of +1 and -1."""
  return {name: jnp.where(hard[name], 1.0, -1.0).astype(z.dtype) for name, z in transport.items()}


def _stage_masks(recipe, params, extra: Extra, step) -> tuple[Masks, dict[str, Array]]:
  """Masks of the stage the step lies in, and the next transport collection."""
  present = extra['transport']

  def dense(*_):
    return {name: jnp.ones_like(z) for name, z in present.items()}, present

  def soft(params, extra):
    masks, following = recipe.pruner.masks(params, extra, step - recipe.stages.soft_start)
    return _as_floats(masks, present), following

  def hard(*_):
    return {name: (z > 0).astype(z.dtype) for name, z in present.items()}, present

  return lax.switch(recipe.stages.number(step), (dense, soft, hard), params, extra)


def _as_floats(masks, like):
  return {name: mask.astype(like[name].dtype) for name, mask in masks.items()}


def _mask_metrics(masks):
  flat = [jnp.ravel(mask) for mask in masks.values()]
  size = sum(m.size for m in flat)
  return {
    'softness': sum(ops.softness(m) * m.size for m in flat) / size,
    'kept': sum(jnp.sum(m) for m in flat) / size,
  }


def _collections(params, batch_stats):
  return {'params': params, 'batch_stats': batch_stats} if batch_stats else {'params': params}


def _cross_entropy(logits, labels, smoothing):
  targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), smoothing)
  return optax.softmax_cross_entropy(logits.astype(jnp.float32), targets)
