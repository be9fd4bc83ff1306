"""From a finished run of channel pruning to its slim model: saved, checked, timed."""

import functools
import math
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from dtp_jax import export
from dtp_jax.budget.latency import interleaved
from dtp_jax.data import Dataset, load
from dtp_jax.files import read_json, read_npz, write_json
from dtp_jax.graph import Graph, Norms, shrink, trace
from dtp_jax.train import folder as run_folder
from dtp_jax.train.recipe import Config, build_model
from dtp_jax.trees import flat, nested

__all__ = ['FinishedRun', 'finish', 'load_network', 'load_run', 'save']

_CHECKED = 16  # held-out examples that the exported programs are compared on


class FinishedRun(NamedTuple):
  """The network of a finished run that pruned channels.

  Attributes:
    config: of the run.
    data: its data set.
    graph: the traced network.
    variables: {'params', 'batch_stats'} of the dense shapes, zeros where it is pruned.
    hard: masks {group: boolean (n,)}.
  """

  config: Config
  data: Dataset
  graph: Graph
  variables: Any
  hard: dict[str, np.ndarray]


def load_run(workdir: str | pathlib.Path, data: Dataset | None = None) -> FinishedRun:
  """The network of a finished run folder.

  Args:
    workdir: run folder of a run that pruned channels.
    data: its data set, where it is loaded already.

  Raises:
    FileNotFoundError: not a run folder, or a run that has not finished; its data set is not
      prepared.
    ValueError: a run that pruned something else than channels, or arrays that are not those of its
      network.
  """
  workdir = pathlib.Path(workdir)
  config = run_folder.read_config(workdir)
  if not (workdir / 'summary.json').exists():
    raise FileNotFoundError(f'{workdir} has no summary.json: its run has not finished.')
  if config.prune.granularity != 'channels':
    raise ValueError(
      f'{workdir} pruned {config.prune.granularity}: there are zeros in its pruned.npz and nothing '
      'to shrink. Slim models come from runs with --config.prune.granularity=channels.'
    )
  data = load(config.data) if data is None else data
  model, variables = load_network(workdir, config, data)
  graph = trace(model.apply, variables, data.example, train=False)
  masks = {name: jax.ShapeDtypeStruct((n,), bool) for name, n in graph.sizes.items()}
  hard = _arrays(workdir / 'masks.npz', masks)  # of groups that were excluded there is none
  return FinishedRun(config, data, graph, variables, hard)


def load_network(workdir: pathlib.Path, config: Config, data: Dataset) -> tuple[nn.Module, Any]:
  """The network of a finished run, whatever it pruned: (module, variables of the dense shapes).

  Args:
    workdir: run folder.
    config: of the run.
    data: its data set.

  Raises:
    FileNotFoundError, ValueError: see `load_run`.
  """
  model = build_model(config, data.num_classes)
  init = functools.partial(model.init, train=False)
  structs = flat(jax.eval_shape(init, jax.random.key(0), data.example))
  pruned = _arrays(workdir / 'pruned.npz', structs, required=structs)
  return model, jax.device_put(nested(pruned))


def _arrays(
  path: pathlib.Path, expected: Mapping[str, Any], *, required: Iterable[str] = ()
) -> dict[str, np.ndarray]:
  """The arrays of a file, which must have these names and shapes."""
  if not path.is_file():
    raise FileNotFoundError(
      f'{path} is not there: its run has not finished, or was not kept whole.'
    )
  found = read_npz(path, sum(math.prod(s.shape) * s.dtype.itemsize for s in expected.values()))
  for name in (*required, *found):
    shapes = [getattr(arrays.get(name), 'shape', None) for arrays in (found, expected)]
    if shapes[0] != shapes[1]:
      raise ValueError(
        f'{path} has {name!r} of shape {shapes[0]}; expected {shapes[1]}, as in the network of its '
        'config.json. It is of another run: export the run it was written by.'
      )
  return found


def save(
  run: FinishedRun,
  folder: str | pathlib.Path,
  *,
  norms: Norms = 'exact',
  onnx: bool = False,
  overwrite: bool = False,
) -> dict[str, Any]:
  """Exports the slim model of a run, with its config and how its input is made.

  Args:
    run: from `load_run`.
    folder: of the slim model.
    norms: 'exact' or 'refit', see `dtp_jax.export.save_slim`.
    onnx: whether to write model.onnx as well.
    overwrite: whether to replace a slim model in `folder`.

  Returns:
    The manifest.

  Raises:
    ExportError, FileExistsError, ImportError, LockedError: see `dtp_jax.export.save_slim`.
  """
  return export.save_slim(
    folder,
    run.graph,
    run.variables,
    run.hard,
    (run.data.inputs(_CHECKED),),
    kwargs={'train': False},
    about={'config': run.config.to_dict(), 'data': {'name': run.data.name, **run.data.about()}},
    norms=norms,
    onnx=onnx,
    overwrite=overwrite,
  )


def finish(workdir: str | pathlib.Path, *, batch_size: int = 64) -> dict[str, Any]:
  """Writes the slim model of a finished run to `workdir`/slim and times it against the dense one.

  Args:
    workdir: run folder of a run that pruned channels.
    batch_size: examples of a timed call.

  Returns:
    What is written to `workdir`/slim.json: costs of the dense and the slim network, kept channels,
    milliseconds of a call (median and quartiles of interleaved repeats), checks and notes of the
    export.

  Raises:
    FileNotFoundError, ValueError: see `load_run`.
    dtp_jax.export.ExportError: the exported model differs from the masked one.
  """
  workdir = pathlib.Path(workdir)
  if (workdir / 'slim.json').exists():
    return read_json(workdir / 'slim.json')
  run = load_run(workdir)
  manifest = save(run, workdir / 'slim', overwrite=True)
  inputs, apply = run.data.inputs(batch_size), build_model(run.config, run.data.num_classes).apply
  slim = shrink(run.graph, run.variables, run.hard)
  networks = {'dense': (apply, run.variables), 'slim': (slim.apply, slim.variables)}
  compiled = {
    name: functools.partial(jax.jit(functools.partial(fn, train=False)), variables, inputs)
    for name, (fn, variables) in networks.items()
  }
  timings = interleaved(compiled)
  found = {
    'batch_size': batch_size,
    'costs': manifest['costs'],
    'checks': manifest['checks'],
    'notes': manifest['notes'],
    'milliseconds': {name: timing._asdict() for name, timing in timings.items()},
  }
  write_json(workdir / 'slim.json', found)
  return found
