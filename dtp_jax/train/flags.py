"""Command line of the experiments: absl flags whose errors say what was meant."""

import difflib
import sys

import ml_collections
from absl import flags

__all__ = ['parse_flags']


def parse_flags(argv: list[str]) -> list[str]:
  """Parses absl flags; exits with one line where a config field or a required flag is off.

  Args:
    argv: the command line. Flags `config` and, where it is defined, `workdir` are required.

  Returns:
    What is left of the command line.
  """
  defined = flags.FLAGS
  try:
    rest = defined(argv)
  except AttributeError as error:
    sys.exit(_unknown_field(argv, error))
  except (flags.Error, OSError, ValueError, TypeError) as error:
    sys.exit(f'{error}\nTry --help.')
  for name, hint in {'config': 'configs/mnist_mini.py', 'workdir': 'runs/mnist_mini'}.items():
    if name in defined and defined[name].value is None:
      sys.exit(f'--{name} is missing; give one, as in --{name}={hint}. Try --help.')
  if len(rest) > 1:
    sys.exit(f'{rest[1]!r} is not a flag; fields are set as in --config.seed=1. Try --help.')
  return rest


def _unknown_field(argv, error):
  """A line naming the field of --config.FIELD that does not exist and the nearest that does."""
  config = flags.FLAGS['config'].value
  for arg in argv[1:]:
    field = arg.lstrip('-').split('=')[0].removeprefix('config.')
    known = _fields(config)
    if arg.lstrip('-').startswith('config.') and field not in known:
      close = difflib.get_close_matches(field, known, n=1, cutoff=0.5)
      meant = f'; did you mean --config.{close[0]}?' if close else f'; there are {sorted(known)}.'
      return f'--config.{field} is not a field of the config{meant}'
  return str(error)


def _fields(config, prefix=''):
  if not isinstance(config, ml_collections.ConfigDict):
    return set()
  fields = set()
  for name in config:
    fields |= {prefix + name} | _fields(config.get_oneway_ref(name).get(), f'{prefix}{name}.')
  return fields
