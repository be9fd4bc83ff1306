"""The rows of each process: together the whole batch, apart from each other."""

import contextlib
import itertools

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dtp_jax.data import load, placing
from dtp_jax.data.order import train_indices
from dtp_jax.data.streamed import Options, _Masked, _Rows

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason='needs eight devices')


def split_over(shape):
  mesh = jax.make_mesh(shape, ('a', 'b'), axis_types=(AxisType.Auto,) * 2)
  return NamedSharding(mesh, PartitionSpec('a'))


def shares(sharding, size, processes):
  """Rows of each process, if the devices of the mesh were dealt to so many in their order."""
  devices = np.array_split(np.array(sorted(sharding.device_set, key=lambda d: d.id)), processes)
  return [placing.rows(size, sharding, part) for part in devices]


@pytest.mark.parametrize('processes', [1, 2, 4, 8])
def test_rows_of_processes_are_disjoint_and_complete(processes):
  parts = shares(split_over((8, 1)), 16, processes)
  assert {len(part) for part in parts} == {16 // processes}
  assert np.concatenate(parts).tolist() == list(range(16))


def test_processes_that_share_a_row_of_the_mesh_feed_the_same_rows():
  parts = shares(split_over((2, 4)), 16, 4)
  assert [part.tolist() for part in parts] == [[*range(8)]] * 2 + [[*range(8, 16)]] * 2


@pytest.mark.parametrize('processes', [2, 4])
def test_the_batches_of_processes_make_up_the_order(processes):
  """Indices of the feed in memory and positions of the streamed one are dealt by the same rows."""
  order, size, steps = train_indices(23, 16, seed=9), 16, 5
  whole = np.concatenate(list(itertools.islice(order, steps)))
  batches = []
  for mine in shares(split_over((8, 1)), size, processes):
    source = _Rows(whole, size, mine)
    assert len(source) == steps * len(mine)
    batches.append(np.reshape([source[i] for i in range(len(source))], (steps, len(mine))))
  np.testing.assert_array_equal(np.concatenate(batches, axis=1).ravel(), whole)


@pytest.mark.parametrize('n', [1, 15, 16, 17])
def test_evaluation_of_processes_has_every_example_once(n):
  examples = [{'label': np.int32(i)} for i in range(n)]
  seen, lengths = [], set()
  for mine in shares(split_over((8, 1)), 16, 4):
    source = _Rows(_Masked(examples, 16), 16, mine)
    lengths.add(len(source))  # or a process would wait for a batch that another does not have
    found = [source[i] for i in range(len(source))]
    seen += [int(e['label']) for e in found if e['mask']]
  assert sorted(seen) == list(range(n))
  assert lengths == {-(-n // 16) * 4}


def test_streamed_batches_on_eight_devices_are_those_on_one(imagenet2012):
  options = Options(image_size=24, resize=28, threads=2, prefetch=2)
  data = load({'name': 'imagenet2012', 'data_dir': imagenet2012[0], **options._asdict()})
  sharding = split_over((8, 1))

  def first(batches):
    with contextlib.closing(batches):
      return next(batches)[0]

  for ours, theirs in (
    (
      data.train_batches(16, seed=3, step=1, sharding=sharding),
      data.train_batches(16, seed=3, step=1),
    ),
    (data.eval_batches(16, sharding=sharding), data.eval_batches(16)),
  ):
    ours, theirs = first(ours), first(theirs)
    assert ours.keys() == theirs.keys()
    for name in ours:
      assert ours[name].sharding == sharding
      np.testing.assert_array_equal(ours[name], theirs[name])
