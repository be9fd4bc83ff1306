"""Measures the transport ops against a bare pass over the scores: sigmoid and its sum.

  python -m experiments.bench.transport --sizes=1000,100000,1000000 --out=transport.csv

Ops that carry a state from step to step are timed as in training: every call has scores that have
drifted by 1 % of their spread since the last, and starts from the last state. Beside them: the mask
step of every method on n single weights, a sort, a hundred iterations of the scaling loop that
Spartan (arXiv:2205.14107, section 3) solves the same plan with, written from its equations, and
OTT's Sinkhorn on the n x 2 problem, where OTT is installed and up to 65,536 elements.
`extra_arrays` is the memory that XLA gives a step for what is neither argument nor result, in
arrays of n floats.
"""

import functools
import itertools
import sys
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax import Array, lax

from dtp_jax import methods, prunable, transport
from dtp_jax.budget import Budget
from dtp_jax.train.flags import checked, names_of, numbers
from experiments.bench.timing import define_out, interleaved, rows, table, write_csv

flags.DEFINE_list('sizes', ['1000', '100000', '1000000', '10000000'], 'Elements n.')
flags.DEFINE_float('keep', 0.1, 'Kept fraction.', lower_bound=0, upper_bound=1)
flags.DEFINE_float(
  'left', 0.3, 'Softness asked for, of that of the softest mask.', lower_bound=0, upper_bound=1
)
flags.DEFINE_integer('repeats', 15, 'Timed calls of each.', lower_bound=2)
flags.DEFINE_list('only', [], 'Names of what to time; default: all.')
define_out(None)
FLAGS = flags.FLAGS

_OTT_UP_TO = 65_536
_DRIFTS = 4  # arrays of scores that the calls go back and forth through


def _check_sizes(texts: list[str]) -> None:
  numbers(int, 4, 2**30)(texts)
  odd = [text for text in texts if int(text) % 4]
  if odd:
    raise ValueError(f'it has {odd[0]!r}; expected multiples of 4')


checked('sizes', _check_sizes)


def measure(
  n: int, keep: float, left: float, repeats: int, only: list[str]
) -> list[dict[str, Any]]:
  """The rows of one size."""
  rng = np.random.default_rng(0)
  drawn: list[Any] = [np.log(np.abs(rng.normal(size=n)) + 1e-6).astype(np.float32)]
  for _ in range(_DRIFTS - 1):
    drawn.append(drawn[-1] + np.float32(0.01) * rng.normal(size=n).astype(np.float32))
  scores = [jnp.asarray(s) for s in drawn]
  ceiling = 4 * keep * (1 - keep) * left
  ops = {name: jax.jit(f) for name, f in _ops(keep, ceiling).items()}
  calls: dict[str, Callable[[], Any]] = {'bare pass': functools.partial(_bare, scores[0])}
  calls |= {name: _carried(f, scores) for name, f in ops.items()}
  hard = jax.jit(functools.partial(transport.hard_topk, k=round(keep * n)))
  calls['hard_topk'] = functools.partial(hard, scores[0])
  if {*only} - {*calls} or not only:
    calls |= _methods(scores[0], keep) | _peers(scores[0], keep)
  if only:
    names_of([*calls, 'OTT'])(only)
    calls = {name: call for name, call in calls.items() if name in {'bare pass', *only}}
  found = rows({'n': n}, interleaved(calls, repeats=repeats), 'bare pass', repeats)
  for row in found:
    if row['name'] in ops:
      row['extra_arrays'] = _extra_arrays(ops[row['name']], scores[0], jnp.zeros(n))
    elif row['name'] == 'hard_topk':
      row['extra_arrays'] = _extra_arrays(hard, scores[0])
  return found


@jax.jit
def _bare(scores: Array) -> tuple[Array, Array]:
  mask = jax.nn.sigmoid(scores)
  return mask, jnp.sum(mask)


