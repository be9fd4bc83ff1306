"""The whole command: the folder it writes, the page, the figures, README tables, bad input."""

import base64
import io
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from absl import flags
from PIL import Image

from configs import (
  cifar10_resnet56,
  cifar100_vgg19,
  imagenet_mobilenetv2,
  imagenet_resnet34,
  imagenet_resnet50,
)
from dtp_jax.report import page, plots, style
from dtp_jax.report.compare import cells_of, studies_of, that_match
from dtp_jax.report.rows import collect, model_key, read_csv, read_published, write_csv
from dtp_jax.report.tables import markdown, of_published
from experiments import report
from tests.report.conftest import write_run

NAMES = ('out', 'title', 'timed', 'check', 'write')


@pytest.fixture
def command(monkeypatch, tmp_path):
  """Runs the command as a shell would and gives back what ended it."""
  monkeypatch.chdir(tmp_path)

  def run(*arguments):
    saved = {name: flags.FLAGS[name].value for name in NAMES}
    try:
      return report.main(flags.FLAGS([sys.argv[0], *map(str, arguments)]))
    finally:
      for name, value in saved.items():
        flags.FLAGS[name].value = value

  return run


class _Page(HTMLParser):
  """Collects tags with their attributes and the text outside of styles."""

  def __init__(self, html):
    super().__init__()
    self.tags, self.words = [], []
    self.feed(html)

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))

  def handle_data(self, data):
    self.words.append(data)


def test_the_command_writes_the_whole_folder(swept, command, capsys):
  command(swept, '--out=out', '--title=A study')
  assert sorted(p.name for p in swept.parent.joinpath('out').iterdir()) == [
    'index.html',
    'mnist_mini_lenet_weights_count.png',
    'runs.csv',
    'table.md',
  ]
  table = swept.parent.joinpath('out/table.md').read_text()
  assert table in capsys.readouterr().out
  rows = read_csv(swept.parent / 'out/runs.csv')
  assert rows == collect([swept])[0]
  found = _Page(swept.parent.joinpath('out/index.html').read_text())
  assert 'A study' in found.words
  for row in (line for line in table.splitlines() if line.startswith('| DTP')):
    assert all(cell.strip() in found.words for cell in row.strip('|').split('|') if cell.strip())


def test_the_page_needs_nothing_but_itself(swept, command):
  command(swept, '--out=out')
  found = _Page(swept.parent.joinpath('out/index.html').read_text())
  sources = [v for _, attrs in found.tags for k, v in attrs.items() if k in ('src', 'href')]
  assert sources
  assert all(source.startswith(('data:', '#')) for source in sources)
  assert not {tag for tag, _ in found.tags} & {'script', 'link', 'iframe', 'object', 'form'}
  assert not re.search(
    r'url\(|@import|https?:', swept.parent.joinpath('out/index.html').read_text()
  )
  (image,) = [attrs for tag, attrs in found.tags if tag == 'img']
  embedded = base64.b64decode(image['src'].split(',')[1])
  assert embedded == swept.parent.joinpath('out/mnist_mini_lenet_weights_count.png').read_bytes()


def test_what_comes_from_a_run_is_escaped(tmp_path):
  evil = '<script>alert(1)</script>&"'
  write_run(tmp_path / 'a', evil, 0, 0.9, method='magnitude', data='<b>data')
  rows, _ = collect([tmp_path])
  studies = studies_of(cells_of(rows))
  html = page.render('<i>title', rows, studies, {}, [], ['<u>unfinished'])
  found = _Page(html)
  assert not {tag for tag, _ in found.tags} & {'script', 'b', 'i', 'u'}
  assert evil in found.words
  assert '<u>unfinished' in found.words


def test_unfinished_runs_are_warned_of_and_listed(swept, command, capsys):
  (swept / 'w/0.02/spartan/seed0/summary.json').unlink()
  command(swept, '--out=out')
  assert 'sweep/w/0.02/spartan/seed0' in capsys.readouterr().err
  assert 'sweep/w/0.02/spartan/seed0' in swept.parent.joinpath('out/index.html').read_text()


def test_a_network_that_was_only_trained_dense_has_no_differences(tmp_path):
  write_run(tmp_path / 'a', 'dense', 0, 0.9)
  rows, _ = collect([tmp_path])
  found = _Page(page.render('t', rows, studies_of(cells_of(rows)), {}, []))
  assert '90.00' in found.words
  assert not any('Paired differences' in word or 'Each budget' in word for word in found.words)


def test_published_figures_stand_beside_ours_where_the_network_is_theirs(tmp_path):
  published = read_published(report.PUBLISHED)
  write_run(tmp_path / 'a', 'transportation', 0, 0.93, of='macs', keep=0.4, data='cifar10')
  write_run(tmp_path / 'b', 'transportation', 0, 0.93)
  rows, _ = collect([tmp_path])
  theirs, ours = studies_of(cells_of(rows))
  matching = that_match(published, theirs[0])
  assert {x.method for x in matching} >= {'DTP', 'GReg-2', 'DepGraph', 'TPP', 'ResRep'}
  assert not that_match(published, ours[0])
  found = _Page(page.render('t', rows, [theirs, ours], {}, published))
  assert any('No published figure of exactly this network' in word for word in found.words)
  assert found.words.count('GReg-2') == 1
  assert 'GReg-2' not in str(rows)


def test_the_published_file_has_no_figure_of_the_paper_and_the_shares_it_says():
  published = read_published(report.PUBLISHED)
  paper = [x for x in published if x.source.startswith('Li et al.')]
  assert len(paper) == 10  # five networks, channels and weights
  assert all(x.accuracy == x.base_accuracy == x.speedup == x.sparsity == '' for x in paper)
  (greg,) = [x for x in published if x.method == 'GReg-2' and x.data == 'cifar10']
  np.testing.assert_allclose(greg.kept, 100 / 2.55)
  (rigl,) = [x for x in published if x.method == 'RigL']
  np.testing.assert_allclose(rigl.kept, 20)
  assert of_published([greg]).rows[0][2:] == ('93.36', '93.36', '2.55x fewer MACs')


