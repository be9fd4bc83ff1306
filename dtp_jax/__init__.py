"""Differentiable transportation pruning for JAX: networks at exactly the size asked for."""

import importlib
from types import ModuleType

from dtp_jax import budget as budget
from dtp_jax import graph as graph
from dtp_jax import methods as methods
from dtp_jax import transport as transport
from dtp_jax.budget import Budget as Budget
from dtp_jax.budget.latency import LatencyTable as LatencyTable
from dtp_jax.graph import Graph as Graph
from dtp_jax.graph import Slim as Slim
from dtp_jax.graph import shrink as shrink
from dtp_jax.graph import trace as trace
from dtp_jax.methods import Pruner as Pruner
from dtp_jax.methods import acdc as acdc
from dtp_jax.methods import dense as dense
from dtp_jax.methods import fisher as fisher
from dtp_jax.methods import gradual_magnitude as gradual_magnitude
from dtp_jax.methods import greg as greg
from dtp_jax.methods import lamp as lamp
from dtp_jax.methods import magnitude as magnitude
from dtp_jax.methods import pdp as pdp
from dtp_jax.methods import random as random
from dtp_jax.methods import register as register
from dtp_jax.methods import rigl as rigl
from dtp_jax.methods import spartan as spartan
from dtp_jax.methods import straight_through as straight_through
from dtp_jax.methods import taylor as taylor
from dtp_jax.methods import transportation as transportation
from dtp_jax.prunable import Prunable as Prunable
from dtp_jax.prunable import blocks as blocks
from dtp_jax.prunable import channels as channels
from dtp_jax.prunable import nm as nm
from dtp_jax.prunable import weights as weights

__version__ = '0.4.0'

_LATER = ('data', 'export', 'models', 'report', 'train')  # heavier: imported on first use


def __getattr__(name: str) -> ModuleType:
  """Imports a package of the project on its first use (PEP 562)."""
  if name in _LATER:
    return importlib.import_module(f'{__name__}.{name}')
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
