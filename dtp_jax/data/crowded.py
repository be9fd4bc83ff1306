"""Crowded digits: the digit in the middle is asked for, and its neighbours reach into the image.

A harder task made of digits that need no download, in the manner of street numbers (SVHN) and of
cluttered MNIST (Mnih et al. 2014): single digits are told apart at a few percent of any network.
"""

import numpy as np

__all__ = ['COPIES', 'crowded']

COPIES = 4  # images made of every digit, each with neighbours of its own
_NEAREST, _FARTHEST = 11, 15  # pixels from the middle to a neighbour's middle


def crowded(
  split: dict[str, np.ndarray], *, seed: int, copies: int = COPIES
) -> dict[str, np.ndarray]:
  """Puts every digit between two others of the split, the brighter pixel in front.

  Args:
    split: 'image' uint8 [N, H, W, 1] and 'label' int32 [N].
    seed: of the neighbours and their distances, in [0, 2**64); equal seeds give equal images, with
      any version of numpy.
    copies: images made of every digit, >= 1.

  Returns:
    'image' uint8 [copies N, H, W, 1] and 'label' int32 [copies N] of the digit in the middle; all
    digits once, then all again.
  """
  image, label = split['image'], split['label']
  # Raw words of Philox are fixed for good across numpy versions, unlike Generator.permutation.
  words = np.random.Philox(key=seed).random_raw((copies, 2, 2, len(label)))
  images = []
  for of_copy in words:
    made = image
    for side, (pick, distance) in zip((-1, 1), of_copy, strict=True):
      shift = _NEAREST + (distance % (_FARTHEST - _NEAREST + 1)).astype(np.int64)
      made = np.maximum(made, _shifted(image[np.argsort(pick, kind='stable')], side * shift))
    images.append(made)
  return {'image': np.concatenate(images), 'label': np.tile(label, copies)}


def _shifted(images: np.ndarray, shift_N: np.ndarray) -> np.ndarray:
  """Images moved to the right by so many pixels each, zeros moved in."""
  width = images.shape[2]
  padded = np.pad(images, ((0, 0), (0, 0), (width, width), (0, 0)))
  columns_NxW = width - shift_N[:, None] + np.arange(width)
  return np.take_along_axis(padded, columns_NxW[:, None, :, None], axis=2)
