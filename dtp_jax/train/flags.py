"""Command line of the experiments: absl flags whose errors say what was meant."""

import difflib
import itertools
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any

from absl import flags
from ml_collections import ConfigDict
from ml_collections.config_flags import config_flags

__all__ = ['checked', 'names_of', 'numbers', 'parse_flags']


def checked(name: str, check: Callable[[Any], Any]) -> None:
  """Has a flag refused at the start, where `check` of its value raises ValueError or OSError."""

  def valid(value: Any) -> bool:
    try:
      if value is not None:
        check(value)
    except (ValueError, OSError) as error:
      raise flags.ValidationError(str(error)) from error
    return True

  flags.register_validator(name, valid)


def names_of(known: Iterable[str]) -> Callable[[list[str]], None]:
  """A check that a list has names, and only known ones."""
  known = list(dict.fromkeys(known))

  def check(names: list[str]) -> None:
    for name in names:
      if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f'; did you mean {near[0]!r}?' if near else '.'
        raise ValueError(f'{name!r} is not known{hint} There are: {", ".join(known)}')
    if not names:
      raise ValueError(f'it is empty; give some of {", ".join(known)}')

  return check


def numbers(kind: type[int] | type[float], low: float, high: float) -> Callable[[list[str]], None]:
  """A check that a list has numbers, and only such in [low, high]."""
  expected = f'{"integers" if kind is int else "numbers"} in [{low:,}, {high:,}]'

  def check(texts: list[str]) -> None:
    for text in texts:
      try:
        inside = low <= kind(text) <= high
      except ValueError:
        inside = False
      if not inside:
        raise ValueError(f'it has {text!r}; expected {expected}')
    if not texts:
      raise ValueError(f'it is empty; expected {expected}')

  return check


def parse_flags(argv: list[str]) -> list[str]:
  """Parses absl flags; exits with a line where a config field or a required flag is off.

  Args:
    argv: the command line. Flags `config` and, where it is defined, `workdir` are required.

  Returns:
    What is left of the command line.
  """
  defined = flags.FLAGS
  try:
    _check_fields(argv)
    rest = defined(argv)
  except (flags.Error, OSError, ValueError, TypeError, IndexError, SyntaxError) as error:
    sys.exit(f'{error}\nTry --help.')
  for name, hint in {'config': 'configs/mnist_mini.py', 'workdir': 'runs/mnist_mini'}.items():
    if name in defined and defined[name].value in (None, ''):
      sys.exit(f'--{name} is missing; give one, as in --{name}={hint}. Try --help.')
  if len(rest) > 1:
    sys.exit(f'{rest[1]!r} is not a flag; fields are set as in --config.seed=1. Try --help.')
  return rest


def _check_fields(argv: list[str]) -> None:
  """Raises ValueError where a flag sets a field that the config of the command line lacks.

  ml_collections raises a KeyError there, which does not say of which flag.
  """
  config, names = None, []
  for arg, following in itertools.pairwise([*argv[1:], '']):
    name, equals, value = arg.lstrip('-').partition('=')
    if arg.startswith('-') and name == 'config':
      config = _load(value if equals else following)
    elif arg.startswith('-') and name.startswith('config.'):
      names.append(name)
  for name in names if config is not None else ():
    section: Any = config
    for field in name.split('.')[1:]:
      key = field.partition('[')[0]  # one entry of a list can be set
      known = list(section) if isinstance(section, ConfigDict) else []
      if key not in known:
        near = difflib.get_close_matches(key, known, 1)
        hint = f'; did you mean {near[0]!r}?' if near else '.'
        raise ValueError(f'--{name} is not a field of the config{hint}')
      section = section[key]


def _load(path: str) -> ConfigDict:
  """The config of a file, or what went wrong in it."""
  try:
    config: Any = config_flags.ConfigFileFlagParser('config').parse(path)
  except (TypeError, ValueError) as error:
    raise error.__context__ or error from None  # around it is one whose text is the traceback
  except AttributeError as error:  # of a field that the base config has not
    text = str(error.args[0].args[0] if isinstance(error.args[0], KeyError) else error)
    text = re.sub(r' Other fields present: ".*?"\n', ' ', text, flags=re.DOTALL)
    raise ValueError(f'{path} cannot be loaded: {text}') from None
  config.keys()  # a file that could not be loaded raises here
  return config
