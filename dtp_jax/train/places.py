"""Places for runs side by side: shares of a host's devices, each for a process of its own.

A process holds every device that it sees: the memory of a GPU, the chips of a TPU. So a share is
made before JAX looks for devices, by what the runtimes of CUDA and TPU read from the environment,
and on a CPU by the number of its devices and the cores that they run on.
"""

import os
import subprocess
import sys
from typing import NamedTuple

import jax

__all__ = ['Place', 'find', 'settle']

# A chip of a TPU may be two devices. Printed last: what runtimes say of themselves comes before.
_ASK = """
import jax
devices = jax.local_devices()
platform = devices[0].platform
chips = {d.coords for d in devices} if platform == 'tpu' else devices
print(platform, len(chips))
"""


class Place(NamedTuple):
  """What a process has for its runs, as one of several on this host.

  Attributes:
    platform: JAX's name: cpu, gpu, tpu.
    devices: numbers of those that it sees, among those that this process may use. Of a TPU they are
      chips.
    index: its own number.
    count: of the processes.
  """

  platform: str
  devices: tuple[int, ...]
  index: int
  count: int


def find(needed: int, count: int | None = None) -> list[Place | None]:
  """Shares of the devices that this host has, without asking for a device in this process.

  Args:
    needed: devices that a run needs, >= 1.
    count: of processes; None for as many as there are groups of `needed` devices. More than there
      are devices share them.

  Returns:
    A place for each process; [None] is everything, for a process that is alone.

  Raises:
    ValueError: `count` < 1, or shares that are too small for a run.
    OSError: JAX finds no device.
  """
  if count is not None and count < 1:
    raise ValueError(f'processes is {count}; expected at least 1.')
  if count == 1:
    return [None]
  platform, devices = _ask()
  # Of a TPU single chips alone: larger shares depend on how its chips are wired.
  most = devices // needed if platform != 'tpu' or needed == 1 else 1
  count = max(1, most) if count is None else count
  if count == 1:
    return [None]
  share = 1 if platform == 'tpu' else max(1, devices // count)
  if share < needed:
    raise ValueError(
      f'processes is {count} on {devices} {platform} devices, and a run needs {needed} of them '
      f'(config.mesh); expected at most {max(1, most)}.'
    )
  mine = [tuple((i * share + j) % devices for j in range(share)) for i in range(count)]
  return [Place(platform, numbers, i, count) for i, numbers in enumerate(mine)]


def settle(place: Place | None) -> None:
  """Confines this process to its place, before it asks JAX for a device."""
  if place is None:
    return
  if place.platform == 'cpu':
    jax.config.update('jax_num_cpu_devices', len(place.devices))
    if hasattr(os, 'sched_setaffinity'):
      cores = sorted(os.sched_getaffinity(0))
      os.sched_setaffinity(0, cores[place.index :: place.count] or cores)
  elif place.platform == 'tpu':  # written from its documentation: no TPU was at hand
    os.environ['TPU_VISIBLE_CHIPS'] = str(place.devices[0])
    os.environ['TPU_PROCESS_BOUNDS'] = os.environ['TPU_CHIPS_PER_PROCESS_BOUNDS'] = '1,1,1'
  else:
    os.environ['CUDA_VISIBLE_DEVICES'] = ','.join(_gpu(number) for number in place.devices)


def _gpu(number: int) -> str:
  """A GPU by the name that CUDA_VISIBLE_DEVICES has for it, or by its number."""
  visible = os.environ.get('CUDA_VISIBLE_DEVICES')
  return visible.split(',')[number].strip() if visible else str(number)


def _ask() -> tuple[str, int]:
  """(platform, number of devices) as a process of its own sees them, which then lets them go."""
  asked = subprocess.run([sys.executable, '-c', _ASK], capture_output=True, text=True, check=False)
  if asked.returncode:
    last = (asked.stderr.strip().splitlines() or ['it says nothing'])[-1]
    raise OSError(f'JAX finds no device on this host: {last}. Does another process hold them?')
  platform, devices = asked.stdout.split()[-2:]
  return platform, int(devices)
