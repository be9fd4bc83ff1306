"""The documentation without its build: links lead somewhere, and the snippets to copy run."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted(p for p in (ROOT / 'docs').rglob('*.md') if '_build' not in p.parts)
TEXTS = {str(p.relative_to(ROOT)): p.read_text() for p in PAGES}
CELL = re.compile(r'^```\{code-cell\} ipython3\n((?::.*\n)*)(.*?)^```$', re.S | re.M)
SNIPPETS = [code for _, code in CELL.findall(TEXTS['docs/your_model.md'])]


@pytest.mark.parametrize('snippet', SNIPPETS, ids=['linen', 'nnx', 'equinox', 'plain'])
def test_a_snippet_prunes_by_being_copied(snippet):
  """It trains, ends within its budget, and the smaller network has the output of the masked one."""
  names: dict = {}
  with jax.numpy_rank_promotion('allow'):  # whoever copies it has JAX's defaults
    exec(compile(snippet, 'docs/your_model.md', 'exec'), names)
    pruner, extra, graph, slim = (names[n] for n in ('pruner', 'extra', 'graph', 'slim'))
    hard = pruner.harden(extra)
    account = pruner.resolved.account(hard)
    assert 0.3 * account.total < account.achieved <= account.requested == int(0.4 * account.total)
    assert {name: len(kept) for name, kept in slim.kept.items()} == {
      name: int(mask.sum()) for name, mask in hard.items()
    }
    variables, inputs = _inputs(names)
    masked = graph.fn(graph.apply_masks(variables, hard), *inputs, **_static(names))
    outputs = slim.apply(slim.variables, *inputs, **_static(names))
    np.testing.assert_allclose(outputs, masked, rtol=1e-4, atol=1e-5 * np.abs(masked).max())
  assert any(jnp.any(score != 0) for score in extra['scores'].values()), 'no score was trained'


def _inputs(names):
  if 'stats' in names:  # Linen's variables are two collections
    return {'params': names['params'], 'batch_stats': names['stats']}, (names['images'],)
  tree = next(names[n] for n in ('state', 'params', 'model') if n in names)
  return tree, (names['images'] if 'images' in names else names['x'],)


def _static(names):
  return {'train': False} if 'stats' in names else {}


@pytest.mark.parametrize('page', TEXTS)
def test_code_is_run_by_the_build(page):
  """Python stands in code cells, which the build runs, and in no block that nothing runs."""
  assert not re.search(r'^```(?:python|py|ipython3?|pycon)\b', TEXTS[page], re.M)
  assert not re.search(r'nbsphinx|skip-execution|raises-exception', TEXTS[page])
  if CELL.search(TEXTS[page]):
    assert TEXTS[page].startswith('---\nfile_format: mystnb\n'), 'the build would not run it'


@pytest.mark.parametrize('page', [*TEXTS, 'README.md', 'CONTRIBUTING.md', 'SECURITY.md'])
def test_links_lead_somewhere(page):
  text = (ROOT / page).read_text()
  targets = re.findall(r'\]\((?!https?:)([^)\s]+)\)', CELL.sub('', text))
  targets += re.findall(r'^```\{(?:include|literalinclude|image)\} (\S+)$', text, re.M)
  for target in targets:
    path, _, anchor = target.partition('#')
    file = (ROOT / page).parent / path if path else ROOT / page
    assert file.exists(), f'{page} links to {target}'
    if anchor:
      titles = re.findall(r'^#+ (.*)$', file.read_text(), re.M)
      assert anchor in {re.sub(r'[^\w -]', '', t).lower().replace(' ', '-') for t in titles}


def test_every_page_is_in_the_table_of_contents():
  listed = set()
  for page in ('docs/index.md', 'docs/api/index.md'):
    for tree in re.findall(r'^```\{toctree\}\n(.*?)^```$', TEXTS[page], re.S | re.M):
      entries = [line for line in tree.splitlines() if line and not line.startswith(':')]
      listed |= {str((pathlib.Path(page).parent / entry).with_suffix('.md')) for entry in entries}
  assert listed == set(TEXTS) - {'docs/index.md'}


def test_pages_name_files_that_exist():
  for page, text in TEXTS.items():
    for path in re.findall(r'\b(?:configs|experiments|tests)/[\w./-]+\.(?:py|png|md)', text):
      assert (ROOT / path).exists(), f'{page} names {path}'


def test_versions_agree():
  """The package, the citation and the newest entry of the changelog."""
  version = re.search(r"__version__ = '(.*)'", (ROOT / 'dtp_jax/__init__.py').read_text())
  cited = re.search(r'^version: (.*)$', (ROOT / 'CITATION.cff').read_text(), re.M)
  logged = re.search(r'^## \[(\d.*?)\]', (ROOT / 'CHANGELOG.md').read_text(), re.M)
  assert version
  assert cited
  assert logged
  assert version[1] == cited[1] == logged[1]


def test_the_locks_agree():
  """Whoever builds the docs runs them with the versions that are tested."""
  pins = [
    dict(re.findall(r'^([\w.-]+)==(\S+)', (ROOT / lock).read_text(), re.M))
    for lock in ('requirements.lock', 'docs/requirements.lock')
  ]
  both = pins[0].keys() & pins[1].keys()
  assert {'jax', 'flax', 'optax'} <= both
  assert not {name for name in both if pins[0][name] != pins[1][name]}
