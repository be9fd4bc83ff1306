"""Functions that trace accepts and an export has to: one difficulty each, and their inputs."""

import pathlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dtp_jax import export
from tests.graph.models import randomized


class Case(NamedTuple):
  """A function of (variables, *inputs).

  Attributes:
    fn: the function.
    variables: its variables.
    inputs: those of a batch size.
    batch: 'any', or the one size that its program takes; None without a batch.
    note: what the manifest says of it.
    kwargs: its keyword arguments.
  """

  fn: Callable[..., Any]
  variables: Any
  inputs: Callable[[int], tuple]
  batch: str | int | None = 'any'
  note: str = ''
  kwargs: dict = {}  # noqa: RUF012


EXAMPLES = 3  # in the inputs that programs are exported with
LENGTH = 4


def values(*shape, seed=1):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def sequences(batch):
  return (values(batch, LENGTH, 6, seed=batch),)


def vectors(batch):
  return (values(batch, 6, seed=batch),)


def weights(**shapes):
  return randomized({name: jax.ShapeDtypeStruct(s, jnp.float32) for name, s in shapes.items()})


MLP = weights(up=(6, 8), down=(8, 3))


def mlp(v, x):
  return jnp.tanh(x @ v['up']) @ v['down']


def folded_heads(v, x):
  """Attention whose heads lie in the batch axis."""
  batch, length, _ = x.shape

  def heads(name):
    y = (x @ v[name]).reshape(batch, length, 2, -1).transpose(0, 2, 1, 3)
    return y.reshape(batch * 2, length, -1)

  scores = jnp.einsum('btd,bsd->bts', heads('query'), heads('key'))
  y = jnp.einsum('bts,bsd->btd', jax.nn.softmax(scores), heads('value'))
  y = y.reshape(batch, 2, length, -1).transpose(0, 2, 1, 3)
  return y.reshape(batch, length, -1) @ v['out']


def rotated_halves(v, x):
  y = x @ v['up']
  half = y.shape[-1] // 2
  return (y + 0.5 * jnp.concatenate([-y[..., half:], y[..., :half]], -1)) @ v['down']


def rotated_pairs(v, x):
  y = x @ v['up']
  a, b = y[..., ::2], y[..., 1::2]
  turned = jnp.stack([0.8 * a - 0.6 * b, 0.8 * b + 0.6 * a], -1)
  return turned.reshape(y.shape) @ v['down']


def sliced_gate(v, x):
  y = x @ v['up']
  half = y.shape[-1] // 2
  return (y[..., :half] * jax.nn.sigmoid(y[..., half:])) @ v['down']


def one_by_one(v, x):
  """A loop in Python over the examples."""
  return jnp.stack([mlp(v, x[i]) for i in range(x.shape[0])])


def centred(v, x):
  """Examples that know of each other."""
  return mlp(v, x - x.mean(0, keepdims=True))


def noisy(v, key, x):
  hidden = jnp.tanh(x @ v['up'])
  return (hidden * jax.random.bernoulli(key, 0.5, hidden.shape)) @ v['down']


def scaled(v, inputs):
  return inputs['a_scale'] * mlp(v, inputs['image'])


def with_options(v, x, scale, options):
  y = mlp(v, x) * scale
  return getattr(jax.nn, options['activation'])(y) if options['active'] else y


def looked_up(v, tokens):
  return mlp(v, v['embed'][tokens])


def masked_scores(v, x, mask):
  scores = jnp.where(mask[None], jnp.einsum('btd,bsd->bts', x, x), -1e9)
  return mlp(v, jnp.einsum('bts,bsd->btd', jax.nn.softmax(scores), x))


class Batch(NamedTuple):
  """Inputs as users have them."""

  positions: Any
  images: Any


@flax.struct.dataclass
class Output:
  """A result as users have it."""

  logits: Any
  hidden: Any