@pytest.mark.parametrize(
  'config',
  [cifar10_resnet56, cifar100_vgg19, imagenet_resnet34, imagenet_resnet50, imagenet_mobilenetv2],
)
def test_the_published_networks_are_those_of_the_configs(config):
  found = config.get_config()
  network = (found.data.name, model_key(found.model.to_dict()))
  published = read_published(report.PUBLISHED)
  assert {x.granularity for x in published if (x.data, x.model) == network} == {
    'channels',
    'weights',
  }


def test_figures_of_any_size_are_drawn_without_a_warning(swept, tmp_path):
  write_run(tmp_path / 'one/a', 'transportation', 0, 1.0, of='macs', keep=0.3, data='cifar10')
  published = read_published(report.PUBLISHED)
  for folder in (swept, tmp_path / 'one'):
    (study,) = studies_of(cells_of(collect([folder])[0]))
    figure = plots.accuracy_against_kept(study, that_match(published, study[0]))
    content = plots.png(figure)
    assert len(content) < 100_000
    with Image.open(io.BytesIO(content)) as image:
      assert image.width > 1000


def test_the_figure_shows_the_means_and_hollow_published_points(swept):
  (study,) = studies_of(cells_of(collect([swept])[0]))
  point = read_published(report.PUBLISHED)[1]._replace(speedup=20.0, accuracy=95.0)
  point = point._replace(granularity='channels')
  figure = plots.accuracy_against_kept(study, [point])
  lines = figure.axes[0].get_lines()
  drawn = {tuple(np.round(100 - np.asarray(line.get_ydata(), float), 6)) for line in lines}
  for row in ('transportation', 'magnitude', 'spartan'):
    means = [next(x for x in cell.lines if x.row == row).mean for cell in study]
    assert tuple(np.round(means, 6)) in drawn
  (hollow,) = [line for line in lines if line.get_markerfacecolor() == 'none']
  np.testing.assert_allclose((hollow.get_xdata()[0], hollow.get_ydata()[0]), (5, 5))


def test_all_means_are_inside_and_a_wide_bar_does_not_stretch_the_axis(tmp_path):
  for seed, (good, wild) in enumerate([(0.97, 0.9999), (0.98, 0.8), (0.975, 0.95)]):
    write_run(tmp_path / f'a{seed}', 'transportation', seed, good)
    write_run(tmp_path / f'b{seed}', 'spartan', seed, wild)
  (study,) = studies_of(cells_of(collect([tmp_path])[0]))
  most, fewest = plots.accuracy_against_kept(study).axes[0].get_ylim()  # errors
  means = [100 - line.mean for cell in study for line in cell.lines]
  assert fewest < min(means) < max(means) < most
  assert fewest > 0.7 * min(means)


def test_rows_differ_by_mark_and_by_colour():
  names = ['transportation', 'spartan', 'pdp', 'straight_through', 'gradual_magnitude', 'magnitude']
  for set_of_rows in ([*names, 'random'], [*names, 'l1_uniform', 'random_uniform']):
    colours, marks = zip(*map(style.mark, set_of_rows), strict=True)
    assert len(set(colours)) == len(set(marks)) == len(set_of_rows)
  assert style.mark('a new row') == style.mark('a new row')


def _write_rows(swept):
  swept.parent.joinpath('out').mkdir()
  write_csv(swept.parent / 'out/runs.csv', collect([swept])[0])


README = '# Title\n\n<!-- table: out{} -->\nold\n<!-- end -->\n\nText.\n'


@pytest.mark.parametrize('part', ['', ' keep=0.02', ' data=mnist_mini granularity=weights'])
def test_readme_tables_are_written_and_checked(swept, command, part):
  _write_rows(swept)
  readme = swept.parent / 'README.md'
  readme.write_text(README.format(part))
  with pytest.raises(SystemExit, match=r'Differs from its CSV: README\.md;'):
    command('--check')
  assert readme.read_text() == README.format(part)
  command('--write')
  command('--check')
  text = readme.read_text()
  assert text.startswith('# Title\n')
  assert text.endswith('<!-- end -->\n\nText.\n')
  assert ('| run | seeds |' in text) == (part == ' keep=0.02')
  assert ('5 % of weights' in text) == (part != ' keep=0.02')
  csv = swept.parent / 'out/runs.csv'
  csv.write_text(csv.read_text().replace('0.938', '0.838'))
  with pytest.raises(SystemExit, match=r'Differs from its CSV: README\.md;'):
    command('--check')


def test_tables_beside_their_csv_are_written_and_checked(swept, command):
  table = swept.parent / 'experiments/results/ours/table.md'
  table.parent.mkdir(parents=True)
  (swept.parent / 'README.md').write_text('No table.\n')
  rows = collect([swept])[0]
  write_csv(table.with_name('runs.csv'), rows)
  for spoil in (table.touch, lambda: table.write_text('old'), table.unlink):
    spoil()
    with pytest.raises(SystemExit, match=r'Differs from its CSV: \S+/ours/table\.md;'):
      command('--check')
    command('--write')
    command('--check')
    assert table.read_text() == markdown(rows)


def test_a_table_of_unknown_runs_is_refused(swept, command):
  _write_rows(swept)
  (swept.parent / 'README.md').write_text(README.format(' keep=0.5'))
  with pytest.raises(SystemExit, match=r'keep.*0\.5'):
    command('--check')
