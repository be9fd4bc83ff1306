"""Options of methods that are out of range or no numbers are refused when a method is made."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ['check_share', 'check_step', 'check_steps']


def check_share(name: str, value: Any, ends: str = '[]', what: str = 'a number') -> None:
  """Raises ValueError unless an option is from 0 to 1.

  Args:
    name: what the caller calls it.
    value: refused if it is NaN or no number at all.
    ends: brackets of the interval, round where an end is not in it: '[]', '(]' or '[)'.
    what: what was expected, as in 'a share of the soft stage'.
  """
  try:
    above = value > 0 if ends[0] == '(' else value >= 0
    inside = above and (value < 1 if ends[1] == ')' else value <= 1)
  except TypeError:
    inside = False
  if not inside:
    raise ValueError(f'{name} is {value!r}; expected {what} in {ends[0]}0, 1{ends[1]}.')


def check_steps(steps: int) -> None:
  """Raises ValueError unless `steps` is the length of a soft stage."""
  if not isinstance(steps, int | np.integer) or steps < 1:
    raise ValueError(f'steps is {steps!r}; expected a soft stage of at least 1 step, an integer.')


def check_step(step: Any) -> None:
  """Raises ValueError unless `step` is one of the soft stage: a number >= 0, or traced as one."""
  known = isinstance(step, int | float | np.number)
  array = isinstance(step, jax.Array | np.ndarray) and jnp.shape(step) == ()
  number = array and jnp.issubdtype(step.dtype, jnp.number)
  if not (0 <= step < 2**31 if known else number):  # pyright: ignore[reportOperatorIssue]
    raise ValueError(f'step is {step!r}; expected the soft step 0, 1, ..., a number.')
