"""Training steps on described devices: what they need, read off the compiled programs."""

import collections
import math
import re
from typing import Any, NamedTuple

import jax
import numpy as np

from configs import default
from dtp_jax.data import Dataset, Resident
from dtp_jax.data.text import Text
from dtp_jax.train import mesh as meshes
from dtp_jax.train.recipe import build
from dtp_jax.train.step import train_step

__all__ = ['NETWORKS', 'Collective', 'check', 'collectives', 'config_of', 'described']

NETWORKS: dict[str, dict[str, Any]] = {
  'resnet50': {'name': 'resnet', 'depth': 50, 'width': 64},
  'vit_s': {'name': 'vit', 'patch': 16, 'width': 384, 'depth': 12, 'heads': 6},
  'decoder_1b': {
    'name': 'decoder', 'width': 2048, 'depth': 16, 'heads': 32, 'kv_heads': 8, 'hidden': 8192,
    'scan': True,
  },
}  # fmt: skip
_EXAMPLES = 1_281_167
_CONTEXT, _VOCABULARY = 1024, 128_256  # of the decoder

_COLLECTIVE = re.compile(
  r'= (\(?[^=]*?\)?) (all-reduce|all-gather|all-to-all|reduce-scatter|collective-\w+)\('
)
_COMPUTATION = re.compile(r'^(ENTRY )?%([\w.\-]+) .*\{$')
_CALLED = re.compile(r'(?:body|calls|to_apply|\w+_computations?)=(\{[^}]*\}|%[\w.\-]+)')
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')


class Collective(NamedTuple):
  """An operation between devices in a compiled program.

  Attributes:
    kind: as in 'all-reduce'.
    size: bytes of its result on one device.
    times: how often it runs in a step; in a loop of unknown length, as if that had one turn.
  """

  kind: str
  size: int
  times: int


def config_of(network: str, granularity: str) -> Any:
  """The config of a network that a cluster would train.

  Raises:
    ValueError: an unknown network.
  """
  config = default.get_config()
  config.dtype, config.optimizer.name = 'bfloat16', 'adamw'
  config.data.update({'crop_padding': 0, 'flip': True})
  unit = {'of': 'macs', 'keep': 0.5} if granularity == 'channels' else {'of': 'count', 'keep': 0.1}
  config.prune.update({'granularity': granularity, **unit})
  if network not in NETWORKS:
    raise ValueError(f'network is {network!r}; expected one of {", ".join(NETWORKS)}.')
  config.model.update(NETWORKS[network])
  config.remat = network == 'decoder_1b'
  return config


def described(network: str) -> Dataset:
  """What a network trains on, of which no example takes memory."""
  if network.startswith('decoder'):
    split = {'tokens': np.broadcast_to(np.int32(0), (_EXAMPLES, _CONTEXT + 1))}
    return Text('described', split, split, _VOCABULARY, verified=True)
  split = {
    'image': np.broadcast_to(np.uint8(0), (_EXAMPLES, 224, 224, 3)),
    'label': np.broadcast_to(np.int32(0), (_EXAMPLES,)),
  }
  mean, std = (0.5,) * 3, (0.25,) * 3
  return Resident('described', split, split, 1000, mean, std, verified=True)


def check(config: Any, data: Dataset) -> dict[str, Any]:
  """What the soft step of a config needs on each device of its mesh.

  Args:
    config: of a run; its mesh must fit the devices there are.
    data: gives the shapes of a batch and the number of classes.

  Returns:
    {'weights': their number, 'state' and 'temporaries': bytes on one device, 'collectives': those
    of the program, as text, 'gathered', 'reduced' and 'sent': bytes that all-gathers, reductions
    and all collectives give back to one device in a step}.
  """
  recipe, create = build(config, data)
  state = meshes.template(recipe.mesh, jax.eval_shape(create))
  place, size = meshes.of_batches(recipe.mesh), config.data.batch_size
  batch = {
    name: jax.ShapeDtypeStruct((size, *values.shape[1:]), values.dtype, sharding=place)
    for name, values in data.train.items()
  }
  step = jax.jit(
    lambda state, batch: train_step(recipe, state, batch, stage='soft'),
    donate_argnums=0,
    out_shardings=(meshes.of_state(recipe.mesh, state), None),
  )
  compiled = step.lower(state, batch).compile()
  memory: Any = compiled.memory_analysis()
  told = collectives(str(compiled.as_text()))
  kinds = collections.Counter(one.kind for one in told)
  sent = lambda *kinds: sum(one.size * one.times for one in told if one.kind in kinds)
  on_one = lambda tree: sum(map(_on_one_device, jax.tree.leaves(tree)))
  return {
    'weights': sum(w.size for w in jax.tree.leaves(state.params)),
    'state': on_one(state),
    'temporaries': memory.temp_size_in_bytes,
    'collectives': ', '.join(f'{n} {kind}' for kind, n in sorted(kinds.items())),
    'gathered': sent('all-gather'),
    'reduced': sent('all-reduce', 'reduce-scatter'),
    'sent': sent(*kinds),
  }


def collectives(text: str) -> list[Collective]:
  """Every collective in the text of a compiled program.

  Raises:
    ValueError: the text is of no program.
  """
  text = re.sub(r'/\*.*?\*/', '', text)  # long tuples number their members so
  bodies: dict[str, list[str]] = {}
  entry = lines = None
  for line in text.splitlines():
    if opened := _COMPUTATION.match(line):
      lines = bodies.setdefault(opened[2], [])
      entry = opened[2] if opened[1] else entry
    elif lines is not None:
      lines.append(line)
  found: list[Collective] = []

  def walk(name: str, times: int) -> None:
    for line in bodies[name]:
      trips = _TRIPS.search(line)
      for called in re.findall(r'%([\w.\-]+)', ' '.join(_CALLED.findall(line))):
        walk(called, times * int(trips[1] if trips else 1))
      if one := _COLLECTIVE.search(line):
        arrays = re.findall(r'(\w+)\[([\d,]*)\]', one[1])
        found.append(Collective(one[2], sum(_size(*array) for array in arrays), times))

  if entry is None:
    raise ValueError(f'the text has no ENTRY: {text[:80]!r}; expected that of a compiled program.')
  walk(entry, 1)
  return found


def _size(kind: str, dims: str) -> int:
  """Bytes of an array; the first number in the name of its type is that of its bits."""
  bits = 8 if kind == 'pred' else int(re.findall(r'\d+', kind)[0])
  return math.ceil(bits * math.prod(int(d) for d in dims.split(',') if d) / 8)


def _on_one_device(leaf: Any) -> int:
  return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
