"""What trace accepts is exported: as generally as it goes, else with a note, never a traceback."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dtp_jax import export
from dtp_jax.export.signature import plain
from dtp_jax.graph import trace
from tests.export import accepted
from tests.graph.agreement import random_masks

CASES = accepted.cases()


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
  """(folder, {case: manifest}, {case: masked network}) after every program ran in a process."""
  folder, manifests, networks = tmp_path_factory.mktemp('accepted'), {}, {}
  for i, (name, case) in enumerate(CASES.items()):
    inputs = case.inputs(accepted.EXAMPLES)
    graph = trace(case.fn, case.variables, *inputs, **case.kwargs)
    hard = random_masks(graph, i)
    manifests[name] = export.save_slim(
      folder / str(i), graph, case.variables, hard, inputs, kwargs=case.kwargs
    )
    masks = {group: jnp.asarray(mask, jnp.float32) for group, mask in hard.items()}
    masked = graph.apply_masks(case.variables, masks)
    networks[name] = lambda *inputs, case=case, masked=masked: case.fn(masked, *inputs)
  command = [sys.executable, '-m', 'tests.export.accepted', str(folder)]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  return folder, manifests, networks


@pytest.mark.parametrize('name', CASES)
def test_a_fresh_process_gets_what_the_masked_network_gives(exported, name):
  folder, manifests, networks = exported
  case, manifest = CASES[name], manifests[name]
  assert manifest['batch'] == case.batch
  assert [case.note in note for note in manifest['notes']] == ([True] if case.note else [])
  for batch in accepted.batches(case):
    expected = jax.tree.leaves(plain(networks[name](*case.inputs(batch))))
    with np.load(folder / f'{list(CASES).index(name)}_{batch}.npz') as results:
      results = list(results.values())
    assert len(results) == len(expected)
    for a, b in zip(results, expected, strict=True):
      np.testing.assert_allclose(a, b, atol=1e-5 * np.max(np.abs(b)), rtol=0)


def test_what_is_fixed_in_a_program_is_told_from_what_is_not(exported):
  folder, manifests, _ = exported
  name = 'numbers, flags and words'
  assert manifests[name]['fixed'] == {'1': '0.5', '2/activation': "'relu'", '2/active': 'True'}
  saved, inputs = (
    export.load_slim(folder / str(list(CASES).index(name))), CASES[name].inputs(2)
  )  # fmt: skip
  with pytest.raises(ValueError, match=r'input 1 is 0\.7; expected 0\.5, .* exported'):
    saved(inputs[0], 0.7, inputs[2])
  only = export.load_slim(folder / str(list(CASES).index('a batch in the code')))
  with pytest.raises(ValueError, match=r'expected \(3, 6\) and called with \(2, 6\)'):
    only(inputs[0])


def test_keys_in_the_variables_are_restored_as_keys(exported):
  name = 'keys in the variables'
  case = CASES[name]
  saved = export.load_slim(exported[0] / str(list(CASES).index(name)))
  graph = trace(case.fn, case.variables, *case.inputs(2))
  restored = saved.restore(graph, case.variables)
  assert jax.tree.structure(restored.variables) == jax.tree.structure(case.variables)
  dtypes = [
    {leaf.dtype for leaf in jax.tree.leaves(v)} for v in (restored.variables, case.variables)
  ]
  assert dtypes[0] == dtypes[1]
  expected = saved(*case.inputs(2))
  result = restored.apply(restored.variables, *case.inputs(2))
  np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)
