"""Exports the slim network of a finished run whose channels were pruned.

  python -m experiments.export runs/mnist_mini --onnx          writes runs/mnist_mini/slim anew
  python -m experiments.export runs/mnist_mini --out=slim

The folder holds variables.safetensors, kept.json, stablehlo.bin (for CPU, CUDA and TPU; any batch
size, where a note does not say otherwise), manifest.json and with --onnx model.onnx. It is written
only if its programs agree with the masked network on held-out images. --norms=refit is for networks
that are built anew at their kept widths and trained on: such a one is not the masked network, and
programs are held to itself. ONNX needs `pip install 'dtp-jax[onnx]'` and then
`pip install --no-deps jax2onnx==0.17.1`.
"""

import pathlib
import sys

from absl import app, flags, logging

from dtp_jax import export
from dtp_jax.export import run as slim
from dtp_jax.train.lock import LockedError

flags.DEFINE_string('out', None, 'Folder for the slim model; default WORKDIR/slim.')
flags.DEFINE_bool('onnx', False, 'Also write model.onnx.')
flags.DEFINE_enum(
  'norms', 'exact', ('exact', 'refit'), 'Norms over pruned channels: see save_slim.'
)
flags.DEFINE_bool('overwrite', False, 'Replace a slim model in --out; that of the run always is.')
FLAGS = flags.FLAGS


def main(argv: list[str]) -> None:
  """Exports and prints what came out."""
  if len(argv) != 2:
    sys.exit('Give one run folder, as in python -m experiments.export runs/mnist_mini. Try --help.')
  logging.set_verbosity(logging.WARNING)  # Orbax and jax2onnx tell every step
  out = FLAGS.out or pathlib.Path(argv[1]) / 'slim'
  overwrite = FLAGS.overwrite or not FLAGS.out  # the run's own is made from it
  try:
    run = slim.load_run(argv[1])
    options = {'norms': FLAGS.norms, 'onnx': FLAGS.onnx, 'overwrite': overwrite}
    manifest = slim.save(run, out, **options)
  except (ValueError, TypeError, OSError, ImportError, export.ExportError, LockedError) as error:
    sys.exit(f'{type(error).__name__}: {error}')
  for name, cost in manifest['costs'].items():
    share = 100 * cost['slim'] / cost['dense']
    print(f'{name}: {cost["slim"]:,} of {cost["dense"]:,} ({share:.2f} %)')
  for name, checks in manifest['checks'].items():
    if name != 'tolerance':
      worst = max(c['difference'] / c['scale'] for c in checks if c['scale'])
      held_to = 'masked' if FLAGS.norms == 'exact' else 'slim'
      print(f'{name} against the {held_to} network: {worst:.1e} relative')
  if FLAGS.norms == 'refit':
    print(f'refitted norms: {manifest["from_masked"]:.1e} from the masked network, relative')
  print(*(f'Note: {note}' for note in manifest['notes']), f'Slim model: {out}', sep='\n')


if __name__ == '__main__':
  app.run(main)