def _ops(keep: float, ceiling: float) -> dict[str, Callable[[Array, Array], tuple[Any, Array]]]:
  def soft(s: Array, z: Array) -> tuple[Array, Array]:
    return transport.soft_topk(s, keep=keep, epsilon=1.0), z

  step = functools.partial(transport.proximal_step, keep=keep, epsilon=10.0, memory=0.9)
  steps: dict[str, Callable[[Array, Array], tuple[Array, Array]]] = {
    'soft_topk': soft,
    'proximal_step': step,
    'proximal_step exact': functools.partial(step, projection='exact'),
    'proximal_step with deadline': functools.partial(step, ceiling=ceiling),
    'anneal': functools.partial(transport.anneal, keep=keep, ceiling=ceiling),
  }
  return steps | {f'{name}, gradient': _with_gradient(f) for name, f in steps.items()}


def _extra_arrays(step: Any, scores: Array, *state: Array) -> float:
  """What the compiled step allocates besides its arguments and results, in arrays of n floats."""
  used = step.lower(scores, *state).compile().memory_analysis()
  return round(used.temp_size_in_bytes / scores.nbytes, 2)


def _with_gradient(step: Callable[[Array, Array], tuple[Array, Array]]) -> Callable[..., Any]:
  def run(scores: Array, state: Array) -> Any:
    (mask, state), pullback = jax.vjp(lambda s: step(s, state), scores)
    return (mask, pullback((scores, jnp.zeros_like(state)))[0]), state  # any cotangent will do

  return run


def _carried(step: Callable[[Array, Array], tuple[Any, Array]], scores: list[Array]) -> Any:
  order = itertools.cycle([*scores, *scores[-2:0:-1]])
  state = jnp.zeros_like(scores[0])

  def call() -> Any:
    nonlocal state
    found, state = step(next(order), state)
    return found, state

  return call


def _methods(scores: Array, keep: float) -> dict[str, Callable[[], Any]]:
  """The mask step of every method at the middle of its soft stage."""
  params = {'kernel': jnp.exp(scores).reshape(-1, 4)}
  elements = prunable.weights(params)
  return {
    f'method {name}': _masked(methods.build(name, elements, Budget(keep), steps=1000), params)
    for name in methods.METHODS
  }


def _masked(pruner: methods.Pruner, params: Any) -> Callable[[], Any]:
  extra = jax.jit(pruner.init)(params)
  step = jax.jit(lambda params, extra: pruner.masks(params, extra, 500))

  def call() -> Any:
    masks, extra['transport'] = step(params, extra)
    return masks, extra['transport']

  return call


def _peers(scores: Array, keep: float) -> dict[str, Callable[[], Any]]:
  calls: dict[str, Callable[[], Any]] = {
    'sort': functools.partial(jax.jit(jnp.sort), scores),
    "Spartan's loop of 100": functools.partial(_spartan, scores, keep),
  }
  if len(scores) > _OTT_UP_TO:
    return calls
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore', DeprecationWarning)
      from ott.geometry import geometry  # an extra of this benchmark
      from ott.solvers import linear
  except ImportError:
    print('OTT is not installed: its row is left out.', file=sys.stderr)
    return calls

  @jax.jit
  def ott(s: Array) -> Array:
    geom = geometry.Geometry((s[:, None] - jnp.asarray([[0.0, 1.0]])) ** 2, epsilon=1.0)
    return linear.solve(geom, b=jnp.asarray([1 - keep, keep])).matrix[:, 1]

  calls['OTT'] = functools.partial(ott, scores)
  return calls


@jax.jit
def _spartan(scores: Array, keep: float) -> Array:
  """Scaling of the rows to 1 and of the kept column to k in turn, in the log domain."""
  z, log_k = 2 * scores, jnp.log(keep * len(scores))

  def iterate(_: Any, dual: Array) -> Array:
    rows = -jax.nn.softplus(z + dual)
    return log_k - jax.nn.logsumexp(z + rows)

  return jax.nn.sigmoid(z + lax.fori_loop(0, 100, iterate, jnp.zeros(())))


def main(argv: list[str]) -> None:
  """Measures, prints and saves."""
  del argv
  found = []
  try:
    for n in map(int, FLAGS.sizes):
      found += measure(n, FLAGS.keep, FLAGS.left, FLAGS.repeats, FLAGS.only)
      print(table([row for row in found if row['n'] == n]), flush=True)
    if FLAGS.out:
      write_csv(FLAGS.out, found)
  except (ValueError, OSError) as error:
    sys.exit(f'{type(error).__name__}: {error}')


if __name__ == '__main__':
  app.run(main)
