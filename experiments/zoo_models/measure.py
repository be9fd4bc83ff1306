"""One network of the zoo, measured stage by stage; what fails leaves what was measured before."""

import pathlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any

import jax
import numpy as np

import dtp_jax as dtp
from dtp_jax.export import save_slim
from dtp_jax.export.checks import agreement
from dtp_jax.files import write_npz
from dtp_jax.graph import Graph
from dtp_jax.graph.floor import floor_in_words
from experiments.zoo_models import MODELS, drawn

KEEPS = (0.5, 0.25)
UNITS = ('macs', 'params')
_PACKAGES = {'haiku': 'dm-haiku', 'nnx': 'flax'}


def measure(name: str, scratch: pathlib.Path) -> Iterator[dict[str, Any]]:
  """Measures a network; writes its export to `scratch`, inputs and masked outputs beside it.

  Yields:
    Parts of its row, as they are known; `stage` says what is being done.
  """
  yield {'stage': 'build', 'library': _library(name)}
  model = MODELS[name]()
  variables = drawn(model.variables)
  yield {'stage': 'trace'}
  with _spent() as spent:
    graph = dtp.trace(model.fn, variables, *model.inputs)
  yield {f'trace_{key}': value for key, value in spent.items()}
  yield _prunable(graph)
  yield {'stage': 'budgets'}
  slims = {}
  for unit in UNITS:
    for keep in KEEPS:
      pruner = dtp.magnitude(graph, dtp.Budget(keep, of=unit))
      extra = pruner.init(variables)
      with _spent() as spent:
        slim = pruner.shrink(variables, extra)
        jax.eval_shape(slim.apply, slim.variables, *model.inputs)  # makes its program
      again = dtp.trace(slim.apply, slim.variables, *model.inputs)
      cost = getattr(again, unit).total / getattr(graph, unit).total
      yield {f'{unit}_{100 * keep:g}': f'{cost:.4f}'}
      slims[unit, keep] = slim, pruner.harden(extra)
  yield {f'shrink_{key}': value for key, value in spent.items()}
  yield {'stage': 'difference'}
  masked = jax.jit(lambda v, hard, *inputs: graph.fn(graph.apply_masks(v, hard), *inputs))
  worst, outputs = 0.0, {}
  for keep in KEEPS:
    slim, hard = slims['macs', keep]
    outputs[keep] = _arrays(masked(variables, hard, *model.inputs))
    found = _arrays(slim.apply(slim.variables, *model.inputs))
    worst = max(worst, agreement(found, outputs[keep]).relative)
  yield {'difference': f'{worst:.1e}'}
  yield {'stage': 'export'}
  _, hard = slims['macs', KEEPS[0]]
  manifest = save_slim(scratch / 'slim', graph, variables, hard, model.inputs)
  batch = any(isinstance(n, str) for given in manifest['inputs'] for n in given['shape'])
  yield {'export_batch': 'any' if batch else 'fixed'}
  given = {f'input_{i}': array for i, array in enumerate(model.inputs)}
  expected = {f'output_{i}': array for i, array in enumerate(outputs[KEEPS[0]])}
  write_npz(scratch / 'arrays.npz', {**given, **expected})
  yield {'stage': ''}


def _library(name: str) -> str:
  """'transformers 4.46.3'; without a version if it is not installed."""
  package = name.split('/')[0]
  if package == 'dtp_jax':
    return f'dtp_jax {dtp.__version__}'
  package = _PACKAGES.get(package, package)
  try:
    return f'{package} {metadata.version(package)}'
  except metadata.PackageNotFoundError:
    return package


def _prunable(graph: Graph) -> dict[str, Any]:
  """Costs, the shares of them that groups have a hand in, and what the rest is frozen by."""
  row: dict[str, Any] = {'groups': len(graph.groups)}
  for unit in UNITS:
    cost = getattr(graph, unit)
    left = cost.at(dict.fromkeys(cost.sizes, 0))
    row[unit] = cost.total
    row[f'prunable_{unit}'] = f'{1 - left / max(cost.total, 1):.4f}'
    row[f'frozen_{unit}'] = floor_in_words(graph, unit, graph.groups)
  return row


def _arrays(outputs: Any) -> list[np.ndarray]:
  """The leaves of what a network gave, on the host."""
  return [np.asarray(leaf) for leaf in jax.tree.leaves(outputs)]


@contextmanager
def _spent() -> Iterator[dict[str, str]]:
  """Seconds of a block, and by how much it raised the memory of the process, in MiB."""
  pathlib.Path('/proc/self/clear_refs').write_text('5')  # Linux: the peak starts anew
  before, start = _memory('VmRSS'), time.perf_counter()
  spent: dict[str, str] = {}
  yield spent
  spent['seconds'] = f'{time.perf_counter() - start:.2f}'
  spent['mib'] = f'{max(0, _memory("VmHWM") - before) / 1024:.0f}'


def _memory(field: str) -> int:
  """A field of the status of this process, in KiB."""
  lines = pathlib.Path('/proc/self/status').read_text().splitlines()
  return next(int(line.split()[1]) for line in lines if line.startswith(field))
