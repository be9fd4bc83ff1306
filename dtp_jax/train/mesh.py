"""The mesh of devices: the one file that names its axes.

Batches are split over all devices. Along the axis `model` every array with at least two axes, and
so a kernel with its scores, log-odds and moments, is split by one rule (`dtp_jax.parts`); what is
smaller lies on every device. A step gathers the pruned kernels, in the arithmetic of the network:
left to choose, XLA sends activations instead, which are many times as large. The rest of the
communication it finds from these placements (Auto axis types).
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dtp_jax.parts import split_axis

__all__ = [
  'check_batch',
  'gathered',
  'make',
  'model_parts',
  'needed',
  'of_batches',
  'of_state',
  'padded',
  'template',
  'whole',
]

_DATA, _MODEL = 'data', 'model'


def make(sizes: Mapping[str, int]) -> Mesh:
  """The mesh that `config.mesh` asks for, on the devices of all processes.

  Args:
    sizes: {'data': ..., 'model': ...}, devices along each axis; one may be -1, all that the other
      leaves. In a single process the mesh may be smaller than the machine.

  Returns:
    A mesh of Auto axes.

  Raises:
    ValueError: sizes that the devices cannot make up.
  """
  there, asked = jax.device_count(), {name: sizes[name] for name in (_DATA, _MODEL)}
  fixed = math.prod(size for size in asked.values() if size != -1)
  shape = tuple(there // max(1, fixed) if size == -1 else size for size in asked.values())
  used = math.prod(shape)
  whole = -1 in asked.values() or jax.process_count() > 1
  if min(shape) < 1 or used > there or (whole and used != there):
    raise ValueError(
      f'mesh is {asked} on {there} devices of {jax.process_count()} processes; expected sizes >= 1 '
      'whose product is the number of devices (in a single process it may be less), one of them -1 '
      'for the rest.'
    )
  kinds = (AxisType.Auto,) * len(shape)
  return jax.make_mesh(shape, tuple(asked), axis_types=kinds, devices=jax.devices()[:used])


def needed(sizes: Mapping[str, int]) -> int:
  """The fewest devices that a mesh of these sizes takes: an axis of -1 may be one long."""
  return math.prod(max(1, sizes[name]) for name in (_DATA, _MODEL))


def model_parts(mesh: Mesh) -> int:
  """Over how many devices a kernel is split."""
  return mesh.shape[_MODEL]


def check_batch(mesh: Mesh, size: int, accumulate: int = 1) -> None:
  """Refuses a training batch that cannot be split.

  Raises:
    ValueError: `size` is not a multiple of the devices times `accumulate`.
  """
  shares = mesh.size
  if accumulate < 1 or size % (shares * accumulate):
    raise ValueError(
      f'data.batch_size is {size}, on {shares} devices with accumulate = {accumulate}; '
      f'expected a multiple of {shares * max(1, accumulate)} and accumulate >= 1.'
    )


def padded(mesh: Mesh, size: int) -> int:
  """The size of an evaluation batch, rounded up to one that can be split."""
  shares = mesh.size
  return -(-size // shares) * shares


def of_batches(mesh: Mesh) -> NamedSharding:
  """Where batches lie: their first axis is split, whatever follows it."""
  return NamedSharding(mesh, PartitionSpec((_DATA, _MODEL)))


def of_state(mesh: Mesh, state: Any) -> Any:
  """Where the arrays of a state lie, a tree like it of shardings.

  Args:
    mesh: of the run.
    state: any tree, concrete or abstract.
  """

  def place(leaf: Any) -> NamedSharding:
    axis = split_axis(leaf.shape, model_parts(mesh)) if len(leaf.shape) >= 2 else None
    spec = PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, _MODEL)
    return NamedSharding(mesh, spec)

  return jax.tree.map(place, state)


def template(mesh: Mesh, state: Any) -> Any:
  """An abstract state with its place: what a checkpoint is restored into, wherever it was saved."""

  def describe(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

  return jax.tree.map(describe, state, of_state(mesh, state))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def gathered(mesh: Mesh, tree: Any) -> Any:
  """Inside of a jitted function: the arrays whole on every device, their gradients in parts again.

  Left alone, gradients would be whole on every device as well, and what meets them there, as the
  masks do, would be gathered too.
  """
  everywhere = NamedSharding(mesh, PartitionSpec())
  return tree if model_parts(mesh) == 1 else jax.lax.with_sharding_constraint(tree, everywhere)


def _gathered_forward(mesh: Mesh, tree: Any) -> tuple[Any, None]:
  return gathered(mesh, tree), None


def _gathered_backward(mesh: Mesh, _: None, gradient: Any) -> tuple[Any]:
  if model_parts(mesh) > 1:
    gradient = jax.lax.with_sharding_constraint(gradient, of_state(mesh, gradient))
  return (gradient,)


gathered.defvjp(_gathered_forward, _gathered_backward)


def whole(mesh: Mesh, tree: Any) -> Any:
  """A copy of arrays on every device, so that every process can read all of them."""
  return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))(tree)
