"""The kept channels of a slim network: what they cut out of each array, as JSON, and back."""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np

from dtp_jax.graph import Graph
from dtp_jax.graph.groups import Leaf
from dtp_jax.graph.shrink import leaf_positions
from dtp_jax.trees import flatten, key_data

__all__ = ['Cut', 'Cuts', 'cuts_of', 'expand', 'kept_as_json', 'kept_from_json']


class Cut(NamedTuple):
  """What is left of one array.

  Attributes:
    shape: its dense shape.
    kept: {axis: increasing positions that stay}, for the axes that lose any.
  """

  shape: tuple[int, ...]
  kept: dict[int, np.ndarray]

  @property
  def slim_shape(self) -> tuple[int, ...]:
    """Its shape in the slim network."""
    return tuple(len(self.kept.get(axis, range(n))) for axis, n in enumerate(self.shape))


Cuts: TypeAlias = dict[str, Cut]  # by name, as in 'params/conv1/kernel'


def cuts_of(graph: Graph, kept: Mapping[str, np.ndarray]) -> Cuts:
  """What every array of the variables loses.

  Args:
    graph: the dense network.
    kept: {group: increasing indices of the channels kept}; groups left out keep all.

  Returns:
    {name: cut}, in tree order, arrays that lose nothing included.
  """
  cuts = {'/'.join(leaf.path): Cut(_stored_shape(leaf), {}) for leaf in graph.leaves}
  for path, axes in leaf_positions(graph, kept).items():
    cut = cuts['/'.join(path)]
    cut.kept.update({axis: p for axis, p in axes.items() if len(p) < cut.shape[axis]})
  return cuts


def _stored_shape(leaf: Leaf) -> tuple[int, ...]:
  return key_data(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)).shape


def expand(graph: Graph, slim_variables: Any, kept: Mapping[str, np.ndarray]) -> Any:
  """Dense variables that, masked, are the slim network: the way back from `shrink`.

  For a slim network that was trained further: `save_slim` compares with the masked network, which
  needs variables of the dense shapes.

  Args:
    graph: the dense network.
    slim_variables: as `Slim.variables`.
    kept: as `Slim.kept`.

  Returns:
    The tree with dense shapes. Channels that had been deleted are copies of the first one kept, or
    zeros where none was; masks hide them.

  Raises:
    ValueError: an array does not have its slim shape.
  """
  arrays, rebuild = flatten(slim_variables)
  cuts = cuts_of(graph, kept)
  dense = {}
  for name, array in arrays.items():
    cut = cuts.get(name)
    if cut is None or tuple(array.shape) != cut.slim_shape:
      raise ValueError(
        f'the slim variables have {name!r} of shape {tuple(array.shape)}; expected '
        f'{None if cut is None else cut.slim_shape}, as these kept channels leave it'
      )
    dense[name] = _widened(array, cut)
  return rebuild(dense)


def _widened(array: Any, cut: Cut) -> Any:
  widened = np.asarray(array)
  for axis, positions in cut.kept.items():
    if not len(positions):
      return jax.numpy.zeros(cut.shape, widened.dtype)
    place = np.zeros(cut.shape[axis], int)
    place[positions] = np.arange(len(positions))
    widened = np.take(widened, place, axis)
  return jax.device_put(widened) if cut.kept else array


def kept_as_json(graph: Graph, kept: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Kept channels of every group and kept positions of every array."""
  groups = {
    name: {'size': graph.sizes[name], 'kept': np.asarray(channels).tolist()}
    for name, channels in kept.items()
  }
  arrays = {
    name: {
      'shape': list(cut.shape),
      'kept': {str(axis): positions.tolist() for axis, positions in cut.kept.items()},
    }
    for name, cut in cuts_of(graph, kept).items()
  }
  return {'groups': groups, 'arrays': arrays}


def kept_from_json(
  content: Mapping[str, Any],
) -> tuple[dict[str, np.ndarray], dict[str, int], Cuts]:
  """Inverse of `kept_as_json`: ({group: kept channels}, {group: dense size}, cuts).

  Raises:
    KeyError, TypeError, ValueError, AttributeError: it is something else.
  """
  groups, arrays = content['groups'], content['arrays']
  kept = {name: np.asarray(group['kept'], int) for name, group in groups.items()}
  sizes = {name: int(group['size']) for name, group in groups.items()}
  cuts = {
    name: Cut(
      tuple(entry['shape']),
      {int(axis): np.asarray(positions, int) for axis, positions in entry['kept'].items()},
    )
    for name, entry in arrays.items()
  }
  return kept, sizes, cuts
