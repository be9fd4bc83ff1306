"""Times slim networks against the dense one, over what is left of the MACs.

  python -m experiments.bench.slim --networks=resnet20 --batch_sizes=64 --out=slim.csv

Every network is cut to some shares of its MACs in four ways: with free widths, with multiples of 8,
with multiple_of='auto', and by a latency budget with multiple_of='auto' that keeps at least as many
MACs as the one before. Weights and data are random: time does not depend on them. Neither are
masks trained. The importance of a channel is drawn from a log-normal distribution (sigma 1) in
place of the evidence that training would give, and ranked per price of the budget, as every run
with a cost does. All ways and shares are timed in one interleaved run with the dense network:
  jit        jax.jit of the slim network
  stablehlo  what `save_slim` writes, read back
  onnx       ONNX Runtime, where the extra `onnx` is installed
Rows of earlier calls stay in the file unless the same is timed again, so that a long table can be
made in pieces; latency tables are kept in --tables.
"""

import functools
import itertools
import pathlib
import tempfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from absl import app, flags

import dtp_jax as dtp
from dtp_jax import models
from dtp_jax.budget import Budget
from dtp_jax.budget.problem import CostProblem
from dtp_jax.budget.rounding import Cost, round_to_budget
from dtp_jax.budget.widths import Choice, choice
from dtp_jax.export import onnx
from dtp_jax.export.signature import Signature
from dtp_jax.export.stablehlo import stablehlo
from dtp_jax.files import check_folder, read_table
from dtp_jax.graph import Graph, Slim
from dtp_jax.methods.evidence import log_importance
from dtp_jax.train.compilation import keep_compiled
from dtp_jax.train.flags import checked, names_of, numbers
from experiments.bench.timing import define_out, interleaved, rows, table, where, write_rows

flags.DEFINE_list('networks', 'resnet20', 'Names of NETWORKS.')
flags.DEFINE_list('batch_sizes', '1,64', 'Images of a call.')
flags.DEFINE_list('keeps', '0.75,0.5,0.3,0.15', 'Shares of the MACs.')
flags.DEFINE_list('runtimes', 'jit', 'jit, stablehlo, onnx.')
flags.DEFINE_integer('repeats', 11, 'Timed calls of each, interleaved.', lower_bound=2)
flags.DEFINE_integer('points', 5, 'Of a latency table, per width.', lower_bound=2)
flags.DEFINE_integer('table_repeats', 7, 'Timed calls of each operator of a table.', lower_bound=2)
flags.DEFINE_string('tables', '', 'Folder of latency tables; measured where they are missing.')
define_out('slim.csv')
FLAGS = flags.FLAGS

_KEY = ('network', 'batch_size', 'runtime')


class Network(NamedTuple):
  """A model and the side of its images, in pixels: of one image, and of a batch."""

  model: nn.Module
  alone: int
  batched: int


NETWORKS = {
  'resnet18': Network(models.ResNet(18), 224, 96),
  'resnet50': Network(models.ResNet(50), 224, 96),
  'mobilenet_v2': Network(models.MobileNetV2(), 224, 96),
  'vit_ti': Network(models.ViT.tiny(), 224, 96),
  'resnet20': Network(models.CifarResNet(20), 32, 32),
}


class Case(NamedTuple):
  """A network at a batch size: traced, with random variables."""

  name: str
  graph: Graph
  variables: Any
  images: jax.Array

  @property
  def label(self) -> dict[str, Any]:
    """Columns that name it."""
    return {
      'network': self.name,
      'batch_size': len(self.images),
      'image_size': self.images.shape[1],
    }


def build(name: str, batch_size: int) -> Case:
  """Traces a network of NETWORKS; the latency table needs a batch axis, so at least two images."""
  model, alone, batched = NETWORKS[name]
  size = alone if batch_size == 1 else batched
  images = jax.random.normal(jax.random.key(0), (batch_size, size, size, 3))
  init = jax.jit(lambda key, x: model.init(key, x, train=False))
  variables = init(jax.random.key(1), images[:1])
  example = jax.ShapeDtypeStruct((max(2, batch_size), *images.shape[1:]), images.dtype)
  return Case(name, dtp.trace(model.apply, variables, example, train=False), variables, images)


