"""One optimizer over weights and scores: an optax multi-transform with a branch for each."""

from collections.abc import Callable
from typing import Any

import optax

__all__ = ['partitioned', 'transplant']


def partitioned(
  weights: optax.GradientTransformation,
  scores: optax.GradientTransformation,
  *,
  learn_scores: Callable[[Any], Any],
) -> optax.GradientTransformationExtraArgs:
  """Weights and scores by their own optimizers, over the tree {'params': ..., 'scores': ...}.

  Args:
    weights: transform of the 'params' branch.
    scores: transform of the 'scores' branch.
    learn_scores: training step -> bool; the scores' transform runs and its state moves only where
      it is true, elsewhere their updates are 0.

  Returns:
    A GradientTransformation whose `update` takes the training step as `train_step=...`: a run that
    forks from another does not start at its optimizer's step 0.
  """

  def learning(step, *, train_step, **extra):
    del step, extra
    return learn_scores(train_step)

  gated = optax.transforms.conditionally_mask(
    scores, should_transform_fn=learning, forward_extra_args=True
  )
  labels = {'params': 'params', 'scores': 'scores'}
  return optax.partition({'params': weights, 'scores': gated}, labels)


def transplant(opt_state: Any, donor: Any) -> Any:
  """`opt_state` with the weights' branch of `donor`: the scores' branch stays.

  Args:
    opt_state: state of a `partitioned` optimizer.
    donor: state of one with an equal 'params' branch and any 'scores' branch.

  Returns:
    A state shaped as `opt_state`.
  """
  branches = {**opt_state.inner_states, 'params': donor.inner_states['params']}
  return opt_state._replace(inner_states=branches)
