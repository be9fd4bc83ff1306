"""What an export is held to: the masked network, at several batch sizes, in figures."""

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dtp_jax.graph import Graph, Slim
from dtp_jax.trees import flatten

__all__ = ['Agreement', 'ExportError', 'Reference', 'agreement', 'default_tolerance', 'on_cpu']


class ExportError(RuntimeError):
  """What was exported is not the masked network, or could not be exported."""


class Agreement(NamedTuple):
  """How far a result is from the expected one, at the output where it is farthest.

  Attributes:
    difference: largest absolute difference.
    scale: largest absolute value expected there.
  """

  difference: float
  scale: float

  @property
  def relative(self) -> float:
    """Difference over scale; infinite where a difference is not finite or the scale is 0."""
    if self.difference == 0:
      return 0.0
    return self.difference / self.scale if self.scale > 0 else float('inf')


class Reference(NamedTuple):
  """Inputs of one batch size and the outputs for them that a program must have as well.

  Attributes:
    network: whose outputs they are, in words.
    batch: the batch size.
    inputs: a tuple of trees of arrays.
    outputs: the arrays of the result.
  """

  network: str
  batch: int
  inputs: Any
  outputs: list[np.ndarray]

  @classmethod
  def of_masked(
    cls,
    graph: Graph,
    variables: Any,
    masks: Mapping[str, np.ndarray],
    batches: Mapping[int, Any],
    kwargs: Mapping[str, Any],
  ) -> 'list[Reference]':
    """Runs the original function on masked variables, on the CPU, in the variables' own types.

    Args:
      graph: the dense network.
      variables: its variables.
      masks: {group: (n,) mask of 0 and 1}.
      batches: {batch size: inputs of that size}.
      kwargs: keyword arguments of the function.

    Returns:
      One reference for each batch size.

    Raises:
      ExportError: the function fails at one of them.
    """
    arrays, rebuild = flatten(variables)

    @jax.jit
    def masked(arrays: Mapping[str, Any], inputs: Any) -> Any:
      return graph.fn(graph.apply_masks(rebuild(arrays), given), *inputs, **kwargs)

    given = {name: jnp.asarray(mask, jnp.float32) for name, mask in masks.items()}
    host = {name: np.asarray(array) for name, array in arrays.items()}
    return cls._of('masked network', functools.partial(masked, host), batches)

  @classmethod
  def of_slim(
    cls, slim: Slim, batches: Mapping[int, Any], kwargs: Mapping[str, Any]
  ) -> 'list[Reference]':
    """Runs a slim network with refitted norms, which is not the masked one, as `of_masked` does.

    Raises:
      ExportError: the function fails at a batch size.
    """
    arrays, rebuild = flatten(slim.variables)
    host = rebuild({name: np.asarray(array) for name, array in arrays.items()})
    return cls._of('slim network', lambda inputs: slim.apply(host, *inputs, **kwargs), batches)

  @classmethod
  def _of(
    cls, network: str, run: Callable[[Any], Any], batches: Mapping[int, Any]
  ) -> 'list[Reference]':
    references = []
    for batch, inputs in batches.items():
      try:
        with on_cpu():
          outputs = [np.asarray(leaf) for leaf in jax.tree.leaves(run(inputs))]
      except (TypeError, ValueError) as error:
        raise ExportError(
          f'the {network} does not run at batch size {batch}; an export must take any: '
          f'{type(error).__name__}: {error}'
        ) from error
      references.append(cls(network, batch, inputs, outputs))
    return references

  def check(self, what: str, run: Callable[..., Any], tolerance: float) -> dict[str, float | int]:
    """Holds one program to the outputs.

    Args:
      what: how the error names the program.
      run: (*inputs) -> outputs, any tree with the leaves of the masked network's.
      tolerance: largest difference over scale that passes.

    Returns:
      Batch, difference and scale, for the manifest.

    Raises:
      ExportError: the figures, where they are over the tolerance.
    """
    with on_cpu():
      results = [np.asarray(leaf) for leaf in jax.tree.leaves(run(*self.inputs))]
    found = agreement(results, self.outputs)
    if not found.relative <= tolerance:
      raise ExportError(
        f'the {what} differs from the {self.network} by {found.difference:.3g} where outputs are '
        f'up to {found.scale:.3g}, at batch size {self.batch}: {found.relative:.3g} relative; '
        f'expected at most {tolerance:.3g}. If the network computes in half precision, give the '
        'rounding that you accept, as in tolerance=0.03; nothing was written.'
      )
    return {'batch': self.batch, 'difference': found.difference, 'scale': found.scale}


def agreement(results: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> Agreement:
  """Compares outputs one by one and returns the worst.

  Raises:
    ExportError: another number of outputs, or another shape or type.
  """
  if [(a.shape, a.dtype) for a in results] != [(b.shape, b.dtype) for b in expected]:
    raise ExportError(
      f'the outputs are {_spelled(results)}; expected {_spelled(expected)}, as of the masked '
      'network; nothing was written.'
    )
  found = [_difference(a, b) for a, b in zip(results, expected, strict=True)]
  return max(found, key=lambda one: one.relative, default=Agreement(0.0, 0.0))


def _difference(a: np.ndarray, b: np.ndarray) -> Agreement:
  if not b.size:
    return Agreement(0.0, 0.0)
  wide = functools.partial(np.asarray, dtype=complex if np.iscomplexobj(b) else float)
  a, b = wide(a), wide(b)
  if not (np.all(np.isfinite(a)) and np.all(np.isfinite(b))):
    return Agreement(float('inf'), float(np.max(np.abs(np.nan_to_num(b)))))
  return Agreement(float(np.max(np.abs(a - b))), float(np.max(np.abs(b))))


def default_tolerance(outputs: Sequence[np.ndarray]) -> float:
  """1e-5 of the scale, or four roundings of the outputs' coarsest float type if that is more."""
  types = [a.dtype for a in outputs if jnp.issubdtype(a.dtype, jnp.inexact)]
  return max([1e-5, *(4 * float(jnp.finfo(t).eps) for t in types)])


def on_cpu() -> contextlib.AbstractContextManager[Any]:
  """A context that runs on the CPU, where float32 means float32, unless this process has none."""
  try:
    return jax.default_device(jax.local_devices(backend='cpu')[0])
  except RuntimeError:
    return contextlib.nullcontext()


def _spelled(arrays: Sequence[np.ndarray]) -> list[str]:
  return [f'{a.dtype}{list(a.shape)}' for a in arrays]
