"""README.md is true: its Python runs and its tables are those of the CSV files."""

import pathlib
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dtp_jax as dtp
from experiments import report

TEXT = pathlib.Path(__file__).parents[1].joinpath('README.md').read_text()
BLOCKS = re.findall(r'```python\n(.*?)```', TEXT, re.S)


def test_the_short_block_prunes_a_flax_model():
  """What the reader brings: model, variables, images, labels, loss; and calls to their own step."""
  model = nn.Sequential([nn.Dense(32), nn.relu, nn.Dense(16), nn.relu, nn.Dense(3)])
  images, labels = jax.random.normal(jax.random.key(1), (4, 5)), jnp.arange(4) % 3
  names: dict = {
    'dtp': dtp,
    'model': model,
    'variables': model.init(jax.random.key(0), images),
    'images': images,
    'labels': labels,
    'loss': lambda logits, y: jnp.mean((logits - jax.nn.one_hot(y, 3)) ** 2),
  }
  assert len(BLOCKS[0].splitlines()) == 10
  before, after = BLOCKS[0].split('slim = ')
  exec(compile(before, 'README block 0', 'exec'), names)
  extra, params = names['extra'], names['variables']['params']
  grads, extra['transport'] = jax.grad(names['loss_fn'], argnums=(0, 1), has_aux=True)(
    params, extra['scores'], extra['transport'], 0
  )
  for grad in grads:
    assert any(np.any(g != 0) for g in jax.tree.leaves(grad))
  exec(compile('slim = ' + after, 'README block 0', 'exec'), names)
  _check_pruned(names)


@pytest.mark.parametrize('block', range(1, len(BLOCKS)))
def test_the_python_blocks_run(block):
  names: dict = {}
  exec(compile(BLOCKS[block], f'README block {block}', 'exec'), names)
  assert int(names['hard'].sum()) == 2


def _check_pruned(names):
  """The pruned model is within budget and has the output of the masked one."""
  hard = names['pruner'].harden(names['extra'])
  counts = {g: int(m.sum()) for g, m in hard.items()}
  cost = names['graph'].macs
  assert cost.at(counts) <= 0.4 * cost.total
  masked = names['graph'].apply_masks(names['variables']['params'], hard)
  expected = names['model'].apply({'params': masked}, names['images'])
  np.testing.assert_allclose(names['logits'], expected, atol=1e-5)


def test_the_tables_are_those_of_the_csv_files(monkeypatch):
  monkeypatch.chdir(pathlib.Path(__file__).parents[1])
  assert '<!-- table: ' in TEXT
  assert list(report.RESULTS.glob('*/table.md'))
  assert not report.differing()


def test_a_changed_table_is_noticed(monkeypatch):
  monkeypatch.chdir(pathlib.Path(__file__).parents[1])
  changed = re.sub(r'\| dense \| \d', '| dense | 9', TEXT)
  assert changed != TEXT
  assert report.readme_with_tables(changed) == TEXT


def test_exactly_two_set_up_commands():
  assert TEXT.count('python3 -m venv') == 2


def test_every_file_that_is_named_exists():
  root = pathlib.Path(__file__).parents[1]
  for path in re.findall(r'\b(?:configs|experiments)/[\w./-]+\.(?:py|png)', TEXT):
    assert (root / path).exists(), path


def test_it_stays_short():
  assert len(TEXT.splitlines()) < 250
