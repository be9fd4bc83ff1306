"""What every benchmark shares: interleaved timing, the rows of its table, and their CSV.

A ratio is one of medians taken in the same interleaved run, so that a busy machine slows both.
"""

import csv
import io
import os
import pathlib
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
from absl import flags

from dtp_jax.budget.device import device_name
from dtp_jax.budget.latency.timing import Timing, interleaved
from dtp_jax.files import check_file, write_text
from dtp_jax.train.flags import checked

__all__ = ['Row', 'define_out', 'interleaved', 'rows', 'table', 'where', 'write_csv', 'write_rows']

_VERSIONS = ('jax', 'jaxlib', 'flax', 'optax', 'dtp-jax')

Row = dict[str, Any]


def define_out(default: str | None, what: str = 'CSV file of the table.') -> None:
  """The flag `out`: a file whose path is tried before anything is timed."""
  flags.DEFINE_string('out', default, what)
  checked('out', lambda path: check_file(path, '--out'))


def where() -> Row:
  """Columns that say where a figure was taken: device, load of the machine and versions."""
  return {
    'device': device_name(),
    'platform': jax.default_backend(),
    'cores': len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count(),
    'load': round(os.getloadavg()[0], 1),
    'xla_flags': os.environ.get('XLA_FLAGS', ''),
    'python': platform.python_version(),
    **{name: metadata.version(name) for name in _VERSIONS},
  }


def rows(
  case: Mapping[str, Any], timings: Mapping[str, Timing], peer: str, repeats: int
) -> list[Row]:
  """One row for each function of an interleaved run.

  Args:
    case: columns that say what was timed, such as {'n': 1000000}.
    timings: from `interleaved`, in milliseconds.
    peer: the function that the others are compared with.
    repeats: timed calls of each.

  Returns:
    Rows {**case, name, median_ms, lower_ms, upper_ms, repeats, peer, ratio}.
  """
  return [
    {
      **case,
      'name': name,
      'median_ms': round(timing.median, 4),
      'lower_ms': round(timing.lower, 4),
      'upper_ms': round(timing.upper, 4),
      'repeats': repeats,
      'peer': peer,
      'ratio': round(timing.median / timings[peer].median, 3),
    }
    for name, timing in timings.items()
  ]


def table(found: Sequence[Row]) -> str:
  """Rows as aligned text; rows may differ in their columns."""
  columns = list(dict.fromkeys(name for row in found for name in row))
  cells = [columns, *([_text(row.get(name, '')) for name in columns] for row in found)]
  widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
  return '\n'.join(
    '  '.join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells
  )


def write_csv(path: str | pathlib.Path, found: Sequence[Row]) -> None:
  """Writes rows with the columns of `where`; makes the folder."""
  place = where()
  write_rows(path, [{**row, **place} for row in found])


def write_rows(path: str | pathlib.Path, found: Sequence[Row]) -> None:
  """Writes rows as they are; makes the folder."""
  text = io.StringIO()
  columns = list(dict.fromkeys(name for row in found for name in row))
  writer = csv.DictWriter(text, columns, restval='', lineterminator='\n')
  writer.writeheader()
  writer.writerows(found)
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  write_text(path, text.getvalue())


def _text(value: Any) -> str:
  return f'{value:,}' if isinstance(value, int) and not isinstance(value, bool) else str(value)
