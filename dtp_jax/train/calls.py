"""Several training steps in one call: for devices that are done before the host calls again.

The steps of a call are a scan. What differs from step to step is stacked; what every step is given
alike, such as a data set that lies on the device, is passed once.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

__all__ = ['plan', 'share', 'take']


def plan(begin: int, end: int, per_call: int, stops: Collection[int]) -> Iterator[tuple[int, int]]:
  """How steps are put together to calls, of `per_call` steps or of one: two programs in all.

  Args:
    begin: the first step.
    end: the step after the last.
    per_call: >= 1.
    stops: steps that the host wants to see the state before; none lies inside of a call.

  Yields:
    (first step, number of steps).
  """
  step = begin
  while step < end:
    whole = step + per_call <= end and not any(step < stop < step + per_call for stop in stops)
    count = per_call if whole else 1
    yield step, count
    step += count


def share(
  arguments: Sequence[tuple[Any, ...]],
) -> tuple[dict[int, Any], list[dict[int, Any]]]:
  """Arguments of several steps, by their place: those that are one object in all, and the others.

  Outside of the jitted function, which would not see that they are one.
  """
  columns = list(zip(*arguments, strict=True))
  alike = {i for i, column in enumerate(columns) if all(x is column[0] for x in column)}
  fixed = {i: columns[i][0] for i in sorted(alike)}
  return fixed, [{i: x for i, x in enumerate(row) if i not in alike} for row in arguments]


def take(
  step: Callable[..., tuple[Any, Any]],
  state: Any,
  fixed: dict[int, Any],
  moving: Sequence[dict[int, Any]],
) -> tuple[Any, Any]:
  """Takes a step for each of `moving`; inside of a jitted function.

  Args:
    step: (state, *arguments) -> (state, metrics).
    state: before the first.
    fixed: of `share`.
    moving: of `share`, >= 1.

  Returns:
    The state after the last, and the metrics of all, stacked.
  """

  def body(state: Any, row: dict[int, Any]) -> tuple[Any, Any]:
    given = {**fixed, **row}
    return step(state, *(given[i] for i in sorted(given)))

  if len(moving) == 1:  # no loop, in which some backends run slower
    state, metrics = body(state, moving[0])
    return state, jax.tree.map(lambda x: x[None], metrics)
  return jax.lax.scan(body, state, jax.tree.map(lambda *rows: jnp.stack(rows), *moving))
