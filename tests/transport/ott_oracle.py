"""The same problems through OTT's Sinkhorn, on the full n x 2 cost matrix."""

import warnings

import jax
import jax.numpy as jnp

# OTT imports jaxopt, which warns that it is no longer maintained.
with warnings.catch_warnings():
  warnings.simplefilter('ignore', DeprecationWarning)
  from ott.geometry import geometry
  from ott.solvers import linear


def cost(scores):
  return (scores[:, None] - jnp.array([[0.0, 1.0]])) ** 2


def soft_topk(scores, keep, epsilon, weights):
  """The entropic plan, iterated to convergence: share of each mass sent to 'keep'."""
  b = jnp.array([1 - keep, keep])
  # OTT broadcasts potentials against the cost matrix.
  with jax.numpy_rank_promotion('allow'):
    geom = geometry.Geometry(cost(scores), epsilon=epsilon)
    out = linear.solve(geom, a=weights, b=b, threshold=1e-13, max_iterations=20_000)
    return out.matrix[:, 1] / weights


def proximal_step(scores, plan, keep, epsilon, weights):
  """The next plan: one Sinkhorn iteration on C - epsilon log P_prev, with centred scores."""
  centred = scores - weights @ scores + 0.5
  log_a, log_b = jnp.log(weights), jnp.log(jnp.array([1 - keep, keep]))
  with jax.numpy_rank_promotion('allow'):
    geom = geometry.Geometry(cost(centred) - epsilon * jnp.log(plan), epsilon=epsilon)
    f = geom.update_potential(jnp.zeros(len(scores)), jnp.zeros(2), log_a, axis=1)
    g = geom.update_potential(f, jnp.zeros(2), log_b, axis=0)
    f = geom.update_potential(f, g, log_a, axis=1)
    return geom.transport_from_potentials(f, g)
