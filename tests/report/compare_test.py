"""Means, deviations and paired differences against scipy; cells and studies."""

import math

import numpy as np
import pytest
from scipy import stats

from dtp_jax.report import tables
from dtp_jax.report.compare import Line, cells_of, paired, select, studies_of
from dtp_jax.report.rows import collect
from tests.report.conftest import DENSE, SCORES, write_run


def _line(row, accuracies):
  runs = ({'seed': seed, 'accuracy': value} for seed, value in accuracies.items())
  return Line(row, row, tuple(runs))


@pytest.mark.parametrize('n', [2, 3, 10])
def test_the_interval_is_that_of_the_paired_t_test(n):
  rng = np.random.default_rng(n)
  ours, theirs = rng.uniform(0.9, 1.0, (2, n))
  found = paired(_line('a', dict(enumerate(ours))), _line('b', dict(enumerate(theirs))))
  test = stats.ttest_rel(100 * ours, 100 * theirs)
  interval = test.confidence_interval(0.95)
  assert found is not None
  assert found.n == n
  np.testing.assert_allclose(found.mean, np.mean(100 * (ours - theirs)), rtol=1e-9)
  np.testing.assert_allclose(found[2:], (interval.low, interval.high), rtol=1e-9)


def test_only_shared_seeds_are_paired():
  ours, theirs = _line('a', {0: 0.9, 1: 0.8, 5: 0.1}), _line('b', {7: 0.2, 1: 0.7, 0: 0.85})
  found = paired(ours, theirs)
  assert found is not None
  assert found.n == 2
  np.testing.assert_allclose(found.mean, (5 + 10) / 2)
  assert paired(ours, _line('c', {9: 0.5})) is None


def test_one_seed_has_a_difference_and_no_interval():
  found = paired(_line('a', {0: 0.9}), _line('b', {0: 0.8}))
  assert found is not None
  assert found.n == 1
  assert found.low is found.high is None
  np.testing.assert_allclose(found.mean, 10)


def test_equal_differences_have_an_interval_of_no_width():
  found = paired(_line('a', {0: 0.75, 1: 0.5}), _line('b', {0: 0.5, 1: 0.25}))
  assert found == (2, 25.0, 25.0, 25.0)


def test_bits_per_byte_are_better_when_fewer():
  losses = {'dense': (0.9, 1.1), 'transportation': (1.2, 1.3), 'taylor': (1.5, 1.4), 'pdp': (2, 2)}
  rows = [
    {
      'data': 'python_stdlib', 'model': 'decoder', 'row': row, 'method': row, 'seed': seed,
      'granularity': '' if row == 'dense' else 'channels', 'unit': 'params', 'keep': 0.5,
      'loss': loss, 'accuracy': 0.5, 'measure': 'bits_per_byte',
    }
    for row, values in losses.items()
    for seed, loss in enumerate(values)
  ]  # fmt: skip
  (cell,) = cells_of(rows)
  assert cell.dense is not None
  np.testing.assert_allclose(cell.dense.mean, 1 / math.log(2))  # nats as bits
  assert cell.best_baseline is not None
  assert cell.best_baseline.row == 'taylor'
  table = tables.by_budget([cell])
  assert table.header[0] == 'bits per byte'
  assert table.rows[0][1] == '1.443 ± 0.204'
  (line,) = tables.summary([cell]).rows
  difference = np.mean([1.2 - 1.5, 1.3 - 1.4]) / math.log(2)
  assert line[2:4] == ('gradual Taylor', line[3])
  assert line[3].startswith(f'{difference:+.3f} (')


def test_cells_aggregate_the_seeds_and_share_the_dense_runs(swept):
  rows, _ = collect([swept])
  large, small = cells_of(rows)
  assert (large.keep, small.keep) == (0.05, 0.02)
  assert studies_of([large, small]) == [(large, small)]
  for cell in (large, small):
    assert cell.lines[0] == cell.dense
    assert [line.row for line in cell.ours] == ['transportation']
    np.testing.assert_allclose(cell.dense.mean, 100 * np.mean(DENSE))
    np.testing.assert_allclose(cell.dense.std, 100 * np.std(DENSE, ddof=1))
  by_row = {line.row: line for line in large.lines}
  for row, accuracies in SCORES.items():
    np.testing.assert_allclose(by_row[row].mean, 100 * np.mean(accuracies))
    np.testing.assert_allclose(by_row[row].std, 100 * np.std(accuracies, ddof=1))
  assert large.best_baseline.row == small.best_baseline.row == 'spartan'
  assert len(small.best_baseline.runs) == 2


def test_units_and_networks_are_studies_of_their_own(tmp_path):
  write_run(tmp_path / 'a', 'magnitude', 0, 0.9)
  write_run(tmp_path / 'b', 'magnitude', 0, 0.9, of='macs')
  write_run(tmp_path / 'c', 'magnitude', 0, 0.9, data='fashion_mnist')
  studies = studies_of(cells_of(collect([tmp_path])[0]))
  assert [(s[0].data, s[0].granularity) for s in studies] == [
    ('fashion_mnist', 'weights'),
    ('mnist_mini', 'weights'),
    ('mnist_mini', 'channels'),
  ]


def test_without_a_baseline_nothing_is_best(tmp_path):
  write_run(tmp_path / 'a', 'transportation', 0, 0.9)
  (cell,) = cells_of(collect([tmp_path])[0])
  assert cell.best_baseline is None
  assert cell.dense is None
  assert tables.summary([cell]).rows[0][2:] == ('none', 'none', 'none')


def test_select_keeps_the_dense_runs_of_the_network(swept):
  rows, _ = collect([swept])
  write_run(swept / 'other', 'magnitude', 0, 0.9, data='fashion_mnist')
  both, _ = collect([swept])
  assert select(both, data='mnist_mini') == rows
  (cell,) = cells_of(select(both, data='mnist_mini', model='lenet', keep='0.02'))
  assert cell.keep == 0.02
  assert len(cell.dense.runs) == 3
  for wanted in ({'colour': 'red'}, {'keep': '0.9'}, {'data': 'nothing'}):
    with pytest.raises(ValueError, match=str(next(iter(wanted.values()))) + '|colour'):
      select(both, **wanted)


def test_tables_say_where_seeds_are_missing(swept):
  (study,) = studies_of(cells_of(collect([swept])[0]))
  text = str(tables.by_budget(study))
  assert "| Spartan's mask | 96.37 ± 0.59 | 95.70 ± 0.14 (n = 2) | 3 |" in text
  lines = dict(zip(('large', 'small'), tables.summary(study).rows, strict=True))
  gains = [100 * (a - b) for a, b in zip(*(SCORES[r] for r in ('transportation', 'spartan')),
                                         strict=True)]  # fmt: skip
  assert lines['large'][:3] == ('5 % of weights', 'DTP (transportation)', "Spartan's mask")
  assert lines['large'][3].startswith(f'{np.mean(gains):+.2f} (')
  assert lines['small'][3].startswith(f'{np.mean([gains[0], gains[2]]):+.2f} (')
  assert lines['small'][3].endswith(', n = 2)')
  best = {row[0]: row[1] for row in tables.against(study, 'best baseline').rows}
  assert best["Spartan's mask"] == 'best baseline'
  against_dense = tables.against(study, 'dense')
  assert 'dense' not in [row[0] for row in against_dense.rows]
  assert math.isclose(float(against_dense.rows[0][1].split()[0]), -0.6, abs_tol=0.006)
