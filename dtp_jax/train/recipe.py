"""From a config to the parts of a run: model, method, optimizer, stages."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from dtp_jax import methods, models, prunable
from dtp_jax.data import Dataset
from dtp_jax.graph import trace
from dtp_jax.prunable import Masks, Prunable
from dtp_jax.train import mesh as meshes
from dtp_jax.train.fields import build_budget, check
from dtp_jax.train.stages import Stages
from dtp_jax.train.state import TrainState, create_train_state
from dtp_jax.train.step import Recipe

__all__ = ['Config', 'build', 'build_budget', 'build_model', 'build_stages']

Config = Any  # an ml_collections.ConfigDict: its fields have no static types

MODELS: dict[str, type[nn.Module]] = {
  'decoder': models.Decoder,
  'lenet': models.LeNet,
  'mobilenet_v2': models.MobileNetV2,
  'resnet': models.ResNet,
  'resnet_cifar': models.CifarResNet,
  'vgg': models.VGG,
  'vit': models.ViT,
}


def build(config: Config, data: Dataset) -> tuple[Recipe, Callable[..., TrainState]]:
  """The recipe of a run and what creates its state at step 0.

  Args:
    config: see configs/default.py for every field.
    data: gives the shape of an example, the number of classes and the task.

  Returns:
    The recipe and a function that creates the state at step 0, from given variables, the state dict
    at `config.pretrained` or `config.seed`, each array where it is to lie; its `jax.eval_shape` is
    what `mesh.template` is made of.

  Raises:
    ValueError: an unknown name or an option out of range, a budget that the network cannot meet, a
      mesh that the devices do not make up.
    FileNotFoundError, ImportError: see `dtp_jax.train.fields.check`.
  """
  check(config)
  mesh = meshes.make(config.mesh)
  meshes.check_batch(mesh, config.data.batch_size, config.accumulate)
  model = build_model(config, data.num_classes)
  keys = jax.random.split(jax.random.key(config.seed))
  inputs = jnp.zeros(data.example.shape, data.example.dtype)
  initialise = functools.partial(model.init, train=False)
  stages = build_stages(config, data.examples)
  variables = jax.eval_shape(initialise, keys[0], inputs)
  elements = _placed(build_elements(config, model, variables, inputs), mesh)
  pruner = build_pruner(config, elements, stages)
  weights = build_optimizer(config, stages)
  if pruner.restarts:
    weights = methods.restarting(weights, pruner.apply_masks)
  # Adam, since its step is free of the scale of the scores.
  scores = pruner.score_optimizer or optax.adam(config.optimizer.score_learning_rate)
  optimizers = {'params': weights, 'scores': scores}

  def start(keys, variables):
    variables = initialise(keys[0], inputs) if variables is None else variables
    return create_train_state(variables, pruner, optimizers, keys[1])

  where = meshes.of_state(mesh, jax.eval_shape(start, keys, variables))
  start = jax.jit(start, out_shardings=where)

  def create(variables=None):
    # Keys and weights are arguments, not constants of the program: one for all seeds.
    if variables is None and config.get('pretrained'):
      variables = models.from_torch(config.pretrained, model)
    return start(keys, variables)

  recipe = Recipe(
    apply=_choose(
      {name: Network(model, name, config.remat, mesh) for name in ('float32', 'bfloat16')},
      'dtype',
      config.dtype,
    ),
    task=data.task(config.data),
    pruner=pruner,
    optimizers=optimizers,
    stages=stages,
    mesh=mesh,
    label_smoothing=config.optimizer.label_smoothing,
    accumulate=config.accumulate,
    skip_nonfinite=_choose({'stop': False, 'skip': True}, 'on_nan', config.on_nan),
  )
  return recipe, create


class Network(NamedTuple):
  """`model.apply` in another arithmetic; equal for equal fields, so that jit can tell.

  Attributes:
    model: its parameters are float32.
    dtype: that they and the inputs are cast to, integers apart. Statistics of normalisation stay
      float32.
    remat: whether the backward pass computes anew all but products and convolutions.
    mesh: of the devices; each gathers the parameters whole, in that dtype.
  """

  model: nn.Module
  dtype: str
  remat: bool
  mesh: Mesh

  def __call__(self, variables: Any, inputs: jax.Array, **options: Any) -> Any:
    """The logits, and what else `model.apply` gives back under `options`."""
    apply = functools.partial(self.model.apply, **options)
    if self.remat:
      apply = jax.checkpoint(apply, policy=jax.checkpoint_policies.dots_saveable)
    params, inputs = jax.tree.map(self._cast, (variables['params'], inputs))
    params = meshes.gathered(self.mesh, params)
    return apply({**variables, 'params': params}, inputs)

  def _cast(self, x: jax.Array) -> jax.Array:
    return x.astype(self.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x


def build_model(config: Config, num_classes: int) -> nn.Module:
  """The network that `config.model` names, with its fields as attributes.

  Raises:
    ValueError: no such network or field, or a whole number below 1.
  """
  given = dict(config.model)
  name = given.pop('name')
  kind = _choose(MODELS, 'model.name', name)
  known = {field.name for field in dataclasses.fields(kind)} - {'parent', 'name', 'num_classes'}
  unknown = sorted(set(given) - known)
  if unknown:
    raise ValueError(f'model.{unknown[0]} is no field of {name}; expected some of {sorted(known)}.')
  for field, value in given.items():
    numbers = value if isinstance(value, tuple | list) else (value,)
    if any(isinstance(n, int) and not isinstance(n, bool) and n < 1 for n in numbers):
      raise ValueError(f'model.{field} is {value}; expected numbers >= 1.')
  return kind(num_classes=num_classes, **given)


def build_stages(config: Config, examples: int) -> Stages:
  """Stage lengths in steps from `config.stages` in epochs.

  Methods that choose their mask at once have no soft stage: their hard stage takes its time.

  Raises:
    ValueError: a stage that is asked for and is shorter than half a step.
  """
  per_epoch = examples / config.data.batch_size
  dense, soft, hard = (round(config.stages[name] * per_epoch) for name in Stages._fields)
  for name, steps in zip(Stages._fields, (dense, soft, hard), strict=True):
    if config.stages[name] > 0 and steps == 0:
      raise ValueError(
        f'stages.{name} is {config.stages[name]} epochs of {examples:,} examples, and '
        f'data.batch_size is {config.data.batch_size:,}: not one step. Give more epochs, a smaller '
        'batch, or 0 epochs for no such stage.'
      )
  return (
    Stages(dense, 0, soft + hard) if methods.one_shot(config.method) else Stages(dense, soft, hard)
  )


def build_elements(config: Config, model: nn.Module, variables: Any, inputs: Any) -> Prunable:
  """The elements that `config.prune.granularity` names, from concrete or abstract variables."""
  prune, params = config.prune, variables['params']

  def channels():
    graph = trace(model.apply, variables, inputs, train=False)
    return prunable.channels(graph, importance=prune.importance, exclude=prune.exclude)

  builders = {
    'channels': channels,
    'weights': lambda: prunable.weights(params, exclude=prune.exclude),
    'nm': lambda: prunable.nm(params, prune.group, exclude=prune.exclude),
    'blocks': lambda: prunable.blocks(params, prune.block, exclude=prune.exclude),
  }
  return _choose(builders, 'prune.granularity', prune.granularity)()


def _placed(elements: Prunable, mesh: Mesh) -> Prunable:
  """Elements of arrays that lie on a mesh."""
  elements = elements._replace(parts=meshes.model_parts(mesh))
  if elements.graph is None:
    return elements

  # What is known of channels comes from kernels in parts, and lies whole on every device: left in
  # parts of unequal groups, the one problem of all of them would be told piece by piece.
  def magnitude(params: Any) -> dict[str, jax.Array]:
    return meshes.gathered(mesh, elements.magnitude(params))

  def apply_masks(params: Any, masks: Masks) -> Any:
    return elements.apply_masks(params, meshes.gathered(mesh, masks))

  return elements._replace(magnitude=magnitude, apply_masks=apply_masks)


def build_pruner(config: Config, elements: Prunable, stages: Stages) -> methods.Pruner:
  """The method that `config.method` names, with `config.methods[name]` as its options."""
  options = dict(config.methods.get(config.method, {}))
  steps, budget = max(1, stages.soft), build_budget(config)
  return methods.build(config.method, elements, budget, steps=steps, **options)


def build_optimizer(config: Config, stages: Stages) -> optax.GradientTransformation:
  """SGD or AdamW on the weights."""
  o = config.optimizer
  schedule = _choose({'cosine': _cosine, 'steps': _steps}, 'optimizer.schedule', o.schedule)
  rate = optax.join_schedules(
    [
      schedule(o.learning_rate, stages.dense, warmup=o.warmup, at=o.steps),
      schedule(o.prune_learning_rate, stages.soft + stages.hard, warmup=0.0, at=o.prune_steps),
    ],
    [stages.dense],
  )
  builders = {
    'sgd': lambda: optax.chain(
      optax.add_decayed_weights(o.weight_decay, mask=_kernels_only),
      optax.sgd(rate, momentum=o.momentum, nesterov=o.nesterov),
    ),
    'adamw': lambda: optax.adamw(rate, weight_decay=o.weight_decay, mask=_kernels_only),
  }
  tx = _choose(builders, 'optimizer.name', o.name)()
  if o.clip_norm is None:
    return tx
  if not o.clip_norm > 0:
    raise ValueError(f'optimizer.clip_norm is {o.clip_norm}; expected a norm > 0, or None.')
  return optax.chain(optax.clip_by_global_norm(o.clip_norm), tx)


def _cosine(rate, steps, *, warmup, at):
  del at
  if steps == 0:
    return optax.constant_schedule(rate)
  warm = round(warmup * steps)
  return optax.warmup_cosine_decay_schedule(0.0 if warm else rate, rate, warm, steps)


def _steps(rate, steps, *, warmup, at):
  """A tenth of the rate from each of the fractions `at` of the steps on; the warm-up is linear."""
  if not all(0 < a < 1 for a in at) or list(at) != sorted(set(at)):
    raise ValueError(f'the rate falls at {tuple(at)}; expected rising fractions in (0, 1).')
  warm = round(warmup * steps)

  def schedule(step):
    ramp = jnp.minimum(1.0, step / warm) if warm else 1.0
    return rate * ramp * 0.1 ** sum(jnp.asarray(step >= round(a * steps), jnp.float32) for a in at)

  return schedule


def _kernels_only(params):
  # By name: the biases of attention heads and position embeddings have two axes as well.
  return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == 'kernel', params)


def _choose(table, field, name):
  if name not in table:
    raise ValueError(f'{field} is {name!r}; expected one of {sorted(table)}.')
  return table[name]
