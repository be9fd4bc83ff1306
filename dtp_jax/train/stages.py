"""The stages of a run, dense -> soft -> hard -> done, as functions of the step number."""

from typing import Literal, NamedTuple, get_args

__all__ = ['Stage', 'Stages']

Stage = Literal['dense', 'soft', 'hard', 'done']


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

  def name(self, step: int) -> Stage:
    """Stage of a step; 'done' past the end."""
    bounds = (self.soft_start, self.hard_start, self.total)
    return get_args(Stage)[sum(step >= bound for bound in bounds)]
