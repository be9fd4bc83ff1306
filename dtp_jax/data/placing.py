"""Which rows of a batch this process makes, and how they get to the devices.

A sharding says both: the rows that its devices in this process hold are those it must feed. Without
one everything goes to the default device.
"""

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

__all__ = ['place', 'place_whole', 'rows']


def rows(
  size: int, sharding: NamedSharding | None, devices: Iterable[Any] | None = None
) -> np.ndarray:
  """The rows of every batch that some devices hold, in rising order.

  Args:
    size: of a batch.
    sharding: of its first axis; None is one device.
    devices: of the sharding; default: those of this process, which feeds these rows.

  Returns:
    int64 (m,). Along a split axis every row belongs to one device.
  """
  if sharding is None:
    return np.arange(size)
  held = sharding.devices_indices_map((size,))
  devices = sharding.addressable_devices if devices is None else devices
  return np.unique(np.concatenate([np.arange(size)[held[device]] for device in devices]))


def place(batch: Any, size: int, sharding: NamedSharding | None) -> Any:
  """Sends the rows of this process: arrays (m, ...) become those of the whole batch (size, ...)."""
  if sharding is None:
    return jax.device_put(batch)

  def send(local: np.ndarray) -> jax.Array:
    shape = (size, *local.shape[1:])
    return jax.make_array_from_process_local_data(sharding, local, shape)

  return jax.tree.map(send, batch)


def place_whole(tree: Any, sharding: NamedSharding | None) -> Any:
  """Sends arrays that every process has to every device of a sharding."""
  if sharding is None:
    return jax.device_put(tree)
  everywhere = NamedSharding(sharding.mesh, PartitionSpec())

  def send(array: np.ndarray) -> jax.Array:
    return jax.make_array_from_process_local_data(everywhere, array, array.shape)

  return jax.tree.map(send, tree)
