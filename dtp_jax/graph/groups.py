"""Channel groups: the slices of arrays that live or die together, and their names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

Path = tuple[str, ...]
Role = Literal['producer', 'carrier', 'consumer']
ROLES: tuple[Role, ...] = ('producer', 'carrier', 'consumer')


class Leaf(NamedTuple):
  """An array of the variables: its path in the tree, and whether it counts as a parameter."""

  path: Path
  shape: tuple[int, ...]
  dtype: Any
  is_param: bool


@dataclass(frozen=True, eq=False)
class Slice:
  """One axis of one array along which a group's channels lie.

  Attributes:
    path: path of the array in the traced variables.
    axis: the axis.
    role: 'producer' (the out axis of a kernel, its bias), 'carrier' (normalisation, depthwise
      kernels) or 'consumer' (the in-axis of what reads them).
    index: which channel each position of the axis belongs to, shape (axis size,), -1 for none:
      after a flatten several positions share a channel, after a concatenation others lie beside.
    masked: whether a mask multiplies it: what reads the channels, as a rule, and what makes them
      where a norm sums over them.
  """

  path: Path
  axis: int
  role: Role
  index: np.ndarray
  masked: bool = False

  def __str__(self) -> str:
    return f'{"/".join(self.path)}:{self.axis}'


@dataclass(frozen=True, eq=False)
class Group:
  """Channels that live or die together in every slice.

  Attributes:
    name: from the path of the first kernel that produces it.
    size: number of channels.
    slices: where they lie.
    reason: what froze it; None for a prunable group.
    macs: MACs for one example (see `Graph.per_example`) that would go with the whole group.
    params: parameters that would go with it.
    layers: for channels inside of a scan over layers, the number of layers, which lie on the first
      axis of every slice. Each may put its channels in an order of its own; see `rank_layers`.
  """

  name: str
  size: int
  slices: tuple[Slice, ...]
  reason: str | None = None
  macs: int = 0
  params: int = 0
  layers: int | None = None

  def role(self, role: Role) -> tuple[Slice, ...]:
    """The slices of one role."""
    return tuple(s for s in self.slices if s.role == role)

  @property
  def producers(self) -> tuple[Slice, ...]:
    """Out axes of kernels, and the biases beside them."""
    return self.role('producer')

  @property
  def carriers(self) -> tuple[Slice, ...]:
    """Normalisation parameters and statistics, depthwise kernels."""
    return self.role('carrier')

  @property
  def consumers(self) -> tuple[Slice, ...]:
    """In-axes of kernels."""
    return self.role('consumer')

  @property
  def masked(self) -> tuple[Slice, ...]:
    """What a mask multiplies."""
    return tuple(s for s in self.slices if s.masked)


def module_of(path: Path) -> str:
  """The path of the module that holds an array: its own name and the collection left out."""
  path = path[1:] if len(path) > 1 and path[0] == 'params' else path
  path = path[:-1] if len(path) > 1 and path[-1] == 'value' else path  # an NNX variable's content
  return '/'.join(path[:-1] if len(path) > 1 else path)


def group_names(found: Mapping[Any, list[Slice]]) -> dict[Any, str]:
  """Names groups after the first array that produces them.

  The module's path if that is enough; ':axis' is added where one array produces several groups,
  '.k' where one axis does, and the array's own name where two arrays of a module do.
  """
  first = {key: min(slices, key=lambda s: ROLES.index(s.role)) for key, slices in found.items()}
  shared: dict[Path, list[Any]] = {}
  for key, s in first.items():
    shared.setdefault(s.path, []).append(key)
  modules: dict[str, set[Path]] = {}
  for s in first.values():
    modules.setdefault(module_of(s.path), set()).add(s.path)
  names = {}
  for path, keys in shared.items():
    base = module_of(path)
    if len(modules[base]) > 1:
      base = '/'.join(path[1:] if path[0] == 'params' and len(path) > 1 else path)
    for key in keys:
      same_axis = [other for other in keys if first[other].axis == first[key].axis]
      names[key] = base
      if len(keys) > 1:
        names[key] += f':{first[key].axis}'
      if len(same_axis) > 1:
        names[key] += f'.{same_axis.index(key)}'
  return {key: names[key] for key in found}
