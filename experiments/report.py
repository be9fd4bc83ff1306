"""Reports over many runs, and keeps README.md true to them.

  python -m experiments.report runs/first_table --out=experiments/results/2026-11-23_first_table
  python -m experiments.report runs/text_decoder --out=FOLDER --timed
  python -m experiments.report --check     fails where a committed table differs from its CSV
  python -m experiments.report --write     writes those tables anew: README.md, every table.md

With --timed, the slim networks of runs that pruned channels are timed first, beside the dense ones,
and the tables have what they predict in a second: images or tokens. Let nothing else run meanwhile.

Every finished run below the folders counts, baselines inside a run included. Written are runs.csv
(a line each run, and all the rest is made from it), table.md, index.html (one file, figures in it)
and the figures as PNG. The published figures of experiments/published.csv stand beside ours.

A README table stands between <!-- table: FOLDER --> and <!-- end -->; FOLDER data=mnist_mini
granularity=weights (and model=, unit=, keep=) shows a part of it.
"""

import pathlib
import re
import sys

from absl import app, flags

from dtp_jax.export import throughput
from dtp_jax.files import check_folder, write_bytes, write_text
from dtp_jax.report import page, plots
from dtp_jax.report.compare import cells_of, select, studies_of, that_match
from dtp_jax.report.rows import Row, collect, read_csv, read_published, write_csv
from dtp_jax.report.tables import markdown

flags.DEFINE_string('out', None, 'Folder for runs.csv, table.md, index.html and the figures.')
flags.DEFINE_string('title', None, 'Title of the page; default: the name of the folder.')
flags.DEFINE_bool('timed', False, 'Time the slim networks of the runs first.')
flags.DEFINE_bool('check', False, 'Compare README.md and every table.md with their CSV.')
flags.DEFINE_bool('write', False, 'Write their tables from their CSV.')
FLAGS = flags.FLAGS

README = pathlib.Path('README.md')
RESULTS = pathlib.Path('experiments/results')
PUBLISHED = pathlib.Path(__file__).with_name('published.csv')
_TABLE = re.compile(r'(<!-- table: (\S+)((?: \w+=\S+)*) -->\n)(.*?)(<!-- end -->)', re.S)


def readme_with_tables(text: str) -> str:
  """README text with every table made anew from its CSV.

  Raises:
    ValueError: a table that asks for runs which its CSV does not hold.
  """

  def fill(found):
    rows = read_csv(pathlib.Path(found[2]) / 'runs.csv')
    wanted = dict(word.split('=', 1) for word in found[3].split())
    return found[1] + markdown(select(rows, **wanted) if wanted else rows) + found[5]

  return _TABLE.sub(fill, text)


def differing() -> dict[pathlib.Path, str]:
  """README.md and the table.md under RESULTS that differ from their CSV, with the true text.

  Raises:
    ValueError: see `readme_with_tables`; or a CSV that is not one of ours.
  """
  true = {README: readme_with_tables(README.read_text())}
  for csv in sorted(RESULTS.glob('*/runs.csv')):
    true[csv.with_name('table.md')] = markdown(read_csv(csv))
  return {p: text for p, text in true.items() if not p.exists() or p.read_text() != text}


def write_folder(folder: pathlib.Path, title: str, rows: list[Row], unfinished: list[str]) -> None:
  """Writes the whole report; everything is made before anything is written.

  Raises:
    ImportError: matplotlib or jinja2 is missing (extra `demo`).
  """
  table, published = markdown(rows), read_published(PUBLISHED)
  studies = studies_of(cells_of(rows))
  figures = {
    i: plots.png(plots.accuracy_against_kept(study, that_match(published, study[0])))
    for i, study in enumerate(studies)
    if study[0].granularity
  }
  html = page.render(title, rows, studies, figures, published, unfinished)
  folder.mkdir(parents=True, exist_ok=True)
  write_csv(folder / 'runs.csv', rows)
  files = {figure_name(studies[i][0]): content for i, content in figures.items()}
  files |= {'table.md': table.encode(), 'index.html': html.encode()}
  for name, content in files.items():
    write_bytes(folder / name, content)


def figure_name(cell) -> str:
  """The file of a study's figure, as in 'mnist_mini_lenet_weights_count.png'."""
  parts = (cell.data, cell.model, cell.granularity, cell.unit)
  return re.sub(r'[^\w]+', '_', '_'.join(parts)).strip('_') + '.png'


def main(argv: list[str]) -> None:
  """Collects, checks or writes."""
  try:
    if FLAGS.check or FLAGS.write:
      if (FLAGS.check and FLAGS.write) or FLAGS.out or FLAGS.timed or len(argv) > 1:
        sys.exit('Give --check or --write alone: neither takes run folders or --out. Try --help.')
      true = differing()
      if FLAGS.write:
        for path, text in true.items():
          write_text(path, text)
      elif true:
        names = ', '.join(map(str, true))
        sys.exit(f'Differs from its CSV: {names}; run python -m experiments.report --write.')
      return
    if not FLAGS.out or len(argv) < 2:
      sys.exit('Give run folders and --out=FOLDER, or --check, or --write. Try --help.')
    folder = pathlib.Path(FLAGS.out)
    check_folder(folder, '--out')
    if FLAGS.timed:
      throughput.measure(argv[1:])
    rows, unfinished = collect(argv[1:])
    write_folder(folder, FLAGS.title or folder.resolve().name, rows, unfinished)
  except (ValueError, OSError) as error:
    sys.exit(f'{type(error).__name__}: {error}')
  except ImportError as error:
    sys.exit(f"{error}; the report over many runs needs pip install 'dtp-jax[demo]'.")
  if unfinished:
    print(f'Not finished and left out: {", ".join(unfinished)}', file=sys.stderr)
  print((folder / 'table.md').read_text())
  print(f'Report: {folder / "index.html"}')


if __name__ == '__main__':
  app.run(main)
