"""The shape of every pruning method: a bundle of pure functions over pytrees."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from dtp_jax.budget import Budget, problems
from dtp_jax.budget.problem import CostProblem, CountProblem, Problem
from dtp_jax.prunable import Masks, Prunable

__all__ = [
  'Collections',
  'PruningMethod',
  'Schedule',
  'bundle',
  'keep_at',
  'standardised',
  'total_keep',
]

Collections = dict[str, Any]  # Flax collections: {'params': ..., 'scores': ..., 'transport': ...}
Schedule = Callable[[Any], Any]  # step -> value, as in optax
Rule = Callable[[Problem, Array, Array, Array, Array], tuple[Array, Array]]
Start = Callable[[dict[str, Array]], tuple[dict[str, Array], dict[str, Array]]]


class PruningMethod(NamedTuple):
  """A pruning method, in optax's manner: pure functions, no state of its own.

  The log-odds in 'transport' rank the elements for every method, so what is hardened is what was
  last ranked, also after the weights have moved on.

  Attributes:
    init: variables (with 'params') -> {'scores': trainable, 'transport': state}, two flat
      collections keyed by the names of the Prunable. Empty scores: nothing is learned but weights.
    masks: (variables, step) -> (masks, transport): the soft masks {name: array in [0, 1]} of a step
      of the soft stage, differentiable in params and scores, and the next transport collection.
    harden: variables -> boolean masks that keep exactly the counts of the budget.
    problems: the transport problems behind them, with their counts.
  """

  init: Callable[[Collections], Collections]
  masks: Callable[[Collections, Any], tuple[Masks, dict[str, Array]]]
  harden: Callable[[Collections], Masks]
  problems: tuple[Problem, ...]


def bundle(prunable: Prunable, budget: Budget, *, start: Start, rule: Rule) -> PruningMethod:
  """A method from its start and its rule for one transport problem.

  Args:
    prunable: the elements.
    budget: how much to keep.
    start: magnitudes {name: array} -> (scores, transport), both {name: array}; scores may be empty.
    rule: (problem, magnitudes, scores, state, step) -> (mask, next state), on arrays (n,) or
      (rows, n); scores are zeros where start gives none.

  Returns:
    A PruningMethod.

  Raises:
    ValueError: a budget that cannot be met.
  """
  plan = problems(prunable, budget)

  def init(variables):
    scores, state = start(prunable.magnitude(variables['params']))
    return {'scores': scores, 'transport': state}

  def masks(variables, step):
    magnitudes = prunable.magnitude(variables['params'])
    state = variables['transport']
    scores = variables['scores'] or {name: jnp.zeros_like(z) for name, z in state.items()}
    soft, following = {}, {}
    for problem in plan:
      m, s, z = (problem.gather(arrays) for arrays in (magnitudes, scores, state))
      mask, z = rule(problem, m, s, z, step)
      soft |= problem.scatter(mask)
      following |= problem.scatter(z)
    return soft, following

  def harden(variables):
    hard = {}
    for problem in plan:
      hard |= problem.scatter(problem.hard(problem.gather(variables['transport'])))
    return hard

  return PruningMethod(init, masks, harden, plan)


def keep_at(problem: Problem, overall: Any, target: float) -> Any:
  """The kept fraction of one problem while the overall one is on its way to `target`.

  Arrays that end denser than others stay denser on the way: the pruned fraction of each is its
  final one times the progress (1 - overall) / (1 - target).
  """
  if target >= 1:
    return 1.0
  return 1 - (1 - problem.keep) * (1 - overall) / (1 - target)


def total_keep(plan: tuple[Problem, ...]) -> float:
  """The kept fraction of all problems together, in the unit of the budget."""
  if any(isinstance(p, CostProblem) for p in plan):
    (problem,) = plan  # all groups compete in one
    return problem.keep
  counted = [p for p in plan if isinstance(p, CountProblem)]
  return sum(p.k * p.copies for p in counted) / sum(p.n * p.copies for p in counted)


def standardised(magnitudes: dict[str, Array]) -> dict[str, Array]:
  """Magnitudes with mean 0 and standard deviation 1 per name, so that layers can be compared."""

  def standardise(x):
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (x - jnp.mean(x)) / (jnp.std(x) + jnp.finfo(x.dtype).tiny)

  return {name: standardise(x) for name, x in magnitudes.items()}
