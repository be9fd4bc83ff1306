"""Slim models as data: variables, kept channels and StableHLO in a folder, ONNX where asked for.

`save_slim` writes the folder and fails unless what it wrote agrees with the masked network;
`load_slim` reads it back. Its StableHLO runs without the code of the model.
"""

from dtp_jax.export.checks import ExportError
from dtp_jax.export.cuts import expand
from dtp_jax.export.load import SavedSlim, load_slim
from dtp_jax.export.save import save_slim

__all__ = ['ExportError', 'SavedSlim', 'expand', 'load_slim', 'save_slim']
