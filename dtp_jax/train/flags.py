"""Command line of the experiments: absl flags whose errors say what was meant."""

import re
import sys

from absl import flags

__all__ = ['parse_flags']


def parse_flags(argv: list[str]) -> list[str]:
  """Parses absl flags; exits with a line where a config field or a required flag is off.

  Args:
    argv: the command line. Flags `config` and, where it is defined, `workdir` are required.

  Returns:
    What is left of the command line.
  """
  defined = flags.FLAGS
  try:
    rest = defined(argv)
    if defined['config'].value is not None:
      defined['config'].value.keys()  # a file that could not be loaded raises here
  except (AttributeError, KeyError) as error:
    sys.exit(f'{_unknown_field(argv, str(error))} Try --help.')
  except (flags.Error, OSError, ValueError, TypeError) as error:
    sys.exit(f'{_without_traceback(str(error))}\nTry --help.')
  for name, hint in {'config': 'configs/mnist_mini.py', 'workdir': 'runs/mnist_mini'}.items():
    if name in defined and defined[name].value is None:
      sys.exit(f'--{name} is missing; give one, as in --{name}={hint}. Try --help.')
  if len(rest) > 1:
    sys.exit(f'{rest[1]!r} is not a flag; fields are set as in --config.seed=1. Try --help.')
  return rest


def _unknown_field(argv, error):
  """One line from ml_collections' KeyError text: the flag at fault and the field that is near."""
  missing = re.search(r"'(\w+)", error.replace('\\', ''))
  near = re.search(r'Did you mean "(\w+)"', error)
  fields = [
    arg.lstrip('-').split('=')[0] for arg in argv[1:] if arg.lstrip('-').startswith('config.')
  ]
  at_fault = [field for field in fields if missing and missing[1] in field.split('.')]
  name = f'--{at_fault[0]}' if at_fault else error
  return f'{name} is not a field of the config' + (f'; did you mean {near[1]!r}?' if near else '.')


def _without_traceback(message):
  """ml_collections puts the traceback of a config file into its message: keep the error itself."""
  head, found, trace = message.partition('Traceback (most recent call last):')
  return head.strip() + '\n' + trace.strip().splitlines()[-1] if found else message
