"""PyTorch state dicts in torchvision's layout as variables of the models here."""

import functools
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dtp_jax.models import state_dict
from dtp_jax.models.mobilenet import MobileNetV2
from dtp_jax.models.resnet import ResNet
from dtp_jax.models.vgg import VGG
from dtp_jax.trees import flat, nested

__all__ = ['from_torch']

# torch's names of what a layer holds.
_LEAVES = {
  'kernel': 'weight',
  'scale': 'weight',
  'bias': 'bias',
  'mean': 'running_mean',
  'var': 'running_var',
}
_COUNTER = '.num_batches_tracked'  # of a batch norm; nothing in evaluation reads it


def from_torch(
  source: Mapping[str, Any] | str | os.PathLike[str], model: nn.Module
) -> dict[str, Any]:
  """The variables of a model from the state dict of its counterpart in torchvision.

  torchvision's pretrained networks read RGB images in [0, 1], less ImageNet's mean, by its standard
  deviation. A VGG has the features of torchvision's vgg*_bn and one linear layer 'classifier', as
  in the forms for CIFAR, which here reads the mean over positions. A state dict does not say how
  its network pools in front of that layer: one with a fifth max-pooling there loads as well, and
  is another function here.

  Args:
    source: {name: torch tensor, NumPy or JAX array}, or the path of a .safetensors file, or that of
      a .pth or .pt file, which torch reads without running code in it.
    model: a ResNet, VGG or MobileNetV2.

  Returns:
    What `model.init` returns, {'params': ..., 'batch_stats': ...} in the model's types, copied.

  Raises:
    TypeError: the model is of another kind.
    ValueError: the names, shapes or types are not those of the model, with all of their counts and
      the first names; or the file is not what its suffix says.
    FileNotFoundError: there is no such file.
    ImportError: a .pth or .pt file, and torch is not installed or older than 2.6.
  """
  layout = _layout(model)
  arrays = state_dict.arrays_of(source, _COUNTER)
  if isinstance(model, VGG) and 'classifier.6.weight' in arrays:
    raise ValueError(
      'the state dict has the three linear layers of torchvision, classifier.0, .3 and .6, which '
      "have no counterpart in this VGG; expected one, 'classifier.weight' and '.bias', as the "
      'forms for CIFAR have. To load the features alone, put arrays of these two names there.'
    )
  state_dict.check({name: struct.shape for name, struct in layout.values()}, arrays)
  # Copies, since torch may go on training in its own memory.
  copies = {p: np.array(_to_flax(arrays[n]), s.dtype) for p, (n, s) in layout.items()}
  return jax.device_put(nested(copies))


def _layout(model: nn.Module) -> dict[str, tuple[str, jax.ShapeDtypeStruct]]:
  """{'params/conv1/kernel': (torch's name, torch's shape with the type it has here)} of a model."""
  namers: dict[type[nn.Module], Callable[[Iterable[str]], dict[str, str]]] = {
    ResNet: _resnet,
    VGG: _vgg,
    MobileNetV2: _mobilenet,
  }
  if type(model) not in namers:
    known = ', '.join(kind.__name__ for kind in namers)
    raise TypeError(f'the model is a {type(model).__name__}; expected one of {known}.')
  images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)  # no variable depends on their size
  init = functools.partial(model.init, train=False)
  structs = flat(jax.eval_shape(init, jax.random.key(0), images))
  # 'batch_stats/layer1_0/bn1/mean' is the mean of the layer 'layer1_0/bn1'.
  places = {path: path.split('/', 1)[1].rsplit('/', 1) for path in structs}
  names = namers[type(model)]({layer for layer, _ in places.values()})
  layout = {}
  for path, (layer, leaf) in places.items():
    struct = jax.ShapeDtypeStruct(_torch_shape(structs[path].shape), structs[path].dtype)
    layout[path] = f'{names[layer]}.{_LEAVES[leaf]}', struct
  return layout


def _resnet(layers: Iterable[str]) -> dict[str, str]:
  """'layer1_0/downsample_1' is torchvision's 'layer1.0.downsample.1'."""
  return {layer: layer.replace('/', '.').replace('_', '.') for layer in layers}


def _vgg(layers: Iterable[str]) -> dict[str, str]:
  """By position: convolution, norm and ReLU are three modules, and a pooling ends a stage."""
  names = {'classifier': 'classifier'}
  position, stage = 0, 1
  for conv in sorted((layer for layer in layers if layer.startswith('conv')), key=_numbers):
    now, _ = _numbers(conv)
    position += now - stage
    stage = now
    names |= {conv: f'features.{position}', f'bn{conv[4:]}': f'features.{position + 1}'}
    position += 3
  return names


def _mobilenet(layers: Iterable[str]) -> dict[str, str]:
  """Blocks are counted through all stages; a convolution, its norm and ReLU6 are one module."""
  names = {'stem': 'features.0.0', 'stem_bn': 'features.0.1', 'classifier': 'classifier.1'}
  inside = {layer for layer in layers if '/' in layer}
  blocks = sorted({layer.split('/')[0] for layer in inside}, key=_numbers)
  for i, block in enumerate(blocks):
    theirs = f'features.{i + 1}.conv'
    inner = [name for name in ('expand', 'depthwise') if f'{block}/{name}' in inside]
    for j, name in enumerate(inner):
      names |= {f'{block}/{name}': f'{theirs}.{j}.0', f'{block}/{name}_bn': f'{theirs}.{j}.1'}
    j = len(inner)
    names |= {f'{block}/project': f'{theirs}.{j}', f'{block}/project_bn': f'{theirs}.{j + 1}'}
  last = f'features.{len(blocks) + 1}'
  return names | {'last': f'{last}.0', 'last_bn': f'{last}.1'}


def _numbers(name: str) -> list[int]:
  return [int(digits) for digits in re.findall(r'\d+', name)]


def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
  """Convolutions HWIO to OIHW, depthwise ones too; dense layers (in, out) to (out, in)."""
  return (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]


def _to_flax(array: np.ndarray) -> np.ndarray:
  """Inverse of `_torch_shape` on an array."""
  return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
