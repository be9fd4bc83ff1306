"""StableHLO: the slim network as a program that needs no code of the model."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.export

from dtp_jax.export.checks import ExportError, reason
from dtp_jax.export.signature import Signature
from dtp_jax.graph import Slim
from dtp_jax.trees import flat, flatten, nested

__all__ = ['PLATFORMS', 'stablehlo']

PLATFORMS = ('cpu', 'cuda', 'tpu')


def stablehlo(slim: Slim, signature: Signature, kwargs: Mapping[str, Any]) -> bytes:
  """The slim network as StableHLO, for CPU, CUDA and TPU at once.

  The program takes (variables, *inputs): the variables are arguments, as nested dicts by name, so
  they are stored once and can be exchanged for others of the same shapes. It has no derivatives:
  `SavedSlim.restore` is there for training.

  Args:
    slim: the network.
    signature: of its inputs.
    kwargs: keyword arguments, fixed in the program.

  Returns:
    What `jax.export.deserialize` reads.

  Raises:
    ExportError: jax cannot export the function with this signature; with its reason.
  """
  arrays, rebuild = flatten(slim.variables)
  structs = {name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in arrays.items()}

  def run(variables: Mapping[str, Any], *given: Any) -> Any:
    inside = rebuild(flat(variables))
    return signature.program(lambda *inputs: slim.apply(inside, *inputs, **kwargs))(*given)

  try:
    exported = jax.export.export(jax.jit(run), platforms=PLATFORMS)(
      nested(structs), *signature.structs
    )
    return bytes(exported.serialize())
  except Exception as error:  # of any type: what stops it comes from the model or from jax
    raise ExportError(f'jax.export refused the function: {reason(error)}') from error
