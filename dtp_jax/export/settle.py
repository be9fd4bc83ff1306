"""The most general program of a slim network that jax can export and that agrees with it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.export

from dtp_jax.export.checks import ExportError, Network, Reference
from dtp_jax.export.signature import Signature, taken
from dtp_jax.export.stablehlo import stablehlo
from dtp_jax.graph import Slim
from dtp_jax.trees import flatten, nested

__all__ = ['Settled', 'settle']


class Settled(NamedTuple):
  """A program and what it is held to.

  Attributes:
    signature: of its inputs.
    program: StableHLO.
    references: at two batch sizes, at one where it takes that alone.
    note: what it cannot do and why; '' where it takes any batch as it comes.
  """

  signature: Signature
  program: bytes
  references: list[Reference]
  note: str


def settle(
  slim: Slim,
  network: Network,
  inputs: tuple[Any, ...],
  kwargs: Mapping[str, Any],
  tolerance: float | None,
) -> Settled:
  """Tries a batch of any size, then every example by itself, then the batch of the inputs.

  Args:
    slim: the network.
    network: what its programs are held to.
    inputs: example inputs.
    kwargs: keyword arguments of both.
    tolerance: see `dtp_jax.export.save_slim`.

  Raises:
    ExportError: the function does not run on its inputs, or jax cannot export it.
    TypeError: see `Signature.attempts`.
  """
  attempts = Signature.attempts(inputs)
  given = network.run(attempts[-1])
  others: dict[frozenset[str], Reference | ExportError] = {}
  refused: list[str] = []
  for signature in attempts:
    try:
      references = [given, *_other(network, signature, others)]
      program = stablehlo(slim, signature, kwargs)
      if signature.each:  # of a function that mixes its examples it is another function
        _check(program, slim, signature, references, tolerance)
      return Settled(signature, program, references, _note(signature, refused))
    except ExportError as error:
      if signature is attempts[-1]:
        raise
      refused.append(str(error))
  raise AssertionError('the last attempt returns or raises')


def _other(
  network: Network,
  signature: Signature,
  known: dict[frozenset[str], Reference | ExportError],
) -> list[Reference]:
  """The network at another batch size, where the program takes any."""
  names = signature.batched
  if not names:
    return []
  if names not in known:
    try:
      known[names] = network.run(signature, 2 if signature.batch == 1 else 1)
    except ExportError as error:
      known[names] = error
  found = known[names]
  if isinstance(found, ExportError):
    raise found
  return [found]


def _check(
  program: bytes,
  slim: Slim,
  signature: Signature,
  references: list[Reference],
  tolerance: float | None,
) -> None:
  """Raises ExportError where a program is not the network it is held to."""
  call = jax.export.deserialize(bytearray(program)).call
  variables = nested(flatten(slim.variables)[0])
  run = lambda *inputs: call(variables, *taken(inputs, signature.fixed))
  for reference in references:
    reference.check('program of single examples', run, tolerance)


def _note(signature: Signature, refused: list[str]) -> str:
  if signature.batch is None:
    return 'No input has an axis for a batch: the program takes arrays of the given shapes alone.'
  if not refused:
    return ''
  if signature.each:
    what = 'The program runs its examples one at a time, under vmap. With a batch of unknown size'
  elif signature.batched:
    what = 'The program has the batch in one input alone. With one in others as long'
  else:
    what = f'The program takes batches of {signature.batch} alone. With any other'
  return f'{what}, {refused[0]}'
