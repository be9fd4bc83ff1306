"""Checkpoints in the layout of Llama (Hugging Face's names) as variables of a `Decoder`."""

import math
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dtp_jax.models import state_dict
from dtp_jax.models.decoder import Decoder
from dtp_jax.trees import flat, nested

__all__ = ['from_llama']

# Ours: theirs. Of a layer theirs continues 'model.layers.{i}.'.
_NAMES = {
  'embed/embedding': 'model.embed_tokens.weight',
  'norm/scale': 'model.norm.weight',
  'head/kernel': 'lm_head.weight',
}
_OF_A_LAYER = {
  'norm1/scale': 'input_layernorm.weight',
  'query/kernel': 'self_attn.q_proj.weight',
  'key/kernel': 'self_attn.k_proj.weight',
  'value/kernel': 'self_attn.v_proj.weight',
  'out/kernel': 'self_attn.o_proj.weight',
  'norm2/scale': 'post_attention_layernorm.weight',
  'gate/kernel': 'mlp.gate_proj.weight',
  'up/kernel': 'mlp.up_proj.weight',
  'down/kernel': 'mlp.down_proj.weight',
}
_COMPUTED = '.rotary_emb.inv_freq'  # older files hold what follows from theta
_INPUTS = {'out/kernel': 3}  # axes of a kernel that are summed over, where there are several


def from_llama(
  source: Mapping[str, Any] | str | os.PathLike[str], model: Decoder
) -> dict[str, Any]:
  """The variables of a decoder from a checkpoint of Llama or of a network with its layout.

  Rotations turn channel r of a head with channel r + half of it, as in these files; the original
  files of Meta pair neighbours and are another layout. `theta`, `stretch` and `epsilon` are not in
  the arrays: take them from the checkpoint's config.json (rope_theta, rope_scaling, rms_norm_eps).

  Args:
    source: {name: array}, the path of a .safetensors file, or a folder with several.
    model: a `Decoder` of the same sizes; under `scan` the layers are stacked.

  Returns:
    What `model.init` returns, {'params': ...} in the model's types.

  Raises:
    ValueError: the names, shapes or types are not those of the model, with all of their counts and
      the first names; or a file is not what its suffix says.
    ImportError: a .pth or .pt file, and torch is not installed.
  """
  arrays = state_dict.arrays_of(source, _COMPUTED)
  tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  structs = flat(jax.eval_shape(model.init, jax.random.key(0), tokens)['params'])
  names = {path: _theirs(path, model.depth) for path in structs}
  expected = {
    name: _their_shape(path, structs[path].shape) for path in structs for name in names[path]
  }
  state_dict.check(expected, arrays)

  def ours(path: str) -> jax.Array:
    struct = structs[path]
    parts = [arrays[name] for name in names[path]]
    whole = np.stack([part.T if path.endswith('kernel') else part for part in parts])
    return jax.device_put(np.array(whole.reshape(struct.shape), struct.dtype))

  return {'params': nested({path: ours(path) for path in structs})}


def _theirs(path: str, depth: int) -> list[str]:
  """'layer3/query/kernel' is one array of theirs; 'layers/query/kernel' is one of each layer."""
  if path in _NAMES:
    return [_NAMES[path]]
  layer, leaf = path.split('/', 1)
  number = layer.removeprefix('layer')
  layers = range(depth) if number == 's' else [number]
  return [f'model.layers.{i}.{_OF_A_LAYER[leaf]}' for i in layers]


def _their_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
  """Kernels are (out, in) there, heads and their channels in one axis."""
  layer, leaf = path.split('/', 1)
  shape = shape[1:] if layer == 'layers' else shape
  if not path.endswith('kernel'):
    return shape
  inputs = _INPUTS.get(leaf, 1)
  return math.prod(shape[inputs:]), math.prod(shape[:inputs])
