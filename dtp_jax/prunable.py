"""What can be pruned: the elements of a parameter tree and how their masks multiply it.

A `Prunable` is one granularity. It names the score arrays, reads an importance off the parameters
and applies masks to them; budgets and methods know nothing else about the network.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dtp_jax.graph import Graph
from dtp_jax.graph.cost import Polynomial, add
from dtp_jax.graph.graph import squared
from dtp_jax.trees import is_array, key_name, path_name, paths

__all__ = ['Masks', 'Params', 'Prunable', 'blocks', 'channels', 'nm', 'weights']

Params = Any  # a pytree of arrays
Masks = dict[str, Array]
Importance = Literal['l1', 'l2', 'bn']


class Prunable(NamedTuple):
  """The prunable elements of a network.

  Attributes:
    shapes: shape of the score array of each name. Rows (the last axis) may be problems of their
      own (`Budget(scope='row')`); otherwise elements of an array are one flat list.
    density: relative density of each name under the Erdos-Renyi-kernel rule, sum(kernel shape) /
      prod(kernel shape).
    magnitude: params -> {name: importance >= 0, of the score shape}: |w| for a weight, the root
      mean square for a block. Differentiable.
    apply_masks: (params, masks) -> params times masks {name: array of the score shape}. Pure;
      differentiable in both.
    costs: for channels, what a budget can be counted in: {'count', 'params', 'macs': polynomial}.
    graph: for channels, the traced network.
    parts: over how many devices the arrays are split (`dtp_jax.parts`); 1 if they are not.
  """

  shapes: dict[str, tuple[int, ...]]
  density: dict[str, float]
  magnitude: Callable[[Params], dict[str, Array]]
  apply_masks: Callable[[Params, Masks], Params]
  costs: Mapping[str, Any] = {}
  graph: Graph | None = None
  parts: int = 1

  @property
  def sizes(self) -> dict[str, int]:
    """{name: number of elements}."""
    return {name: math.prod(shape) for name, shape in self.shapes.items()}


def weights(params: Params, *, exclude: Iterable[str] = ()) -> Prunable:
  """Every single weight of every kernel.

  Args:
    params: pytree; its float leaves with at least 2 axes are the kernels, but for those named
      'bias' (attention has biases of two axes). Concrete or abstract.
    exclude: glob patterns of paths to leave dense, as in ('Dense_1/*', '*embedding*').

  Returns:
    A Prunable with scores of the kernels' own shapes.

  Raises:
    ValueError: a pattern that matches no kernel, or no kernel left.
  """
  return _prunable(_kernels(params, exclude), lambda w: w, jnp.abs, lambda mask, w: mask)


def nm(params: Params, m: int, *, exclude: Iterable[str] = ()) -> Prunable:
  """Groups of m consecutive weights along the input axis, for N:M sparsity.

  `Budget(n / m, scope='row')` then keeps n of every m.

  Args:
    params: as in `weights`; kernels are (..., in, out).
    m: group size, >= 2; it must divide the input axis of every kernel not excluded.
    exclude: as in `weights`.

  Returns:
    A Prunable with scores of shape (groups, m) per kernel.

  Raises:
    ValueError: as `weights`; m < 2 or not a divisor of an input axis.
  """
  if not isinstance(m, int) or m < 2:
    raise ValueError(f'm is {m!r}; expected a group of at least 2 weights, an integer.')
  kernels = _kernels(params, exclude)
  _check_divides(kernels, (m, 1))

  def rows(w: Array) -> Array:
    *rest, inputs, outputs = w.shape
    w = w.reshape(*rest, inputs // m, m, outputs)
    return jnp.moveaxis(w, -2, -1).reshape(-1, m)

  def expand(mask: Array, w: Array) -> Array:
    *rest, inputs, outputs = w.shape
    mask = mask.reshape(*rest, inputs // m, outputs, m)
    return jnp.moveaxis(mask, -1, -2).reshape(w.shape)

  return _prunable(kernels, rows, lambda w: jnp.abs(rows(w)), expand)


def blocks(params: Params, shape: tuple[int, int], *, exclude: Iterable[str] = ()) -> Prunable:
  """Blocks of weights: tiles of the (in, out) plane of every kernel.

  Args:
    params: as in `weights`.
    shape: (height, width) of a tile along the input and the output axis; both must divide.
    exclude: as in `weights`.

  Returns:
    A Prunable with one score per tile, of shape (..., in / height, out / width) per kernel.

  Raises:
    ValueError: as `weights`; a tile that is empty or does not divide a kernel.
  """
  if np.shape(shape) != (2,) or not all(isinstance(n, int) and n >= 1 for n in shape):
    raise ValueError(f'shape is {shape!r}; expected a (height, width) of at least (1, 1).')
  height, width = shape
  kernels = _kernels(params, exclude)
  _check_divides(kernels, (height, width))

  def tiles(w: Array) -> Array:
    *rest, inputs, outputs = w.shape
    return w.reshape(*rest, inputs // height, height, outputs // width, width)

  def norm(w: Array) -> Array:
    return _root(jnp.mean(jnp.square(tiles(w)), axis=(-3, -1)))

  def expand(mask: Array, w: Array) -> Array:
    del w
    return jnp.repeat(jnp.repeat(mask, height, axis=-2), width, axis=-1)

  return _prunable(kernels, lambda w: tiles(w)[..., 0, :, 0], norm, expand)


def channels(
  graph: Graph, *, importance: Importance = 'l2', exclude: Iterable[str] = ()
) -> Prunable:
  """The channel groups of a traced network.

  Args:
    graph: from `dtp_jax.trace`.
    importance: what ranks channels for the baselines and starts the log-odds: 'l1' or 'l2' norm of
      the slices that produce a channel, or 'bn', the magnitude of its normalisation scale. It is
      divided by the mean of its group: a raw ranking across layers collapses those with small
      weights.
    exclude: glob patterns of group names to leave at full width.

  Returns:
    A Prunable with one score per channel and the costs 'count', 'params' and 'macs'.

  Raises:
    ValueError: no group, or none that is not excluded (with the graph's report), a pattern that
      matches none, an unknown importance, or 'bn' for a group without a scale.
    TypeError: no graph.
  """
  if not isinstance(graph, Graph):
    raise TypeError(f'the graph is a {type(graph).__name__}; expected what dtp_jax.trace returns.')
  groups = _matching(dict(graph.groups), exclude, 'groups')
  if not groups:
    raise ValueError(f'the graph has no channel group left to prune:\n{graph}')
  scores = {
    'l1': lambda params: graph.channel_sums(params, jnp.abs),
    'l2': lambda params: {
      name: _root(total) for name, total in graph.channel_sums(params, squared).items()
    },
    'bn': lambda params: graph.channel_sums(_scales_alone(params), jnp.abs, ('carrier',)),
  }
  if importance not in scores:
    raise ValueError(f'importance is {importance!r}; expected one of {sorted(scores)}.')
  for name, group in groups.items():
    if importance == 'bn' and not any(_is_scale(s.path) for s in group.carriers):
      raise ValueError(
        f"group {name!r} has no normalisation scale; choose importance 'l1' or 'l2', or exclude it."
      )

  def magnitude(params: Params) -> dict[str, Array]:
    found = scores[importance](params)
    return {name: found[name] / _mean_or_one(found[name]) for name in groups}

  sizes = {name: group.size for name, group in groups.items()}
  count = add(Polynomial.count(name, size) for name, size in sizes.items())
  return Prunable(
    shapes={name: (size,) for name, size in sizes.items()},
    density={},
    magnitude=magnitude,
    apply_masks=graph.apply_masks,
    costs={'count': count, 'params': graph.params, 'macs': graph.macs},
    graph=graph,
  )


def _scales_alone(params: Params) -> Params:
  """The parameters with everything but normalisation scales zero."""

  def keep(path: Any, x: Array) -> Array:
    return x if _is_scale(tuple(map(key_name, path))) else jnp.zeros_like(x)

  return jax.tree_util.tree_map_with_path(keep, params)


def _is_scale(path: tuple[str, ...]) -> bool:
  return path[-1] == 'scale' or path[-2:] == ('scale', 'value')  # the latter in an NNX state


def _mean_or_one(x: Array) -> Array:
  mean = jnp.mean(x)
  return jnp.where(mean > 0, mean, 1.0)


def _root(x: Array) -> Array:
  # The root has no derivative at 0: an all-zero slice gets the derivative 0.
  return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1.0)), 0.0)


def _prunable(
  kernels: Mapping[str, Any],
  arrange: Callable[[Array], Array],
  norm: Callable[[Array], Array],
  expand: Callable[[Array, Array], Array],
) -> Prunable:
  def magnitude(params: Params) -> dict[str, Array]:
    leaves = paths(params)
    return {name: norm(leaves[name]) for name in kernels}

  def apply_masks(params: Params, masks: Masks) -> Params:
    def multiply(path: Any, w: Any) -> Any:
      mask = masks.get(path_name(path))
      return w if mask is None else w * expand(mask, w).astype(w.dtype)

    return jax.tree_util.tree_map_with_path(multiply, params)

  return Prunable(
    shapes={name: jax.eval_shape(arrange, w).shape for name, w in kernels.items()},
    density={name: sum(w.shape) / math.prod(w.shape) for name, w in kernels.items()},
    magnitude=magnitude,
    apply_masks=apply_masks,
  )


def _kernels(params: Params, exclude: Iterable[str]) -> dict[str, Any]:
  kernels = {
    name: leaf
    for name, leaf in paths(params).items()
    if is_array(leaf)
    and len(leaf.shape) >= 2
    and jnp.issubdtype(leaf.dtype, jnp.floating)
    and name.rpartition('/')[2] != 'bias'
  }
  kernels = _matching(kernels, exclude, 'kernels')
  if not kernels:
    raise ValueError(
      f'params has no kernel to prune among {sorted(paths(params))}; expected a float leaf with at '
      'least 2 axes, not named bias, that no pattern excludes.'
    )
  return kernels


def _matching(named: dict[str, Any], exclude: Iterable[str], what: str) -> dict[str, Any]:
  """The entries that no pattern excludes."""
  if isinstance(exclude, str):
    raise ValueError(f'exclude is {exclude!r}; expected a tuple of patterns, as in ({exclude!r},).')
  patterns = tuple(exclude) if isinstance(exclude, Iterable) else exclude
  if not isinstance(patterns, tuple) or not all(isinstance(one, str) for one in patterns):
    raise ValueError(f'exclude is {exclude!r}; expected a tuple of patterns, () for none.')
  for pattern in patterns:
    matched = fnmatch.filter(named, pattern)
    if not matched:
      raise ValueError(
        f'exclude has {pattern!r}, which matches none of the {what} {sorted(named)}.'
      )
    named = {name: value for name, value in named.items() if name not in matched}
  return named


def _check_divides(kernels: Mapping[str, Any], tile: tuple[int, int]) -> None:
  for name, w in kernels.items():
    if w.shape[-2] % tile[0] or w.shape[-1] % tile[1]:
      raise ValueError(
        f'{name} has (in, out) = {w.shape[-2:]}, not a multiple of {tile}; exclude it, as in '
        f'exclude=({name!r},), or choose another size.'
      )
