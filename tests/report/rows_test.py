"""Rows: what a run folder says, the CSV and back, runs that are missing, torn or there twice."""

import json
import shutil

import pytest

from dtp_jax.report import tables
from dtp_jax.report.compare import cells_of, studies_of
from dtp_jax.report.rows import collect, model_key, read_csv, write_csv
from tests.report.conftest import write_run


def test_every_run_is_a_row_dense_first_then_ours(swept):
  rows, unfinished = collect([swept])
  assert not unfinished
  assert len(rows) == 3 + 2 * 9 - 1
  names = list(dict.fromkeys((row['keep'], row['row']) for row in rows))
  methods = ['transportation', 'magnitude', 'spartan']
  assert names == [('', 'dense'), *((keep, m) for keep in (0.05, 0.02) for m in methods)]
  one = next(row for row in rows if row['run'] == 'sweep/w/0.02/magnitude/seed2')
  assert one['accuracy'] == 0.948 - 0.01
  assert (one['requested'], one['achieved'], one['total'], one['unit']) == (20, 20, 1000, 'count')
  assert (one['seed'], one['jax'], one['device'], one['cpus']) == (2, '0.10.2', 'cpu', 2)
  assert (one['dense_steps'], one['soft_steps'], one['hard_steps']) == (10, 5, 5)


def test_a_csv_file_gives_the_rows_back(swept, tmp_path):
  rows, _ = collect([swept])
  write_csv(tmp_path / 'runs.csv', rows)
  assert read_csv(tmp_path / 'runs.csv') == rows
  assert [p.name for p in tmp_path.glob('*.tmp')] == []


def test_a_dense_run_has_no_budget(swept):
  rows, _ = collect([swept])
  for row in rows[:3]:
    assert row['method'] == 'dense'
    assert all(row[name] == '' for name in ('granularity', 'unit', 'keep', 'achieved', 'total'))
    assert row['parameters_left'] == 1100


def test_the_hash_ignores_the_seed_and_the_place_of_the_data_and_nothing_else(swept):
  rows, _ = collect([swept])
  cells = {(row['row'], row['keep']) for row in rows}
  assert len({row['config'] for row in rows}) == len(cells)
  path = swept / 'w/0.05/magnitude/seed0/config.json'
  config = json.loads(path.read_text())
  path.write_text(json.dumps({**config, 'data': {**config['data'], 'data_dir': '/elsewhere'}}))
  assert collect([swept])[0] == rows


def test_commands_name_no_place_on_the_machine(swept):
  commands = {row['command'] for row in collect([swept])[0]}
  assert commands == {'python -m experiments.sweep --config=configs/x.py --workdir=mnist_mini'}


def test_macs_come_from_the_costs_or_from_a_budget_in_macs(tmp_path):
  write_run(tmp_path / 'a', 'magnitude', 0, 0.9, of='macs', keep=0.4)
  path = tmp_path / 'a' / 'summary.json'
  summary = json.loads(path.read_text())
  for costs in (summary['costs'], {}):
    path.write_text(json.dumps({**summary, 'costs': costs}))
    (row,) = collect([tmp_path])[0]
    assert (row['macs_left'], row['macs']) == (400, 1000)
  path.write_text(json.dumps({**summary, 'unit': 'params', 'costs': {}}))
  (row,) = collect([tmp_path])[0]
  assert (row['macs_left'], row['macs']) == ('', '')


def test_a_network_that_was_timed_says_so_in_its_row_and_its_tables(swept, tmp_path):
  for path in swept.glob('w/0.05/*/*/summary.json'):
    rate = {'magnitude': 1000.4, 'spartan': 3000.0, 'transportation': 2000.0}[path.parts[-3]]
    rate *= 1 + int(path.parts[-2] == 'seed2')  # the median is that of the other two
    path.with_name('throughput.json').write_text(json.dumps({'per_second': rate}))
  rows, _ = collect([swept])
  write_csv(tmp_path / 'runs.csv', rows)
  (study,) = studies_of(cells_of(read_csv(tmp_path / 'runs.csv')))
  table = tables.rates(study)
  assert table.header == ('images per second', '5 % of weights', '2 % of weights')
  assert table.rows == (
    ('DTP (transportation)', '2,000', ''),
    ('one-shot magnitude', '1,000', ''),
    ("Spartan's mask", '3,000', ''),
  )
  assert str(table) in tables.markdown(rows)
  assert [tables.of_cell(cell).header[-1] for cell in study] == ['images per second', 'seconds']
  assert tables.of_cell(study[0]).rows[2][-1] == '1,000'
  path.with_name('throughput.json').write_text('{"per_second": "fast"}')
  with pytest.raises(ValueError, match="per_second is 'fast'"):
    collect([swept])


def test_a_copy_of_a_run_counts_once_whatever_its_seconds(swept):
  rows, _ = collect([swept])
  shutil.copytree(swept / 'w/0.05/spartan/seed0', swept / 'again')
  write_run(swept / 'slower', 'dense', 0, 0.975, keep=0.3, of='count', seconds=99.0)
  again, _ = collect([swept])
  assert len(again) == len(rows)


@pytest.mark.parametrize('field', ['accuracy', 'config'])
def test_a_run_with_two_results_or_configs_is_refused_and_both_folders_named(swept, field):
  write_run(swept / 'other', 'spartan', 0, 0.968 + 0.01 * (field == 'accuracy'))
  if field == 'config':
    config = json.loads((swept / 'other/config.json').read_text())
    (swept / 'other/config.json').write_text(json.dumps({**config, 'log_every': 7}))
  with pytest.raises(ValueError, match='the same run') as error:
    collect([swept])
  assert str(swept / 'other') in str(error.value)
  assert str(swept / 'w/0.05/spartan/seed0') in str(error.value)


def test_unfinished_and_failed_runs_are_named(swept):
  (swept / 'w/0.02/spartan/seed0/summary.json').unlink()
  (swept / 'w/0.02/pdp/seed0').mkdir(parents=True)
  (swept / 'w/0.02/pdp/seed0/log.txt').write_text('Traceback')
  rows, unfinished = collect([swept])
  assert unfinished == ['sweep/w/0.02/pdp/seed0', 'sweep/w/0.02/spartan/seed0']
  assert len(rows) == 3 + 2 * 9 - 2


def test_baselines_inside_a_run_folder_count(tmp_path):
  write_run(tmp_path / 'run', 'transportation', 0, 0.9)
  write_run(tmp_path / 'run/baselines/dense', 'dense', 0, 0.91)
  rows, _ = collect([tmp_path / 'run'])
  assert [row['run'] for row in rows] == ['run/baselines/dense', 'run']


def test_a_network_is_named_by_all_of_its_fields():
  assert model_key({'name': 'lenet'}) == 'lenet'
  key = model_key({'width': 12, 'name': 'resnet_cifar', 'features': (2, 4), 'depth': 8})
  assert key == 'resnet_cifar(depth=8,features=[2,4],width=12)'
