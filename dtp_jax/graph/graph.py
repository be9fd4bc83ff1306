"""The graph of a traced function: its channel groups, operators and costs."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dtp_jax.graph.cost import Polynomial, add, check_shape
from dtp_jax.graph.groups import Group, Leaf, Path, Role
from dtp_jax.graph.report import report
from dtp_jax.trees import by_path


class Extent(NamedTuple):
  """The size of an axis: `fixed` x the batch size if `batched` x the product of `widths`."""

  fixed: int
  batched: bool
  widths: tuple[Polynomial, ...]


class Bare(NamedTuple):
  """An operator by itself, to be run at any width: equation, extents of its operands' axes."""

  eqn: Any
  operands: tuple[tuple[Extent, ...], ...]


class Operator(NamedTuple):
  """A convolution or matrix product.

  Attributes:
    name: the module of its kernel.
    primitive: name of the primitive; of one that no rule has entered, what it is in.
    macs: its MACs for one example, see `Graph.per_example`.
    bare: what it takes to run it alone; None in the body of a loop.
  """

  name: str
  primitive: str
  macs: Polynomial
  bare: Bare | None = None


@dataclass(frozen=True, eq=False)
class Graph:
  """The channel groups of a traced function; see `dtp_jax.graph.trace`.

  Attributes:
    fn: the traced function.
    leaves: the arrays of its variables.
    groups: {name: prunable group}, in the order of the program.
    frozen: groups that must keep their size, with the reason.
    operators: what costs MACs.
    params: number of parameters as a polynomial of kept channels.
    batch_size: of the traced inputs; 1 where no axis of an operator is the batch.
    per_example: whether MACs are those of one example. They are those of the whole traced call
      where an operator sums over the batch, as the dispatch of a mixture of experts does, or where
      no input has an axis.
  """

  fn: Callable[..., Any]
  leaves: tuple[Leaf, ...]
  groups: Mapping[str, Group]
  frozen: tuple[Group, ...]
  operators: tuple[Operator, ...]
  params: Polynomial
  batch_size: Any = 1
  per_example: bool = True

  @cached_property
  def macs(self) -> Polynomial:
    """MACs of convolutions and matrix products for one example, see `per_example`."""
    return add(operator.macs for operator in self.operators)

  @property
  def sizes(self) -> dict[str, int]:
    """{group: number of channels}."""
    return {name: group.size for name, group in self.groups.items()}

  def apply_masks(self, params: Any, masks: Mapping[str, jax.Array]) -> Any:
    """Multiplies the slices where a group is masked by its mask.

    These are the in-axes of its consumers, and, where a norm sums over its channels, what makes
    and carries them: then their activations are zero in the norm already.

    Args:
      params: the traced variables, or the entry of them that holds the parameters (for Linen,
        `variables['params']`); concrete or traced.
      masks: {group: (n,) array with entries in [0, 1]}; groups left out stay as they are.

    Returns:
      A tree like `params`. Pure: works under jit, grad and vmap.

    Raises:
      ValueError: an unknown group, a mask of another shape, or a tree without what is masked; or
        with arrays of other shapes.
    """
    for name, mask in masks.items():
      self.check_mask(name, jnp.shape(mask))
    flat, treedef = by_path(params)
    leaves = [leaf for _, leaf in flat]
    place = {path: i for i, (path, _) in enumerate(flat)}
    masked = [(s, masks[name]) for name in masks for s in self.groups[name].masked]
    skip = self._prefix({s.path for s, _ in masked}, place)
    for s, mask in masked:
      leaf = leaves[place[s.path[skip:]]]
      check_leaf(s.path, jnp.shape(leaf), self.shapes[s.path])
      shape = [1] * jnp.ndim(leaf)
      shape[s.axis] = len(s.index)
      leaves[place[s.path[skip:]]] = leaf * along(mask, s.index).astype(leaf.dtype).reshape(shape)
    return jax.tree.unflatten(treedef, leaves)

  def channel_sums(
    self,
    tree: Any,
    fn: Callable[[jax.Array], jax.Array] = jnp.abs,
    roles: Iterable[Role] = ('producer',),
  ) -> dict[str, jax.Array]:
    """Sums `fn` of all entries of each channel: L1 norms for `jnp.abs` over the producers.

    Args:
      tree: the traced variables, or their parameters alone (slices elsewhere are left out).
      fn: elementwise, applied to each array.
      roles: the slices summed over.

    Returns:
      {group: (n,) array}.

    Raises:
      ValueError: a tree with none of the traced variables, or with arrays of other shapes.
    """
    arrays = dict(by_path(tree)[0])
    wanted, sums = set(roles), {}
    skip = 0 if any(leaf.path in arrays for leaf in self.leaves) else 1
    if not any(leaf.path[skip:] in arrays for leaf in self.leaves):
      raise ValueError(_none_of(sorted('/'.join(leaf.path) for leaf in self.leaves)[0]))
    for name, group in self.groups.items():
      total = jnp.zeros(group.size)
      for s in group.slices:
        if s.role in wanted and s.path[skip:] in arrays:
          check_leaf(s.path, jnp.shape(arrays[s.path[skip:]]), self.shapes[s.path])
          rest = [d for d in range(jnp.ndim(arrays[s.path[skip:]])) if d != s.axis]
          entries = jnp.sum(fn(arrays[s.path[skip:]]), axis=rest)
          inside = np.flatnonzero(s.index >= 0)
          total = total.at[s.index[inside]].add(entries[inside])
      sums[name] = total
    return sums

  def check_mask(self, name: str, shape: tuple[int, ...]) -> None:
    """Raises ValueError unless `name` is a group and `shape` that of its mask."""
    if name not in self.groups:
      close = difflib.get_close_matches(name, self.groups, 1)
      hint = f'; did you mean {close[0]!r}?' if close else f'; the groups are {list(self.groups)}'
      raise ValueError(f'{name!r} is not a prunable group of this graph{hint}')
    check_shape(name, shape, self.groups[name].size)

  @cached_property
  def shapes(self) -> dict[Path, tuple[int, ...]]:
    """{path: shape} of the traced variables."""
    return {leaf.path: leaf.shape for leaf in self.leaves}

  def _prefix(self, wanted: set[Path], place: Mapping[Path, int]) -> int:
    """How many leading keys of the traced paths the given tree leaves out: 0 or 1."""
    for skip in (0, 1):
      if all(path[skip:] in place for path in wanted):
        return skip
    missing = sorted('/'.join(path) for path in wanted if path not in place)
    raise ValueError(_none_of(missing[0]))

  def __str__(self) -> str:
    return report(self.groups, self.frozen, self.macs, self.params, self.per_example)


def check_leaf(path: Path, shape: tuple[Any, ...] | None, expected: Any) -> None:
  """Raises ValueError unless an array of the variables has the expected shape; None: no array."""
  if shape != expected:
    raise ValueError(
      f'the variables have {"/".join(path)!r} of shape {shape}; expected {expected}, as in the '
      'variables this graph was made for'
    )


def _none_of(name: str) -> str:
  return (
    f'the tree has no {name!r}: expected the traced variables or the entry of them that holds the '
    'parameters'
  )


def along(mask: jax.Array, index: np.ndarray) -> jax.Array:
  """The factor at each position of an axis: its channel's mask, 1 where it has no channel."""
  mask = jnp.asarray(mask)
  if np.array_equal(index, np.arange(mask.shape[0])):
    return mask
  if index.min() >= 0:
    return mask[index]
  return jnp.append(mask, jnp.ones((1,), mask.dtype))[index]


def squared(x: jax.Array) -> jax.Array:
  """|x|^2, a real number for complex ones too."""
  return jnp.real(x * jnp.conj(x))