def latency_table(case: Case, folder: str) -> dtp.LatencyTable:
  """The table of a case, measured here or read from a folder."""
  path = pathlib.Path(folder) / f'{case.name}_{len(case.images)}.json' if folder else None
  if path is not None and path.exists():
    return dtp.LatencyTable.load(path)
  found = dtp.LatencyTable.measure(
    case.graph, batch_size=len(case.images), points=FLAGS.points, repeats=FLAGS.table_repeats
  )
  if path is not None:
    path.parent.mkdir(parents=True, exist_ok=True)
    found.save(path)
  return found


class Ranked(NamedTuple):
  """Channels ranked for a budget: what any limit of it keeps.

  Attributes:
    cost: of the budget.
    ranking: {group: (n,)}.
    widths: that groups may have.
  """

  cost: Cost
  ranking: dict[str, Any]
  widths: Choice

  @classmethod
  def of(cls, graph: Graph, budget: Budget) -> 'Ranked':
    """Drawn importance per price, prices at half width."""
    sizes = graph.sizes
    cost: Any = graph.macs if isinstance(budget.of, str) else budget.of.cost(sizes)
    problem = CostProblem(sizes, cost, cost.total, min_keep=1, multiple_of=1)
    drawn = [np.random.default_rng(zlib.crc32(g.encode())).normal(size=n) for g, n in sizes.items()]
    evidence = jnp.asarray(np.exp(2 * np.concatenate(drawn)), jnp.float32)
    prices = problem.prices(jnp.zeros(len(evidence)))
    ranking = log_importance(jnp.ones_like(evidence), evidence, prices, share=1.0)
    return cls(cost, problem.scatter(ranking), choice(budget, sizes))

  def at(self, limit: int) -> dict[str, np.ndarray]:
    """The hard masks of a limit."""
    return round_to_budget(self.ranking, self.cost, limit, multiple_of=self.widths.multiple_of)


def masks(
  case: Case, keeps: Iterable[float], measured: dtp.LatencyTable
) -> dict[tuple[str, float], dict[str, np.ndarray]]:
  """The hard masks of every way and share."""
  graph = case.graph
  found: dict[tuple[str, float], dict[str, np.ndarray]] = {}
  ways: tuple[tuple[str, Any], ...] = (('free', 1), ('multiple_of=8', 8), ('auto', 'auto'))
  for way, multiple in ways:
    ranked = Ranked.of(graph, Budget(1.0, of='macs', multiple_of=multiple))
    for keep in keeps:
      try:
        found[way, keep] = ranked.at(int(keep * graph.macs.total))
      except ValueError as error:
        print(f'{case.name}, {way}, {keep}: {error}')
  ranked = Ranked.of(graph, Budget(1.0, of=measured, multiple_of='auto'))
  for keep in keeps:
    if ('auto', keep) not in found:
      continue
    least = graph.macs.at(_counts(found['auto', keep]))
    found['latency', keep] = _at_least(ranked, lambda hard: graph.macs.at(_counts(hard)), least)
  return found


def _at_least(
  ranked: Ranked, measure: Callable[[dict[str, np.ndarray]], int], least: int
) -> dict[str, np.ndarray]:
  """The masks of the smallest limit that measure at least so much, by bisection."""
  low, high = ranked.cost.at(dict.fromkeys(ranked.ranking, 0)), ranked.cost.total
  best = ranked.at(high)
  while high - low > ranked.cost.total // 2000:
    middle = (low + high) // 2
    try:
      hard = ranked.at(middle)
    except ValueError:  # below the floors
      low = middle
      continue
    if measure(hard) >= least:
      best, high = hard, middle
    else:
      low = middle
  return best


def _counts(hard: Mapping[str, np.ndarray]) -> dict[str, int]:
  return {name: int(mask.sum()) for name, mask in hard.items()}


