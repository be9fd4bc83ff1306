"""Writing the folder of a slim model, checked against the masked network."""

import contextlib
import json
import os
import pathlib
import platform
import shutil
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dtp_jax
from dtp_jax.export import load
from dtp_jax.export import onnx as onnx_file
from dtp_jax.export.checks import ExportError, Network, agreement, default_tolerance
from dtp_jax.export.cuts import kept_as_json
from dtp_jax.export.settle import Settled, settle
from dtp_jax.export.stablehlo import PLATFORMS
from dtp_jax.files import check_folder, write_checksums, write_json, write_safetensors
from dtp_jax.graph import Graph, Norms, Slim, shrink
from dtp_jax.train.lock import locked
from dtp_jax.trees import flatten

__all__ = ['save_slim']

ONNX = 'model.onnx'


def save_slim(
  folder: str | os.PathLike[str],
  graph: Graph,
  variables: Any,
  hard: Mapping[str, Any],
  inputs: tuple[Any, ...],
  *,
  kwargs: Mapping[str, Any] | None = None,
  about: Mapping[str, Any] | None = None,
  norms: Norms = 'exact',
  onnx: bool = False,
  tolerance: float | None = None,
  overwrite: bool = False,
) -> dict[str, Any]:
  """Shrinks a network and writes it as data, checked against the masked network.

  The folder holds variables.safetensors, kept.json, stablehlo.bin, manifest.json, perhaps
  model.onnx, and SHA256SUMS of them. It appears whole, after what was written has been read back
  and run, on the CPU, at two batch sizes; where anything fails, nothing of it is left. Killed in
  the moment between the old model and the new, it leaves the old one beside its place, in
  .NAME.old, and the next call for that folder puts it back first.

  Programs take any number of examples where jax can export the function so, or can export it for
  one example and run that under vmap; else the number in `inputs`. The manifest has the batch
  under 'batch', 'any' or that number, and under 'notes' why it is no simpler.

  Args:
    folder: new folder.
    graph: from `dtp_jax.graph.trace`.
    variables: dense variables, arrays. Those of a slim network that was fine-tuned are first made
      dense again by `expand`.
    hard: {group: (n,) mask of 0 and 1}, as for `dtp_jax.graph.shrink`.
    inputs: tuple of example inputs, as the function takes them after the variables. The batch is
      found as `dtp_jax.trace` finds it; the leading axis of every other array is one as well where
      it is as long. Numbers, flags and words are fixed in the programs, and so is all of `kwargs`.
    kwargs: keyword arguments of the function, as in {'train': False}; fixed in the programs.
    about: what to note in the manifest, as JSON: the budget that was requested, the data.
    norms: 'exact' or 'refit', as for `dtp_jax.graph.shrink`. A refitted network is another one than
      the masked: programs are then held to the slim network itself, and the manifest notes under
      'from_masked' by how much it differs, relative to the largest output.
    onnx: also write model.onnx, and check it in onnxruntime. Needs the extra `onnx`.
    tolerance: largest difference from the masked network that passes, relative to the largest
      output. Default: 1e-5, or four roundings of the outputs' type for half precision.
    overwrite: replace a slim model that is in the folder.

  Returns:
    The manifest: versions, inputs, outputs, batch, norms, costs of the dense and the slim network,
    checks, notes.

  Raises:
    ExportError: a difference over the tolerance, with the figures; the function does not run on
      `inputs`; or jax or jax2onnx refuse it at any batch size, with the reason.
    FileExistsError: there is something in the folder.
    OSError: nothing can be written there.
    LockedError: another process writes to it.
    ImportError: ONNX without what it needs, with the commands to install it.
    TypeError, ValueError: inputs without values, variables or masks unlike the graph's, kwargs or
      about that are no mapping or no JSON, a tolerance that is none.
  """
  if not isinstance(inputs, tuple | list):
    raise TypeError(
      f'inputs is a {type(inputs).__name__}; expected a tuple of example inputs, as in (images,).'
    )
  _check_options(kwargs, about, tolerance)
  folder, kwargs = pathlib.Path(folder), dict(kwargs or {})
  _check_free(folder, overwrite)
  if onnx:
    onnx_file.check_installed()
  slim = shrink(graph, variables, hard, norms=norms)
  masked = Network.masked(graph, variables, load.masks_of(slim.kept, graph.sizes), kwargs)
  held_to = masked if norms == 'exact' else Network.slim(slim, kwargs)
  settled = settle(slim, held_to, inputs, kwargs, tolerance)
  signature, references = settled.signature, settled.references
  from_masked = 0.0
  if norms == 'refit':
    from_masked = agreement(references[0].outputs, masked.run(signature).outputs).relative
  tolerance = default_tolerance(references[0].outputs) if tolerance is None else tolerance
  notes = [settled.note] if settled.note else []
  with _whole(folder, overwrite) as temporary:
    written = _write_data(temporary, graph, slim, settled)
    checks = {'stablehlo': [r.check('StableHLO', written, tolerance) for r in references]}
    if onnx:
      checks['onnx'], note = _write_onnx(temporary / ONNX, slim, settled, kwargs, tolerance)
      notes += [note] if note else []
    manifest = {
      **written.manifest,
      'format': load.FORMAT,
      'versions': _versions(onnx),
      'platforms': list(PLATFORMS),
      'inputs': _described(signature.names, jax.tree.leaves(signature.structs)),
      'outputs': _described(None, written.program.out_avals),
      'batch': 'any' if signature.batched else signature.batch,
      'kwargs': {name: repr(value) for name, value in kwargs.items()},
      'norms': norms,
      'from_masked': from_masked,
      'costs': _costs(graph, slim),
      'checks': {'tolerance': tolerance, **checks},
      'notes': notes,
      'about': dict(about or {}),
    }
    write_json(temporary / load.MANIFEST, manifest)
    write_checksums(temporary)
  return manifest


