"""Reading the folder of a slim model."""

import os
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.export
import numpy as np

from dtp_jax.export.cuts import Cuts, kept_from_json
from dtp_jax.export.signature import taken
from dtp_jax.files import check_checksums, read_json, read_safetensors
from dtp_jax.graph import Graph, Slim, shrink
from dtp_jax.graph.trace import abstract
from dtp_jax.trees import flat, flatten, nested

__all__ = ['SavedSlim', 'load_slim', 'masks_of', 'read_files']

FORMAT = 2
VARIABLES, KEPT, MANIFEST = 'variables.safetensors', 'kept.json', 'manifest.json'
PROGRAM = 'stablehlo.bin'


@dataclass(frozen=True, eq=False)
class SavedSlim:
  """A slim model read from its folder. Call it: `saved(images)` runs its StableHLO.

  Attributes:
    folder: where it was read from.
    variables: nested dicts of arrays on the host, whatever tree the model had.
    kept: {group: increasing indices of the channels kept}.
    sizes: {group: channels in the dense network}.
    cuts: per array, its dense shape and the positions kept along the axes that were cut.
    manifest: versions, inputs and outputs, batch, norms, costs, checks, notes.
  """

  folder: pathlib.Path
  variables: dict[str, Any]
  kept: dict[str, np.ndarray]
  sizes: dict[str, int]
  cuts: Cuts
  manifest: dict[str, Any]

  @cached_property
  def program(self) -> jax.export.Exported:
    """The StableHLO: `program.call(variables, *inputs)`, under jit or not.

    Its inputs are arrays in dicts, lists and tuples, None for what is no array, the data of random
    keys in place of keys.

    Raises:
      FileNotFoundError: the folder has none.
      ValueError: it cannot be read, by this version of jax at least.
    """
    path = self.folder / PROGRAM
    if not path.is_file():
      raise FileNotFoundError(f'{self.folder} has no {PROGRAM}: export the model again.')
    try:
      return jax.export.deserialize(bytearray(path.read_bytes()))
    except Exception as error:  # of any type: flatbuffers and XLA have their own
      raise ValueError(
        f'{path} cannot be read as a program of jax {jax.__version__} ({type(error).__name__}: '
        f'{error}). It was cut short or changed, or made by a newer jax: export the model again.'
      ) from error

  def __call__(self, *inputs: Any) -> Any:
    """Outputs of the program for its own variables; no code of the model is needed.

    Args:
      *inputs: as the function takes them.

    Returns:
      What the function returns, in dicts, lists and tuples.

    Raises:
      ValueError: other numbers, flags or words than it was exported with; another batch size, where
        the manifest has but one under 'batch'; other shapes or types. Those it takes are named.
    """
    program, given = self.program, taken(inputs, self.manifest.get('fixed', {}))
    try:
      return program.call(self.variables, *given)
    except (TypeError, ValueError) as error:
      takes = (f'{i["name"]} {i["dtype"]}{i["shape"]}' for i in self.manifest.get('inputs', ()))
      error.add_note(f'The program takes the inputs {", ".join(takes)}, behind its variables.')
      raise

  def restore(self, graph: Graph, variables: Any) -> Slim:
    """The slim network with the code of the model, to fine-tune it or run it in training mode.

    Args:
      graph: the dense network, traced anew.
      variables: its dense variables, for their tree alone: ShapeDtypeStructs will do.

    Returns:
      What `dtp_jax.graph.shrink` returned when this was saved.

    Raises:
      ValueError: the network is another one; the first difference is named. Or the manifest has
        norms that are unknown.
    """
    for name in (*self.sizes, *graph.sizes):
      if self.sizes.get(name) != graph.sizes.get(name):
        raise ValueError(
          f'group {name!r} has {graph.sizes.get(name)} channels in this graph; expected '
          f'{self.sizes.get(name)}, as in {self.folder}. Trace the network that was saved.'
        )
    structs = jax.tree.map(lambda a: abstract(a) if hasattr(a, 'shape') else a, variables)
    masks, norms = masks_of(self.kept, self.sizes), self.manifest.get('norms', 'exact')
    slim = shrink(graph, structs, masks, min_keep=0, norms=norms)
    structs, rebuild = flatten(slim.variables)
    arrays = flat(self.variables)
    for name in (*structs, *arrays):
      there, here = (getattr(d.get(name), 'shape', None) for d in (arrays, structs))
      if there != here:
        raise ValueError(
          f'{name!r} has the shape {there} in {self.folder}; expected {here}, as in this graph. '
          'Trace the network that was saved.'
        )
    return Slim(rebuild(jax.device_put(arrays)), slim.kept, slim.apply)


def load_slim(folder: str | os.PathLike[str]) -> SavedSlim:
  """Reads what `save_slim` wrote.

  The files are data: nothing in them is unpickled or run, and none is read but the four of this
  folder, whatever the manifest says. The program is read when it is first asked for.

  Raises:
    FileNotFoundError: no slim model in the folder.
    ValueError: of another format, a damaged or missing file, or its files do not fit together.
  """
  folder = pathlib.Path(folder)
  if not (folder / MANIFEST).exists():
    raise FileNotFoundError(
      f'{folder} is not the folder of a slim model: it has no {MANIFEST}. Write one with '
      'dtp_jax.export.save_slim or python -m experiments.export.'
    )
  try:
    manifest = read_json(folder / MANIFEST)
  except ValueError as error:
    raise ValueError(f'{folder / MANIFEST} is damaged: {error} Export again.') from error
  if not isinstance(manifest, dict) or 'format' not in manifest:
    raise ValueError(
      f'{folder / MANIFEST} is not the manifest of a slim model: it names no format. Export again.'
    )
  if manifest['format'] != FORMAT:
    raise ValueError(
      f'{folder} has format {manifest["format"]!r}; expected {FORMAT}. Load it with the '
      f'versions that wrote it: {manifest.get("versions")}.'
    )
  check_checksums(folder, (MANIFEST, VARIABLES, KEPT, PROGRAM))
  return read_files(folder, manifest)


def masks_of(kept: Mapping[str, np.ndarray], sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
  """{group: bool mask of shape (n,)} of the channels kept."""
  return {name: np.isin(np.arange(size), kept[name]) for name, size in sizes.items()}


def read_files(folder: pathlib.Path, manifest: dict[str, Any]) -> SavedSlim:
  """Reads the files beside the manifest, which are all there.

  Raises:
    ValueError: they do not fit together.
  """
  try:
    kept, sizes, cuts = kept_from_json(read_json(folder / KEPT))
  except (KeyError, TypeError, AttributeError) as error:
    raise ValueError(
      f'{folder / KEPT} does not say what was kept ({type(error).__name__}: {error}): export again.'
    ) from error
  arrays = read_safetensors(folder / VARIABLES)
  for name in (*cuts, *arrays):
    there = arrays[name].shape if name in arrays else None
    expected = cuts[name].slim_shape if name in cuts else None
    if there != expected:
      raise ValueError(
        f'{name!r} has the shape {there} in {VARIABLES} of {folder}; expected {expected}, as '
        f'{KEPT} has it. The folder was changed after it was written: export again.'
      )
  return SavedSlim(folder, nested(arrays), kept, sizes, cuts, manifest)
