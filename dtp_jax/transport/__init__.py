"""Two-column optimal transport from scores to masks: arrays in, arrays out."""

from dtp_jax.transport.hard import hard_topk as hard_topk
from dtp_jax.transport.hardening import hardening_epsilon as hardening_epsilon
from dtp_jax.transport.ops import Projection as Projection
from dtp_jax.transport.ops import anneal as anneal
from dtp_jax.transport.ops import anneal_rows as anneal_rows
from dtp_jax.transport.ops import deadline_gain as deadline_gain
from dtp_jax.transport.ops import init as init
from dtp_jax.transport.ops import project as project
from dtp_jax.transport.ops import proximal_step as proximal_step
from dtp_jax.transport.ops import sinkhorn_step as sinkhorn_step
from dtp_jax.transport.ops import soft_topk as soft_topk
from dtp_jax.transport.ops import softness as softness
