"""Checkpoints that were damaged on the disk: seen, named, set aside, and the one before used."""

import contextlib
import gc
import shutil

import absl.logging
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from dtp_jax.data import load
from dtp_jax.train import checkpoint, loop
from dtp_jax.train import mesh as meshes
from dtp_jax.train.checkpoint import Checkpoints, DamagedError
from dtp_jax.train.metrics import read_metrics
from dtp_jax.train.recipe import build
from tests.train.conftest import tiny_config

# Orbax leaves coroutines behind where a read fails.
pytestmark = [
  pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning'),
  pytest.mark.filterwarnings('ignore::pytest.PytestUnhandledThreadExceptionWarning'),
]
LAST = 18


def config_alone():
  config = tiny_config()
  config.baselines = ()
  return config


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """(folder of a finished run, its recipe, an abstract state of it)."""
  workdir = tmp_path_factory.mktemp('run')
  config = config_alone()
  data = load(config.data)
  loop.train_and_evaluate(config, workdir, data=data)
  recipe, create = build(config, data)
  return workdir, meshes.template(recipe.mesh, jax.eval_shape(create))


@pytest.fixture
def copied(run, tmp_path):
  """(a copy of the run folder, the abstract state)."""
  shutil.copytree(run[0], tmp_path / 'run')
  return tmp_path / 'run', run[1]


@pytest.fixture(autouse=True)
def collected():
  """What Orbax leaves behind is told of here, and not in the test that comes next."""
  yield
  gc.collect()


def flip(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 4
  path.write_bytes(content)


def cut(path):
  content = path.read_bytes()
  path.write_bytes(content[: len(content) // 2])


def values(state):
  def value(leaf):
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)

  return jax.tree.map(value, state)


def restored(workdir, like, step=LAST):
  with contextlib.closing(Checkpoints(workdir / 'checkpoints')) as checkpoints:
    return values(checkpoints.restore(like, step)[0])


def attempt(workdir, like):
  try:
    return '', restored(workdir, like)
  except DamagedError as error:
    return str(error), None


def heavy(step):
  """The file of a checkpoint that holds its weights."""
  return max((step / 'params').rglob('d/*'), key=lambda path: path.stat().st_size)


def test_what_is_only_read_stays_as_it_is_and_nothing_warns(copied, caplog):
  workdir, like = copied
  before = {p: p.stat().st_mtime_ns for p in workdir.rglob('*')}
  absl.logging.get_absl_logger().addHandler(caplog.handler)
  try:
    opened = Checkpoints(workdir / 'checkpoints', read_only=True)
    with contextlib.closing(opened) as checkpoints:
      found, _ = checkpoints.restore(like, LAST)
    assert Checkpoints(workdir / 'none', read_only=True).latest is None
  finally:
    absl.logging.get_absl_logger().removeHandler(caplog.handler)
  jax.tree.map(np.testing.assert_array_equal, values(found), restored(workdir, like))
  assert {p: p.stat().st_mtime_ns for p in workdir.rglob('*')} == before
  assert [r.getMessage() for r in caplog.records if r.levelname == 'WARNING'] == []


@pytest.mark.parametrize('damage', [flip, cut])
def test_damage_to_any_file_changes_nothing_or_is_named(run, tmp_path, damage):
  """Of the items that hold arrays one is tried, and the position."""
  workdir, like = run
  expected = restored(workdir, like)
  kept = workdir / 'checkpoints' / str(LAST)
  files = [p for item in ('params', 'position') for p in (kept / item).rglob('*') if p.is_file()]
  named = []
  for i, path in enumerate(files):
    copy = tmp_path / str(i)
    shutil.copytree(kept, copy / 'checkpoints' / str(LAST))
    damage(copy / 'checkpoints' / path.relative_to(kept.parent))
    told, found = attempt(copy, like)
    if told:
      assert str(copy / 'checkpoints' / str(LAST)) in told
      named.append(path)
    else:
      jax.tree.map(np.testing.assert_array_equal, found, expected)
  assert heavy(kept) in named
  assert any('position' in path.parts for path in named)


@pytest.mark.parametrize('damage', [flip, cut])
def test_the_step_before_is_used_and_the_run_ends_the_same(run, copied, damage, capsys):
  workdir, _ = copied
  damaged = workdir / 'checkpoints' / str(LAST)
  damage(heavy(damaged))
  (workdir / 'summary.json').unlink()
  (workdir / 'pruned.npz').unlink()
  loop.train_and_evaluate(config_alone(), workdir)
  told = capsys.readouterr().err
  assert f'checkpoint {damaged} ' in told
  assert f'moved to {workdir / "checkpoints.damaged"}; going on from step 15.' in told
  assert (workdir / 'checkpoints.damaged' / str(LAST)).is_dir()
  assert read_metrics(workdir) == read_metrics(run[0])
  with np.load(workdir / 'pruned.npz') as ours, np.load(run[0] / 'pruned.npz') as theirs:
    for name in theirs.files:
      np.testing.assert_array_equal(ours[name], theirs[name])


def test_where_none_is_intact_all_are_named_and_left(copied):
  workdir, _ = copied
  steps = [path for path in (workdir / 'checkpoints').iterdir() if path.name.isdigit()]
  assert len(steps) >= 3
  for step in steps:
    flip(heavy(step))
  with pytest.raises(DamagedError, match='is intact') as error:
    loop.train_and_evaluate(config_alone(), workdir)
  for step in steps:
    assert f'checkpoint {step} ' in str(error.value)
    assert step.is_dir()


def test_a_fork_of_a_damaged_run_is_refused(copied, tmp_path):
  workdir, _ = copied
  flip(heavy(workdir / 'checkpoints' / '6'))
  with pytest.raises(DamagedError, match='checkpoints/6'):
    loop.train_and_evaluate(config_alone(), tmp_path / 'fork', fork=workdir)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'int8', 'uint32', 'bool'])
def test_every_single_bit_shows_in_a_digest(dtype):
  """Of the smallest and the largest position, and of all bits of a word."""
  array = np.asarray(jnp.arange(24).reshape(4, 6).astype(dtype))
  digest = checkpoint._digests({'a': jnp.asarray(array)})['a']
  bits = 1 if dtype == 'bool' else 8
  for place in (0, array.nbytes // 2, array.nbytes - 1):
    for bit in range(bits):
      content = bytearray(array.tobytes())
      content[place] ^= 1 << bit
      flipped = np.frombuffer(content, array.dtype).reshape(array.shape)
      assert checkpoint._digests({'a': jnp.asarray(flipped)})['a'] != digest


def test_a_digest_tells_order_and_does_not_tell_where_an_array_lies():
  array = jnp.asarray(np.random.default_rng(0).normal(size=(16, 8)), jnp.float32)
  digest = checkpoint._digests({'a': array})
  assert checkpoint._digests({'a': array[::-1]}) != digest
  devices = jax.device_count()
  mesh = jax.make_mesh((devices,), ('x',), axis_types=(jax.sharding.AxisType.Auto,))
  for spec in (PartitionSpec('x'), PartitionSpec(None, 'x')):
    split = jax.device_put(array, NamedSharding(mesh, spec))
    assert checkpoint._digests({'a': split}) == digest
