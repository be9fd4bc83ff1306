"""A run folder: what was asked for and where it ran, written once and never overwritten."""

import json
import os
import pathlib
import platform
import sys
from importlib import metadata
from typing import Any

import jax
import ml_collections

from dtp_jax.files import read_json, write_json
from dtp_jax.train import hosts
from dtp_jax.trees import flat

__all__ = ['check_config', 'environment', 'open_run', 'read_config']

_PACKAGES = ('dtp-jax', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


def open_run(config: ml_collections.ConfigDict, workdir: str | pathlib.Path) -> pathlib.Path:
  """Creates a run folder, or reopens one that was started with the same config.

  Args:
    config: written to config.json at the first call.
    workdir: the folder.

  Returns:
    The folder as an absolute path; config.json and environment.json lie in it.

  Raises:
    ValueError: the folder belongs to another config; the differing fields are listed.
  """
  folder = pathlib.Path(workdir).absolute()
  folder.mkdir(parents=True, exist_ok=True)
  if (folder / 'config.json').exists():
    check_config(config, folder)
  elif hosts.is_first():
    write_json(folder / 'config.json', json.loads(config.to_json_best_effort()))
  if hosts.is_first():
    write_json(folder / 'environment.json', environment())
  return folder


def check_config(config: ml_collections.ConfigDict, folder: pathlib.Path) -> None:
  """Compares a config with that of a run folder, but for `mesh`: a run may go on elsewhere.

  Raises:
    ValueError: they differ; the fields are listed.
  """
  fields = json.loads(config.to_json_best_effort()), read_json(folder / 'config.json')
  asked, there = (flat({**f, 'mesh': None}, separator='.') for f in fields)
  differing = sorted(k for k in asked | there if asked.get(k) != there.get(k))
  if differing:
    lines = [f'  {k}: {there.get(k)!r} there, {asked.get(k)!r} asked' for k in differing]
    raise ValueError(
      f'workdir {folder} belongs to a run with another config:\n' + '\n'.join(lines) + '\n'
      'Give another --workdir, or the old values to resume.'
    )


def environment() -> dict[str, Any]:
  """Versions, devices and command of this process."""
  device = jax.devices()[0]
  return {
    'command': _command(),
    'python': platform.python_version(),
    'platform': platform.platform(),
    'cpus': os.cpu_count(),
    'device': device.device_kind,
    'backend': device.platform,
    'devices': jax.device_count(),
    'processes': jax.process_count(),
    'versions': {name: metadata.version(name) for name in _PACKAGES},
  }


def read_config(workdir: str | pathlib.Path) -> Any:
  """The config a run folder was started with.

  Raises:
    FileNotFoundError: not a run folder.
    ValueError: its config is none.
  """
  path = pathlib.Path(workdir) / 'config.json'
  if not path.exists():
    raise FileNotFoundError(
      f'{workdir} is not a run folder: it has no config.json. Give the --workdir of a training run.'
    )
  fields = read_json(path)
  sections = ('data', 'model', 'prune')
  if not isinstance(fields, dict) or not all(isinstance(fields.get(s), dict) for s in sections):
    raise ValueError(
      f'{path} is no config: it lacks one of the sections {", ".join(sections)}. Give the '
      '--workdir of a training run.'
    )
  return ml_collections.ConfigDict(fields)


def _command():
  """The command line, with the module's name instead of its place on this machine."""
  spec = getattr(sys.modules['__main__'], '__spec__', None)
  program = f'python -m {spec.name}' if spec else f'python {pathlib.Path(sys.argv[0]).name}'
  return ' '.join([program, *sys.argv[1:]])
