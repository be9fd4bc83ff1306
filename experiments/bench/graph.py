"""Times trace and shrink of deep networks, with the memory that they need.

  python -m experiments.bench.graph --networks=resnet152,decoder24 --out=graph.csv

Each network has a process of its own: ResNet-152 at 224 x 224, and a decoder of 24 layers (width
512, 8 heads, 76 M weights in its layers) on 128 tokens. Shrinking deletes half of the channels of
every group. The first call in a process is `cold`: it also imports and fills JAX's own caches. Peak
memory is what the process had most of, less what it had before there were variables; the variables
themselves are in it.
"""

import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

import dtp_jax as dtp
from dtp_jax import models
from dtp_jax.train.flags import checked, names_of
from experiments.bench.timing import define_out, table, write_csv

flags.DEFINE_list('networks', 'resnet152,decoder24', 'Names of NETWORKS.')
flags.DEFINE_integer('repeats', 5, 'Timed calls of each after the first.', lower_bound=2)
define_out('graph.csv')
FLAGS = flags.FLAGS


class Decoder(nn.Module):
  """A causal language model: embedding, pre-norm blocks of attention and MLP, one linear head.

  Attributes:
    depth: blocks.
    width: channels of the residual stream.
    heads: of the attention.
    vocabulary: number of tokens and of logits.
  """

  depth: int = 24
  width: int = 512
  heads: int = 8
  vocabulary: int = 8192

  @nn.compact
  def __call__(self, tokens: jax.Array) -> jax.Array:
    """Logits (batch, length, vocabulary) of tokens (batch, length)."""
    x = nn.Embed(self.vocabulary, self.width, name='embed')(tokens)
    mask = nn.make_causal_mask(tokens)
    for i in range(self.depth):
      y = nn.RMSNorm(name=f'attention_norm{i + 1}')(x)
      x = x + nn.MultiHeadDotProductAttention(self.heads, name=f'attention{i + 1}')(y, mask=mask)
      y = nn.RMSNorm(name=f'mlp_norm{i + 1}')(x)
      y = nn.gelu(nn.Dense(4 * self.width, name=f'up{i + 1}')(y))
      x = x + nn.Dense(self.width, name=f'down{i + 1}')(y)
    return nn.Dense(self.vocabulary, use_bias=False, name='head')(nn.RMSNorm(name='norm')(x))


NETWORKS: dict[str, tuple[nn.Module, Any, dict[str, Any]]] = {
  'resnet152': (
    models.ResNet(152),
    jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32),
    {'train': False},
  ),
  'decoder24': (Decoder(), jax.ShapeDtypeStruct((2, 128), jnp.int32), {}),
}

checked('networks', names_of(NETWORKS))


def measure(name: str, repeats: int) -> list[dict[str, Any]]:
  """The rows of one network; meant for a process of its own."""
  model, inputs, static = NETWORKS[name]
  before = _peak()
  shapes = jax.eval_shape(
    lambda key: model.init(key, jnp.zeros(inputs.shape, inputs.dtype), **static), jax.random.key(0)
  )
  variables = jax.tree.map(lambda a: np.ones(a.shape, a.dtype), shapes)
  megabytes = sum(a.nbytes for a in jax.tree.leaves(variables)) / 2**20

  def trace() -> dtp.Graph:
    return dtp.trace(model.apply, variables, inputs, **static)

  trace_seconds, graph = _timed(trace, repeats)
  masks = {group: np.arange(n) < n // 2 for group, n in graph.sizes.items()}
  shrink_seconds, _ = _timed(lambda: dtp.shrink(graph, variables, masks), repeats)
  peak = _peak() - before
  common = {
    'network': name,
    'groups': len(graph.groups),
    'operators': len(graph.operators),
    'variables_mb': round(megabytes, 1),
  }
  memory = {'peak_mb': round(peak, 1), 'peak_per_variables': round(peak / megabytes, 2)}
  return [
    {**common, 'call': call, **_summary(seconds), **memory}
    for call, seconds in (('trace', trace_seconds), ('shrink', shrink_seconds))
  ]


def _timed(call: Callable[[], Any], repeats: int) -> tuple[list[float], Any]:
  """Seconds of the first call and of `repeats` more, and the last result."""
  seconds, result = [], None
  for _ in range(repeats + 1):
    begin = time.perf_counter()
    result = call()
    seconds.append(time.perf_counter() - begin)
  return seconds, result


def _summary(seconds: list[float]) -> dict[str, Any]:
  lower, median, upper = statistics.quantiles(seconds[1:], n=4)
  return {
    'cold_s': round(seconds[0], 3),
    'median_s': round(median, 3),
    'lower_s': round(lower, 3),
    'upper_s': round(upper, 3),
    'repeats': len(seconds) - 1,
  }


def _peak() -> float:
  """The largest memory of this process so far, in MiB."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(argv: list[str]) -> None:
  """Measures, prints and writes."""
  del argv
  found = []
  context = multiprocessing.get_context('spawn')  # a peak of memory never falls
  for name in FLAGS.networks:
    with context.Pool(1) as pool:
      found += pool.apply(measure, (name, FLAGS.repeats))
  print(table(found))
  write_csv(FLAGS.out, found)


if __name__ == '__main__':
  app.run(main)
