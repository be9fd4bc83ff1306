"""The networks of the zoo: those of other libraries, small, as `dtp_jax.trace` takes them.

A builder imports its library, so that one which is not installed fails its own networks only.
"""

from experiments.zoo_models import equinox_nets, flax_nets, haiku_nets, transformers_nets
from experiments.zoo_models.model import Model, drawn

__all__ = ['MODELS', 'Model', 'drawn']

MODELS = {
  **transformers_nets.MODELS,
  **equinox_nets.MODELS,
  **haiku_nets.MODELS,
  **flax_nets.MODELS,
}
