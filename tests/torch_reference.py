"""What torch computes, stored, so that `from_torch` is tested against it without torch.

Of every network of `torch_models`: the names and shapes of its state dict, and the logits of a
fixed state for fixed images. The state is made anew from the names and shapes alone. Written by

  python -m tests.torch_reference

in an environment with torch (the extra test-torch).
"""

import json
import math
import pathlib
import zlib

import numpy as np

PATH = pathlib.Path(__file__).with_suffix('.npz')
IMAGES = (2, 49, 38, 3)  # odd and even sides under strides


def uniform(name, shape):
  """Float32 in [-1, 1) by the name, from raw bits: the one stream that NumPy never changes."""
  bits = np.random.PCG64(zlib.crc32(name.encode())).random_raw(math.prod(shape))
  return ((bits >> 40) * 2.0**-23 - 1).astype(np.float32).reshape(shape)


def images():
  return uniform('images', IMAGES)


def state_of(shapes):
  """A state dict of these {name: shape} with nothing special in it: no zeros, no ones."""
  return {name: _array(name, tuple(shape)) for name, shape in shapes.items()}


def _array(name, shape):
  if name.endswith('num_batches_tracked'):
    return np.asarray(7)
  values = uniform(name, shape)
  if len(shape) > 1:  # of variance 1 / fan-in, so that no layer blows up or fades
    return values * np.float32(math.sqrt(3 / math.prod(shape[1:])))
  centre, spread = {'running_var': (1, 0.5), 'weight': (1, 0.4)}.get(
    name.rsplit('.', 1)[1], (0, 0.4)
  )
  return np.float32(centre) + np.float32(spread) * values


def read():
  """{network: ({name: shape} of its state dict, logits in float64)}."""
  with np.load(PATH) as file:
    names = json.loads(str(file['names']))
    return {network: (shapes, file[network]) for network, shapes in names.items()}


def computed(network):
  """The same from torch, of the network of this name."""
  from tests.torch_models import MODELS, torch

  module = MODELS[network]().eval()
  shapes = {name: list(tensor.shape) for name, tensor in module.state_dict().items()}
  module.load_state_dict({name: torch.from_numpy(a) for name, a in state_of(shapes).items()})
  with torch.no_grad():
    x = torch.from_numpy(images().astype(np.float64)).permute(0, 3, 1, 2)
    return shapes, module.double()(x).numpy()


def main():
  from tests.torch_models import MODELS

  found = {network: computed(network) for network in MODELS}
  names = json.dumps({network: shapes for network, (shapes, _) in found.items()})
  logits = {network: logits for network, (_, logits) in found.items()}
  np.savez_compressed(PATH, names=names, **logits)


if __name__ == '__main__':
  main()
