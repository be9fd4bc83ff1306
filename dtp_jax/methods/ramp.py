"""The way of the kept fraction from the whole network to the budget."""

import functools

import optax

from dtp_jax.methods.options import check_share, check_steps
from dtp_jax.methods.pruner import Ramp, Schedule

__all__ = ['cubic', 'cubic_ramp', 'ramp_steps']


def cubic_ramp(target: float, steps: int, *, initial: float = 0.9) -> Schedule:
  """The kept fraction from `initial` down to `target` along a cubic (Zhu & Gupta 2017).

  Args:
    target: final fraction, in [0, 1].
    steps: length of the ramp; 0 is the target from the start.
    initial: first fraction; the target where that is larger.

  Returns:
    A schedule.
  """
  if steps <= 0:
    return optax.constant_schedule(target)
  return optax.polynomial_schedule(max(initial, target), target, power=3, transition_steps=steps)


def cubic(steps: int, share: float, *, initial: float) -> Ramp:
  """`cubic_ramp` over a share of the soft stage, whatever the target.

  Args:
    steps: length of the soft stage, >= 1.
    share: of it that the ramp takes, in [0, 1].
    initial: first kept fraction.

  Raises:
    ValueError: steps or share out of range.
  """
  return functools.partial(cubic_ramp, steps=ramp_steps(steps, share), initial=initial)


def ramp_steps(steps: int, share: float) -> int:
  """Length of a ramp over a share of the soft stage.

  Raises:
    ValueError: steps or share out of range.
  """
  check_steps(steps)
  check_share('ramp', share, what='a share of the soft stage')
  return round(share * steps)
