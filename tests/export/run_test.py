"""The main job in miniature: channels pruned to a MAC budget, shrunk, exported, reported."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import mnist_mini, text_decoder
from dtp_jax import export, report
from dtp_jax.budget.latency import interleaved
from dtp_jax.data import load
from dtp_jax.data.images import normalise
from dtp_jax.export import run as slim
from dtp_jax.export import throughput
from dtp_jax.files import read_json, write_json, write_npz
from dtp_jax.graph import shrink, trace
from dtp_jax.report.rows import collect
from dtp_jax.train import runner, sweep
from dtp_jax.train.folder import environment
from dtp_jax.train.recipe import build_model
from dtp_jax.trees import paths
from tests.graph.agreement import random_masks
from tests.graph.models import randomized
from tests.report.conftest import write_run


def _config():
  config = mnist_mini.get_config('runlocal')
  config.model.width = 4
  config.prune.update({'keep': 0.4, 'multiple_of': '1'})
  config.data.name = 'mnist_mini'
  config.data.eval_batch_size = 1000
  config.baselines = ('l1_uniform',)
  return config


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """(run folder, summaries by name) of a run and one baseline at uniform width."""
  workdir = tmp_path_factory.mktemp('channels')
  summaries = runner.run_here(sweep.with_baselines(_config()), workdir)
  slim.finish(workdir)
  return workdir, summaries


def test_the_budget_is_met_and_maximal_in_macs(run):
  workdir, summaries = run
  found = slim.load_run(workdir)
  graph, counts = found.graph, {name: int(mask.sum()) for name, mask in found.hard.items()}
  main = summaries['.']
  assert main['unit'] == 'macs'
  assert main['achieved'] == graph.macs.at(counts) <= main['requested']
  for name, count in counts.items():
    if count < graph.sizes[name]:
      assert graph.macs.at({**counts, name: count + 1}) > main['requested']
  assert main['parameters_left'] == graph.params.at(counts)


def test_uniform_width_is_the_same_share_of_every_group(run):
  uniform = run[1]['baselines/l1_uniform']
  assert uniform['row'] == 'l1_uniform'
  shares = [kept / dense for dense, kept in uniform['widths'].values()]
  one_channel = max(1 / dense for dense, _ in uniform['widths'].values())
  assert max(shares) - min(shares) <= 2 * one_channel


def test_the_saved_slim_model_has_the_reported_accuracy(run):
  workdir, summaries = run
  data = load({'name': 'mnist_mini'})
  images = normalise(jnp.asarray(data.held_out['image']), data.mean, data.std)
  logits = export.load_slim(workdir / 'slim')(images)
  accuracy = np.mean(np.argmax(logits, -1) == data.held_out['label'])
  np.testing.assert_allclose(accuracy, summaries['.']['accuracy'], atol=2e-3)  # two images at a tie
  leaves = export.load_slim(workdir / 'slim').variables['params']
  size = sum(leaf.size for module in leaves.values() for leaf in _arrays(module))
  assert size == summaries['.']['parameters_left']


def test_the_report_shows_widths_and_the_slim_model(run):
  workdir, summaries = run
  text = report.write_report(workdir).read_text()
  assert (workdir / 'figures' / 'kept.png').exists()
  costs = read_json(workdir / 'slim.json')['costs']
  assert f'{costs["macs"]["slim"]:,}' in text
  assert 'L1, uniform width' in text
  assert f'{summaries["baselines/l1_uniform"]["achieved"]:,}' in text


def test_every_network_of_a_run_is_timed_and_its_row_says_so(run):
  workdir, summaries = run
  rates = throughput.measure([workdir], batch_size=5, repeats=2)
  assert set(rates) == {workdir / name for name in summaries}
  for folder, rate in rates.items():
    found = read_json(folder / 'throughput.json')
    assert found['batch_size'] == 5
    np.testing.assert_allclose(rate, 5 / (found['milliseconds']['median'] / 1000))
  rows, _ = collect([workdir])
  assert sorted(row['per_second'] for row in rows) == sorted(rates.values())
  assert '| images per second |' in report.table(workdir)
  for path in workdir.rglob('throughput.json'):
    path.unlink()


def _text_run(folder):
  """A run of a tiny decoder as training leaves it, untrained; its slim network."""
  config = text_decoder.get_config('runlocal')
  data = load(config.data)
  model, tokens = build_model(config, data.num_classes), data.example
  variables = randomized(jax.eval_shape(model.init, jax.random.key(0), tokens))
  graph = trace(model.apply, variables, tokens)
  masks = random_masks(graph, 3)
  folder.mkdir()
  write_npz(folder / 'pruned.npz', paths(variables))
  write_npz(folder / 'masks.npz', masks)
  write_json(folder / 'config.json', json.loads(config.to_json_best_effort()))
  write_json(folder / 'environment.json', environment())
  widths = {name: [mask.size, int(mask.sum())] for name, mask in masks.items()}
  write_json(folder / 'summary.json', {'method': 'magnitude', 'widths': widths})
  return data, shrink(graph, variables, masks)


def test_of_a_text_it_is_tokens_a_second_of_the_slim_network(tmp_path, monkeypatch):
  data, slim = _text_run(tmp_path / 'run')
  called = []

  def calls(functions, repeats):
    called.extend(function() for function in functions.values())
    return interleaved(functions, repeats=repeats)

  monkeypatch.setattr(throughput, 'interleaved', calls)
  (rate,) = throughput.measure([tmp_path], batch_size=3, repeats=2).values()
  median = read_json(tmp_path / 'run/throughput.json')['milliseconds']['median']
  np.testing.assert_allclose(rate, 3 * 32 * 1000 / median)  # windows of 32 bytes
  expected = slim.apply(slim.variables, data.inputs(3), train=False)
  np.testing.assert_allclose(called[0], expected, rtol=1e-5, atol=1e-5)


def test_runs_without_channels_or_of_another_device_are_not_timed(tmp_path):
  with pytest.raises(FileNotFoundError, match='none of 0 finished runs pruned channels'):
    throughput.measure([tmp_path])
  write_run(tmp_path / 'run', 'magnitude', 0, 0.9)
  path = tmp_path / 'run/summary.json'
  write_json(path, {**read_json(path), 'widths': {'conv1': [6, 3]}})
  path = tmp_path / 'run/environment.json'
  write_json(path, {**read_json(path), 'device': 'TPU v5p'})
  with pytest.raises(ValueError, match=r"made on 'TPU v5p' .* time it where it was made"):
    throughput.measure([tmp_path])


def _arrays(tree):
  return [a for v in tree.values() for a in _arrays(v)] if isinstance(tree, dict) else [tree]
