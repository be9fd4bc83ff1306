"""What a value is where a channel is dead: the promise that every axis of an intermediate carries.

Masking parameters makes some values zero at dead channels. A norm turns the zeros into a number
that all dead channels share, and its scale turns that into zeros again. A constant that is added
(the sines of fixed positions) is what it is, dead or alive. A sum over channels is known from the
kept ones alone where the dead are zero, from the kept ones and one of the dead where they are all
the same, and from the kept ones and what constants make of the dead where these are given.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import NamedTuple

# (leaf number, axis): one axis of one leaf of the variables.
Axis = tuple[int, int]
Masks = frozenset[Axis]
NONE: Masks = frozenset()


class Kind(enum.IntEnum):
  """How much is known; each kind says all that the ones before it say, and more."""

  ANYTHING = 0
  FINITE = 1  # so that 0 times it is 0
  GIVEN = 2  # made of captured arrays, and of what does not vary along the axis
  COMMON = 3  # one and the same number for all dead channels of the axis
  ZERO = 4


class Dead(NamedTuple):
  """What a value is at the dead positions of one of its axes.

  Attributes:
    kind: what is known.
    masks: the parameter axes that have to be masked for it; none for what holds anyway.
  """

  kind: Kind
  masks: Masks = NONE

  @property
  def moved(self) -> Dead:
    """What is left of it where the elements are moved: only zeros are followed there."""
    return FINITE if self.kind in (Kind.GIVEN, Kind.COMMON) else self


ANYTHING, FINITE, GIVEN = Dead(Kind.ANYTHING), Dead(Kind.FINITE), Dead(Kind.GIVEN)
# Of what does not vary along the axis, dead or alive.
STEADY, NOTHING = Dead(Kind.COMMON), Dead(Kind.ZERO)


def together(parts: Iterable[Dead]) -> Dead:
  """What holds of several values at once; their masks add up."""
  parts = tuple(parts)
  kind = min((part.kind for part in parts), default=Kind.ZERO)
  masks = (part.masks for part in parts) if kind >= Kind.GIVEN else ()
  return Dead(kind, NONE.union(*masks))


def either(a: Dead, b: Dead) -> Dead:
  """What holds of a product: zero where one factor is and the other finite."""
  if min(a.kind, b.kind) == Kind.ANYTHING:
    return ANYTHING
  if a.kind == b.kind or Kind.ZERO not in (a.kind, b.kind):
    return together((a, b))
  return max(a, b, key=lambda one: one.kind)
