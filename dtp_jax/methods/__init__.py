"""Pruning methods: DTP and the baselines, all of one shape."""

from dtp_jax.methods.baselines import (
  dense,
  gradual_magnitude,
  greg,
  magnitude,
  pdp,
  random,
  spartan,
  straight_through,
)
from dtp_jax.methods.pruner import Extra, Moment, Pruner, bundle, standardised
from dtp_jax.methods.ramp import cubic, cubic_ramp
from dtp_jax.methods.registry import METHODS, build, one_shot, options_of, register
from dtp_jax.methods.restarting import restarting
from dtp_jax.methods.saliency import fisher, lamp, taylor
from dtp_jax.methods.sparse_training import acdc, rigl
from dtp_jax.methods.transportation import evidential, proximal, transportation

__all__ = [
  'METHODS',
  'Extra',
  'Moment',
  'Pruner',
  'acdc',
  'build',
  'bundle',
  'cubic',
  'cubic_ramp',
  'dense',
  'evidential',
  'fisher',
  'gradual_magnitude',
  'greg',
  'lamp',
  'magnitude',
  'one_shot',
  'options_of',
  'pdp',
  'proximal',
  'random',
  'register',
  'restarting',
  'rigl',
  'spartan',
  'standardised',
  'straight_through',
  'taylor',
  'transportation',
]
