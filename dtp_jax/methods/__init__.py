"""Pruning methods: DTP and the baselines, all of one shape."""

from dtp_jax.methods.baselines import (
  dense,
  gradual_magnitude,
  magnitude,
  pdp,
  random,
  spartan,
  straight_through,
)
from dtp_jax.methods.pruner import PruningMethod
from dtp_jax.methods.transportation import cubic_ramp, transportation

__all__ = [
  'PruningMethod',
  'cubic_ramp',
  'dense',
  'gradual_magnitude',
  'magnitude',
  'pdp',
  'random',
  'spartan',
  'straight_through',
  'transportation',
]
