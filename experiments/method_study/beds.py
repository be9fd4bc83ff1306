"""What the runs of a bed share: data, network, what can be pruned, one dense network per seed."""

import functools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dtp_jax import models
from dtp_jax.data import load, order
from dtp_jax.data.images import normalise
from dtp_jax.graph import Graph, trace
from dtp_jax.prunable import Prunable, channels, nm, weights
from dtp_jax.trees import paths
from experiments.method_study import nets

__all__ = ['BEDS', 'Bed', 'Spec', 'apply', 'cross_entropy', 'optimizer']

_DENSE_BATCH = 128
_CROP = 2  # pixels of padding
_AT_A_TIME = 500  # images of an evaluation step
_ROW = 4  # weights of a row of N:M


class Spec(NamedTuple):
  """A bed.

  Attributes:
    data: name of the data set.
    granularity: 'channels' of a ResNet-8, 'weights' of LeNet-5, or 'nm', its rows of 4 weights.
    dense_steps: steps of the dense stage, of 128 images.
    steps: steps of the soft and the hard stage together, of 64 images.
    validation: training images held out from training, whatever split is evaluated.
  """

  data: str
  granularity: str
  dense_steps: int
  steps: int
  validation: int = 5000

  @property
  def dense_rate(self) -> float:
    """Peak learning rate of the dense stage."""
    return 0.1 if self.granularity == 'channels' else 0.05


