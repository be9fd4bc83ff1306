"""The stages of a run, dense -> soft -> hard -> done, as functions of the step number."""

from typing import Any, NamedTuple

import jax.numpy as jnp

__all__ = ['NAMES', 'Stages']

NAMES = ('dense', 'soft', 'hard', 'done')


class Stages(NamedTuple):
  """Lengths in steps.

  Attributes:
    dense: training without masks.
    soft: joint training of weights and soft masks.
    hard: fine-tuning under the frozen hard mask.
  """

  dense: int
  soft: int
  hard: int

  @property
  def soft_start(self) -> int:
    """First step of the soft stage."""
    return self.dense

  @property
  def hard_start(self) -> int:
    """First step under the hard mask."""
    return self.dense + self.soft

  @property
  def total(self) -> int:
    """Number of steps of the run."""
    return self.dense + self.soft + self.hard

  def number(self, step: Any) -> Any:
    """Stage number (0 dense, 1 soft, 2 hard) of a step; traceable."""
    bounds = (self.soft_start, self.hard_start)
    return sum(jnp.asarray(step >= bound, jnp.int32) for bound in bounds)

  def name(self, step: int) -> str:
    """Stage of a step on the host; 'done' past the end."""
    return NAMES[sum(step >= b for b in (self.soft_start, self.hard_start, self.total))]

  def is_soft(self, step: Any) -> Any:
    """Whether a step lies in the soft stage; traceable."""
    return (step >= self.soft_start) & (step < self.hard_start)
