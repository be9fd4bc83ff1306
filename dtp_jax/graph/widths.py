"""The kept widths of layers by their paths: what a module is built anew with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from dtp_jax.graph.graph import Graph
from dtp_jax.graph.groups import Group, Path, Role, module_of
from dtp_jax.graph.shrink import leaf_positions

Width = int | tuple[int, ...]


def layer_widths(graph: Graph, kept: Mapping[str, np.ndarray]) -> dict[str, Width]:
  """How wide each layer is once channels are gone.

  For those who build their module anew at these sizes, and load the slim variables into it. Under a
  norm over pruned channels that is the slim network only with `shrink(..., norms='refit')`.

  Args:
    graph: from `trace`.
    kept: as `Slim.kept`: {group: increasing indices of the channels kept}; groups left out keep
      all.

  Returns:
    {path of a module: its width}: the out axes of its kernel (the width of an embedding), a tuple
    where there are several, as heads and their channels; of a norm the channels it scales. Axes
    that can be pruned alone, as long as the layer has any. Paths are those of group names, without
    'params'; an array that is in no module stands for itself. Parts of one axis (heads, where they
    lie together with their channels) are told by `len(kept[group])`.
  """
  left = leaf_positions(graph, kept)
  places = {True: _places(graph.groups.values()), False: _places(graph.frozen)}
  widths: dict[str, Width] = {}
  for leaf in sorted(graph.leaves, key=lambda leaf: -len(leaf.shape)):  # kernels before biases
    found = [
      axes
      for role in ('producer', 'carrier')
      for prunable in (True, False)
      if (axes := places[prunable].get((leaf.path, role)))
    ]
    if leaf.is_param and found:
      cut = left.get(leaf.path, {})
      sizes = tuple(len(cut.get(axis, range(leaf.shape[axis]))) for axis in sorted(found[0]))
      widths.setdefault(module_of(leaf.path), sizes[0] if len(sizes) == 1 else sizes)
  order = dict.fromkeys(module_of(leaf.path) for leaf in graph.leaves)
  return {name: widths[name] for name in order if name in widths}


def _places(groups: Iterable[Group]) -> dict[tuple[Path, Role], set[int]]:
  """{(path of an array, role): axes with that role in some group}."""
  places: dict[tuple[Path, Role], set[int]] = {}
  for group in groups:
    for s in group.slices:
      places.setdefault((s.path, s.role), set()).add(s.axis)
  return places
