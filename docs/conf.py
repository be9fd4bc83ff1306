"""Builds the documentation, offline: `python -m sphinx -M html docs docs/_build -W --keep-going`.

Pages and notebooks are run in the build, and their outputs cached by their content and that of the
code: in the folder of the environment variable DTP_DOCS_CACHE, else in docs/_build/cache.
"""

import hashlib
import importlib
import os
import pathlib
import pkgutil
import re
import sys
import types

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
CACHE = pathlib.Path(os.environ.get('DTP_DOCS_CACHE') or ROOT / 'docs/_build/cache').absolute()
# For the processes that run the pages: this checkout, on the CPU, compiling once what pages share.
os.environ['PYTHONPATH'] = os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(CACHE / 'compiled'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES', '0')
# Their kernels listen on this machine only and need not warn of missing encryption, once a page.
os.environ['IPYTHONDIR'] = str(CACHE / 'ipython')
PROFILE = CACHE / 'ipython/profile_default'
PROFILE.mkdir(parents=True, exist_ok=True)
PROFILE.joinpath('ipython_kernel_config.py').write_text(
  "get_config().IPKernelApp.log_level = 'ERROR'\n"
)

from sphinx.domains.python import PyObject  # noqa: E402

import dtp_jax  # noqa: E402


def _digest() -> str:
  """Changes with what pages run and read, and with what is installed."""
  files = [ROOT / 'docs/requirements.lock', *sorted(ROOT.glob('dtp_jax/**/*.py'))]
  files += [ROOT / 'experiments/zoo.py', *sorted(ROOT.glob('configs/*.py'))]
  files += sorted(ROOT.glob('experiments/results/*/*.csv'))
  return hashlib.sha256(b''.join(f.read_bytes() for f in files)).hexdigest()[:16]


project = 'dtp_jax'
author = 'The dtp_jax authors'
copyright = author  # Sphinx's name for it
release = dtp_jax.__version__

extensions = [
  'myst_nb',
  'sphinx.ext.autodoc',
  'sphinx.ext.mathjax',
  'sphinx.ext.napoleon',
  'sphinx_copybutton',
]
exclude_patterns = ['_build', '**.ipynb_checkpoints']
html_theme = 'sphinx_book_theme'
html_title = f'dtp_jax {release}'
html_static_path = ['_static']
html_css_files = ['style.css']
html_theme_options = {
  'navbar_persistent': [],  # the search field is in the sidebar
  'use_download_button': False,
}
html_copy_source = False

myst_enable_extensions = ['amsmath', 'colon_fence', 'deflist', 'dollarmath']
myst_heading_anchors = 3
math_eqref_format = '({number})'

nb_execution_mode = 'cache'
nb_execution_cache_path = str(CACHE / _digest())
nb_execution_raise_on_error = True
nb_execution_timeout = 600  # seconds a cell, on a machine that does other work
nb_merge_streams = True
nb_render_markdown_format = 'myst'  # tables made by a page are tables
nb_output_stderr = 'remove-warn'  # whoever reads a page should see no warning in it
nb_number_source_lines = False

autodoc_member_order = 'bysource'
autodoc_typehints = 'signature'
autodoc_typehints_format = 'short'
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False


def public(module: types.ModuleType) -> list[str]:
  """The public names of a package: its __all__, or what it takes from this code base."""
  ours = (
    name
    for name, value in vars(module).items()
    if not name.startswith('_') and getattr(value, '__module__', '').startswith('dtp_jax')
  )
  return sorted(getattr(module, '__all__', ours))


def _skip(app, what, name, obj, skip, options):
  """Leaves out what is described elsewhere, imported from elsewhere, or a field of a tuple.

  What dtp_jax itself exports is described there, and not again in the package it comes from.
  """
  del options
  if what != 'module':
    return True if type(obj).__name__ == '_tuplegetter' else skip
  module = importlib.import_module(app.env.current_document.autodoc_module)
  again = module is not dtp_jax and getattr(dtp_jax, name, None) is obj
  return True if again or name not in public(module) else skip


def _as_prose(app, what, name, obj, options, lines):
  """Docstrings are prose with `code` and examples: no other character in them is markup."""
  del app, what, name, obj, options
  parts = re.split(r'(^ *>>>.*(?:\n *\S.*)*)', '\n'.join(lines), flags=re.M)  # odd ones: examples
  for i in range(0, len(parts), 2):
    pieces = re.split(r'(`[^`]+`)', parts[i])  # odd ones: code
    pieces[::2] = [re.sub(r'([*|]|(?<=\w)_(?!\w))', r'\\\1', piece) for piece in pieces[::2]]
    pieces[1::2] = [f'`{piece}`\\ ' for piece in pieces[1::2]]  # it may end within a word
    parts[i] = ''.join(pieces)
  lines[:] = ''.join(parts).split('\n')


def _check_complete(app, error):
  """Every public name of dtp_jax and its packages has a place in the reference."""
  if error is not None or app.builder.name != 'html':
    return
  described = set(app.env.get_domain('py').objects)
  surface = {id(getattr(dtp_jax, name)) for name in public(dtp_jax)}
  packages = [m.name for m in pkgutil.iter_modules(dtp_jax.__path__, 'dtp_jax.') if m.ispkg]
  missing = [
    f'{module.__name__}.{name}'
    for module in map(importlib.import_module, ('dtp_jax', *packages))
    for name in public(module)
    if module is dtp_jax or id(getattr(module, name)) not in surface
    if f'{module.__name__}.{name}' not in described
  ]
  if missing:
    raise RuntimeError(f'docs/api describes no {", ".join(missing)}')


def setup(app):
  """Connects the checks of the reference, and calls attributes by their name."""
  for field in PyObject.doc_field_types:
    if field.name == 'variable':
      field.label = 'Attributes'
  app.connect('autodoc-skip-member', _skip)
  app.connect('autodoc-process-docstring', _as_prose, priority=400)  # before napoleon reads it
  app.connect('build-finished', _check_complete)
