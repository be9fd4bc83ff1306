"""State dicts of PyTorch: read from files, seen by NumPy, compared with what a model expects."""

import os
import pathlib
import pickle
import zipfile
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from dtp_jax.files import read_safetensors

__all__ = ['arrays_of', 'check', 'read']

_SHOWN = 8  # names of a kind in an error
_SAFE_TORCH = (2, 6)  # from which weights_only=True keeps its promise


def arrays_of(
  source: Mapping[str, Any] | str | os.PathLike[str], ignored: str
) -> dict[str, np.ndarray]:
  """The arrays of a state dict by name, those whose name ends in `ignored` left out.

  Args:
    source: {name: torch tensor, NumPy or JAX array}, or a path, see `read`.
    ignored: end of names.

  Raises:
    ValueError, ImportError: see `read`.
  """
  state = source if isinstance(source, Mapping) else read(pathlib.Path(source))
  return {str(name): _array(a) for name, a in state.items() if not str(name).endswith(ignored)}


def _array(value: Any) -> np.ndarray:
  """NumPy's view of an entry; of bfloat16, which torch cannot show to NumPy, a copy."""
  if hasattr(value, 'detach'):
    value = value.detach().cpu()
    value = (value.float() if str(value.dtype) == 'torch.bfloat16' else value).numpy()
  return np.asarray(value)


def check(expected: Mapping[str, tuple[int, ...]], arrays: Mapping[str, np.ndarray]) -> None:
  """Raises one ValueError for all that keeps the arrays from having the expected shapes."""
  shared = [name for name in expected if name in arrays]
  problems = {
    'missing': [name for name in expected if name not in arrays],
    'left over': [name for name in arrays if name not in expected],
    'of another shape': [
      f'{name} {arrays[name].shape} where {expected[name]} was expected'
      for name in shared
      if arrays[name].shape != expected[name]
    ],
    'not of floats': [
      f'{name} {arrays[name].dtype}'
      for name in shared
      if not jnp.issubdtype(arrays[name].dtype, jnp.floating)
    ],
  }
  lines = [
    f'  {len(names)} {kind}: {", ".join(names[:_SHOWN])}{", ..." if len(names) > _SHOWN else ""}'
    for kind, names in problems.items()
    if names
  ]
  if lines:
    raise ValueError(
      'the state dict is not of this model; expected its kind, depth, widths and number of '
      'classes, and its arrays at the top, not inside a checkpoint:\n' + '\n'.join(lines)
    )


def read(path: pathlib.Path) -> Mapping[str, Any]:
  """The state dict in a file, or in all .safetensors files of a folder.

  Raises:
    ValueError: a file that is not what its suffix says, or another suffix; a folder without one.
    FileNotFoundError: there is no such file.
    ImportError: a .pth or .pt file, and torch is not installed or older than 2.6.
  """
  if path.is_dir():
    shards = sorted(path.glob('*.safetensors'))
    if not shards:
      raise ValueError(f'{path} holds no .safetensors file; expected those of a checkpoint.')
    return {name: array for shard in shards for name, array in read(shard).items()}
  if path.suffix not in ('.safetensors', '.pth', '.pt'):
    raise ValueError(f'{path} ends in {path.suffix!r}; expected .safetensors, .pth or .pt.')
  if not path.is_file():
    raise FileNotFoundError(f'{path} is no file; expected the path of a state dict.')
  if path.suffix == '.safetensors':
    return read_safetensors(path)
  _check_size(path)
  try:
    import torch  # pyright: ignore[reportMissingImports]
  except ImportError as error:
    raise ImportError(
      f'reading {path} needs torch, which is not installed: pip install torch. Or hand over a '
      '.safetensors file or a mapping of NumPy arrays, which need no torch.'
    ) from error
  if tuple(map(int, torch.__version__.split('.')[:2])) < _SAFE_TORCH:
    raise ImportError(
      f'reading {path} needs torch 2.6 or later, this is {torch.__version__}: earlier ones can be '
      'made to run code in a file of tensors (CVE-2025-32434). pip install -U torch.'
    )
  try:
    state = torch.load(path, map_location='cpu', weights_only=True)
  except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
    raise ValueError(
      f'{path} cannot be read as tensors alone; expected what torch.save(model.state_dict(), path) '
      f'writes: {error}'
    ) from error
  if not isinstance(state, Mapping):
    raise ValueError(f'{path} holds a {type(state).__name__}; expected a state dict.')
  return state


def _check_size(path: pathlib.Path) -> None:
  """Refuses a zip archive that unpacks to more than it is: torch stores its parts as they are."""
  if zipfile.is_zipfile(path):
    with zipfile.ZipFile(path) as archive:
      unpacked, stored = sum(i.file_size for i in archive.infolist()), path.stat().st_size
    if unpacked > stored:
      raise ValueError(
        f'{path} has {stored:,} bytes and unpacks to {unpacked:,}; torch.save does not compress: '
        'expected a file it wrote.'
      )
