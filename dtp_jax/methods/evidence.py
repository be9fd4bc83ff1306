"""Evidence: what the loss would pay for dropping an element, read off the gradient of its mask.

The signed gradient of a mask is noise at a trained network: weights can undo any soft mask by
scaling, so it vanishes to first order. Its second moment does not:

    I_i = E[(m_i dL/dm_i)^2]                                                                     (1)

is the diagonal Fisher information of the mask in log m, the second-order estimate of the loss that
element i carries; for a single weight, m dL/dm = w dL/dw. It comes free with the gradient that
flows to the weights: `probed` brings it to the scores, and `second_moment` makes the scores its
running mean. No constant factor matters, since a plan has a budget.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from dtp_jax.methods.options import check_share

__all__ = ['first_moment', 'log_importance', 'mean_gradient', 'probed', 'second_moment']

_FLOOR = 1e-6  # of the evidence, in units of its mean: elements that the loss never saw


def probed(mask: Array, scores: Array) -> Array:
  """The mask itself, but with the derivative m dL/dm with respect to the scores.

  Written as m (1 + s - [s]), [s] being s without derivative: a relative probe of the mask that is
  always 0. The derivative of the mask with respect to anything else stays what it is.

  >>> loss = lambda s: 3 * probed(jnp.array([0.5]), s)[0]
  >>> jax.grad(loss)(jnp.array([7.0])).tolist()
  [1.5]

  Args:
    mask: (..., n) in [0, 1].
    scores: (..., n) finite.

  Returns:
    The mask, to the last bit.
  """
  return mask * (1 + (scores - lax.stop_gradient(scores)))  # the bracket is exactly 0


def second_moment(decay: float) -> optax.GradientTransformation:
  """A transform under which parameters become the running mean of their squared gradients.

      s <- decay s + (1 - decay) g^2

  Started at 0 it is too small by 1 - decay^t, the same factor for every element.

  Args:
    decay: in [0, 1).

  Returns:
    A stateless GradientTransformation; its `update` needs the parameters.

  Raises:
    ValueError: decay out of range; at an update, parameters that are not given.
  """
  return _running_mean(jnp.square, decay)


def first_moment(decay: float) -> optax.GradientTransformation:
  """`second_moment` of |g| in place of g^2."""
  return _running_mean(jnp.abs, decay)


def mean_gradient(decay: float) -> optax.GradientTransformation:
  """`second_moment` of g itself in place of g^2; with decay 0 it is the last gradient."""
  return _running_mean(lambda g: g, decay)


def _running_mean(of: Callable[[Array], Array], decay: float) -> optax.GradientTransformation:
  check_share('decay', decay, '[)')

  def init(params: Any) -> optax.EmptyState:
    del params
    return optax.EmptyState()

  def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    if params is None:
      raise ValueError('params is None; expected the parameters, which are the running mean.')
    moves = jax.tree.map(lambda g, s: (1 - decay) * (of(g) - s), updates, params)
    return moves, state

  return optax.GradientTransformation(init, update)


def log_importance(
  magnitudes: Array, evidence: Array, prices: Array | None = None, *, share: float = 0.5
) -> Array:
  """Log of the geometric mean of an element's magnitude and its evidence per price.

      s_i = (1 - share) log |w_i| + share (1/2 log I_i - 1/2 log a_i)                            (2)

  With share = 1 it ranks by I_i / a_i, the loss per unit of the budget; with 0 by the magnitude.
  The evidence is |w_i| times the size of a gradient, so between them lies |w| times a power of that
  gradient: a curvature shrunk towards the same value for all. The evidence is a constant; the
  derivative is that of the magnitude, so that weights can move through the threshold.

  Args:
    magnitudes: (..., n) >= 0.
    evidence: (..., n) >= 0, I up to a factor; all 0 before the first gradient.
    prices: (n,) >= 0, a_i = dF/dm_i up to a factor; None if all elements cost the same.
    share: weight of the evidence, in [0, 1].

  Returns:
    (..., n), finite.
  """
  tiny = jnp.finfo(magnitudes.dtype).tiny
  size = jnp.log(jnp.maximum(magnitudes, tiny**0.5))
  evidence = jnp.maximum(evidence, 0.0)  # as another optimizer might leave it
  floor = _FLOOR * jnp.mean(evidence, axis=-1, keepdims=True) + tiny
  found = 0.5 * jnp.log(evidence + floor)
  if prices is not None:
    found = found - 0.5 * jnp.log(prices / jnp.mean(prices) + tiny)
  return (1 - share) * size + share * lax.stop_gradient(found)
