"""Whole runs: stages, resuming, forking, diverging, evaluation, the report."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtp_jax import report
from dtp_jax.data import load
from dtp_jax.data.images import normalise
from dtp_jax.export import run as slim
from dtp_jax.files import read_json
from dtp_jax.report import rows
from dtp_jax.train import loop, runner, sweep
from dtp_jax.train.metrics import MetricsWriter, read_metrics
from dtp_jax.train.recipe import build
from tests.train.conftest import tiny_config

STEPS = 6  # of each stage


def _arrays(path):
  with np.load(path) as stored:
    return dict(stored)


def _records(workdir, kind):
  return [r for r in read_metrics(workdir) if r['kind'] == kind]


def test_every_step_is_logged_with_its_stage(finished):
  workdir, _ = finished
  dense, main = (_records(p, 'train') for p in (workdir / 'baselines' / 'dense', workdir))
  assert [r['step'] for r in dense] == list(range(1, 3 * STEPS + 1))
  assert [r['stage'] for r in dense] == ['dense'] * STEPS + ['hard'] * 2 * STEPS
  assert all(r['kept'] == 1 and r['softness'] == 0 for r in dense)
  assert [r['step'] for r in main] == list(range(STEPS + 1, 3 * STEPS + 1))
  assert [r['stage'] for r in main] == ['soft'] * STEPS + ['hard'] * STEPS
  soft, hard = main[:STEPS], main[STEPS:]
  assert soft[0]['softness'] > 0.01
  np.testing.assert_allclose([r['kept'] for r in hard], 0.05, atol=1e-3)
  assert all(r['softness'] == 0 for r in hard)


def test_evaluations_tell_soft_from_hard_and_each_array(finished):
  workdir, _ = finished
  dense = _records(workdir / 'baselines' / 'dense', 'test')
  assert [r['step'] for r in dense] == list(range(0, 3 * STEPS + 1, 3))
  records = {r['step']: r for r in _records(workdir, 'test')}
  assert list(records) == list(range(STEPS, 3 * STEPS + 1, 3))
  soft = records[2 * STEPS]
  assert soft['stage'] == 'soft'
  np.testing.assert_allclose(soft['gap'], soft['accuracy'] - soft['accuracy_hard'])
  assert soft['kept_per_array'].keys() >= {'conv1/kernel', 'head/kernel'}


def test_the_hard_mask_is_exact_frozen_and_what_was_stored(finished):
  workdir, summaries = finished
  main = summaries['.']
  masks, pruned = _arrays(workdir / 'masks.npz'), _arrays(workdir / 'pruned.npz')
  kept = sum(int(m.sum()) for m in masks.values())
  assert kept == main['achieved'] == main['requested'] == round(0.05 * main['total'])
  for name, mask in masks.items():
    assert mask.dtype == bool
    assert not np.any(pruned[f'params/{name}'][~mask])


def test_the_stored_network_has_the_reported_accuracy(finished):
  """An independent evaluation: pruned.npz alone, all test images at once, no masks."""
  workdir, summaries = finished
  config, data = tiny_config(), load({'name': 'mnist_mini'})
  recipe, _ = build(config, data)
  params = {}
  for path, value in _arrays(workdir / 'pruned.npz').items():
    _, module, leaf = path.split('/')
    params.setdefault(module, {})[leaf] = jnp.asarray(value)
  images = normalise(jnp.asarray(data.held_out['image']), data.mean, data.std)
  logits = recipe.apply({'params': params}, images, train=False)
  accuracy = np.mean(np.argmax(logits, -1) == data.held_out['label'])
  np.testing.assert_allclose(accuracy, summaries['.']['accuracy'], atol=1e-9)


def test_all_rows_fork_where_the_dense_stage_ends(finished):
  workdir, summaries = finished
  assert list(summaries) == ['baselines/dense', '.', 'baselines/magnitude']
  dense, main, magnitude = summaries.values()
  trunk = _records(workdir / 'baselines' / 'dense', 'test')
  at_fork = next(r for r in trunk if r['step'] == STEPS)
  for name in ('.', 'baselines/magnitude'):
    first = _records(workdir / name, 'test')[0]
    assert first['step'] == STEPS
    assert first['loss'] == at_fork['loss']
  assert main['stages'] == {'dense': STEPS, 'soft': STEPS, 'hard': STEPS}
  assert magnitude['stages'] == dense['stages'] == {'dense': STEPS, 'soft': 0, 'hard': 2 * STEPS}
  assert {s['dense_accuracy'] for s in summaries.values()} == {at_fork['accuracy']}
  assert magnitude['achieved'] == main['achieved']
  assert dense['achieved'] == dense['total'] == main['total']


@pytest.mark.once
def test_a_run_alone_trains_its_own_dense_stage_and_a_fork_of_it_is_the_same_run(tmp_path):
  """Scores must learn in a fork as they do in the whole run: its optimizer starts late."""
  config = tiny_config()
  config.baselines = ()
  (run,) = runs = sweep.with_baselines(config)
  assert run == sweep.Run('.', config, None)
  alone = runner.run_here(runs, tmp_path / 'alone')['.']
  assert [r['step'] for r in _records(tmp_path / 'alone', 'train')] == list(range(1, 3 * STEPS + 1))
  forked = loop.train_and_evaluate(config, tmp_path / 'forked', fork=tmp_path / 'alone')
  assert {**alone, 'seconds': 0} == {**forked, 'seconds': 0}
  assert _records(tmp_path / 'forked', 'train')[0]['step'] == STEPS + 1
  ours, theirs = _arrays(tmp_path / 'alone/pruned.npz'), _arrays(tmp_path / 'forked/pruned.npz')
  for name in theirs:
    np.testing.assert_array_equal(ours[name], theirs[name])


@pytest.mark.parametrize('stop', [11, pytest.param(17, marks=pytest.mark.slow)])
def test_resumed_runs_equal_the_uninterrupted_ones(finished, tmp_path, monkeypatch, stop):
  """Each of the runs of a config is interrupted once: dense, in its soft stage, in its hard one."""
  whole, summaries = finished
  write, interrupted = MetricsWriter.write, []

  def interrupt(self, kind, step, values):
    folder = self._path.parent
    if (kind, step) == ('train', stop) and folder not in interrupted:
      interrupted.append(folder)
      raise KeyboardInterrupt
    write(self, kind, step, values)

  monkeypatch.setattr(MetricsWriter, 'write', interrupt)
  runs = sweep.with_baselines(tiny_config())
  for run in runs:
    with pytest.raises(KeyboardInterrupt):
      runner.run_here(runs, tmp_path)
    assert interrupted[-1] == tmp_path / run.name
    assert not (tmp_path / run.name / 'summary.json').exists()
  runner.run_here(runs, tmp_path)
  for name in summaries:
    assert read_metrics(tmp_path / name) == read_metrics(whole / name)
    for file in ('masks.npz', 'pruned.npz'):
      ours, theirs = _arrays(tmp_path / name / file), _arrays(whole / name / file)
      assert ours.keys() == theirs.keys()
      for key in ours:
        np.testing.assert_array_equal(ours[key], theirs[key])


def test_rerunning_a_finished_run_changes_nothing(finished):
  workdir, summaries = finished
  files = [p for p in workdir.rglob('*') if p.suffix in ('.json', '.jsonl', '.npz')]
  before = {p: p.read_bytes() for p in files}
  assert runner.run_here(sweep.with_baselines(tiny_config()), workdir) == summaries
  assert {p: p.read_bytes() for p in before} == before
  fork = workdir / 'baselines' / 'dense'
  assert loop.train_and_evaluate(tiny_config(), workdir, fork=fork) == summaries['.']
  after = {p: p.read_bytes() for p in before}
  assert {p.name for p in before if before[p] != after[p]} <= {'environment.json', 'masks.npz'}


def test_another_config_is_refused_and_the_fields_are_listed(finished):
  workdir, _ = finished
  config = tiny_config()
  config.prune.keep = 0.1
  config.optimizer.momentum = 0.5
  content = (workdir / 'config.json').read_bytes()
  with pytest.raises(ValueError, match='another config') as error:
    runner.run_here(sweep.with_baselines(config), workdir)
  assert 'prune.keep: 0.05 there, 0.1 asked' in str(error.value)
  assert 'optimizer.momentum: 0.9 there, 0.5 asked' in str(error.value)
  assert (workdir / 'config.json').read_bytes() == content


def test_a_diverging_loss_stops_the_run_and_names_the_last_good_checkpoint(tmp_path):
  config = tiny_config()
  config.optimizer.prune_learning_rate = 1e30
  with pytest.raises(loop.DivergedError) as error:
    loop.train_and_evaluate(config, tmp_path)
  message = str(error.value)
  assert 'of the soft stage' in message
  assert str(tmp_path / 'checkpoints' / str(STEPS)) in message
  assert 'prune_learning_rate' in message
  losses = [r['loss'] for r in _records(tmp_path, 'train')]
  assert losses[-1] is None  # JSON has no NaN
  assert None not in losses[:-1]


def test_no_pickle_is_written(finished):
  workdir, _ = finished
  for path in workdir.rglob('*'):
    if path.is_file():
      assert not path.read_bytes().startswith(b'\x80'), path  # every pickle since protocol 2
  for path in workdir.rglob('*.npz'):
    with np.load(path, allow_pickle=False) as stored:
      assert all(stored[name].dtype != object for name in stored.files)


def test_the_report_shows_the_rows_and_its_figures(finished):
  workdir, summaries = finished
  path = report.write_report(workdir)
  text = path.read_text()
  assert report.table(workdir) in text
  for summary in summaries.values():
    assert f'| {100 * summary["accuracy"]:.2f} |' in text
    assert f'| {summary["achieved"]:,} of {summary["total"]:,} elements (' in text
  assert f'Budget: {summaries["."]["requested"]:,} of' in text
  figures = sorted(p.name for p in (workdir / 'figures').iterdir())
  assert figures == ['kept.png', 'mask.png', 'training.png']
  assert all(f'figures/{name}' in text for name in figures)


def test_the_runs_of_a_folder_are_rows_with_what_their_summaries_say(finished):
  workdir, summaries = finished
  found, unfinished = rows.collect([workdir])
  assert not unfinished
  assert [row['row'] for row in found] == ['dense', 'transportation', 'magnitude']
  assert found[0]['accuracy'] == summaries['baselines/dense']['accuracy']
  for row, name in zip(found[1:], ('.', 'baselines/magnitude'), strict=True):
    assert row['accuracy'] == summaries[name]['accuracy']
    assert row['achieved'] == summaries[name]['achieved'] == round(0.05 * 2010)
    assert (row['granularity'], row['unit'], row['keep']) == ('weights', 'count', 0.05)
    assert row['model'] == 'lenet(features=[2,4],hidden=[16])'


def test_an_unfinished_run_has_no_report(tmp_path):
  (tmp_path / 'config.json').write_text(json.dumps({'baselines': []}))
  with pytest.raises(FileNotFoundError, match='has not finished'):
    report.write_report(tmp_path)


def test_a_run_that_pruned_weights_has_nothing_to_shrink(finished):
  workdir, _ = finished
  with pytest.raises(ValueError, match='pruned weights'):
    slim.load_run(workdir)


def test_the_environment_is_recorded(finished):
  workdir, _ = finished
  environment = read_json(workdir / 'environment.json')
  assert environment['versions']['jax'] == jax.__version__
  assert environment['devices'] == jax.device_count()
