"""The shape of every pruning method: a bundle of pure functions over pytrees."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.core import Tracer

from dtp_jax import transport
from dtp_jax.budget import Budget, Resolved, resolve
from dtp_jax.budget.problem import Problem
from dtp_jax.graph import Graph, Norms, shrink
from dtp_jax.methods.options import check_step
from dtp_jax.methods.restarting import restarting
from dtp_jax.prunable import Masks, Params, Prunable, channels

__all__ = [
  'Extra',
  'Moment',
  'Pruner',
  'Rule',
  'Schedule',
  'Start',
  'as_state',
  'at_rest',
  'bundle',
  'from_magnitudes',
  'keep_at',
  'standardised',
]

Extra = dict[str, dict[str, Array]]  # the collections {'scores': ..., 'transport': ...}
Schedule = Callable[[Any], Any]  # step -> value, as in optax


class Moment(NamedTuple):
  """What a rule sees of one transport problem at one step of the soft stage.

  Attributes:
    magnitudes: importance of the present weights, >= 0, (n,) or (rows, n); differentiable.
    scores: of the same shape, as `Pruner.optimizer` moved them; zeros for a method without.
    state: log-odds of the step before, of the same shape.
    keep: the fraction of the budget's unit to keep now, rho_t.
    step: soft step, 0 for the first.
  """

  magnitudes: Array
  scores: Array
  state: Array
  keep: Any
  step: Any


Start = Callable[[dict[str, Array]], tuple[dict[str, Array], dict[str, Array]]]
Rule = Callable[[Problem, Moment], tuple[Array, Array]]
Ramp = Callable[[float], Schedule]  # the kept fraction to end at -> that of each soft step


class Pruner(NamedTuple):
  """A pruning method on the elements of one network: pure functions, no state of its own.

  What it needs from step to step is in `extra`, two flat collections keyed by the names of the
  elements: 'scores', moved beside the weights by `optimizer` (empty for a method without), and
  'transport', the log-odds that rank the elements. What is hardened is what was last ranked, also
  after the weights have moved on.

  `params` is the tree the elements were named from: what was traced, or the entry of it that holds
  the parameters (Linen's `variables['params']`); for `dtp_jax.weights` and its like, the tree they
  were given.

  Attributes:
    elements: what may be pruned.
    resolved: the budget on these elements: its problems and its account.
    init: params -> extra, at the start of the soft stage.
    masks: (params, extra, step) -> (masks {name: array in [0, 1]}, the next transport), for step 0,
      1, ... of the soft stage; differentiable in params and in extra['scores'].
    score_optimizer: what moves the scores, where that is a part of the method (DTP's default reads
      evidence off their gradients and never descends along them); None leaves it to the user.
    restarts: whether dropped weights are set to 0 and start from there when they return: a part of
      the step that the optimizer takes, which needs the masks for it.
  """

  elements: Prunable
  resolved: Resolved
  init: Callable[[Params], Extra]
  masks: Callable[[Params, Extra, Any], tuple[Masks, dict[str, Array]]]
  score_optimizer: optax.GradientTransformation | None = None
  restarts: bool = False

  def prune(self, params: Params, extra: Extra, step: Any) -> tuple[Params, dict[str, Array]]:
    """The soft-pruned parameters of a step, for the loss, and the next transport.

    Args:
      params: see above.
      extra: the collections 'scores' and 'transport'.
      step: soft step, 0, 1, ...; a number, traced or not.

    Returns:
      A tree like params, differentiable in params and extra['scores'], and the transport collection
      of the next step, not differentiable.

    Raises:
      ValueError: collections of another network, or a step that is no number >= 0.
    """
    masks, transport = self.masks(params, extra, step)
    return self.apply_masks(params, masks), transport

  def optimizer(
    self,
    weights: optax.GradientTransformation,
    scores: optax.GradientTransformation | None = None,
  ) -> optax.GradientTransformationExtraArgs:
    """One optimizer over the tree {'params': ..., 'scores': ...}: an optax multi-transform.

    Its `update` takes the masks of the step as the keyword `masks`. Methods that set dropped
    weights to 0 (`restarts`) need them, the others do not look at them.

    Args:
      weights: of the 'params' branch.
      scores: of the 'scores' branch, where the method leaves it open; None is Adam at 0.01.

    Returns:
      An optax transform.

    Raises:
      ValueError: `scores` is given to a method that has its own.
      TypeError: something that is no optax transform.
    """
    if self.score_optimizer is not None and scores is not None:
      raise ValueError('scores is given, but this method moves its scores itself; leave it out.')
    for name, given in {'weights': weights, 'scores': scores or weights}.items():
      if not hasattr(given, 'update'):
        raise TypeError(f'{name} is {given!r}; expected an optax transform, as optax.adam(1e-3).')
    chosen = self.score_optimizer or scores or optax.adam(1e-2)
    if self.restarts:
      weights = restarting(weights, self._apply_masks_to_branch)
    labels = {'params': 'params', 'scores': 'scores'}
    return optax.partition({'params': weights, 'scores': chosen}, labels)

  def harden(self, extra: Extra) -> Masks:
    """Boolean masks {name: array} that keep exactly the budget, by the ranking in 'transport'.

    Raises:
      ValueError: no such collection, or outside of jit a ranking that is NaN, which orders nothing.
    """
    collection, hard = _collection(extra, 'transport', self.elements), {}
    for problem in self.resolved.problems:
      ranking = problem.gather(collection)
      if not isinstance(ranking, Tracer) and bool(jnp.any(jnp.isnan(ranking))):
        names = [name for name, x in collection.items() if bool(jnp.any(jnp.isnan(x)))]
        raise ValueError(
          f'the ranking of {names} is NaN: the weights or their gradients were. Take the state of '
          'an earlier step, and a lower learning rate.'
        )
      hard |= problem.scatter(problem.hard(ranking))
    return hard

  def shrink(self, variables: Any, extra: Extra, norms: Norms = 'exact') -> Any:
    """The network at exactly its budget.

    Args:
      variables: for channels the variables that were traced, whole; else as params above.
      extra: the collections, of which 'transport' is read.
      norms: of channels, 'exact' or 'refit', as in `dtp_jax.shrink`.

    Returns:
      For channels a smaller dense model, a `dtp_jax.Slim`, with the output of the masked network.
      For single weights, rows and blocks, which leave nothing to delete, the tree with exact zeros.

    Raises:
      ValueError: variables that are not those traced, unknown norms, or 'refit' where no channel is
        deleted.
    """
    hard = self.harden(extra)
    if self.elements.graph is not None:
      return shrink(self.elements.graph, variables, hard, norms=norms)
    if norms != 'exact':
      raise ValueError(f'norms is {norms!r}; nothing is deleted here, so expected the default.')
    return self.apply_masks(variables, hard)

  def apply_masks(self, params: Params, masks: Masks) -> Params:
    """Params times masks {name: array of the score shape}; differentiable in both."""
    return self.elements.apply_masks(params, masks)

  def _apply_masks_to_branch(self, trained: Params, masks: Masks) -> Params:
    """The tree of `optimizer`, its weights times masks."""
    return {**trained, 'params': self.apply_masks(trained['params'], masks)}


def bundle(
  elements: Graph | Prunable,
  budget: Budget,
  *,
  start: Start,
  rule: Rule,
  ramp: Ramp | None = None,
) -> Pruner:
  """A method from its start and its rule for one transport problem.

  The rule is traced once on abstract arrays, so that an option out of range is refused here and not
  in the first step of a run.

  Args:
    elements: what may be pruned; a graph stands for all of its channels.
    budget: how much to keep.
    start: magnitudes {name: array} -> (scores, transport), both {name: array}; scores may be empty.
    rule: (problem, moment) -> (mask, next state), arrays of the shape of the moment's.
    ramp: kept fraction to end at -> schedule of the overall kept fraction by soft step; None keeps
      it at the budget from the start. Every problem is on its way by the same share.

  Returns:
    A Pruner.

  Raises:
    ValueError: a budget that cannot be met, or whatever the rule refuses.
  """
  elements = channels(elements) if isinstance(elements, Graph) else elements
  resolved = resolve(budget, elements)
  overall = None if ramp is None else ramp(resolved.keep)

  def init(params: Params) -> Extra:
    scores, state = start(elements.magnitude(params))
    return {'scores': scores, 'transport': state}

  def masks(params: Params, extra: Extra, step: Any) -> tuple[Masks, dict[str, Array]]:
    check_step(step)
    magnitudes, state = elements.magnitude(params), _collection(extra, 'transport', elements)
    learned = bool(extra.get('scores', True))
    scores = (
      _collection(extra, 'scores', elements) if learned else jax.tree.map(jnp.zeros_like, state)
    )
    soft: Masks = {}
    following: dict[str, Array] = {}
    for problem in resolved.problems:
      keep = problem.keep
      if overall is not None:
        keep = keep_at(problem, overall(step), resolved.keep)
      m, s, z = (problem.gather(part) for part in (magnitudes, scores, state))
      mask, z = rule(problem, Moment(m, s, z, keep, step))
      soft |= problem.scatter(mask)
      following |= problem.scatter(z)
    return soft, following

  _try_out(elements, resolved.problems[0], rule)
  return Pruner(elements, resolved, init, masks)


def _collection(extra: Extra, name: str, elements: Prunable) -> dict[str, Array]:
  """One of the two collections, with an array for each name of the elements."""
  found = extra.get(name) if isinstance(extra, Mapping) else None
  if found is None or set(found) != set(elements.shapes):
    there = 'missing' if found is None else f'of {sorted(found)}'
    raise ValueError(
      f'in extra {name!r} is {there}; expected what Pruner.init gives, with an array for each of '
      f'{sorted(elements.shapes)}.'
    )
  for key, shape in elements.shapes.items():
    if jnp.shape(found[key]) != shape:
      raise ValueError(
        f'in extra {name!r} the array {key!r} has shape {jnp.shape(found[key])}; expected {shape}, '
        'as Pruner.init gives it (several networks at once: jax.vmap).'
      )
  return found


def keep_at(problem: Problem, overall: Any, target: float) -> Any:
  """The kept fraction of one problem while the overall one is on its way to `target`.

  Arrays that end denser than others stay denser on the way: the pruned fraction of each is its
  final one times the progress (1 - overall) / (1 - target).
  """
  if target >= 1:
    return 1.0
  return 1 - (1 - problem.keep) * (1 - overall) / (1 - target)


def at_rest(magnitudes: dict[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
  """A start that knows nothing: scores 0, and the log-odds of the uniform plan.

  Two sets of arrays, so that a step may be given both as donated arguments.
  """
  scores, log_odds = ({k: transport.init(x) for k, x in magnitudes.items()} for _ in range(2))
  return scores, log_odds


def from_magnitudes(magnitudes: dict[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
  """A start without scores, ranked by the magnitudes."""
  return {}, {name: as_state(x) for name, x in magnitudes.items()}


def as_state(ranking: Array) -> Array:
  """The ranking to harden by, as the float32 state (float64 stays)."""
  return jax.lax.stop_gradient(ranking).astype(jnp.promote_types(ranking.dtype, jnp.float32))


def standardised(magnitudes: dict[str, Array]) -> dict[str, Array]:
  """Magnitudes with mean 0 and standard deviation 1 per name, so that layers can be compared."""

  def standardise(x: Array) -> Array:
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (x - jnp.mean(x)) / (jnp.std(x) + jnp.finfo(x.dtype).tiny)

  return {name: standardise(x) for name, x in magnitudes.items()}


def _try_out(elements: Prunable, problem: Problem, rule: Rule) -> None:
  """Traces a rule on abstract arrays: what checks its options are the ops that take them."""
  arrays = {name: jax.ShapeDtypeStruct(s, jnp.float32) for name, s in elements.shapes.items()}

  def once(arrays: Any, step: Any) -> tuple[Array, Array]:
    flat = problem.gather(arrays)
    return rule(problem, Moment(flat, flat, flat, problem.keep, step))

  jax.eval_shape(once, arrays, jax.ShapeDtypeStruct((), jnp.int32))
