"""What an export is held to: the masked network, at several batch sizes, in figures."""

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dtp_jax.export.signature import Signature, taken
from dtp_jax.graph import Graph, Slim
from dtp_jax.trees import flatten

__all__ = [
  'Agreement',
  'ExportError',
  'Network',
  'Reference',
  'agreement',
  'default_tolerance',
  'on_cpu',
  'reason',
]


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


class Network(NamedTuple):
  """A network that programs are held to.

  Attributes:
    name: in words.
    apply: (variables by name, *inputs) -> result.
    arrays: its variables by name, on the host.
  """

  name: str
  apply: Callable[..., Any]
  arrays: Mapping[str, np.ndarray]

  @classmethod
  def masked(
    cls,
    graph: Graph,
    variables: Any,
    masks: Mapping[str, np.ndarray],
    kwargs: Mapping[str, Any],
  ) -> 'Network':
    """The original function on masked variables.

    Args:
      graph: the dense network.
      variables: its variables.
      masks: {group: (n,) mask of 0 and 1}.
      kwargs: keyword arguments of the function.
    """
    arrays, rebuild = flatten(variables)
    given = {name: jnp.asarray(mask, jnp.float32) for name, mask in masks.items()}

    def apply(arrays: Mapping[str, Any], *inputs: Any) -> Any:
      return graph.fn(graph.apply_masks(rebuild(arrays), given), *inputs, **kwargs)

    return cls('masked network', apply, _host(arrays))

  @classmethod
  def slim(cls, slim: Slim, kwargs: Mapping[str, Any]) -> 'Network':
    """A slim network, for the norms of which may be refitted: then it is not the masked one."""
    arrays, rebuild = flatten(slim.variables)
    apply = lambda arrays, *inputs: slim.apply(rebuild(arrays), *inputs, **kwargs)
    return cls('slim network', apply, _host(arrays))

  def run(self, signature: Signature, batch: int | None = None) -> 'Reference':
    """Runs it on the CPU, in the types of its variables.

    Args:
      signature: holds the inputs.
      batch: size that they are brought to; default: as they are.

    Raises:
      ExportError: it does not run so.
    """
    inputs = signature.inputs if batch is None else signature.resized(batch)
    size = signature.batch if batch is None else batch
    run = lambda arrays, *given: signature.plainly(functools.partial(self.apply, arrays))(*given)
    try:
      with on_cpu():
        outputs = jax.jit(run)(self.arrays, *taken(inputs, signature.fixed))
        outputs = [np.asarray(leaf) for leaf in jax.tree.leaves(outputs)]
    except Exception as error:  # of any type: it comes from the function
      raise ExportError(f'the {self.name} does not run {_where(size)}: {reason(error)}') from error
    return Reference(self.name, size, inputs, outputs)


class Reference(NamedTuple):
  """Inputs of one batch size and the outputs for them that a program must have as well.

  Attributes:
    network: whose outputs they are, in words.
    batch: the batch size; None where there is no batch.
    inputs: a tuple of trees, as the function takes them.
    outputs: the arrays of the result.
  """

  network: str
  batch: int | None
  inputs: tuple[Any, ...]
  outputs: list[np.ndarray]

  def check(
    self, what: str, run: Callable[..., Any], tolerance: float | None = None
  ) -> dict[str, Any]:
    """Holds one program to the outputs.

    Args:
      what: how the error names the program.
      run: (*inputs) -> outputs, any tree with the leaves of the masked network's.
      tolerance: largest difference over scale that passes; default: `default_tolerance`.

    Returns:
      Batch, difference and scale, for the manifest.

    Raises:
      ExportError: the figures, where they are over the tolerance.
    """
    with on_cpu():
      results = [np.asarray(leaf) for leaf in jax.tree.leaves(run(*self.inputs))]
    found = agreement(results, self.outputs)
    tolerance = default_tolerance(self.outputs) if tolerance is None else tolerance
    bad = [
      n for n, a in ((self.network, self.outputs), (what, results)) if not all(map(_finite, a))
    ]
    if bad:
      raise ExportError(
        f'the {bad[0]} has outputs that are NaN or infinite, {_where(self.batch)}; expected finite '
        'ones: look for NaN in the variables and the inputs. Nothing was written.'
      )
    if not found.relative <= tolerance:
      raise ExportError(
        f'the {what} differs from the {self.network} by {found.difference:.3g} where outputs are '
        f'up to {found.scale:.3g}, {_where(self.batch)}: {found.relative:.3g} relative; '
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
  if not (_finite(a) and _finite(b)):
    return Agreement(float('inf'), float(np.max(np.abs(np.nan_to_num(b)))))
  return Agreement(float(np.max(np.abs(a - b))), float(np.max(np.abs(b))))


def _finite(array: np.ndarray) -> bool:
  return bool(np.all(np.isfinite(array)))


def default_tolerance(outputs: Sequence[np.ndarray]) -> float:
  """1e-5 of the scale, or four roundings of the outputs' coarsest float type if that is more."""
  types = [a.dtype for a in outputs if jnp.issubdtype(a.dtype, jnp.inexact)]
  return max([1e-5, *(4 * float(jnp.finfo(t).eps) for t in types)])


def reason(error: BaseException) -> str:
  """What went wrong, in one line: the type of an error and its first line."""
  lines = str(error).strip().splitlines() or ['']
  return f'{type(error).__name__}: {lines[0]}'


def on_cpu() -> contextlib.AbstractContextManager[Any]:
  """A context that runs on the CPU, where float32 means float32, unless this process has none."""
  try:
    return jax.default_device(jax.local_devices(backend='cpu')[0])
  except RuntimeError:
    return contextlib.nullcontext()


def _host(arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
  return {name: np.asarray(array) for name, array in arrays.items()}


def _where(batch: int | None) -> str:
  return 'on the inputs given' if batch is None else f'at batch size {batch}'


def _spelled(arrays: Sequence[np.ndarray]) -> list[str]:
  return [f'{a.dtype}{list(a.shape)}' for a in arrays]
