"""Methods by name: one line makes a function a method of configs, sweeps and docs.

A method is a function (elements, budget, *, steps, **options) -> Pruner. `steps` is the length of
the soft stage; a function without that parameter chooses its elements at once and has none.
"""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from dtp_jax.budget import Budget
from dtp_jax.graph import Graph
from dtp_jax.methods.pruner import Pruner
from dtp_jax.prunable import Prunable

__all__ = ['METHODS', 'build', 'one_shot', 'options_of', 'register']

Method = TypeVar('Method', bound=Callable[..., Pruner])

METHODS: dict[str, Callable[..., Pruner]] = {}


def register(method: Method) -> Method:
  """Adds a method under its function's name; a decorator.

  >>> @register  # doctest: +SKIP
  ... def by_index(elements, budget): ...

  Args:
    method: (elements, budget, *, [steps,] **options) -> Pruner.

  Returns:
    The method itself.

  Raises:
    ValueError: another function has that name.
    TypeError: no function.
  """
  if not hasattr(method, '__name__'):
    raise TypeError(f'the method is {method!r}; expected a function of (elements, budget).')
  name = method.__name__
  known = METHODS.setdefault(name, method)
  # A module that is imported twice (a script as __main__ and by name) registers the same method.
  if inspect.getsourcefile(known) != inspect.getsourcefile(method):
    raise ValueError(f'there is a method {name!r} already, of {known.__module__}; rename yours.')
  METHODS[name] = method
  return method


def build(
  name: str, elements: Graph | Prunable, budget: Budget, *, steps: int, **options: Any
) -> Pruner:
  """The pruner of a method by name.

  Args:
    name: of a registered method.
    elements: what may be pruned; a graph stands for all of its channels.
    budget: how much to keep.
    steps: length of the soft stage, >= 1; methods that choose at once do not look at it.
    **options: of the method.

  Returns:
    A Pruner.

  Raises:
    ValueError: an unknown name or option, or whatever the method refuses.
  """
  method, known = _method(name), options_of(name)
  unknown = sorted(set(options) - set(known))
  if unknown and not _takes_any(method):
    raise ValueError(f'{name} has no option {unknown[0]!r}; expected some of {sorted(known)}.')
  if not one_shot(name):
    options['steps'] = steps
  return method(elements, budget, **options)


def one_shot(name: str) -> bool:
  """Whether a method chooses its elements at once, without a soft stage.

  Raises:
    ValueError: an unknown name.
  """
  return 'steps' not in inspect.signature(_method(name)).parameters


def options_of(name: str) -> dict[str, Any]:
  """The options of a method with their defaults.

  Raises:
    ValueError: an unknown name.
  """
  parameters = inspect.signature(_method(name)).parameters.values()
  return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != 'steps'}


def _takes_any(method: Callable[..., Pruner]) -> bool:
  """Whether a method checks the names of its options itself."""
  return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(method).parameters.values())


def _method(name: str) -> Callable[..., Pruner]:
  if name not in METHODS:
    raise ValueError(f'method is {name!r}; expected one of {sorted(METHODS)}, or a registered one.')
  return METHODS[name]
