"""One short run: soft stage by a product method, hardened, then trained on with the masks fixed."""

import functools
import json
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dtp_jax import methods
from dtp_jax.budget import Budget, Scope
from dtp_jax.methods import Pruner
from dtp_jax.prunable import Prunable
from experiments.method_study import variants
from experiments.method_study.beds import Bed, apply, cross_entropy, optimizer

__all__ = ['Row', 'Searched', 'run', 'search']

_BATCH = 64
_RATE = 0.05
_GLANCE = 1000  # held-out images for the accuracies on the way


class Row(NamedTuple):
  """A row of the table: a method, its options, and what of the run belongs to it.

  Attributes:
    method: name of a registered method or of a variant.
    options: of the method.
    soft: share of the steps in the soft stage; methods that choose at once have none.
    scores: optimizer of the scores where the method leaves it open, (name in optax, options).
    elements: options of `dtp_jax.channels`.
    scope: of the budget.
  """

  method: str
  options: dict[str, Any] = {}  # noqa: RUF012
  soft: float = 0.3
  scores: tuple[str, dict[str, Any]] = ('adam', {'learning_rate': 0.01})
  elements: dict[str, Any] = {}  # noqa: RUF012
  scope: Scope = 'global'

  @property
  def text(self) -> str:
    """All that differs from the defaults, as JSON."""
    given = {k: v for k, v in self._asdict().items() if v != self._field_defaults.get(k)}
    return json.dumps(given, sort_keys=True)


class Searched(NamedTuple):
  """The end of a soft stage.

  Attributes:
    params: the weights, none of them masked.
    stats: the running statistics.
    state: of the weights' optimizer.
    soft: the last soft masks; None without a soft stage.
    hard: the hard masks, as floats.
    pruner: the method.
    steps: how many there were.
    batches: that come next.
  """

  params: Any
  stats: Any
  state: Any
  soft: dict[str, jax.Array] | None
  hard: dict[str, jax.Array]
  pruner: Pruner
  steps: int
  batches: Iterator[tuple[Any, Any]]


def run(bed: Bed, keep: float, row: Row, seed: int) -> dict[str, Any]:
  """The outcome of one run.

  Args:
    bed: data, network and recipe.
    keep: fraction of the MACs (channels) or of the weights.
    row: method and options.
    seed: of the dense network and of the order of the images.

  Returns:
    {'dense', 'soft_accuracy', 'hard_accuracy', 'accuracy': per cent of the held-out images, on the
    way of the first 1,000; 'achieved', 'requested', 'total', 'parameters_left', 'steps',
    'cpu_seconds'}.
  """
  dense, begin = bed.dense_accuracy(seed), time.process_time()
  found = search(bed, keep, row, seed)
  params, stats, state, hard = found.params, found.stats, found.state, found.hard
  glance = lambda masks: round(bed.evaluate(apply(bed, params, masks), stats, _GLANCE), 2)
  soft_accuracy = '' if found.soft is None else glance(found.soft)
  hard_accuracy = glance(hard)
  for _ in range(found.steps, bed.spec.steps):
    params, stats, state = bed.hard_step(params, stats, state, hard, *next(found.batches))
  account = found.pruner.resolved.account(jax.tree.map(np.asarray, hard))
  return {
    'dense': round(dense, 2),
    'soft_accuracy': soft_accuracy,
    'hard_accuracy': hard_accuracy,
    'accuracy': round(bed.evaluate(apply(bed, params, hard), stats), 2),
    'achieved': account.achieved,
    'requested': account.requested,
    'total': account.total,
    'parameters_left': _left(bed, params, hard),
    'steps': bed.spec.steps,
    'cpu_seconds': round(time.process_time() - begin, 1),
  }


