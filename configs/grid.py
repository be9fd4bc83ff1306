"""Rows of methods that the configs of the grid share: {row: the config fields it changes}."""

__all__ = ['channels_rows', 'weights_rows']

_LEARNED = (
  'transportation',
  'magnitude',
  'gradual_magnitude',
  'straight_through',
  'spartan',
  'pdp',
)


def weights_rows() -> dict[str, dict]:
  """Every method that fits single weights."""
  return {name: {'method': name} for name in (*_LEARNED, 'random')}


def channels_rows() -> dict[str, dict]:
  """Every method that fits channels.

  Random and L1 stand at uniform width: a random global choice only loses by its widths.
  """
  uniform = {'scope': 'layer', 'importance': 'l1'}
  rows = {name: {'method': name, 'prune': {'scope': 'global'}} for name in _LEARNED}
  return rows | {
    'l1_uniform': {'method': 'magnitude', 'prune': dict(uniform)},
    'random_uniform': {'method': 'random', 'prune': dict(uniform)},
  }
