"""A strict session: rank promotion raises, warnings are errors, several CPU devices.

Most of a run is XLA compiling some thousands of small programs. They are compiled with few
optimizations, and kept for the next run, outside of the repository.
"""

import importlib.metadata
import os
import pathlib

# All of this before jax is imported. Flags of the environment come last and so win: for XLA's own
# choices, XLA_FLAGS='--xla_backend_optimization_level=3 --xla_cpu_use_fusion_emitters=true'.
# `DTP_TEST_DEVICES=1 pytest` runs the same tests on one device.
_FLAGS = [
  f'--xla_force_host_platform_device_count={os.environ.get("DTP_TEST_DEVICES", "8")}',
  '--xla_backend_optimization_level=0',
]
# A third of the compiling; a flag that jaxlib does not know ends the process.
if importlib.metadata.version('jaxlib').startswith('0.10.'):
  _FLAGS.append('--xla_cpu_use_fusion_emitters=false')
os.environ['XLA_FLAGS'] = ' '.join([*_FLAGS, os.environ.get('XLA_FLAGS', '')])
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

# Processes that tests start find it here too. JAX_COMPILATION_CACHE_DIR= switches it off.
_CACHE = pathlib.Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser() / 'dtp_jax/tests'
_CACHE_BYTES = 2**30
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(_CACHE))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES', '0')

import jax  # noqa: E402
import matplotlib  # noqa: E402
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

matplotlib.use('agg')
jax.config.update('jax_numpy_rank_promotion', 'raise')
# Compilation makes the first example slow and CI machines are noisy: no deadlines, same examples.
settings.register_profile('dtp', deadline=None, derandomize=True, max_examples=25)
settings.load_profile('dtp')


def pytest_configure(config):
  """Before the workers start: empties the cache where it has grown too large.

  jax's own limit, jax_compilation_cache_max_size, looks at every file for every program it adds.
  """
  if not hasattr(config, 'workerinput') and _CACHE.is_dir():
    files = list(_CACHE.iterdir())
    if sum(file.stat().st_size for file in files) > _CACHE_BYTES:
      for file in files:
        file.unlink(missing_ok=True)


@pytest.fixture
def x64():
  """Runs one test in float64."""
  jax.config.update('jax_enable_x64', True)
  yield
  jax.config.update('jax_enable_x64', False)
