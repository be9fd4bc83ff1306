"""Timing the operators of a graph by themselves, at a grid of widths.

An operator is its traced primitive and parameters, compiled alone and called on arrays of the sizes
that kept counts would give it. What a call costs whatever it computes (dispatch, waiting) is timed
beside it and subtracted: within one compiled program it is paid once, not per operator.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dtp_jax.budget.latency.timing import interleaved
from dtp_jax.graph.cost import Polynomial
from dtp_jax.graph.graph import Bare, Extent

__all__ = ['Resizable', 'Shapes', 'grid', 'resizable', 'time_calls']

Shapes = tuple[tuple[int, ...], ...]

_CHUNK_BYTES = 2**28  # operands alive at once: calls within a chunk are timed in turn
_EMPTY = 'empty'


class Resizable(NamedTuple):
  """An operator that can be run at given widths.

  Attributes:
    eqn: its equation.
    axes: per operand and axis, the fixed factor of its size and which widths multiply it.
    widths: the distinct dims that groups change, as polynomials of kept counts.
  """

  eqn: Any
  axes: tuple[tuple[tuple[int, tuple[int, ...]], ...], ...]
  widths: tuple[Polynomial, ...]

  @property
  def full(self) -> tuple[int, ...]:
    """The widths of the dense network."""
    return tuple(width.total for width in self.widths)

  @property
  def operator(self) -> str:
    """What runs, in words that two equal operators share: primitive, parameters, dtypes."""
    params = {**self.eqn.params, 'feature_group_count': None}  # follows from the shapes
    dtypes = [str(var.aval.dtype) for var in self.eqn.invars]
    return f'{self.eqn.primitive.name} {sorted(params.items())} {dtypes}'

  @property
  def signature(self) -> str:
    """Equal for operators that have the same curve."""
    return f'{self.operator} {self.axes} {self.full}'

  def shapes(self, widths: Sequence[int]) -> Shapes:
    """Shapes of the operands at given widths."""
    return tuple(
      tuple(fixed * math.prod(widths[i] for i in which) for fixed, which in axes)
      for axes in self.axes
    )


class Call(NamedTuple):
  """One timing: an operator at concrete shapes."""

  eqn: Any
  shapes: Shapes

  @property
  def bytes(self) -> int:
    """Memory of its operands."""
    dtypes = (var.aval.dtype for var in self.eqn.invars)
    return sum(math.prod(s) * d.itemsize for s, d in zip(self.shapes, dtypes, strict=True))

  def ready(self) -> Callable[[], Any]:
    """A compiled call on arrays of its own."""
    params = self.eqn.primitive.get_bind_params(self.eqn.params)
    if 'feature_group_count' in params:
      numbers, (lhs, kernel) = params['dimension_numbers'], self.shapes
      groups = lhs[numbers.lhs_spec[1]] // kernel[numbers.rhs_spec[1]]
      params = {**params, 'feature_group_count': groups}
    run = jax.jit(lambda *arrays: self.eqn.primitive.bind(*arrays, **params))
    arrays = [
      _filled(shape, var.aval.dtype)
      for shape, var in zip(self.shapes, self.eqn.invars, strict=True)
    ]
    return functools.partial(run, *arrays)


def resizable(bare: Bare, batch_size: int) -> Resizable:
  """An operator by its widths: equal dims are one, the batch is part of the fixed factors."""
  found: dict[frozenset[Any], tuple[int, Polynomial]] = {}

  def axis(extent: Extent) -> tuple[int, tuple[int, ...]]:
    keys = [(frozenset(width.terms.items()), width) for width in extent.widths]
    which = tuple(found.setdefault(key, (len(found), width))[0] for key, width in keys)
    return extent.fixed * (batch_size if extent.batched else 1), which

  axes = tuple(tuple(map(axis, extents)) for extents in bare.operands)
  return Resizable(bare.eqn, axes, tuple(width for _, width in found.values()))


def grid(full: Sequence[int], points: int, tile: int = 1) -> tuple[tuple[int, ...], ...]:
  """Knots per width: 1, the full width, and equal parts of it in between.

  About points^2 in all, at least 2 each. Of widths of two tiles and more they are multiples of the
  tile: a curve then says what multiples take, and not what a scalar rest adds to them.
  """
  each = max(2, round(points ** (2 / max(len(full), 1))))

  def knots(n: int) -> tuple[int, ...]:
    step = tile if n >= 2 * tile else 1
    parts = min(each - 1, n // step)
    inner = (round(n * k / parts / step) * step for k in range(1, parts))
    return tuple(sorted({1, n, *inner}))

  return tuple(map(knots, full))


def time_calls(
  calls: Iterable[tuple[str, Any, Shapes]], *, repeats: int
) -> tuple[dict[tuple[str, Shapes], int], int]:
  """Times operators at concrete shapes, each distinct one once.

  Args:
    calls: (operator in words, equation, shapes of its operands).
    repeats: timed calls of each, >= 2.

  Returns:
    {(operator, shapes): nanoseconds} less those of an empty call, at least 0; and the empty call's.
  """
  distinct = {(operator, shapes): Call(eqn, shapes) for operator, eqn, shapes in calls}
  empty = functools.partial(jax.jit(lambda x: x + 1), jnp.zeros(()))
  found: dict[tuple[str, Shapes], int] = {}
  idle = []
  for chunk in _chunks(distinct):
    functions = {str(i): call.ready() for i, call in enumerate(chunk.values())}
    timings = interleaved({**functions, _EMPTY: empty}, repeats=repeats, warmup=2)
    idle.append(round(1e6 * timings[_EMPTY].median))
    for i, key in enumerate(chunk):
      found[key] = max(0, round(1e6 * timings[str(i)].median) - idle[-1])
  return found, round(statistics.median(idle)) if idle else 0


def _chunks(calls: Mapping[Any, Call]) -> Iterator[dict[Any, Call]]:
  chunk, size = {}, 0
  for key, call in calls.items():
    if chunk and size + call.bytes > _CHUNK_BYTES:
      yield chunk
      chunk, size = {}, 0
    chunk[key] = call
    size += call.bytes
  if chunk:
    yield chunk


def _filled(shape: tuple[int, ...], dtype: Any) -> jax.Array:
  """An array of small numbers; time does not depend on which, but it may on all being alike."""
  pattern = np.random.default_rng(0).normal(size=4099)
  return jax.device_put(np.resize(pattern, shape).astype(dtype))
