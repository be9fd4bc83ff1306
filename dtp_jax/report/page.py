"""The report over many runs as one HTML file that needs nothing but itself."""

import base64
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from dtp_jax.report import tables
from dtp_jax.report.compare import that_match
from dtp_jax.report.rows import Published, Row
from dtp_jax.report.style import label

__all__ = ['render']

_TEMPLATE = pathlib.Path(__file__).with_name('page.html')


def render(
  title: str,
  rows: Sequence[Row],
  studies: Sequence[tables.Study],
  figures: Mapping[int, bytes],
  published: Sequence[Published],
  unfinished: Sequence[str] = (),
) -> str:
  """The page.

  Args:
    title: of the page.
    rows: every run.
    studies: the same as `dtp_jax.report.compare.studies_of` puts them together.
    figures: PNG of some studies, by their place in `studies`.
    published: figures of others; those of the networks shown are listed.
    unfinished: runs that were begun and have not finished.

  Returns:
    HTML. Everything that comes from a run is escaped.

  Raises:
    ImportError: jinja2 is missing (extra `demo`).
  """
  import jinja2

  environment = jinja2.Environment(
    autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
  )
  parts = [_study(study, figures.get(i), published) for i, study in enumerate(studies)]
  ours = {label(row['row']) for row in rows if row['method'] == 'transportation'}
  return environment.from_string(_TEMPLATE.read_text()).render(
    title=title,
    lead=_lead(rows),
    facts=_facts(rows),
    studies=parts,
    unfinished=list(unfinished),
    ours=ours,
  )


def _study(study, figure, published) -> dict[str, Any]:
  theirs = that_match(published, study[0])
  return {
    'heading': tables.heading(study),
    'figure': base64.b64encode(figure).decode() if figure else '',
    'caption': _caption(study, theirs),
    'by_budget': tables.by_budget(study),
    'rates': tables.rates(study),
    'against_best': tables.against(study, 'best baseline'),
    'against_dense': tables.against(study, 'dense'),
    'published': tables.of_published(theirs),
    'cells': [(tables.budget_name(c), tables.of_cell(c)) for c in study if c.granularity],
    'runs': tables.of_runs(study),
  }


def _caption(study, theirs):
  name = study[0].lines[0].measure.name.removeprefix('test ').removesuffix(', %')
  return (
    f'{tables.heading(study)}: {name} against what is left. Bars and the grey band are one '
    'standard deviation over the seeds; marks of one budget are moved a little aside.'
    + (' Hollow marks are published figures.' if theirs else '')
  )


def _lead(rows):
  seeds = sorted({row['seed'] for row in rows})
  methods = len({row['row'] for row in rows})
  return (
    f'{_count(len(rows), "finished run")}: {_count(methods, "row")}, '
    f'{_count(len(seeds), "seed")} ({", ".join(map(str, seeds))}).'
  )


def _count(n, noun):
  return f'{n} {noun}{"" if n == 1 else "s"}'


def _facts(rows):
  """What was run, where: (name, distinct values) in the order of the rows."""

  def distinct(*names, form='{}'):
    return list(dict.fromkeys(form.format(*(row[name] for name in names)) for row in rows))

  configs = distinct('config')
  shown = ', '.join(configs) if len(configs) <= 12 else f'{len(configs)}, listed with the runs'
  return [
    ('Data', distinct('data')),
    ('Networks', distinct('model')),
    ('Command', _commands(rows)),
    ('Configs (hash, without the seed)', [shown]),
    ('Versions', distinct('dtp-jax', 'jax', 'flax', 'optax',
                          form='dtp-jax {}, jax {}, flax {}, optax {}')),
    ('Python', distinct('python')),
    ('Device', distinct('device', 'cpus', form='{} ({} CPUs)')),
  ]  # fmt: skip


def _commands(rows):
  """The distinct commands, those that differ in the seed or the folder alone as one."""
  own = ('--workdir=', '--config.seed=')
  commands = ([w for w in r['command'].split(' ') if not w.startswith(own)] for r in rows)
  return list(dict.fromkeys(map(' '.join, commands)))
