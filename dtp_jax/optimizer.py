"""One optimizer over weights and scores: an optax multi-transform with a branch for each."""

from collections.abc import Callable

import optax

__all__ = ['partitioned', 'transplant']


def partitioned(
  weights: optax.GradientTransformation,
  scores: optax.GradientTransformation,
  *,
  learn_scores: Callable[[object], object],
) -> optax.GradientTransformation:
  """Weights and scores by their own optimizers, over the tree {'params': ..., 'scores': ...}.

  Args:
    weights: transform of the 'params' branch.
    scores: transform of the 'scores' branch.
    learn_scores: step -> bool; the scores' transform runs and its state moves only where it is
      true. Elsewhere their updates pass through, which are zero as masks do not depend on scores.

  Returns:
    A GradientTransformation.
  """
  scores = optax.transforms.conditionally_transform(scores, should_transform_fn=learn_scores)
  branches = {'params': weights, 'scores': scores}
  return optax.partition(branches, {'params': 'params', 'scores': 'scores'})


def transplant(opt_state: optax.OptState, donor: optax.OptState) -> optax.OptState:
  """`opt_state` with the weights' branch of `donor`: the scores' branch stays.

  Args:
    opt_state: state of a `partitioned` optimizer.
    donor: state of one with an equal 'params' branch and any 'scores' branch.

  Returns:
    A state shaped as `opt_state`.
  """
  branches = {**opt_state.inner_states, 'params': donor.inner_states['params']}
  return opt_state._replace(inner_states=branches)
