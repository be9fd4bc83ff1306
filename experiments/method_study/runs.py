"""One short run: soft stage by a product method, hardened, then trained on with the masks fixed."""

import functools
import json
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dtp_jax import methods
from dtp_jax.budget import Budget
from dtp_jax.methods import Pruner
from experiments.method_study.beds import Bed, apply, cross_entropy, optimizer

__all__ = ['Row', 'run']

_BATCH = 64
_RATE = 0.05
_GLANCE = 1000  # held-out images for the accuracies on the way


class Row(NamedTuple):
  """A row of the table: a method, its options, and what of the run belongs to it.

  Attributes:
    method: name of a registered method.
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
  scope: str = 'global'

  @property
  def text(self) -> str:
    """All that differs from the defaults, as JSON."""
    given = {k: v for k, v in self._asdict().items() if v != self._field_defaults.get(k)}
    return json.dumps(given, sort_keys=True)


class _Soft(NamedTuple):
  pruner: Pruner
  tx: Any
  steps: int
  step: Any


def run(bed: Bed, keep: float, row: Row, seed: int) -> dict[str, Any]:
  """The outcome of one run.

  Args:
    bed: data, network and recipe.
    keep: fraction of the MACs (channels) or of the weights.
    row: method and options.
    seed: of the dense network and of the order of the images.

  Returns:
    {'dense', 'soft_accuracy', 'hard_accuracy', 'accuracy': per cent of the held-out images, on the
    way of the first 1,000; 'achieved', 'requested', 'steps', 'cpu_seconds'}.
  """
  params, stats = bed.dense(seed)
  dense = bed.dense_accuracy(seed)
  begin, steps = time.process_time(), bed.spec.steps
  soft = _soft(bed, keep, row)
  pruner = soft.pruner
  extra = pruner.init(params)
  trainable = {'params': params, 'scores': extra['scores']}
  state, transport, masks = soft.tx.init(trainable), extra['transport'], None
  batches = bed.batches(_BATCH, seed=seed, stream=1)
  for t in range(soft.steps):
    trainable, stats, state, transport, masks = soft.step(
      trainable, stats, state, transport, jnp.int32(t), *next(batches)
    )
  params = trainable['params']
  soft_accuracy = bed.evaluate(apply(bed, params, masks), stats, _GLANCE) if soft.steps else None
  chosen = pruner.harden({'scores': trainable['scores'], 'transport': transport})
  account = pruner.resolved.account(jax.tree.map(np.asarray, chosen))
  hard = jax.tree.map(lambda m: jnp.asarray(m, jnp.float32), chosen)
  hard_accuracy = bed.evaluate(apply(bed, params, hard), stats, _GLANCE)
  state = _weights_state(state, params)
  for _ in range(soft.steps, steps):
    params, stats, state = bed.hard_step(params, stats, state, hard, *next(batches))
  return {
    'dense': round(dense, 2),
    'soft_accuracy': '' if soft_accuracy is None else round(soft_accuracy, 2),
    'hard_accuracy': round(hard_accuracy, 2),
    'accuracy': round(bed.evaluate(apply(bed, params, hard), stats), 2),
    'achieved': account.achieved,
    'requested': account.requested,
    'steps': steps,
    'cpu_seconds': round(time.process_time() - begin, 1),
  }


def _soft(bed: Bed, keep: float, row: Row) -> _Soft:
  return _compiled(bed, keep, row.text, _Hashable(row))


class _Hashable:
  """A row that `functools.lru_cache` does not look into: its text is the key beside it."""

  def __init__(self, row: Row):
    self.row = row

  def __eq__(self, other: object) -> bool:
    return isinstance(other, _Hashable)

  def __hash__(self) -> int:
    return 0


@functools.lru_cache(maxsize=8)
def _compiled(bed: Bed, keep: float, text: str, hashable: _Hashable) -> _Soft:
  """The soft stage of a row, compiled once for all seeds."""
  row = hashable.row
  of = 'macs' if bed.spec.granularity == 'channels' else 'count'
  elements = bed.elements(**row.elements)
  steps = 0 if methods.one_shot(row.method) else round(row.soft * bed.spec.steps)
  budget = Budget(keep, of=of, scope=row.scope)
  pruner = methods.build(row.method, elements, budget, steps=max(1, steps), **row.options)
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
    updates, moved = tx.update(grads, state, trainable)
    return optax.apply_updates(trainable, updates), stats_after, moved, after, masks

  return _Soft(pruner, tx, steps, jax.jit(step))


def _weights_state(state: Any, params: Any) -> Any:
  """The weights' branch of a pruner's optimizer as the state of `beds.optimizer`."""
  branch = state.inner_states['params']
  weights = optimizer(optax.constant_schedule(0.0)).init(params)
  trace = optax.tree.get(branch, 'trace')['params']
  return optax.tree.set(weights, trace=trace, count=optax.tree.get(branch, 'count'))
