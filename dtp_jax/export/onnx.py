"""ONNX through jax2onnx, which the main environment need not have."""

import contextlib
import importlib.util
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.extend.core import jaxpr_as_fun

from dtp_jax.export.checks import ExportError, reason
from dtp_jax.export.onnx_pools import pool_in_space
from dtp_jax.export.signature import Signature, taken
from dtp_jax.graph import Slim

__all__ = ['check_installed', 'runner', 'write_onnx']

_JAX2ONNX = '0.17.1'


def check_installed() -> None:
  """Raises ImportError, with the commands to run, where ONNX export is not installed."""
  for module in ('onnx', 'onnx_ir', 'onnxruntime', 'jax2onnx'):
    if importlib.util.find_spec(module) is None:
      raise ImportError(
        f'ONNX export needs {module}, which is not installed:\n'
        "  pip install 'dtp-jax[onnx]'\n"
        f'  pip install --no-deps jax2onnx=={_JAX2ONNX}\n'
        'Mind --no-deps: jax2onnx asks for an orbax-checkpoint older than training needs.'
      )


def write_onnx(
  path: pathlib.Path, slim: Slim, signature: Signature, kwargs: Mapping[str, Any]
) -> None:
  """Writes the slim network as ONNX, variables inside, through jax2onnx.

  Inputs are named by `Signature.names` and outputs 'output_0' and on; random keys are their data.

  Raises:
    ExportError: jax2onnx cannot convert the function; with its reason.
    ImportError: see `check_installed`.
  """
  check_installed()
  import jax2onnx  # pyright: ignore[reportMissingImports]

  leaves, treedef = jax.tree.flatten(signature.structs)
  program = signature.program(lambda *inputs: slim.apply(slim.variables, *inputs, **kwargs))

  def run(*leaves: Any) -> Any:
    return program(*jax.tree.unflatten(treedef, leaves))

  try:
    # Traced here: jax2onnx patches Flax while it traces, and would show the graph operators of its
    # own in place of the primitives that its rules know.
    traced = jax.make_jaxpr(run)(*leaves)
    model = jax2onnx.to_onnx(
      jaxpr_as_fun(traced),
      inputs=leaves,
      model_name='slim',
      input_names=signature.names,
      output_names=[f'output_{i}' for i in range(len(traced.out_avals))],
    )
    pool_in_space(model)
    path.write_bytes(model.SerializeToString())
  except Exception as error:  # of any type: it has no base class of its own
    raise ExportError(
      'jax2onnx could not convert the slim network; export it without onnx, or change what it '
      f'names: {type(error).__name__}: {error}'
    ) from error


def runner(path: pathlib.Path, signature: Signature) -> Callable[..., list[np.ndarray]]:
  """The model in a file as a function of inputs, run by onnxruntime on the CPU.

  Raises:
    ExportError: onnxruntime cannot load it, or later run it; with its reason.
  """
  import onnxruntime  # pyright: ignore[reportMissingImports]

  options = onnxruntime.SessionOptions()
  options.log_severity_level = 4  # it raises what is fatal; a warning is a line for every constant
  # Of the cores that this process may use: by itself it makes a thread for each of the machine's,
  # and on fewer cores they wait for each other.
  if hasattr(os, 'sched_getaffinity'):
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
  fixed = signature.fixed
  with _told():
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])

  def run(*inputs: Any) -> list[np.ndarray]:
    given = jax.tree.leaves(taken(inputs, fixed))
    with _told():
      return session.run(None, dict(zip(signature.names, given, strict=True)))

  return run


@contextlib.contextmanager
def _told() -> Iterator[None]:
  """Errors of onnxruntime as ours."""
  try:
    yield
  except Exception as error:  # of any type: they have no base class of their own
    raise ExportError(f'onnxruntime cannot run the ONNX model: {reason(error)}') from error
