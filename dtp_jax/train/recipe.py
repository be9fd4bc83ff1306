"""From a config to the parts of a run: model, method, optimizer, stages."""

import functools
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from dtp_jax import methods, models, prunable
from dtp_jax.budget import Budget
from dtp_jax.budget.latency.table import LatencyTable
from dtp_jax.data import Dataset
from dtp_jax.data.images import augment, normalise
from dtp_jax.graph import trace
from dtp_jax.prunable import Prunable
from dtp_jax.train import mesh as meshes
from dtp_jax.train.stages import Stages
from dtp_jax.train.state import TrainState, create_train_state
from dtp_jax.train.step import Recipe

__all__ = ['Config', 'build', 'build_model', 'build_stages']

Config = Any  # an ml_collections.ConfigDict: its fields have no static types

MODELS: dict[str, type[nn.Module]] = {
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
    data: gives image shape, number of classes and channel statistics.

  Returns:
    The recipe and a function that creates the state at step 0, from given variables, the state dict
    at `config.pretrained` or `config.seed`, each array where it is to lie; its `jax.eval_shape` is
    what `mesh.template` is made of.

  Raises:
    ValueError: an unknown name or an option out of range, a mesh that the devices do not make up.
    ImportError: a module of `config.imports` that is not there.
  """
  for module in config.get('imports', ()):
    importlib.import_module(module)  # registers methods
  mesh = meshes.make(config.mesh)
  if config.steps_per_call < 1:
    raise ValueError(f'steps_per_call is {config.steps_per_call}; expected a number >= 1.')
  meshes.check_batch(mesh, config.data.batch_size, config.accumulate)
  model = build_model(config, data.num_classes)
  keys = jax.random.split(jax.random.key(config.seed))
  images = jnp.zeros((1, *data.image_shape), jnp.float32)
  initialise = functools.partial(model.init, train=False)
  stages = build_stages(config, data.examples)
  variables = jax.eval_shape(initialise, keys[0], images)
  elements = build_elements(config, model, variables, images)
  elements = elements._replace(parts=meshes.model_parts(mesh))
  pruner = build_pruner(config, elements, stages)
  weights = build_optimizer(config, stages)
  # Adam, since its step is free of the scale of the scores.
  scores = pruner.score_optimizer or optax.adam(config.optimizer.score_learning_rate)
  optimizers = {'params': weights, 'scores': scores}

  def start(keys, variables):
    variables = initialise(keys[0], images) if variables is None else variables
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
    preprocess=Preprocess(config.data.crop_padding, config.data.flip, data.mean, data.std),
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
    dtype: that they and the images are cast to. Statistics of normalisation stay float32.
    remat: whether the backward pass computes anew all but products and convolutions.
    mesh: of the devices; each gathers the parameters whole, in that dtype.
  """

  model: nn.Module
  dtype: str
  remat: bool
  mesh: Mesh

  def __call__(self, variables: Any, images: jax.Array, **options: Any) -> Any:
    """The logits, and what else `model.apply` gives back under `options`."""
    dtype = jnp.dtype(self.dtype)
    apply = functools.partial(self.model.apply, **options)
    if self.remat:
      apply = jax.checkpoint(apply, policy=jax.checkpoint_policies.dots_saveable)
    params = jax.tree.map(lambda w: w.astype(dtype), variables['params'])
    params = meshes.gathered(self.mesh, params)
    return apply({**variables, 'params': params}, images.astype(dtype))


class Preprocess(NamedTuple):
  """(key, uint8 images, train) -> float images; equal for equal options, so that jit can tell.

  Attributes:
    crop_padding: largest shift in pixels of the random crop.
    flip: whether to mirror at random.
    mean: of each channel, in [0, 1] units.
    std: of each channel, same units.
  """

  crop_padding: int
  flip: bool
  mean: tuple[float, ...]
  std: tuple[float, ...]

  def __call__(self, key: jax.Array, images: jax.Array, train: bool) -> jax.Array:
    """Augments in training, and normalises."""
    if train:
      images = augment(key, images, crop_padding=self.crop_padding, flip=self.flip)
    return normalise(images, self.mean, self.std)


def build_model(config: Config, num_classes: int) -> nn.Module:
  """The network that `config.model` names, with its fields as attributes."""
  fields = dict(config.model)
  return _choose(MODELS, 'model.name', fields.pop('name'))(num_classes=num_classes, **fields)


def build_stages(config: Config, examples: int) -> Stages:
  """Stage lengths in steps from `config.stages` in epochs.

  Methods that choose their mask at once have no soft stage: their hard stage takes its time.
  """
  per_epoch = examples / config.data.batch_size
  dense, soft, hard = (round(config.stages[name] * per_epoch) for name in Stages._fields)
  return (
    Stages(dense, 0, soft + hard) if methods.one_shot(config.method) else Stages(dense, soft, hard)
  )


def build_elements(config: Config, model: nn.Module, variables: Any, images: Any) -> Prunable:
  """The elements that `config.prune.granularity` names, from concrete or abstract variables."""
  prune, params = config.prune, variables['params']

  def channels():
    graph = trace(model.apply, variables, images, train=False)
    return prunable.channels(graph, importance=prune.importance, exclude=prune.exclude)

  builders = {
    'channels': channels,
    'weights': lambda: prunable.weights(params, exclude=prune.exclude),
    'nm': lambda: prunable.nm(params, prune.group, exclude=prune.exclude),
    'blocks': lambda: prunable.blocks(params, prune.block, exclude=prune.exclude),
  }
  return _choose(builders, 'prune.granularity', prune.granularity)()


def build_pruner(config: Config, elements: Prunable, stages: Stages) -> methods.Pruner:
  """The method that `config.method` names, with `config.methods[name]` as its options."""
  options = dict(config.methods.get(config.method, {}))
  steps, budget = max(1, stages.soft), build_budget(config)
  return methods.build(config.method, elements, budget, steps=steps, **options)


def build_budget(config: Config) -> Budget:
  """The budget of `config.prune`: `ratios`, else `count`, else `keep`."""
  prune = config.prune
  keep = dict(prune.ratios) or (prune.keep if prune.count is None else prune.count)
  of = LatencyTable.load(prune.of) if prune.of.endswith('.json') else prune.of
  multiple: Any = int(prune.multiple_of) if prune.multiple_of.isdigit() else prune.multiple_of
  return Budget(keep, of, prune.scope, min_keep=prune.min_keep, multiple_of=multiple)


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
