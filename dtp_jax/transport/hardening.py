"""When the proximal rule is hard: its epsilon for a chosen number of steps."""

import numbers
from statistics import NormalDist

__all__ = ['hardening_epsilon']

_NORMAL = NormalDist()


def hardening_epsilon(steps: int, *, keep: float, spread: float, softness: float = 0.01) -> float:
  """The epsilon at which masks of `proximal_step` reach a softness after so many steps.

  The log-odds of step t are z = 2 / eps (s_1 + ... + s_t) up to a shift. Soft is what lies within
  some units of the threshold: with p(z) the density of the log-odds there and m = sigmoid(z), whose
  m (1 - m) integrates to 1 over z, the softness is S = mean 4 m (1 - m) = 4 p(z). If the mean
  score over the steps is normal over the elements, with standard deviation sigma,

      S = 2 eps phi(q) / (t sigma),   q = Phi^-1(1 - keep),   eps = S T sigma / (2 phi(q))

  so epsilon is proportional to the number of steps and to the spread of the mean score:

  - scores that stay: their standard deviation;
  - scores that start at 0 and move by r times a random sign at every step, as Adam of rate r moves
    them along gradients that are noise: r sqrt(T / 3);
  - scores that start at 0 and move steadily: half of their last standard deviation;
  - scores that Adam trains through the mask (`preset='paper'`) along gradients that are noise: near
    the threshold they move faster than elsewhere, and leave it; with 2 r sqrt(T / 3) the mask was
    hard after 0.65 T to T (measured, keep 0.02 to 0.3, T 100 to 1000). Gradients that agree from
    step to step harden it sooner.

  >>> one, ten = (hardening_epsilon(t, keep=0.1, spread=1.0) for t in (100, 1000))
  >>> round(one, 3), round(ten / one, 6)
  (2.849, 10.0)

  Args:
    steps: T, after which the mask is to be hard, >= 1.
    keep: fraction of the elements that is kept, in (0, 1).
    spread: sigma, > 0. Scores of another distribution harden by their density at the threshold:
      sooner where it is below the normal one, later where it is above.
    softness: mean of 4 m (1 - m) to be reached, in (0, keep (1 - keep)]. At the upper end, a
      quarter of that at rest, it is met within 4 %; below it is closer.

  Returns:
    epsilon, > 0.

  Raises:
    ValueError: an argument out of range.
  """
  if not isinstance(steps, numbers.Integral) or steps < 1:
    raise ValueError(f'steps is {steps!r}; expected a number of steps >= 1, an integer.')
  if not 0 < keep < 1:
    raise ValueError(f'keep is {keep}; expected a fraction in (0, 1).')
  if not 0 < spread < float('inf'):
    raise ValueError(f'spread is {spread}; expected a standard deviation > 0.')
  highest = keep * (1 - keep)
  if not 0 < softness <= highest:
    raise ValueError(
      f'softness is {softness}; expected one in (0, {highest:g}], up to a quarter of that at rest.'
    )
  density = _NORMAL.pdf(_NORMAL.inv_cdf(1 - keep))
  return softness * int(steps) * spread / (2 * density)
