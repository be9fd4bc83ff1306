"""When the proximal rule is hard: its epsilon for a chosen number of steps."""

import math
import numbers
from statistics import NormalDist

from dtp_jax.transport.ops import Projection

__all__ = ['hardening_epsilon']

_NORMAL = NormalDist()


def hardening_epsilon(
  steps: int,
  *,
  keep: float,
  spread: float,
  growth: float = 1.0,
  softness: float = 0.01,
  projection: Projection = 'sinkhorn',
) -> float:
  """The epsilon at which masks of `proximal_step` reach a softness after so many steps.

  The log-odds of step t are z = 2 / eps (s_1 + ... + s_t) up to a shift. Soft is what lies within
  some units of the threshold: with p the density of the log-odds there and m = sigmoid(z), whose
  m (1 - m) integrates to 1 over z, the softness is S = mean 4 m (1 - m) = 4 p. If the mean score
  over the T steps is normal over the elements, with standard deviation sigma,

      S = 2 eps phi(q) / (T sigma),   eps = S T sigma / (2 phi(q))

  with q = Phi^-1(1 - keep) where every step projects exactly. One Sinkhorn iteration a step lags
  behind a threshold that moves by growth / T of itself a step, and q is where the two balance:

      logit(1 - Phi(q)) - logit(keep) = 4 phi(q) q growth / (S T)

  So epsilon is proportional to the spread, and but for the lag to the number of steps:

  - scores that stay: sigma is their standard deviation, growth 1;
  - scores that start at 0 and move by r times a random number of size 1 at every step, as Adam of
    rate r moves them along gradients that are noise: r sqrt(T / 3), growth 1.5;
  - scores that start at 0 and move steadily: half of their last standard deviation, growth 2.

  Scores that Adam trains through the mask (`preset='paper'`) move faster near the threshold, where
  the mask has the largest derivative, and leave it. Along gradients that are noise, with growth 1.5
  and twice the spread, 2 r sqrt(T / 3), the mask was hard after 0.53 T to 0.58 T at keep 0.02, 0.73
  T to 0.79 T at 0.1 and 0.88 T to 0.94 T at 0.3, for T from 100 to 1000 (measured). Gradients that
  agree from step to step harden it sooner.

  >>> one, ten = (
  ...   hardening_epsilon(t, keep=0.1, spread=1.0, projection='exact') for t in (100, 1000)
  ... )
  >>> round(one, 3), round(ten / one, 6)
  (2.849, 10.0)

  Args:
    steps: T, after which the mask is to be hard, >= 1.
    keep: fraction of the elements that is kept, in (0, 1).
    spread: sigma, > 0. Scores of another distribution harden by their density at the threshold:
      sooner where it is below the normal one, later where it is above.
    growth: power of t that the standard deviation of s_1 + ... + s_t grows with, >= 0.
    softness: S, mean of 4 m (1 - m), to be reached; in (0, keep (1 - keep)]. At the upper end, a
      quarter of that at rest, it is met within 4 %; below it is closer.
    projection: of `proximal_step`.

  Returns:
    epsilon, > 0.

  Raises:
    ValueError: an argument out of range.
  """
  if not isinstance(steps, numbers.Integral) or steps < 1:
    raise ValueError(f'steps is {steps!r}; expected a number of steps >= 1, an integer.')
  if not 0 < keep < 1:
    raise ValueError(f'keep is {keep}; expected a fraction in (0, 1).')
  if not 0 < spread < math.inf:
    raise ValueError(f'spread is {spread}; expected a standard deviation > 0.')
  if not 0 <= growth < math.inf:
    raise ValueError(f'growth is {growth}; expected a power >= 0.')
  highest = keep * (1 - keep)
  if not 0 < softness <= highest:
    raise ValueError(
      f'softness is {softness}; expected one in (0, {highest:g}], up to a quarter of that at rest.'
    )
  if projection not in ('sinkhorn', 'exact'):
    raise ValueError(f"projection is {projection!r}; expected 'sinkhorn' or 'exact'.")
  lag = 4 * growth / (softness * steps) if projection == 'sinkhorn' else 0.0
  return softness * int(steps) * float(spread) / (2 * _NORMAL.pdf(_threshold(keep, lag)))


def _threshold(keep: float, lag: float) -> float:
  """The quantile q of `hardening_epsilon`, between 0 and the quantile of the budget."""
  # What is kept and what is dropped are mirror images.
  goal = _NORMAL.inv_cdf(max(keep, 1 - keep))
  low, high = 0.0, goal
  for _ in range(60 if lag else 0):
    q = 0.5 * (low + high)
    over = _logit(_NORMAL.cdf(goal)) - _logit(_NORMAL.cdf(q))
    low, high = (q, high) if over > lag * q * _NORMAL.pdf(q) else (low, q)
  return high


def _logit(p: float) -> float:
  return math.log(p / (1 - p))