def search(
  bed: Bed,
  keep: float,
  row: Row,
  seed: int,
  watch: Callable[[int, dict[str, jax.Array]], None] | None = None,
) -> Searched:
  """The soft stage of a run; of a method that chooses at once, its choice.

  `watch` is called with the number and the soft masks of every step.
  """
  pruner, tx, steps, step = _soft_stage(bed, keep, row.text)
  params, stats = bed.dense(seed)
  extra = pruner.init(params)
  trainable, transport = {'params': params, 'scores': extra['scores']}, extra['transport']
  state, masks, batches = tx.init(trainable), None, bed.batches(_BATCH, seed=seed, stream=1)
  for t in range(steps):
    trainable, stats, state, transport, masks = step(
      trainable, stats, state, transport, jnp.int32(t), *next(batches)
    )
    if watch is not None:
      watch(t, masks)
  params = trainable['params']
  hard = pruner.harden({'scores': trainable['scores'], 'transport': transport})
  hard = jax.tree.map(lambda m: jnp.asarray(m, jnp.float32), hard)
  state = _weights_state(state, params)
  return Searched(params, stats, state, masks, hard, pruner, steps, batches)


def _left(bed: Bed, params: Any, hard: dict[str, jax.Array]) -> int:
  """Parameters of the network that is left."""
  kept = {name: int(jnp.sum(mask)) for name, mask in hard.items()}
  if bed.graph is not None:
    return bed.graph.params.at(kept)
  dropped = sum(mask.size for mask in hard.values()) - sum(kept.values())
  return sum(leaf.size for leaf in jax.tree.leaves(params)) - dropped


def _pruner(row: Row, elements: Prunable, budget: Budget, steps: int) -> Pruner:
  """Of a registered method, or of a variant, which no registry knows."""
  if row.method in variants.__all__:
    return getattr(variants, row.method)(elements, budget, steps=steps, **row.options)
  return methods.build(row.method, elements, budget, steps=steps, **row.options)


@functools.lru_cache(maxsize=8)
def _soft_stage(bed: Bed, keep: float, text: str) -> tuple[Pruner, Any, int, Callable[..., Any]]:
  """Method, optimizer, number of steps and compiled step of a row, for all seeds."""
  row = Row(**json.loads(text))
  of = 'macs' if bed.spec.granularity == 'channels' else 'count'
  elements = bed.elements(**row.elements)
  at_once = row.method in methods.METHODS and methods.one_shot(row.method)
  steps = 0 if at_once else round(row.soft * bed.spec.steps)
  scope = 'row' if bed.spec.granularity == 'nm' else row.scope
  budget = Budget(keep, of=of, scope=scope)
  pruner = _pruner(row, elements, budget, max(1, steps))
  scores = None
  if pruner.score_optimizer is None:
    name, options = row.scores
    scores = getattr(optax, name)(**options)
  tx = pruner.optimizer(optimizer(optax.cosine_decay_schedule(_RATE, bed.spec.steps)), scores)

  def step(trainable, stats, state, transport, t, images, labels):
    def loss(trainable):
      extra = {'scores': trainable['scores'], 'transport': transport}
      masks, after = pruner.masks(trainable['params'], extra, t)
      masked = pruner.apply_masks(trainable['params'], masks)
      logits, seen = bed.logits(masked, stats, images, train=True)
      return cross_entropy(logits, labels), (seen, after, masks)

    grads, (stats_after, after, masks) = jax.grad(loss, has_aux=True)(trainable)
    updates, moved = tx.update(grads, state, trainable, masks=masks)
    return optax.apply_updates(trainable, updates), stats_after, moved, after, masks

  return pruner, tx, steps, jax.jit(step)


def _weights_state(state: Any, params: Any) -> Any:
  """The weights' branch of a pruner's optimizer as the state of `beds.optimizer`."""
  branch = state.inner_states['params']
  weights = optimizer(optax.constant_schedule(0.0)).init(params)
  trace = optax.tree.get(branch, 'trace')['params']
  return optax.tree.set(weights, trace=trace, count=optax.tree.get(branch, 'count'))
