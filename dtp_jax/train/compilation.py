"""What XLA compiled, kept on the disk for the next run of the same network."""

import os
import pathlib

import jax

from dtp_jax.files import check_folder

__all__ = ['keep_compiled']


def keep_compiled(folder: str | pathlib.Path | None = None) -> None:
  """Turns JAX's persistent compilation cache on for this process.

  Args:
    folder: of the cache. By default that of JAX_COMPILATION_CACHE_DIR, or else dtp_jax/compiled in
      the user's cache folder ($XDG_CACHE_HOME or ~/.cache).

  Raises:
    OSError: the folder given cannot be written to.
  """
  if folder is None:
    if jax.config.values['jax_compilation_cache_dir']:  # JAX reads its environment variable itself
      return
    cache = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
    folder = pathlib.Path(cache) / 'dtp_jax' / 'compiled'
  else:
    check_folder(folder, 'compilation_cache')
  jax.config.update('jax_compilation_cache_dir', str(folder))
  if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)
