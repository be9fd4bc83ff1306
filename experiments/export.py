"""Exports the slim network of a finished run whose channels were pruned.

  python -m experiments.export runs/mnist_mini --onnx          writes runs/mnist_mini/slim anew
  python -m experiments.export runs/mnist_mini --out=slim

The folder holds variables.safetensors, kept.json, stablehlo.bin (any batch size; CPU, CUDA, TPU),
manifest.json and with --onnx model.onnx. It is written only if its programs agree with the masked
network on held-out images. ONNX needs `pip install 'dtp-jax[onnx]'` and then
`pip install --no-deps jax2onnx==0.17.1`.
"""

import pathlib
import sys
from typing import Any

import jax.numpy as jnp
from absl import app, flags, logging

from dtp_jax import export
from dtp_jax.data import pipeline, sources
from dtp_jax.train.folder import read_config
from dtp_jax.train.slim import load_run

flags.DEFINE_string('out', None, 'Folder for the slim model; default WORKDIR/slim.')
flags.DEFINE_bool('onnx', False, 'Also write model.onnx.')
flags.DEFINE_bool('overwrite', False, 'Replace a slim model in --out; that of the run always is.')
FLAGS = flags.FLAGS

_EXAMPLES = 16  # held-out images that the export is checked on


def export_run(workdir: str, out: str | None, onnx: bool, overwrite: bool) -> dict[str, Any]:
  """Exports the run in `workdir` to `out` and returns the manifest.

  Raises:
    ValueError: the run pruned no channels: it has zeros and nothing to shrink.
    FileNotFoundError: no finished run, or its data set is not prepared.
    ExportError, FileExistsError, ImportError: see `dtp_jax.export.save_slim`.
  """
  graph, variables, hard = load_run(workdir)
  config = read_config(workdir)
  data = sources.from_config(config.data)
  images = jnp.asarray(data.sample(_EXAMPLES))
  about = {
    'config': config.to_dict(),
    'data': {'name': data.name, 'input': '(image / 255 - mean) / std', 'mean': data.mean,
             'std': data.std},
  }  # fmt: skip
  return export.save_slim(
    out or pathlib.Path(workdir) / 'slim',
    graph,
    variables,
    hard,
    (pipeline.normalise(images, data.mean, data.std),),
    kwargs={'train': False},
    about=about,
    onnx=onnx,
    overwrite=overwrite or out is None,  # the run's own, made from it
  )


def main(argv: list[str]) -> None:
  """Exports and prints what came out."""
  if len(argv) != 2:
    sys.exit('Give one run folder, as in python -m experiments.export runs/mnist_mini. Try --help.')
  logging.set_verbosity(logging.WARNING)  # Orbax and jax2onnx tell every step
  try:
    manifest = export_run(argv[1], FLAGS.out, FLAGS.onnx, FLAGS.overwrite)
  except (ValueError, TypeError, OSError, ImportError, export.ExportError) as error:
    sys.exit(f'{type(error).__name__}: {error}')
  for name, cost in manifest['costs'].items():
    share = 100 * cost['slim'] / cost['dense']
    print(f'{name}: {cost["slim"]:,} of {cost["dense"]:,} ({share:.2f} %)')
  for name, checks in manifest['checks'].items():
    if name != 'tolerance':
      worst = max(c['difference'] / c['scale'] for c in checks if c['scale'])
      print(f'{name} against the masked network: {worst:.1e} relative')
  print(f'Slim model: {FLAGS.out or pathlib.Path(argv[1]) / "slim"}')


if __name__ == '__main__':
  app.run(main)
