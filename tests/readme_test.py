"""README.md is true: its Python runs and its tables are those of the CSV files."""

import pathlib
import re

import numpy as np
import pytest

from experiments import report

TEXT = pathlib.Path(__file__).parents[1].joinpath('README.md').read_text()
BLOCKS = re.findall(r'```python\n(.*?)```', TEXT, re.S)


@pytest.mark.parametrize('block', range(len(BLOCKS)))
def test_the_python_blocks_run(block):
  names: dict = {}
  exec(compile(BLOCKS[block], f'README block {block}', 'exec'), names)
  if 'hard' in names:
    assert int(names['hard'].sum()) == 2
  if 'masks' in names:
    assert sum(int(np.count_nonzero(m)) for m in names['masks'].values()) == 58


def test_the_tables_are_those_of_the_csv_files(monkeypatch):
  monkeypatch.chdir(pathlib.Path(__file__).parents[1])
  assert '<!-- table: ' in TEXT
  assert report.readme_with_tables(TEXT) == TEXT


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
