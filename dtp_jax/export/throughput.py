"""How many predictions a second the networks of finished runs make, timed side by side."""

import functools
import math
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import jax

from dtp_jax.budget.latency import interleaved
from dtp_jax.data import Dataset, load
from dtp_jax.export.run import load_network, load_run
from dtp_jax.files import read_json, write_json
from dtp_jax.graph import shrink
from dtp_jax.train import folder as run_folder
from dtp_jax.train.recipe import Config

__all__ = ['FILE', 'measure']

FILE = 'throughput.json'  # in the folder of a run


def measure(
  folders: Iterable[str | pathlib.Path], *, batch_size: int = 64, repeats: int = 10
) -> dict[pathlib.Path, float]:
  """Times the slim networks of runs that pruned channels, and dense networks beside them.

  Networks on one data set are timed in turn, call by call, so that what else the machine does
  concerns all of them alike. Each run gets a file throughput.json, which its row in a report reads.

  Args:
    folders: each holds a run or, at any depth, several; runs that have not finished, and those that
      pruned something else than channels, are passed over.
    batch_size: held-out examples of a call.
    repeats: timed calls of each network.

  Returns:
    {run folder: predictions a second}, by the median call: images that are classified, tokens of a
    text whose next one is predicted.

  Raises:
    FileNotFoundError: no run below the folders pruned channels; or the data of one is not prepared.
    ValueError: a run that cannot be read, or was made on another device than this process has: its
      row would name the wrong one.
  """
  runs = sorted({path.parent for f in folders for path in pathlib.Path(f).rglob('summary.json')})
  found = {run: read_json(run / 'summary.json') for run in runs}
  timed = [run for run in runs if found[run].get('widths') or found[run]['method'] == 'dense']
  if not any(found[run].get('widths') for run in timed):
    raise FileNotFoundError(
      f'{", ".join(map(str, folders))}: none of {len(runs)} finished runs pruned channels; '
      'expected some: other networks compute as much as before.'
    )
  by_data: dict[str, list[tuple[pathlib.Path, Config]]] = {}
  for run in timed:
    _check_device(run)
    config = run_folder.read_config(run)
    by_data.setdefault(config.data.to_json(sort_keys=True), []).append((run, config))
  rates: dict[pathlib.Path, float] = {}
  for members in by_data.values():
    rates |= _measure(members, load(members[0][1].data), batch_size, repeats)
  return rates


def _measure(
  members: list[tuple[pathlib.Path, Config]], data: Dataset, batch_size: int, repeats: int
) -> dict[pathlib.Path, float]:
  """Times the runs of one data set in turn and notes what came out in their folders."""
  inputs = data.inputs(batch_size)
  networks = {run: _network(run, config, data) for run, config in members}
  predictions = {
    run: math.prod(jax.eval_shape(apply, variables, inputs).shape[:-1])
    for run, (apply, variables) in networks.items()
  }
  calls = {
    str(run): functools.partial(jax.jit(apply), variables, inputs)
    for run, (apply, variables) in networks.items()
  }
  rates = {}
  for name, timing in interleaved(calls, repeats=repeats).items():
    run = pathlib.Path(name)
    rates[run] = 1e3 * predictions[run] / timing.median
    found = {'batch_size': len(inputs), 'milliseconds': timing._asdict()}
    write_json(run / FILE, {'per_second': rates[run], **found})
  return rates


def _network(
  workdir: pathlib.Path, config: Config, data: Dataset
) -> tuple[Callable[[Any, Any], Any], Any]:
  """(function of variables and inputs, variables): slim where channels were pruned."""
  if config.prune.granularity == 'channels':
    run = load_run(workdir, data)
    slim = shrink(run.graph, run.variables, run.hard)
    return functools.partial(slim.apply, train=False), slim.variables
  model, variables = load_network(workdir, config, data)
  return functools.partial(model.apply, train=False), variables


def _check_device(run: pathlib.Path) -> None:
  there, here = read_json(run / 'environment.json')['device'], jax.devices()[0].device_kind
  if there != here:
    raise ValueError(
      f'{run} was made on {there!r} and would be timed on {here!r}; time it where it was made.'
    )