def _write_data(folder: pathlib.Path, graph: Graph, slim: Slim, settled: Settled) -> load.SavedSlim:
  """Writes variables, kept channels and program, and reads them back."""
  write_safetensors(folder / load.VARIABLES, flatten(slim.variables)[0])
  write_json(folder / load.KEPT, kept_as_json(graph, slim.kept))
  (folder / load.PROGRAM).write_bytes(settled.program)
  return load.read_files(folder, {'fixed': settled.signature.fixed})


def _write_onnx(
  path: pathlib.Path,
  slim: Slim,
  settled: Settled,
  kwargs: Mapping[str, Any],
  tolerance: float,
) -> tuple[list[dict[str, Any]], str]:
  """Writes the ONNX model and checks it; (checks, a note where it takes one batch size alone)."""
  attempts = [(settled.signature, settled.references)]
  if settled.signature.batched:
    attempts.append((settled.signature.as_given(), settled.references[:1]))
  note = ''
  for signature, references in attempts:
    try:
      onnx_file.write_onnx(path, slim, signature, kwargs)
      run = onnx_file.runner(path, signature)
      return [r.check('ONNX model', run, tolerance) for r in references], note
    except ExportError as error:
      if signature is attempts[-1][0]:
        raise
      note = f'The ONNX model takes batches of {signature.batch} alone. With any other, {error}'
  raise AssertionError('the last attempt returns or raises')


def _check_options(kwargs: Any, about: Any, tolerance: Any) -> None:
  for name, given in {'kwargs': kwargs, 'about': about}.items():
    if given is not None and not isinstance(given, Mapping):
      raise TypeError(f'{name} is a {type(given).__name__}; expected a mapping, {{name: value}}.')
  try:
    json.dumps(dict(about or {}))
  except (TypeError, ValueError) as error:
    raise TypeError(f'about cannot be written to the manifest as JSON: {error}.') from error
  if tolerance is not None and not (
    isinstance(tolerance, int | float | np.floating) and tolerance >= 0
  ):
    raise ValueError(f'tolerance is {tolerance!r}; expected a number >= 0, or None.')


def _check_free(folder: pathlib.Path, overwrite: bool) -> None:
  """Nothing is replaced unasked, and nothing ever that is no slim model."""
  check_folder(folder.absolute().parent, 'the folder above the slim model')
  if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
    return
  if not (folder / load.MANIFEST).exists():
    raise FileExistsError(f'{folder} exists and is no slim model; expected a new folder.')
  if not overwrite:
    raise FileExistsError(
      f'{folder} holds a slim model; name a new folder, or '
      'overwrite it (overwrite=True, --overwrite).'
    )


@contextlib.contextmanager
def _whole(folder: pathlib.Path, overwrite: bool) -> Iterator[pathlib.Path]:
  """A folder to write in, which takes its place when all went well and goes away if not.

  The lock is held for as long: what lies beside the place was left by an export that was killed.
  """
  folder = folder.absolute()
  with locked(folder.parent, f'.{folder.name}.lock'):
    _tidy(folder)
    _check_free(folder, overwrite)
    temporary, replaced = _beside(folder)
    temporary.mkdir()
    try:
      yield temporary
      if folder.exists():
        folder.replace(replaced)
      temporary.replace(folder)
    finally:
      _tidy(folder)


def _tidy(folder: pathlib.Path) -> None:
  """Removes what lies beside a place; a model that was about to be replaced is put back first."""
  temporary, replaced = _beside(folder)
  shutil.rmtree(temporary, ignore_errors=True)
  if replaced.exists() and not folder.exists():
    replaced.replace(folder)
  shutil.rmtree(replaced, ignore_errors=True)


def _beside(folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
  """Where a model is written, and where the one that it replaces waits for its place."""
  return folder.with_name(f'.{folder.name}.tmp'), folder.with_name(f'.{folder.name}.old')


def _versions(onnx: bool) -> dict[str, str]:
  packages = ('jax', 'jaxlib', 'numpy', 'safetensors', *(('jax2onnx', 'onnx') if onnx else ()))
  versions = {name: metadata.version(name) for name in packages}
  return {'dtp-jax': dtp_jax.__version__, 'python': platform.python_version(), **versions}


def _described(names: list[str] | None, structs: Any) -> list[dict[str, Any]]:
  names = names or [f'output_{i}' for i in range(len(structs))]
  return [
    {
      'name': name,
      'shape': [n if isinstance(n, int) else str(n) for n in struct.shape],
      'dtype': jnp.dtype(struct.dtype).name,
    }
    for name, struct in zip(names, structs, strict=True)
  ]


def _costs(graph: Graph, slim: Slim) -> dict[str, dict[str, int]]:
  counts = {name: len(channels) for name, channels in slim.kept.items()}
  return {
    name: {'dense': cost.total, 'slim': cost.at(counts)}
    for name, cost in (('params', graph.params), ('macs', graph.macs))
  }
