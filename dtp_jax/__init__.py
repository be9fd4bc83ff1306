"""Differentiable transportation pruning for JAX.

The transport ops need nothing but jax; everything else is imported when it is first used.
"""

import importlib
from typing import TYPE_CHECKING

from dtp_jax import transport

if TYPE_CHECKING:
  from dtp_jax import budget, cost, export, graph, methods, models, optimizer, priced, prunable
  from dtp_jax.budget import Budget
  from dtp_jax.graph import Graph, Slim, shrink, trace
  from dtp_jax.latency_table import LatencyTable
  from dtp_jax.methods import (
    PruningMethod,
    dense,
    gradual_magnitude,
    magnitude,
    pdp,
    random,
    spartan,
    straight_through,
    transportation,
  )
  from dtp_jax.prunable import Prunable, blocks, channels, nm, weights

__version__ = '0.1.0'

__all__ = [
  'Budget',
  'Graph',
  'LatencyTable',
  'Prunable',
  'PruningMethod',
  'Slim',
  'blocks',
  'budget',
  'channels',
  'cost',
  'dense',
  'export',
  'gradual_magnitude',
  'graph',
  'magnitude',
  'methods',
  'models',
  'nm',
  'optimizer',
  'pdp',
  'priced',
  'prunable',
  'random',
  'shrink',
  'spartan',
  'straight_through',
  'trace',
  'transport',
  'transportation',
  'weights',
]

_HOME = {
  'Budget': 'budget',
  'LatencyTable': 'latency_table',
  **dict.fromkeys(('Graph', 'Slim', 'shrink', 'trace'), 'graph'),
  **dict.fromkeys(('Prunable', 'blocks', 'channels', 'nm', 'weights'), 'prunable'),
  **dict.fromkeys(
    (
      'PruningMethod',
      'dense',
      'gradual_magnitude',
      'magnitude',
      'pdp',
      'random',
      'spartan',
      'straight_through',
      'transportation',
    ),
    'methods',
  ),
}


def __getattr__(name: str):
  """Imports a public name from its module on first use (PEP 562)."""
  if name not in __all__:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  if name in _HOME:
    return getattr(importlib.import_module(f'{__name__}.{_HOME[name]}'), name)
  return importlib.import_module(f'{__name__}.{name}')


def __dir__() -> list[str]:
  return sorted(__all__)
