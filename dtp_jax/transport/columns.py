"""Column sums of the plan: the share of the budget that a mask uses, linear or priced.

The mask m = sigmoid(z + nu) has one unknown, fixed by F(m) = rho. F is the column sum <a, m> of
source masses a for a count or any budget that adds up, and F(m) / F(1) for a cost that does not,
such as MACs, where the counts of two groups multiply each other. What the solver needs of either is
written here; the solver itself is in `solve`.

Shapes: log-odds and masks (..., n), sums and everything per problem (..., 1).
"""

import dataclasses
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
from jax import Array

__all__ = ['Column', 'Linear', 'Priced', 'Share', 'logit']

Share = Callable[[Array], Array]  # mask (n,) -> F(m) / F(1), a scalar, increasing in every entry

_SAMPLE = 2**17
_REACH = 40.0  # sigmoid(+-40) is 1 and nothing, in float64 too


class Column(Protocol):
  """A column sum F, increasing in every entry of the mask. Implementations are pytrees."""

  def share(self, mask: Array) -> Array:
    """F(m), differentiable; its derivative <dF/dm, dm> holds the marginal prices."""
    ...

  def mean(self, x: Array) -> Array:
    """The mean of x under the source masses."""
    ...

  def shift(self, z: Array, rho: Array) -> Array:
    """The shift of one Sinkhorn iteration towards F = rho."""
    ...

  def level(self, z: Array) -> tuple[Array, Array]:
    """An increasing function of F at sigmoid(z), nearly linear in a shift of z, and its slope."""
    ...

  def target(self, rho: Array) -> Array:
    """The level of F = rho."""
    ...

  def reach(self, rho: Array) -> tuple[Array, Array]:
    """Log-odds u, v such that F <= rho where all z <= u and F >= rho where all z >= v."""
    ...

  def thinning(self, n: int) -> int:
    """The stride at which elements are enough to tell the slopes of F, of n elements."""
    ...

  def thinned(self, stride: int) -> 'Column':
    """The column sum of every stride-th element."""
    ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Linear:
  """F(m) = <a, m>.

  Attributes:
    masses: a of shape (..., n), or (1, ..., 1) if all are 1 / n; they sum to 1 over the n elements.
  """

  masses: Array

  def share(self, mask: Array) -> Array:
    """<a, m>."""
    return jnp.sum(self.masses * mask, axis=-1, keepdims=True)

  def mean(self, x: Array) -> Array:
    """<a, x>."""
    return jnp.sum(self.masses * x, axis=-1, keepdims=True)

  def shift(self, z: Array, rho: Array) -> Array:
    """Logit(rho) - logit(F), both columns in the log domain: hard plans do not underflow."""
    a = self.masses
    log_keep = jax.nn.logsumexp(jax.nn.log_sigmoid(z), b=a, axis=-1, keepdims=True)
    log_drop = jax.nn.logsumexp(jax.nn.log_sigmoid(-z), b=a, axis=-1, keepdims=True)
    return logit(rho) - (log_keep - log_drop)

  def level(self, z: Array) -> tuple[Array, Array]:
    """Logit(F): both columns are summed, none subtracted."""
    m, w = jax.nn.sigmoid(z), jax.nn.sigmoid(-z)
    kept, dropped = self.share(m), self.share(w)
    return jnp.log(kept) - jnp.log(dropped), self.share(m * w) / (kept * dropped)

  def target(self, rho: Array) -> Array:
    """Logit(rho)."""
    return logit(rho)

  def reach(self, rho: Array) -> tuple[Array, Array]:
    """Where every element has the log-odds of rho itself."""
    return logit(rho), logit(rho)

  def thinning(self, n: int) -> int:
    """Some 10^5 elements; odd, so as not to meet one column of a matrix again and again."""
    return max(1, n // _SAMPLE) | 1

  def thinned(self, stride: int) -> 'Linear':
    """Their masses, which sum to 1 again."""
    if self.masses.shape[-1] == 1:
      return Linear(self.masses * stride)
    a = self.masses[..., ::stride]
    return Linear(a / jnp.sum(a, axis=-1, keepdims=True))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Priced:
  """F(m) = cost(m), for one problem (n,).

  Attributes:
    cost: mask (n,) -> share, a scalar.
    degree: how many masks multiply each other in a term of the cost.
  """

  cost: Share = dataclasses.field(metadata={'static': True})
  degree: int = dataclasses.field(metadata={'static': True})

  def share(self, mask: Array) -> Array:
    """The cost, (1,)."""
    return self._share(mask).reshape(1)

  def mean(self, x: Array) -> Array:
    """Under the marginal prices of the whole as masses; uniform where the cost is flat there."""
    prices = jax.grad(self._share)(jnp.ones_like(x))
    total = jnp.sum(prices)
    a = jnp.where(total > 0, prices / total, 1 / x.size)
    return jnp.sum(a * x, keepdims=True)

  def shift(self, z: Array, rho: Array) -> Array:
    """(logit(rho) - logit(F)) / degree.

    Undamped, the shift is a contraction for a linear column sum alone: for a cost of degree 2 it
    overshoots and can lose the whole budget.
    """
    return (logit(rho) - logit(self.share(jax.nn.sigmoid(z)))) / self.degree

  def level(self, z: Array) -> tuple[Array, Array]:
    """Log(F): what is not used would be a difference."""
    m = jax.nn.sigmoid(z)
    share, rise = jax.jvp(self.share, (m,), (m * jax.nn.sigmoid(-z),))
    return jnp.log(share), rise / share

  def target(self, rho: Array) -> Array:
    """Log(rho)."""
    return jnp.log(jnp.maximum(rho, jnp.finfo(rho.dtype).tiny))

  def reach(self, rho: Array) -> tuple[Array, Array]:
    """Where the mask is nothing and everything, which bounds a rho that no mask attains too."""
    return jnp.full_like(rho, -_REACH), jnp.full_like(rho, _REACH)

  def thinning(self, n: int) -> int:
    """1: a cost takes the whole mask."""
    del n
    return 1

  def thinned(self, stride: int) -> 'Priced':
    """Itself."""
    del stride
    return self

  def _share(self, mask: Array) -> Array:
    value = jnp.asarray(self.cost(mask), mask.dtype)
    if value.shape:
      raise ValueError(
        f'cost gives shape {value.shape} for a mask of shape {mask.shape}; expected a scalar, the '
        'share of the budget that the mask uses.'
      )
    return value


def logit(rho: Array) -> Array:
  """Logit of rho held inside (0, 1), so that states stay finite at keep 0 and 1."""
  info = jnp.finfo(rho.dtype)
  rho = jnp.clip(rho, info.tiny, 1 - info.epsneg)
  return jnp.log(rho) - jnp.log1p(-rho)
