"""Collects finished runs into a CSV and a Markdown table, and keeps README.md true to it.

  python -m experiments.report runs/a runs/b --out=experiments/results/2026-11-23_mnist_mini
  python -m experiments.report --check     fails where a README table differs from its CSV
  python -m experiments.report --write     writes the README tables anew

A README table stands between <!-- table: FOLDER --> and <!-- end -->. Each run folder counts with
its baselines; runs of one method with different seeds make one row, mean and standard deviation.
"""

import csv
import hashlib
import json
import pathlib
import re
import statistics
import sys
from typing import Any

from absl import app, flags

from dtp_jax.report import load_summaries
from dtp_jax.report.style import label
from dtp_jax.train.folder import read_json

flags.DEFINE_string('out', None, 'Folder for runs.csv and table.md.')
flags.DEFINE_bool('check', False, 'Compare the tables of README.md with their CSV.')
flags.DEFINE_bool('write', False, 'Write the tables of README.md from their CSV.')
FLAGS = flags.FLAGS

README = pathlib.Path('README.md')
_TABLE = re.compile(r'(<!-- table: (\S+) -->\n)(.*?)(<!-- end -->)', re.S)
_COLUMNS: tuple[str, ...] = (
  'row', 'method', 'seed', 'accuracy', 'dense_accuracy', 'requested', 'achieved', 'total', 'unit',
  'parameters', 'parameters_left', 'seconds', 'data', 'model', 'config', 'device', 'python', 'jax',
)  # fmt: skip


def rows_of(workdir: pathlib.Path) -> list[dict[str, Any]]:
  """One row a run: the main run of a folder and its baselines.

  Raises:
    FileNotFoundError: the run has not finished.
  """
  config, environment = read_json(workdir / 'config.json'), read_json(workdir / 'environment.json')
  digest = hashlib.sha256(json.dumps({**config, 'seed': None}, sort_keys=True).encode()).hexdigest()
  about = {
    'data': config['data']['name'],
    'model': config['model']['name'],
    'config': digest[:8],
    'device': f'{environment["device"]} ({environment["cpus"]} CPUs)',
    'python': environment['python'],
    'jax': environment['versions']['jax'],
  }
  rows = [{**summary, **about} for summary in load_summaries(workdir)]
  return [{name: row[name] for name in _COLUMNS} for row in rows]


def table_of(rows: list[dict[str, Any]]) -> str:
  """The Markdown table of CSV rows, dense first, mean and standard deviation over the seeds."""
  lines = [
    '| run | seeds | test accuracy, % | kept | parameters left | seconds |',
    '|---|--:|--:|--:|--:|--:|',
  ]
  names = list(dict.fromkeys(row['row'] for row in rows))
  for name in sorted(names, key=lambda name: name != 'dense'):
    mine = [row for row in rows if row['row'] == name]
    values = [100 * float(row['accuracy']) for row in mine]
    spread = f' ± {statistics.stdev(values):.2f}' if len(values) > 1 else ''
    kept = _kept(mine)
    seconds = statistics.median(float(row['seconds']) for row in mine)
    lines.append(
      f'| {label(name)} | {len(mine)} | {statistics.mean(values):.2f}{spread} | {kept} | '
      f'{statistics.mean(int(row["parameters_left"]) for row in mine):,.0f} | {seconds:.0f} |'
    )
  return '\n'.join(lines) + '\n'


def _kept(rows):
  """What the runs of a row kept, as a range where learned widths leave different remainders."""
  totals = {(int(row['total']), row['unit']) for row in rows}
  if len(totals) > 1:
    raise ValueError(f'runs of {rows[0]["row"]} have different totals {totals}; report them apart.')
  total, unit = totals.pop()
  unit = {'macs': 'MACs', 'count': 'elements'}.get(unit, unit)
  found = sorted({int(row['achieved']) for row in rows})
  shares = list(dict.fromkeys(f'{100 * k / total:.2f}' for k in (found[0], found[-1])))
  amounts = ' to '.join(f'{k:,}' for k in dict.fromkeys((found[0], found[-1])))
  return f'{amounts} of {total:,} {unit} ({" to ".join(shares)} %)'


def read_rows(folder: pathlib.Path) -> list[dict[str, str]]:
  """The rows of `folder`/runs.csv."""
  with (folder / 'runs.csv').open(newline='') as file:
    return list(csv.DictReader(file))


def readme_with_tables(text: str) -> str:
  """README text with every table made anew from its CSV."""

  def fill(found):
    return found[1] + table_of(read_rows(pathlib.Path(found[2]))) + found[4]

  return _TABLE.sub(fill, text)


def main(argv: list[str]) -> None:
  """Collects, checks or writes."""
  try:
    if FLAGS.check or FLAGS.write:
      text = README.read_text()
      true = readme_with_tables(text)
      if FLAGS.write:
        README.write_text(true)
      elif text != true:
        sys.exit('README.md differs from its CSVs; run python -m experiments.report --write.')
      return
    if not FLAGS.out or len(argv) < 2:
      sys.exit('Give run folders and --out=FOLDER, or --check, or --write. Try --help.')
    rows = [row for workdir in argv[1:] for row in rows_of(pathlib.Path(workdir))]
    table = table_of(rows)
  except (ValueError, FileNotFoundError) as error:
    sys.exit(f'{type(error).__name__}: {error}')
  folder = pathlib.Path(FLAGS.out)
  folder.mkdir(parents=True, exist_ok=True)
  with (folder / 'runs.csv').open('w', newline='') as file:
    writer = csv.DictWriter(file, _COLUMNS, lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
  (folder / 'table.md').write_text(table)
  print(table)


if __name__ == '__main__':
  app.run(main)
