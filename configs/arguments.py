"""What stands behind the colon of --config=FILE.py:ARGUMENTS: granularity=weights,runlocal."""

from types import SimpleNamespace
from typing import Any

__all__ = ['parse']


def parse(arguments: str, **spec: Any) -> SimpleNamespace:
  """Reads config arguments by a spec that rejects what it does not know.

  Args:
    arguments: 'name=value' pairs with commas in between; a name alone is name=True.
    **spec: the default of each name, which gives its type; a tuple of strings is a choice whose
      first is the default. `runlocal` is known to every config.

  Returns:
    The values as attributes.

  Raises:
    ValueError: an unknown name, a name twice, or a value that does not parse or is not a choice.
  """
  spec = {'runlocal': False, **spec}
  given: dict[str, str] = {}
  for part in filter(None, arguments.split(',')):
    name, _, text = part.partition('=')
    if name not in spec:
      raise ValueError(f'config argument {name!r} is unknown; expected {sorted(spec)}.')
    if name in given:
      raise ValueError(f'config argument {name!r} is given twice in {arguments!r}.')
    given[name] = text if '=' in part else 'true'
  return SimpleNamespace(
    **{name: _value(name, given.get(name), default) for name, default in spec.items()}
  )


def _value(name, text, default):
  choices = default if isinstance(default, tuple) else None
  if isinstance(default, bool):
    choices = ('true', 'false')
  if text is None:
    return default[0] if isinstance(default, tuple) else default
  if choices is not None:
    if text not in choices:
      raise ValueError(f'config argument {name}={text!r}; expected one of {choices}.')
    return text == 'true' if isinstance(default, bool) else text
  try:
    return type(default)(text)
  except ValueError:
    expected = type(default).__name__
    raise ValueError(f'config argument {name}={text!r}; expected a {expected}.') from None
