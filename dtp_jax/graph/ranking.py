"""Ranked layers: the channels of every layer under scan in the order of their importance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dtp_jax.graph.graph import Graph, squared
from dtp_jax.graph.groups import Group, Slice
from dtp_jax.trees import by_path


def rank_layers(
  graph: Graph, variables: Any, fn: Callable[[jax.Array], jax.Array] = squared
) -> Any:
  """Variables of the same function, in which the channels of each layer are ranked.

  The layers of a scan lose channels at the same places, so that what is left is a scan. Ranked, the
  r-th place of every layer holds its r-th strongest channel: which channels go is then a choice of
  each layer, how many is one choice for all. Rank before training with a pruner begins, and before
  an optimizer is made: its moments are not moved along.

  Args:
    graph: from `trace`.
    variables: the traced variables, concrete or traced.
    fn: elementwise; its sum over all entries that produce a channel is the channel's strength.

  Returns:
    A tree like `variables`: the groups with `layers` in the order of their strength, descending,
    and all else as it is. Outputs are the same to rounding, but for bits that a dropout inside of a
    layer draws.

  Raises:
    TypeError: no graph.
    ValueError: variables without one of the arrays that are ranked, or with one of another shape.
  """
  if not isinstance(graph, Graph):
    raise TypeError(f'the graph is a {type(graph).__name__}; expected what dtp_jax.trace returns.')
  flat, treedef = by_path(variables)
  arrays, ranked = dict(flat), dict(flat)
  shapes = {leaf.path: leaf.shape for leaf in graph.leaves}
  for group in graph.groups.values():
    if group.layers is None:
      continue
    for s in group.slices:
      got = jnp.shape(arrays[s.path]) if s.path in arrays else None
      if got != shapes[s.path]:
        raise ValueError(
          f'the variables have {"/".join(s.path)!r} of shape {got}; expected {shapes[s.path]}, as '
          'in the variables this graph was made for'
        )
    order = jnp.argsort(-_strengths(group, arrays, fn), axis=1)
    for s in group.slices:
      ranked[s.path] = _ordered(ranked[s.path], s, order)
  return jax.tree.unflatten(treedef, [ranked[path] for path, _ in flat])


def _strengths(
  group: Group, arrays: dict[Any, Any], fn: Callable[[jax.Array], jax.Array]
) -> jax.Array:
  """(layers, channels): the sum over what produces each channel in each layer."""
  total = jnp.zeros((group.layers, group.size))
  for s in group.producers:
    rest = [d for d in range(1, jnp.ndim(arrays[s.path])) if d != s.axis]
    entries = jnp.sum(fn(arrays[s.path]), axis=rest)
    inside = np.flatnonzero(s.index >= 0)
    total = total.at[:, s.index[inside]].add(entries[:, inside])
  return total


def _ordered(array: Any, s: Slice, order: jax.Array) -> jax.Array:
  """An array whose channels on one axis stand, layer by layer, as `order` (layers, n) says."""
  places = np.stack([np.flatnonzero(s.index == channel) for channel in range(order.shape[1])])
  source = jnp.broadcast_to(jnp.arange(len(s.index)), (order.shape[0], len(s.index)))
  source = source.at[:, places].set(jnp.asarray(places)[order])
  shape = [1] * jnp.ndim(array)
  shape[0], shape[s.axis] = source.shape
  return jnp.take_along_axis(jnp.asarray(array), source.reshape(shape), axis=s.axis)
