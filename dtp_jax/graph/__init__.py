"""What a network is: channel groups of any traced JAX function, and the smaller network."""

from dtp_jax.graph.graph import Graph, Operator
from dtp_jax.graph.groups import Group, Leaf, Slice
from dtp_jax.graph.ranking import rank_layers
from dtp_jax.graph.shrink import Norms, Slim, difference, shrink
from dtp_jax.graph.trace import trace
from dtp_jax.graph.widths import layer_widths

__all__ = [
  'Graph',
  'Group',
  'Leaf',
  'Norms',
  'Operator',
  'Slice',
  'Slim',
  'difference',
  'layer_widths',
  'rank_layers',
  'shrink',
  'trace',
]
