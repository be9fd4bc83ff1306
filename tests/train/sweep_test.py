"""Sweeps: the list of runs, shared dense stages, failures that stay their own, resuming."""

import jax
import ml_collections
import numpy as np
import pytest

from configs import first_table, grid
from dtp_jax.files import read_json
from dtp_jax.train import loop, runner, sweep
from dtp_jax.train.metrics import read_metrics
from tests.train.conftest import tiny_config

HALF = max(1, jax.device_count() // 2)  # of the devices of the session


def point(**fields):
  config = ml_collections.ConfigDict(tiny_config())
  config.update_from_flattened_dict(fields)
  return config


def test_every_point_runs_with_every_seed_behind_the_dense_run_it_forks_from():
  points = [
    ('a', point(method='magnitude')),
    ('b', point(**{'method': 'spartan', 'prune.keep': 0.5})),
  ]
  runs = sweep.runs_of(points, [3, 5])
  assert [r.config.seed for r in runs] == [3, 3, 3, 5, 5, 5]
  assert [r.name for r in runs if r.fork] == ['a/seed3', 'b/seed3', 'a/seed5', 'b/seed5']
  dense = {r.name: r for r in runs if not r.fork}
  assert len(dense) == 2
  assert all(r.config.method == r.config.row == 'dense' for r in dense.values())
  for i, run in enumerate(runs):
    assert run.fork is None or run.fork in [r.name for r in runs[:i]]
    assert run.fork is None or dense[run.fork].config.seed == run.config.seed
    assert run.config.baselines == ()
  kept = {r.name: (r.config.method, r.config.row, r.config.prune.keep) for r in runs if r.fork}
  assert kept['a/seed3'] == kept['a/seed5'] == ('magnitude', None, 0.05)
  assert kept['b/seed3'] == kept['b/seed5'] == ('spartan', None, 0.5)


@pytest.mark.parametrize(
  ('field', 'value', 'shared'),
  [
    ('prune.keep', 0.7, True),
    ('prune.scope', 'layer', True),
    ('optimizer.score_learning_rate', 1.0, True),
    ('methods.transportation.epsilon', 2.0, True),
    ('optimizer.learning_rate', 0.2, False),
    ('stages.hard', 3.0, False),
    ('data.batch_size', 32, False),
    ('model.hidden', (3,), False),
  ],
)
def test_what_dense_training_depends_on_makes_a_dense_run_of_its_own(field, value, shared):
  runs = sweep.runs_of([('a', point()), ('b', point(**{field: value}))], [0])
  assert len([r for r in runs if r.fork is None]) == (1 if shared else 2)


def test_without_a_dense_stage_nothing_is_forked():
  runs = sweep.runs_of([('a', point(**{'stages.dense': 0.0}))], [0])
  assert [(r.name, r.fork) for r in runs] == [('a/seed0', None)]


@pytest.mark.parametrize(
  ('points', 'seeds', 'message'),
  [
    ([], [0], '0 points and 1 seeds'),
    ([('a', point())], [], '1 points and 0 seeds'),
    ([('a', point()), ('a', point())], [0], "'a/seed0' is used twice"),
    ([('../a', point())], [0], 'no relative path'),
    ([('/a', point())], [0], 'no relative path'),
  ],
)
def test_a_sweep_that_cannot_be_is_refused(points, seeds, message):
  with pytest.raises(ValueError, match=message):
    sweep.runs_of(points, seeds)


UNIFORM = {'method': 'magnitude', 'prune': {'scope': 'layer', 'importance': 'l1'}}


def with_baselines(*names, rows=None, **fields):
  config = point(baselines=names, **fields)
  config.rows.update(rows or {})
  return config


def test_a_run_with_baselines_is_a_small_sweep_around_its_own_folder():
  config = with_baselines('magnitude', 'uniform', 'dense', rows={'uniform': UNIFORM}, seed=3)
  before = config.to_json_best_effort()
  runs = sweep.with_baselines(config)
  names = ['baselines/dense', '.', 'baselines/magnitude', 'baselines/uniform']
  assert [r.name for r in runs] == names
  assert [r.fork for r in runs] == [None] + 3 * ['baselines/dense']
  (point_of_sweep,) = [r for r in sweep.runs_of([('a', config)], [3]) if r.fork is None]
  dense, main, magnitude, uniform = (r.config for r in runs)
  assert dense.to_json_best_effort() == point_of_sweep.config.to_json_best_effort()
  assert main.to_json_best_effort() == config.to_json_best_effort() == before
  rows = [(c.row, c.method, c.prune.scope, c.prune.importance) for c in (magnitude, uniform)]
  assert rows == [
    ('magnitude', 'magnitude', 'global', 'l2'),
    ('uniform', 'magnitude', 'layer', 'l1'),
  ]
  assert {c.seed for c in (dense, main, magnitude, uniform)} == {3}
  uniform.prune.keep = 0.9  # what one changes must not reach another
  assert config.to_json_best_effort() == before
  assert magnitude.prune.keep == 0.05


def test_the_dense_network_that_rows_fork_from_is_there_without_being_asked_for():
  runs = sweep.with_baselines(with_baselines('magnitude'))
  assert [(r.name, r.config.row) for r in runs[:2]] == [('baselines/dense', 'dense'), ('.', None)]


def test_baselines_of_a_run_without_a_dense_stage_fork_from_nothing():
  runs = sweep.with_baselines(with_baselines('dense', 'magnitude', **{'stages.dense': 0.0}))
  places = ['.', 'baselines/dense', 'baselines/magnitude']
  assert [(r.name, r.fork) for r in runs] == [(place, None) for place in places]


@pytest.mark.parametrize(
  ('names', 'rows', 'message'),
  [
    (('slow',), {'slow': {'optimizer': {'learning_rate': 1e-4}}}, 'rows.slow changes a field'),
    (('magnitude', 'magnitude'), {}, 'used twice'),
    (('../a',), {}, 'no relative path'),
  ],
)
def test_baselines_that_cannot_be_compared_are_refused(names, rows, message):
  with pytest.raises(ValueError, match=message):
    sweep.with_baselines(with_baselines(*names, rows=rows))


@pytest.fixture(scope='module')
def swept(tmp_path_factory):
  """(workdir, runs, outcomes): one point that works and one whose dense stage diverges.

  Each run asks for half of the devices of the session.
  """
  workdir, half = tmp_path_factory.mktemp('swept'), {'mesh.data': HALF}
  good = point(method='magnitude', **half)
  bad = point(**{'method': 'magnitude', 'optimizer.learning_rate': 1e30, **half})
  runs = sweep.runs_of([('bad', bad), ('good', good)], [0])
  seen: list[runner.Outcome] = []
  outcomes = runner.run_all(runs, workdir, report=seen.append)
  assert sorted(seen) == sorted(outcomes)
  return workdir, runs, outcomes


@pytest.mark.once
def test_a_failure_takes_down_only_what_forks_from_it(swept):
  workdir, runs, outcomes = swept
  bad, after_bad, good, after_good = outcomes
  assert [o.name for o in outcomes] == [r.name for r in runs]
  assert (bad.status, after_bad.status) == ('failed', 'failed')
  assert 'DivergedError: loss is' in bad.reason
  assert bad.name in after_bad.reason
  assert 'Traceback' in (workdir / bad.name / 'log.txt').read_text()
  assert (good.status, after_good.status) == ('finished', 'finished')
  for name in (bad.name, good.name, after_good.name):
    environment = read_json(workdir / name / 'environment.json')
    assert environment['devices'] == HALF


@pytest.mark.slow
def test_a_run_of_a_sweep_is_the_run_itself(swept, tmp_path):
  workdir, runs, _ = swept
  run = runs[-1]
  alone = loop.train_and_evaluate(run.config, tmp_path)  # trains its own dense stage
  there = read_json(workdir / run.name / 'summary.json')
  assert {**there, 'seconds': 0} == {**alone, 'seconds': 0}
  steps = alone['stages']['dense']
  records = [r for r in read_metrics(tmp_path) if r['step'] > steps]
  assert [r for r in read_metrics(workdir / run.name) if r['step'] > steps] == records
  with np.load(tmp_path / 'pruned.npz') as ours, np.load(workdir / run.name / 'pruned.npz') as its:
    assert all(np.array_equal(ours[name], its[name]) for name in ours.files)


@pytest.mark.once
def test_again_the_finished_are_skipped_and_the_failed_tried(swept):
  workdir, runs, _ = swept
  before = {p: p.read_bytes() for p in workdir.rglob('summary.json')}
  again = runner.run_all(runs, workdir)
  assert [o.status for o in again] == ['failed', 'failed', 'skipped', 'skipped']
  assert {p: p.read_bytes() for p in workdir.rglob('summary.json')} == before


@pytest.mark.once
def test_a_workdir_of_another_sweep_is_refused_before_anything_runs(swept):
  workdir, _, _ = swept
  runs = sweep.runs_of(
    [('new', point()), ('good', point(**{'method': 'magnitude', 'prune.keep': 0.9}))], [0]
  )
  with pytest.raises(ValueError, match=r'prune\.keep: 0\.05 there, 0\.9 asked'):
    runner.run_all(runs, workdir)
  assert not (workdir / 'new').exists()


@pytest.mark.once
def test_baselines_side_by_side_end_as_one_after_the_other(finished, tmp_path):
  _, summaries = finished
  runs = sweep.with_baselines(tiny_config())
  outcomes = runner.run_all(runs, tmp_path, processes=2)
  assert {o.status for o in outcomes} == {'finished'}
  for run in runs:
    ours = read_json(tmp_path / run.name / 'summary.json')
    assert ours.keys() == summaries[run.name].keys()
    for name in ours.keys() - {'seconds'}:
      theirs = summaries[run.name][name]
      if isinstance(theirs, float):  # sums over other shares of the cores
        theirs = pytest.approx(theirs, rel=1e-3, abs=0.01)
      assert ours[name] == theirs, name


def test_the_first_table_has_the_cells_it_says():
  names = [name for name, _ in first_table.get_sweep()]
  assert len(names) == 2 * 3 * (len(grid.weights_rows()) + len(grid.channels_rows()))
  assert len(list(first_table.get_sweep('crossed'))) == len(names)
  assert 'fashion_mnist/resnet8/channels/0.15/l1_uniform' in names
