"""Two-column optimal transport from scores to masks: arrays in, arrays out."""

from dtp_jax.transport.ops import (
  Projection,
  deadline_gain,
  hard_topk,
  init,
  project,
  proximal_step,
  root,
  sinkhorn_step,
  soft_topk,
  softness,
)

__all__ = [
  'Projection',
  'deadline_gain',
  'hard_topk',
  'init',
  'project',
  'proximal_step',
  'root',
  'sinkhorn_step',
  'soft_topk',
  'softness',
]