BEDS = {
  'fashion_channels': Spec('fashion_mnist', 'channels', 700, 500),
  'cifar_channels': Spec('cifar10', 'channels', 1000, 500),
  'fashion_weights': Spec('fashion_mnist', 'weights', 700, 800),
  'cifar_weights': Spec('cifar10', 'weights', 1000, 800),
  'fashion_nm': Spec('fashion_mnist', 'nm', 700, 800),
  'cifar_nm': Spec('cifar10', 'nm', 1000, 800),
  'cifar_channels_long': Spec('cifar10', 'channels', 1000, 1500),
  # From random weights.
  'cifar_channels_scratch': Spec('cifar10', 'channels', 0, 1500),
  'cifar_weights_scratch': Spec('cifar10', 'weights', 0, 2000),
}


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Its mean over the batch."""
  return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def optimizer(rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
  """SGD with Nesterov momentum 0.9; decay 5e-4 of everything with two axes."""
  decay = optax.add_decayed_weights(5e-4, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p))
  return optax.chain(decay, optax.sgd(rate, momentum=0.9, nesterov=True))


class Bed:
  """A spec with its data in memory and its programs compiled once."""

  def __init__(self, spec: Spec, *, split: str = 'validation', cache: pathlib.Path | None = None):
    """`split` is what `evaluate` reads; `cache` keeps the dense networks."""
    self.spec, self._cache = spec, cache
    self._accuracy: dict[int, float] = {}
    self._train, self._held_out = _data(spec, split)
    shape = self._train['image'].shape[1:]
    if spec.granularity == 'channels':
      self.model: Any = models.CifarResNet(depth=8, width=12, stem_strides=2, num_classes=10)
      self.forward = nets.resnet
    else:
      self.model = models.LeNet(num_classes=10)
      self.forward = nets.lenet
    self._example = jnp.zeros((1, *shape))
    variables = self._init(0)
    self.graph: Graph | None = None
    if spec.granularity == 'channels':
      self.graph = trace(self.model.apply, variables, self._example, train=False)
    self._abstract = variables['params']

  def elements(self, **options: Any) -> Prunable:
    """What can be pruned."""
    if self.graph is not None:
      return channels(self.graph, **options)
    if self.spec.granularity == 'weights':
      return weights(self._abstract)
    kernels = {path: w for path, w in paths(self._abstract).items() if w.ndim > 1}
    uneven = [path for path, w in kernels.items() if w.shape[-2] % _ROW]
    return nm(self._abstract, _ROW, exclude=uneven)

  def batches(self, size: int, *, seed: int, stream: int) -> Iterator[tuple[Any, Any]]:
    """Endless (images uint8, labels): crops of the padded image, mirrored for CIFAR."""
    windows, labels = _windows(self.spec), self._train['label']
    rng = np.random.default_rng([seed, stream])
    for index in order.train_indices(len(labels), size, seed=1000 * seed + stream):
      dy, dx = rng.integers(0, 2 * _CROP + 1, (2, size))
      images = windows[index, dy, dx].transpose(0, 2, 3, 1)
      if self.spec.data == 'cifar10':
        mirrored = rng.random(size) < 0.5
        images = np.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
      yield np.ascontiguousarray(images), labels[index]

  def evaluate(self, params: Any, stats: Any, count: int | None = None) -> float:
    """Accuracy in per cent on the first `count` held-out images."""
    image, label = (self._held_out[key][:count] for key in ('image', 'label'))
    starts = range(0, len(label), _AT_A_TIME)
    parts = [
      self._correct(params, stats, image[i : i + _AT_A_TIME], label[i : i + _AT_A_TIME])
      for i in starts
    ]
    return 100 * sum(map(int, parts)) / len(label)

  def logits(
    self, params: Any, stats: Any, images: jax.Array, *, train: bool
  ) -> tuple[jax.Array, Any]:
    """Of images uint8, and the statistics after them."""
    return self.forward(params, stats, self.normalised(images), train)

  def normalised(self, images: Any) -> jax.Array:
    """Images uint8 as the network reads them."""
    return normalise(images, *_constants(self.spec))

  def dense(self, seed: int) -> tuple[Any, Any]:
    """Parameters and statistics of the dense network of a seed, trained once and kept."""
    network = 'channels' if self.spec.granularity == 'channels' else 'weights'
    name = f'{self.spec.data}_{network}_{self.spec.dense_steps}_{seed}.npz'
    path = None if self._cache is None else self._cache / name
    structure = jax.tree.structure(_parts(self._init(seed)))
    if path is None or not path.exists():
      leaves = list(map(np.asarray, jax.tree.leaves(self._train_dense(seed))))
      if path is None:
        return jax.tree.unflatten(structure, leaves)
      path.parent.mkdir(parents=True, exist_ok=True)
      np.savez(path, *leaves)
    with np.load(path) as file:
      return jax.tree.unflatten(structure, [jnp.asarray(file[key]) for key in file])

  def dense_accuracy(self, seed: int) -> float:
    """Of the dense network of a seed, evaluated once."""
    if seed not in self._accuracy:
      self._accuracy[seed] = self.evaluate(*self.dense(seed))
    return self._accuracy[seed]

  @functools.cached_property
  def hard_step(self) -> Callable[..., Any]:
    """(params, stats, state, masks, images, labels) -> the first three after one masked step.

    Of dense networks with their dead channels masked: the same function and the same updates as of
    the shrunk one, without a program for every set of widths.
    """
    tx, elements = optimizer(optax.cosine_decay_schedule(0.05, self.spec.steps)), self.elements()

    def step(params, stats, state, masks, images, labels):
      def loss(params):
        logits, after = self.logits(elements.apply_masks(params, masks), stats, images, train=True)
        return cross_entropy(logits, labels), after

      grads, stats = jax.grad(loss, has_aux=True)(params)
      updates, state = tx.update(grads, state, params)
      return optax.apply_updates(params, updates), stats, state

    return jax.jit(step)

  def _train_dense(self, seed: int) -> tuple[Any, Any]:
    steps, rate = self.spec.dense_steps, self.spec.dense_rate
    if not steps:
      return _parts(self._init(seed))
    tx = optimizer(optax.warmup_cosine_decay_schedule(0.0, rate, round(0.05 * steps), steps))

    @jax.jit
    def step(params, stats, state, images, labels):
      def loss(params):
        logits, after = self.logits(params, stats, images, train=True)
        return cross_entropy(logits, labels), after

      grads, stats = jax.grad(loss, has_aux=True)(params)
      updates, state = tx.update(grads, state, params)
      return optax.apply_updates(params, updates), stats, state

    params, stats = _parts(self._init(seed))
    state, batches = tx.init(params), self.batches(_DENSE_BATCH, seed=seed, stream=0)
    for _ in range(steps):
      params, stats, state = step(params, stats, state, *next(batches))
    return params, stats

  def _init(self, seed: int) -> Any:
    return self.model.init(jax.random.key(seed), self._example, train=False)

  @functools.cached_property
  def _correct(self) -> Callable[..., Any]:
    @jax.jit
    def correct(params, stats, images, labels):
      logits, _ = self.logits(params, stats, images, train=False)
      return jnp.sum(jnp.argmax(logits, -1) == labels)

    return correct


def apply(bed: Bed, params: Any, masks: Any) -> Any:
  """Masked parameters, compiled once a bed."""
  return _apply(bed)(params, masks)


@functools.cache
def _apply(bed: Bed) -> Callable[..., Any]:
  return jax.jit(bed.elements().apply_masks)


def _parts(variables: Any) -> tuple[Any, Any]:
  return variables['params'], variables.get('batch_stats', {})


def _data(spec: Spec, split: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
  """The training images without the validation ones, and those that are evaluated."""
  held_out = spec.validation if split == 'validation' else 0
  return _loaded(spec.data, spec.validation).train, _loaded(spec.data, held_out).held_out


@functools.cache
def _loaded(name: str, validation: int) -> Any:
  return load({'name': name, 'validation': validation})


def _constants(spec: Spec) -> tuple[Any, Any]:
  data = _loaded(spec.data, spec.validation)
  return data.mean, data.std


@functools.cache
def _windows(spec: Spec) -> np.ndarray:
  """All crops of all padded training images, a view [N, 2 crop + 1, 2 crop + 1, C, H, W]."""
  images = _loaded(spec.data, spec.validation).train['image']
  padded = np.pad(images, ((0, 0), (_CROP, _CROP), (_CROP, _CROP), (0, 0)))
  return np.lib.stride_tricks.sliding_window_view(padded, images.shape[1:3], axis=(1, 2))
