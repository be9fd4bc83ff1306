"""From a finished run of channel pruning to its slim model: saved, checked, timed."""

import contextlib
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dtp_jax import export, latency
from dtp_jax.data import pipeline, sources
from dtp_jax.graph import Graph, shrink
from dtp_jax.train import folder as run_folder
from dtp_jax.train.checkpoint import Checkpoints
from dtp_jax.train.recipe import build, build_model

__all__ = ['finish', 'load_run']


def load_run(workdir: str | pathlib.Path) -> tuple[Graph, Any, dict[str, np.ndarray]]:
  """The network of a finished run folder.

  Args:
    workdir: run folder of a run that pruned channels.

  Returns:
    Its graph, its dense variables {'params', 'batch_stats'} and its hard masks {group: (n,)}.

  Raises:
    FileNotFoundError: not a run folder, or a run that has not finished.
    ValueError: a run that pruned something else than channels.
  """
  workdir = pathlib.Path(workdir)
  config = run_folder.read_config(workdir)
  if not (workdir / 'summary.json').exists():
    raise FileNotFoundError(f'{workdir} has no summary.json: its run has not finished.')
  recipe, create = build(config, sources.from_config(config.data))
  graph = recipe.prunable.graph
  if graph is None:
    raise ValueError(
      f'{workdir} pruned {config.prune.granularity}: there are zeros in its pruned.npz and nothing '
      'to shrink. Slim models come from runs with --config.prune.granularity=channels.'
    )
  with contextlib.closing(Checkpoints(workdir / 'checkpoints')) as checkpoints:
    state, _ = checkpoints.restore(jax.eval_shape(create))
  variables = {'params': state.params, 'batch_stats': state.batch_stats}
  if not state.batch_stats:
    del variables['batch_stats']
  with np.load(workdir / 'masks.npz') as masks:
    return graph, variables, dict(masks)


def finish(workdir: str | pathlib.Path, *, batch_size: int = 64) -> dict[str, Any]:
  """Writes the slim model of a finished run to `workdir`/slim and times it against the dense one.

  Args:
    workdir: run folder of a run that pruned channels.
    batch_size: images of a timed call.

  Returns:
    What is written to `workdir`/slim.json: costs of the dense and the slim network, kept channels,
    milliseconds of a call (median and quartiles of interleaved repeats), checks of the export.

  Raises:
    FileNotFoundError, ValueError: see `load_run`.
    dtp_jax.export.ExportError: the exported model differs from the masked one.
  """
  workdir = pathlib.Path(workdir)
  if (workdir / 'slim.json').exists():
    return run_folder.read_json(workdir / 'slim.json')
  graph, variables, hard = load_run(workdir)
  config = run_folder.read_config(workdir)
  data = sources.from_config(config.data)
  images = pipeline.normalise(jnp.asarray(data.sample(batch_size)), data.mean, data.std)
  summary = run_folder.read_json(workdir / 'summary.json')
  manifest = export.save_slim(
    workdir / 'slim', graph, variables, hard, (images[:2],), kwargs={'train': False},
    about={'run': summary}, overwrite=True,
  )  # fmt: skip
  slim, apply = shrink(graph, variables, hard), build_model(config, data.num_classes).apply
  dense_fn = jax.jit(lambda v, x: apply(v, x, train=False))
  slim_fn = jax.jit(lambda v, x: slim.apply(v, x, train=False))
  timings = latency.interleaved(
    {'dense': lambda: dense_fn(variables, images), 'slim': lambda: slim_fn(slim.variables, images)}
  )
  found = {
    'batch_size': batch_size,
    'costs': manifest['costs'],
    'checks': manifest['checks'],
    'milliseconds': {name: timing._asdict() for name, timing in timings.items()},
  }
  run_folder.write_json(workdir / 'slim.json', found)
  return found
