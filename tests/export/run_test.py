"""The main job in miniature: channels pruned to a MAC budget, shrunk, exported, reported."""

import jax.numpy as jnp
import numpy as np
import pytest

from configs import mnist_mini
from dtp_jax import export, report
from dtp_jax.data import load
from dtp_jax.data.images import normalise
from dtp_jax.export import run as slim
from dtp_jax.files import read_json
from dtp_jax.train import runner, sweep


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


def _arrays(tree):
  return [a for v in tree.values() for a in _arrays(v)] if isinstance(tree, dict) else [tree]