def of_containers(v, batch):
  hidden = jnp.tanh((batch.images + batch.positions[None]) @ v['up'])
  return Output(logits=hidden @ v['down'], hidden={'mean': hidden.mean(-1)})


def reshaped(v, x):
  return mlp(v, x.reshape(EXAMPLES, 6))


def branching(v, x):
  return mlp(v, x) * (2.0 if x.shape[0] > 2 else 1.0)


def of_no_batch(v, scale):
  return scale * jnp.tanh(v['row'] @ v['up']) @ v['down']


def nnx_with_dropout():
  class Net(nnx.Module):
    def __init__(self, rngs):
      self.up = nnx.Linear(6, 8, rngs=rngs)
      self.dropout = nnx.Dropout(0.5, rngs=rngs)
      self.down = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
      return self.down(self.dropout(nnx.relu(self.up(x))))

  model = Net(nnx.Rngs(0))
  model.eval()
  definition, state = nnx.split(model)
  return Case(lambda state, x: nnx.merge(definition, state)(x), state, vectors)


def cases() -> dict[str, Case]:
  """By name."""
  heads = weights(query=(6, 8), key=(6, 8), value=(6, 8), out=(8, 3))
  key, raw = jax.random.key(3), np.array([1, 2], np.uint32)
  return {
    'heads folded into the batch': Case(folded_heads, heads, sequences),
    'halves of channels': Case(rotated_halves, MLP, sequences),
    'a gate of sliced channels': Case(
      sliced_gate, weights(up=(6, 8), down=(4, 3)), sequences
    ),
    'every second channel': Case(rotated_pairs, MLP, sequences),
    'a loop over examples': Case(one_by_one, MLP, vectors, note='one at a time'),
    'examples that know of each other': Case(centred, MLP, vectors),
    'a key': Case(noisy, MLP, lambda n: (key, *vectors(n))),
    'a key of numbers': Case(noisy, MLP, lambda n: (raw, *vectors(n))),
    'a scalar first': Case(
      scaled, MLP, lambda n: ({'a_scale': np.float32(2.0), 'image': vectors(n)[0]},)
    ),
    'numbers, flags and words': Case(
      with_options,
      MLP,
      lambda n: (*vectors(n), 0.5, {'activation': 'relu', 'active': True}),
    ),
    'integers of 64 bits': Case(
      looked_up, {**MLP, 'embed': values(5, 6)}, lambda n: (np.arange(2 * n).reshape(n, 2) % 5,)
    ),
    'a mask as long as the batch': Case(
      masked_scores,
      MLP,
      lambda n: (values(n, EXAMPLES, 6, seed=n), np.tri(EXAMPLES, dtype=bool)),
      note='in one input alone',
    ),
    'containers of users': Case(
      of_containers, MLP, lambda n: (Batch(values(6), vectors(n)[0]),)
    ),
    'a batch in the code': Case(
      reshaped, MLP, vectors, EXAMPLES, 'the masked network does not run at batch size 1'
    ),
    'a branch on the batch': Case(branching, MLP, vectors, EXAMPLES, 'jax.export refused'),
    'no batch': Case(
      of_no_batch,
      {**MLP, 'row': values(1, 6)},
      lambda n: (np.float32(2.0),),
      None,
      'No input has an axis for a batch',
    ),
    'keys in the variables': nnx_with_dropout(),
  }  # fmt: skip


def main() -> None:
  """In a process of its own: runs every saved program at every batch size below a folder."""
  folder = pathlib.Path(sys.argv[1])
  for i, case in enumerate(cases().values()):
    saved = export.load_slim(folder / str(i))
    for batch in batches(case):
      outputs = jax.tree.leaves(saved(*case.inputs(batch)))
      np.savez(folder / f'{i}_{batch}.npz', *outputs, allow_pickle=False)


def batches(case: Case) -> tuple[int, ...]:
  """The sizes that a case is tried at."""
  return (1, 2, 5) if case.batch == 'any' else (EXAMPLES,)


if __name__ == '__main__':
  main()
