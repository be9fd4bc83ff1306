"""A strict session: rank promotion raises, warnings are errors, several CPU devices."""

import os

# Before jax is imported. `DTP_TEST_DEVICES=1 pytest` runs the same tests on one device.
_DEVICES = os.environ.get('DTP_TEST_DEVICES', '8')
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ['XLA_FLAGS'] = (
  os.environ.get('XLA_FLAGS', '') + f' --xla_force_host_platform_device_count={_DEVICES}'
)

import jax  # noqa: E402
import matplotlib  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

matplotlib.use('agg')
jax.config.update('jax_numpy_rank_promotion', 'raise')
# Compilation makes the first example slow and CI machines are noisy: no deadlines, same examples.
settings.register_profile('dtp', deadline=None, derandomize=True, max_examples=25)
settings.load_profile('dtp')


@pytest.fixture
def x64():
  """Runs one test in float64."""
  jax.config.update('jax_enable_x64', True)
  yield
  jax.config.update('jax_enable_x64', False)
