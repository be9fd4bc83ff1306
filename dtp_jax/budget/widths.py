"""Widths that a device is fast at: which numbers of channels a budget may choose for each group.

A kernel computes whole tiles of channels; a width between two multiples pays for the larger one, or
for a scalar rest. Multiples are by group, since a tile that is most of a small group leaves it no
choice of width. Where times were measured, widths that take longer than a wider one drop out too.
"""

from collections.abc import Mapping
from typing import NamedTuple

from dtp_jax.budget.budget import Budget
from dtp_jax.budget.device import device_name, tile
from dtp_jax.budget.latency.table import LatencyTable
from dtp_jax.budget.rounding import Allowed

__all__ = ['Choice', 'choice']

# A group holds at least so many multiples of its own. More would let small groups be finer than the
# tile: of 16 channels, 12 take longer than all of them on a CPU.
_STEPS = 2


class Choice(NamedTuple):
  """What groups may keep, and in words why.

  Attributes:
    multiple_of: the multiple of all groups, or {group: increasing counts}.
    why: empty where every group may keep any number.
  """

  multiple_of: int | Allowed
  why: str


def choice(budget: Budget, sizes: Mapping[str, int]) -> Choice:
  """What `Budget.multiple_of` comes to on groups of given sizes.

  'auto' takes the tile of the device that the budget's latency table was measured on, else of the
  present one: for each group the largest power of two within it that the group holds twice. Of
  these widths a latency table takes out those that a wider one is faster than.

  Args:
    budget: its `multiple_of` and `of` are read.
    sizes: {group: channels}.
  """
  if budget.multiple_of != 'auto':
    why = f'multiples of {budget.multiple_of}, as asked for' if budget.multiple_of > 1 else ''
    return Choice(budget.multiple_of, why)
  table = budget.of if isinstance(budget.of, LatencyTable) else None
  device = device_name() if table is None else table.device
  channels, reason = tile(device)
  multiples = {name: min(channels, _power_of_two(n // _STEPS)) for name, n in sizes.items()}
  allowed = {name: (*range(0, n, multiples[name]), n) for name, n in sizes.items()}
  finer: dict[int, list[str]] = {}
  for name, multiple in multiples.items():
    if multiple < channels:
      finer.setdefault(multiple, []).append(name)
  parts = [f'multiples of {channels} on {device} ({reason})']
  parts += [f'of {m} for {", ".join(names)}' for m, names in sorted(finer.items(), reverse=True)]
  if table is not None:
    rising = {name: table.rising(name, widths) for name, widths in allowed.items()}
    slow = {n: sorted(set(allowed[n]) - set(rising[n])) for n in sizes if rising[n] != allowed[n]}
    if slow:
      named = '; '.join(f'{", ".join(map(str, w))} of {name}' for name, w in slow.items())
      parts.append(f'without what a wider one is faster than: {named}')
    allowed = rising
  return Choice(allowed, '; '.join(parts))


def _power_of_two(n: int) -> int:
  """The largest power of two that is at most n, or 1."""
  return 1 << max(n, 1).bit_length() - 1
