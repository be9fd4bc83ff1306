"""What a trace finds: slices, groups, operators, and the graph that holds them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dtp_jax.cost import Polynomial, add

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
      kernels) or 'consumer' (the in-axis a mask multiplies).
    index: which channel each position of the axis belongs to, shape (axis size,), -1 for none:
      after a flatten several positions share a channel, after a concatenation others lie beside.
  """

  path: Path
  axis: int
  role: Role
  index: np.ndarray

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
    macs: MACs for one example that would go with the whole group.
    params: parameters that would go with it.
  """

  name: str
  size: int
  slices: tuple[Slice, ...]
  reason: str | None = None
  macs: int = 0
  params: int = 0

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
    """In-axes of kernels: what a mask multiplies."""
    return self.role('consumer')


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
    primitive: name of the primitive, or of the loop it is in.
    macs: its MACs for one example.
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
  """

  fn: Callable
  leaves: tuple[Leaf, ...]
  groups: Mapping[str, Group]
  frozen: tuple[Group, ...]
  operators: tuple[Operator, ...]
  params: Polynomial
  batch_size: Any = 1

  @cached_property
  def macs(self) -> Polynomial:
    """MACs of convolutions and matrix products for one example."""
    return add(operator.macs for operator in self.operators)

  @property
  def sizes(self) -> dict[str, int]:
    """{group: number of channels}."""
    return {name: group.size for name, group in self.groups.items()}

  def apply_masks(self, params: Any, masks: Mapping[str, jax.Array]) -> Any:
    """Multiplies the in-axis of every consumer by its group's mask (METHOD 7).

    Args:
      params: the traced variables, or the entry of them that holds the parameters (for Linen,
        `variables['params']`); concrete or traced.
      masks: {group: (n,) array with entries in [0, 1]}; groups left out stay as they are.

    Returns:
      A tree like `params`. Pure: works under jit, grad and vmap.

    Raises:
      ValueError: an unknown group, a mask of another shape, or a tree without the consumers.
    """
    for name, mask in masks.items():
      self.check_mask(name, jnp.shape(mask))
    flat, treedef = jax.tree_util.tree_flatten_with_path(params)
    leaves = [leaf for _, leaf in flat]
    place = {tuple(map(key_name, keys)): i for i, (keys, _) in enumerate(flat)}
    consumers = [(s, masks[name]) for name in masks for s in self.groups[name].consumers]
    skip = self._prefix({s.path for s, _ in consumers}, place)
    for s, mask in consumers:
      leaf = leaves[place[s.path[skip:]]]
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
    """
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    arrays = {tuple(map(key_name, keys)): leaf for keys, leaf in flat}
    wanted, sums = set(roles), {}
    skip = 0 if any(leaf.path in arrays for leaf in self.leaves) else 1
    for name, group in self.groups.items():
      total = jnp.zeros(group.size)
      for s in group.slices:
        if s.role in wanted and s.path[skip:] in arrays:
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
    if tuple(shape) != (self.groups[name].size,):
      raise ValueError(
        f'the mask of group {name!r} has shape {tuple(shape)}; expected '
        f'({self.groups[name].size},), one entry per channel'
      )

  def _prefix(self, wanted: set[Path], place: Mapping[Path, int]) -> int:
    """How many leading keys of the traced paths the given tree leaves out: 0 or 1."""
    for skip in (0, 1):
      if all(path[skip:] in place for path in wanted):
        return skip
    missing = sorted('/'.join(path) for path in wanted if path not in place)
    raise ValueError(
      f'the tree has no {missing[0]!r}: expected the traced variables or the entry '
      'of them that holds the parameters'
    )

  def __str__(self) -> str:
    from dtp_jax.graph.report import report

    return report(self)


def along(mask: jax.Array, index: np.ndarray) -> jax.Array:
  """The factor at each position of an axis: its channel's mask, 1 where it has no channel."""
  mask = jnp.asarray(mask)
  if np.array_equal(index, np.arange(mask.shape[0])):
    return mask
  if index.min() >= 0:
    return mask[index]
  return jnp.append(mask, jnp.ones((1,), mask.dtype))[index]


def key_name(key: Any) -> str:
  """The plain name of one step of a tree path."""
  for attribute in ('key', 'name', 'idx'):
    if hasattr(key, attribute):
      return str(getattr(key, attribute))
  return str(key)


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
