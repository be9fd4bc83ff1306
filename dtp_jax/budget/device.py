"""Devices: what they are called, and how many channels they compute together."""

import os
import platform

import jax.numpy as jnp

__all__ = ['device_name', 'tile']


def device_name() -> str:
  """The device that arrays lie on, in words that tell kinds of device apart."""
  device = next(iter(jnp.zeros(()).devices()))
  if device.platform == 'cpu':
    return f'cpu {platform.machine()}, {os.cpu_count()} cores'
  return device.device_kind


def tile(device: str) -> tuple[int, str]:
  """Channels that a device computes together, and the reason in words.

  Args:
    device: as `device_name` calls it.
  """
  if device.startswith('TPU'):
    return 128, 'a register has 128 lanes'
  if device.startswith('cpu'):
    return 8, 'the convolutions of XLA compute 8 floats together'
  return 8, 'tensor cores take 16 bytes of an axis, 8 numbers of 16 bits'