def _jit(slim: Slim, images: jax.Array, folder: pathlib.Path) -> Callable[[], Any]:
  del folder
  run = jax.jit(functools.partial(slim.apply, train=False))
  return functools.partial(run, slim.variables, images)


def _stablehlo(slim: Slim, images: jax.Array, folder: pathlib.Path) -> Callable[[], Any]:
  del folder
  text = stablehlo(slim, Signature.attempts((images,))[0], {'train': False})
  run = jax.jit(jax.export.deserialize(bytearray(text)).call)
  return functools.partial(run, slim.variables, images)


def _onnx(slim: Slim, images: jax.Array, folder: pathlib.Path) -> Callable[[], Any]:
  signature, values = Signature.attempts((images,))[0], np.asarray(images)
  path = folder / 'model.onnx'
  onnx.write_onnx(path, slim, signature, {'train': False})
  return functools.partial(onnx.runner(path, signature), values)


RUNTIMES = {'jit': _jit, 'stablehlo': _stablehlo, 'onnx': _onnx}

checked('networks', names_of(NETWORKS))
checked('batch_sizes', numbers(int, 1, 2**20))
checked('keeps', numbers(float, 0, 1))
checked('runtimes', names_of(RUNTIMES))
checked('tables', lambda folder: check_folder(folder, '--tables') if folder else None)
checked('out', lambda path: _earlier(pathlib.Path(path)))


def measure(
  case: Case, hard: Mapping[tuple[str, float], dict[str, np.ndarray]], runtime: str, repeats: int
) -> list[dict[str, Any]]:
  """Rows of one interleaved run: the dense network and every slim one."""
  graph, dense = case.graph, {g: np.ones(n, bool) for g, n in case.graph.sizes.items()}
  cases = {('dense', 1.0): dense, **hard}
  functions = {}
  with tempfile.TemporaryDirectory() as folder:
    for (way, keep), mask in cases.items():
      slim = dtp.shrink(graph, case.variables, mask)
      functions[f'{way} {keep}'] = RUNTIMES[runtime](slim, case.images, pathlib.Path(folder))
    timings = interleaved(functions, repeats=repeats, warmup=2)
  found = rows({**case.label, 'runtime': runtime}, timings, 'dense 1.0', repeats)
  for row, ((way, keep), mask) in zip(found, cases.items(), strict=True):
    counts = _counts(mask)
    row |= {
      'budget': way,
      'keep': keep,
      'macs_kept': round(graph.macs.at(counts) / graph.macs.total, 4),
      'parameters_kept': round(graph.params.at(counts) / graph.params.total, 4),
      'channels_kept': round(sum(counts.values()) / sum(graph.sizes.values()), 4),
      'speedup': round(timings['dense 1.0'].median / row['median_ms'], 3),
    }
  return found


def main(argv: list[str]) -> None:
  """Measures, prints and adds to the file."""
  del argv
  keep_compiled()
  keeps = list(map(float, FLAGS.keeps))
  for name, batch_size in itertools.product(FLAGS.networks, map(int, FLAGS.batch_sizes)):
    case = build(name, batch_size)
    hard = masks(case, keeps, latency_table(case, FLAGS.tables))
    for runtime in FLAGS.runtimes:
      if runtime == 'onnx':
        try:
          onnx.check_installed()
        except ImportError as error:
          print(f'onnx is left out: {error}')
          continue
      found = measure(case, hard, runtime, FLAGS.repeats)
      print(table(found))
      add_rows(FLAGS.out, found)


def add_rows(out: str, found: list[dict[str, Any]]) -> None:
  """Puts rows into a CSV in place of those of the same network, batch size and runtime."""
  path, place = pathlib.Path(out), where()
  new = {tuple(str(row[name]) for name in _KEY) for row in found}
  old = [row for row in _earlier(path) if tuple(row[n] for n in _KEY) not in new]
  write_rows(path, [*old, *({**row, **place} for row in found)])


def _earlier(path: pathlib.Path) -> list[dict[str, Any]]:
  """The rows of earlier calls, see `read_table`."""
  if not path.exists():
    return []
  return read_table(path, _KEY, others=True)


if __name__ == '__main__':
  app.run(main)
