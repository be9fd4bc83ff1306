"""Widths that a device is fast at: which multiple of channels each group should keep.

A kernel computes whole tiles of channels; a width between two multiples pays for the larger one, or
for a scalar rest. Multiples are by group, since a tile that is half of a small group leaves it no
choice of width.
"""

from collections.abc import Mapping
from typing import NamedTuple

from dtp_jax.budget.budget import Budget
from dtp_jax.budget.device import device_name, tile

__all__ = ['Multiples', 'multiples_of']

# A group keeps at least so many multiples of its own. More would let small groups be finer than the
# tile: of 16 channels 12 take longer than all of them on a CPU.
_STEPS = 2


class Multiples(NamedTuple):
  """The multiple of each group, and in words why.

  Attributes:
    by_group: {group: multiple >= 1}.
    why: empty where every group may keep any number.
  """

  by_group: dict[str, int]
  why: str


def multiples_of(budget: Budget, sizes: Mapping[str, int]) -> Multiples:
  """What `Budget.multiple_of` comes to on groups of given sizes.

  'auto' takes the tile of the device that the budget's latency table was measured on, else of the
  present one: for each group the largest power of two within it that the group holds twice.

  Args:
    budget: its `multiple_of` and `of` are read.
    sizes: {group: channels}.
  """
  if budget.multiple_of != 'auto':
    why = f'multiples of {budget.multiple_of}, as asked for' if budget.multiple_of > 1 else ''
    return Multiples(dict.fromkeys(sizes, budget.multiple_of), why)
  device = getattr(budget.of, 'device', None) or device_name()
  channels, reason = tile(device)
  found = {name: min(channels, _power_of_two(size // _STEPS)) for name, size in sizes.items()}
  finer: dict[int, list[str]] = {}
  for name, multiple in found.items():
    if multiple < channels:
      finer.setdefault(multiple, []).append(name)
  parts = [f'multiples of {channels} on {device} ({reason})']
  parts += [f'of {m} for {", ".join(names)}' for m, names in sorted(finer.items(), reverse=True)]
  return Multiples(found, '; '.join(parts))


def _power_of_two(n: int) -> int:
  """The largest power of two that is at most n, or 1."""
  return 1 << max(n, 1).bit_length() - 1
