"""Weights that are 0 while they are dropped, and start from there when they return.

A mask over weights that go on is not enough for methods whose weights return: what a weight was
when it was dropped would come back with it. Here the optimizer of the weights sets dropped ones to
0 in place, and what it remembers of them as well.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from dtp_jax.prunable import Masks, Params, Prunable
from dtp_jax.trees import path_name, paths

__all__ = ['restarting', 'with_dense_gradient']


def restarting(
  weights: optax.GradientTransformation, apply_masks: Callable[[Params, Masks], Params]
) -> optax.GradientTransformationExtraArgs:
  """An optimizer after whose step the weights that a mask drops are 0, and forgotten.

  Whatever the optimizer keeps for each parameter (momentum, second moments) is 0 there too, so that
  a weight that returns starts like one that was never trained.

  >>> tx = restarting(optax.sgd(0.1), lambda params, masks: {'w': params['w'] * masks['w']})
  >>> params, masks = {'w': jnp.array([3.0, 4.0])}, {'w': jnp.array([1.0, 0.0])}
  >>> grads = {'w': jnp.array([10.0, 10.0])}
  >>> updates, _ = tx.update(grads, tx.init(params), params, masks=masks)
  >>> optax.apply_updates(params, updates)['w'].tolist()
  [2.0, 0.0]

  Args:
    weights: any optimizer of the parameters.
    apply_masks: (params, masks) -> params times masks, as `Pruner.apply_masks`.

  Returns:
    A transform with the state of `weights`. Its `update` needs the parameters and `masks`, those
    that the gradient was taken under, as a keyword; {} drops nothing.

  Raises:
    ValueError: at an update without parameters or masks.
  """
  inner = optax.with_extra_args_support(weights)

  def update(
    updates: Any, state: Any, params: Any = None, *, masks: Masks | None = None, **rest: Any
  ) -> tuple[Any, Any]:
    if params is None or masks is None:
      raise ValueError(
        f'{"params" if params is None else "masks"} is missing; this method sets dropped weights '
        'to 0: expected update(grads, state, params, masks=masks), with the masks of the step from '
        'masks, transport = pruner.masks(params, extra, step).'
      )
    updates, state = inner.update(updates, state, params, masks=masks, **rest)
    kept = apply_masks(jax.tree.map(jnp.ones_like, params), masks)
    # w + (-w) is 0 to the last bit.
    updates = jax.tree.map(lambda u, w, k: jnp.where(k == 0, -w, u), updates, params, kept)
    forget = lambda x, k: jnp.where(k == 0, jnp.zeros_like(x), x)
    return updates, optax.tree_map_params(weights, forget, state, kept)

  return optax.GradientTransformationExtraArgs(inner.init, update)


def with_dense_gradient(elements: Prunable) -> Prunable:
  """Elements whose masks have the gradient of the masked weight, dL/d(m w), also where w is 0.

  Masks multiply as before, and the gradient of the weights is theirs times the mask. The derivative
  with respect to a mask is 1 in place of w: for a block, the sum over its weights.
  """

  def apply_masks(params: Params, masks: Masks) -> Params:
    masked = elements.apply_masks(params, lax.stop_gradient(masks))
    ones = {name: jnp.ones_like(w) for name, w in paths(params).items() if name in masks}
    probes = elements.apply_masks(ones, masks)

    def probe(path: Any, w: Any) -> Any:
      mask = probes.get(path_name(path))
      return w if mask is None else w + (mask - lax.stop_gradient(mask))  # the bracket is 0

    return jax.tree_util.tree_map_with_path(probe, masked)

  return elements._replace(apply_masks=apply_masks)
