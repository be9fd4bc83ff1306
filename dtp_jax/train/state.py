"""The state of a run: every collection by name."""

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax.numpy as jnp
import optax
from jax import Array

from dtp_jax.methods import Extra, Pruner

__all__ = ['TrainState', 'create_train_state']


@flax.struct.dataclass
class TrainState:
  """Everything a step reads and writes.

  Attributes:
    step: int32 scalar, steps taken.
    rngs: {'train': base key}; the key of a step is fold_in(base key, step).
    params: trained weights.
    scores: trained importance scores {name: array}; empty for methods that learn none.
    batch_stats: running statistics of the normalisation layers; empty without them.
    transport: log-odds {name: array} that rank the elements; +1 and -1 once the mask is frozen.
    opt_state: {'params': of the weights' optimizer, 'scores': of the scores'}.
  """

  step: Array
  rngs: dict[str, Array]
  params: Any
  scores: Any
  batch_stats: Any
  transport: Any
  opt_state: Any

  @property
  def extra(self) -> Extra:
    """What the pruner needs beside the parameters."""
    return {'scores': self.scores, 'transport': self.transport}


def create_train_state(
  variables: Any, pruner: Pruner, optimizers: Mapping[str, optax.GradientTransformation], rng: Array
) -> TrainState:
  """A state at step 0.

  Args:
    variables: 'params' and, for networks that have them, 'batch_stats'.
    pruner: gives the scores and transport collections; both are started anew when the soft stage
      begins, from the weights of that moment.
    optimizers: {'params': ..., 'scores': ...}.
    rng: base key.

  Returns:
    A TrainState.
  """
  extra = pruner.init(variables['params'])
  learned = {'params': variables['params'], 'scores': extra['scores']}
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    rngs={'train': rng},
    params=variables['params'],
    scores=extra['scores'],
    batch_stats=variables.get('batch_stats', {}),
    transport=extra['transport'],
    opt_state={name: tx.init(learned[name]) for name, tx in optimizers.items()},
  )
