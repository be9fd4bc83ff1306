"""Measured time of functions on the present device."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

__all__ = ['Timing', 'interleaved']


class Timing(NamedTuple):
  """Milliseconds of one call: median and quartiles over the repeats."""

  median: float
  lower: float
  upper: float


def interleaved(
  functions: Mapping[str, Callable[[], Any]], *, repeats: int = 30, warmup: int = 3
) -> dict[str, Timing]:
  """Times functions in turn, so that a noisy machine disturbs all of them alike.

  Args:
    functions: {name: function without arguments}; results are waited for.
    repeats: timed calls of each, >= 2.
    warmup: calls of each before that, for compilation and caches.

  Returns:
    {name: Timing}. Compare them with each other; absolute figures change with the machine's load.
  """
  for function in functions.values():
    for _ in range(warmup):
      jax.block_until_ready(function())
  taken: dict[str, list[float]] = {name: [] for name in functions}
  for _ in range(repeats):
    for name, function in functions.items():
      begin = time.perf_counter()
      jax.block_until_ready(function())
      taken[name].append(1e3 * (time.perf_counter() - begin))

  def timing(values: list[float]) -> Timing:
    lower, median, upper = statistics.quantiles(values, n=4)
    return Timing(median, lower, upper)

  return {name: timing(values) for name, values in taken.items()}
