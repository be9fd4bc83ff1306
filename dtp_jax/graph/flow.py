"""Dims flowing through a jaxpr: values, the events that decide about groups, and the rule table.

A walk visits every equation, those of a loop until nothing changes any more, and asks its rule
which dims the results have. Events are noted on the way and judged when the walk is over:
contractions (somebody must zero a dead channel here), productions (whose out axis is this),
operators (what it costs) and stacks of layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core as jex

from dtp_jax.graph import bounds as interval
from dtp_jax.graph.bounds import UNBOUNDED, Bounds
from dtp_jax.graph.dead import ANYTHING, FINITE, GIVEN, NONE, NOTHING, STEADY, Dead, Kind, Masks
from dtp_jax.graph.dims import UNIT, Atom, Dim, Size, atoms, freeze, frozen, is_one, unify
from dtp_jax.graph.origins import ELEMENTWISE, FOLLOWED

CONSTANT, WEIGHT, ACTIVATION = range(3)


class Value(NamedTuple):
  """What is known of one intermediate.

  Attributes:
    dims: one dim per axis; `UNIT` for axes of size 1.
    dead: per axis, what the value is wherever an atom of this axis is dead, and the parameter axes
      to be masked for it.
    origin: what it was computed from: `CONSTANT` (what no mask reaches: literals, captured arrays,
      variables that are not parameters, random bits), `WEIGHT` (parameters too), `ACTIVATION`.
    bounds: an interval that all of its elements lie in.
    terms: if it is a sum and nothing else, the dims whose elements were added up.
    steps: (start, step) if it counts along its first axis from start on.
  """

  dims: tuple[Dim, ...]
  dead: tuple[Dead, ...]
  origin: int
  bounds: Bounds = UNBOUNDED
  terms: tuple[Dim, ...] = ()
  steps: tuple[float, float] | None = None

  @property
  def fixed(self) -> bool:
    """Whether it does not depend on the inputs."""
    return self.origin < ACTIVATION

  def makers(self, axis: int) -> Masks:
    """The parameter axes that, masked, make it zero along an axis; none if nothing does."""
    return self.dead[axis].masks if self.dead[axis].kind == Kind.ZERO else NONE

  def along(self, axis: int, rank: int) -> Dead:
    """What it is at dead positions of an axis of the result of rank `rank` it is spread out to."""
    if len(self.dims) == rank and self.dims[axis] is not UNIT:
      return self.dead[axis]
    return NOTHING if self.bounds == interval.POINT_ZERO else STEADY

  def picked(self, axes: Sequence[int]) -> Value:
    """The value with these axes alone, in this order."""
    dims, dead = tuple(self.dims[d] for d in axes), tuple(self.dead[d] for d in axes)
    return self._replace(dims=dims, dead=dead)

  def without(self, axes: Sequence[int]) -> Value:
    """The value with these axes gone."""
    return self.picked([d for d in range(len(self.dims)) if d not in axes])

  def with_dim(self, axis: int, dim: Dim) -> Value:
    """The value with another dim on one axis."""
    return self._replace(dims=(*self.dims[:axis], dim, *self.dims[axis + 1 :]))

  def with_dead(self, axis: int, dead: Dead) -> Value:
    """The value with something else known of one axis."""
    return self._replace(dead=(*self.dead[:axis], dead, *self.dead[axis + 1 :]))


class Contraction(NamedTuple):
  """A sum, or another reduction, over `dim`.

  Attributes:
    dim: every atom in it must be masked as one of the `options` says, or freezes.
    options: sets of parameter axes, the preferred one first.
    reads: the axes of the weight that is summed over, if one is.
    reason: what froze an atom for which there is no option.
  """

  dim: Dim
  options: tuple[Masks, ...]
  reads: Masks
  reason: str


class Operation(NamedTuple):
  """A convolution or product: its MACs are the product of the sizes of `dims`, times `times`.

  `eqn` and the dims of its `operands` are there for operators that can be run by themselves: not
  for those in the body of a loop.
  """

  leaf: int | None
  primitive: str
  dims: tuple[Dim, ...]
  summed: tuple[Dim, ...]
  times: int = 1
  eqn: Any = None
  operands: tuple[tuple[Dim, ...], ...] = ()


class Stack(NamedTuple):
  """A scan: what it runs along, the scope of its body, and which contractions are in it."""

  xs: tuple[Value, ...]
  body: Scope
  contractions: range


class Mean(NamedTuple):
  """What a division of a sum averages over, and the divisor: the number of terms, or one less."""

  dims: tuple[Dim, ...]
  divisor: int


@dataclass(eq=False)
class Scope:
  """One visited jaxpr: the values of its variables and, by equation, what else replay must know.

  Attributes:
    jaxpr: what was visited.
    consts: its constants.
    equations: the indices of those equations that results depend on.
    values: by variable.
    calls: {equation: scopes entered}; None for what calls nothing.
    means: {equation: what it averages over}, for divisions of a sum by its count.
  """

  jaxpr: Any
  consts: Sequence[Any]
  equations: list[int]
  values: dict[Any, Value] = field(default_factory=dict)
  calls: dict[int, Any] = field(default_factory=dict)
  means: dict[int, Mean] = field(default_factory=dict)

  def value(self, var: Any) -> Value:
    """The value of a variable or literal of this jaxpr."""
    return constant(var.val) if isinstance(var, jex.Literal) else self.values[var]


Rule = Callable[['Flow', Any, list[Value]], 'list[Value] | None']
CallRule = Callable[['Flow', Any, list[Value]], 'tuple[list[Value], Any] | None']
RULES: dict[str, Rule] = {}
CALLS: dict[str, CallRule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
  """Registers the rule of the named primitives. A rule that returns None does not know."""

  def register(fn: Rule) -> Rule:
    RULES.update(dict.fromkeys(names, fn))
    return fn

  return register


def call_rule(*names: str) -> Callable[[CallRule], CallRule]:
  """Registers a rule that enters jaxprs; it returns the results and the scopes entered."""

  def register(fn: CallRule) -> CallRule:
    CALLS.update(dict.fromkeys(names, fn))
    return fn

  return register


class Flow:
  """The walk: values by equation, and the events it has met."""

  def __init__(self) -> None:
    self.contractions: list[Contraction] = []
    self.productions: list[tuple[Masks, Dim]] = []
    self.operations: list[Operation] = []
    self.stacks: list[Stack] = []
    self.in_derivative = False
    self._where: list[str] = []

  def walk(self, jaxpr: Any, ins: Sequence[Value]) -> tuple[list[Value], Scope]:
    """Visits a jaxpr, open or closed, whose arguments have the values `ins`."""
    jaxpr, consts = opened(jaxpr)
    scope = Scope(jaxpr, consts, live(jaxpr))
    scope.values.update(zip(jaxpr.constvars, map(constant, consts), strict=True))
    scope.values.update(zip(jaxpr.invars, ins, strict=True))
    for i in scope.equations:
      eqn = jaxpr.eqns[i]
      self._where.append(str(eqn.source_info.name_stack))
      given = [scope.value(v) for v in eqn.invars]
      outs, scope.calls[i] = self._apply(eqn, given)
      self._where.pop()
      mean = mean_of(eqn, given)
      if mean is not None:
        scope.means[i] = mean
      scope.values.update(zip(eqn.outvars, outs, strict=True))
    return [scope.value(v) for v in jaxpr.outvars], scope

  def _apply(self, eqn: Any, ins: list[Value]) -> tuple[list[Value], Any]:
    name = eqn.primitive.name
    sizes = [n for v in (*eqn.invars, *eqn.outvars) for n in getattr(v.aval, 'shape', ())]
    if any(isinstance(n, int) and n == 0 for n in sizes):
      return self.opaque(eqn, ins, ' of an axis of size 0'), None  # sizes divide each other below
    entered = CALLS[name](self, eqn, ins) if name in CALLS else None
    if entered is not None:
      return entered
    outs = RULES[name](self, eqn, ins) if name in RULES else None
    if outs is None:
      return self.opaque(eqn, ins), None
    return [_described(eqn, ins, out) for out in outs], None

  def reason(self, eqn: Any, text: str = '') -> str:
    """'reduce_sum over it, in Net/LayerNorm_0': what a report says of a frozen dim."""
    where = '/'.join(part for part in self._where if part)
    return f'{eqn.primitive.name}{text}' + (f', in {where}' if where else '')

  def opaque(self, eqn: Any, ins: list[Value], why: str = '') -> list[Value]:
    """Freezes everything an equation touches; its results are fixed."""
    loops = eqn.primitive.name in ('scan', 'while', 'cond')
    why = why or (' (its body is not entered)' if loops else ' (no rule for it)')
    reason = self.reason(eqn, why)
    for value in ins:
      for dim in value.dims:
        freeze(dim, reason)
    batches = [a for v in ins for d in v.dims[:1] for a in atoms(d) if a.batch]
    outs = []
    for var in eqn.outvars:
      dims = [fixed(size, reason) for size in getattr(var.aval, 'shape', ())]
      if dims and batches and dims[0].size == batches[0].size:
        dims[0] = batches[0]  # what keeps the batch size in front still has the batch there
      outs.append(plain(dims))
    self._count_inside(eqn, batches)
    return outs

  def _count_inside(self, eqn: Any, batches: list[Atom]) -> None:
    """MACs of the jaxprs in an opaque equation, as constants (loops of unknown length: once)."""
    for inner in jex.jaxprs_in_params(eqn.params):
      flow = Flow()
      inner = opened(inner)[0]
      flow.walk(
        inner,
        [plain([fixed(s, 'opaque') for s in getattr(v.aval, 'shape', ())]) for v in inner.invars],
      )
      for op in flow.operations:
        macs = math.prod([int(eqn.params.get('length', 1)), op.times, *(d.size for d in op.dims)])
        batch = batches[0] if batches and macs % batches[0].size == 0 else None
        dims = () if batch is None else (batch,)
        self.operations.append(
          Operation(None, eqn.primitive.name, dims, (), macs // batch.size if batch else macs)
        )

  def noted(self) -> tuple[int, ...]:
    """How many events there are of each kind; see `forget`."""
    return tuple(map(len, self._events))

  def forget(self, noted: Sequence[int]) -> None:
    """Drops the events behind those that were `noted`: of a visit that does not count."""
    for events, kept in zip(self._events, noted, strict=True):
      del events[kept:]

  @property
  def _events(self) -> tuple[list[Any], ...]:
    return self.contractions, self.productions, self.operations, self.stacks

  def unify(self, eqn: Any, values: Sequence[Value]) -> list[Dim]:
    """The dims that values of one rank share; axes of size 1 spread."""
    reason = self.reason(eqn, ' of dims that do not line up')
    shared: list[Dim] = []
    for dims in zip(*(value.dims for value in values), strict=True):
      first, *others = [dim for dim in dims if not is_one(dim.size)] or [UNIT]
      for other in others:
        unify(first, other, reason)
      shared.append(first)
    return shared

  def contract(self, dim: Dim, eqn: Any, operands: Sequence[tuple[Value, int]]) -> None:
    """Notes a sum of products over `dim`, the given axis of each operand."""
    # A weight's in-axis is the place to mask; failing that, whatever else makes the terms zero.
    ranked = sorted(operands, key=lambda o: -o[0].origin)[::-1]
    zero = [value.dead[axis] for value, axis in ranked if value.dead[axis].kind == Kind.ZERO]
    read = NONE.union(*(v.dead[d].masks for v, d in operands if v.origin == WEIGHT))
    options, reason = tuple(dead.masks for dead in zero), self.reason(eqn, ' sums over it')
    self.contractions.append(Contraction(dim, options, read, reason))

  def reduce(self, dim: Dim, eqn: Any, dead: Dead) -> None:
    """Notes a reduction over `dim`, which can do without the dead if these are known."""
    options = (dead.masks,) if dead.kind >= Kind.GIVEN else ()
    self.contractions.append(Contraction(dim, options, NONE, self.reason(eqn, ' over it')))

  def operate(
    self, eqn: Any, ins: Sequence[Value], weight: Value, dims: Sequence[Dim], summed: Sequence[Dim]
  ) -> None:
    """Notes an operator with MACs, its dims and those of them it sums over."""
    if not self.in_derivative:  # derivative rules are not part of the network
      leaf = min((axis[0] for dead in weight.dead for axis in dead.masks), default=None)
      leaf, summed = leaf if weight.fixed else None, tuple(summed)
      operands = tuple(value.dims for value in ins)
      self.operations.append(
        Operation(leaf, eqn.primitive.name, (*dims, *summed), summed, 1, eqn, operands)
      )


def _described(eqn: Any, ins: Sequence[Value], out: Value) -> Value:
  """A rule's result with what holds of it whatever the rule: its bounds, and what is finite."""
  name, dead = eqn.primitive.name, out.dead
  if name not in FOLLOWED:
    dead = tuple(one.moved for one in dead)
  if name not in ELEMENTWISE and not any(map(_unsure, ins)):
    dead = tuple(FINITE if one == ANYTHING else one for one in dead)
  terms = out.terms if name == 'reduce_sum' else ins[0].terms if name in SAME_SUM else ()
  bounds, steps = interval.bounds(eqn, [v.bounds for v in ins]), steps_of(eqn, ins)
  return out._replace(dead=dead, bounds=bounds, terms=terms, steps=steps)


# Behind these a sum is still a sum.
SAME_SUM = ('convert_element_type', 'broadcast_in_dim', 'reshape', 'squeeze', 'transpose')


def mean_of(eqn: Any, ins: Sequence[Value]) -> Mean | None:
  """The mean that an equation makes of a sum, if it does: a division by how many there are."""
  if eqn.primitive.name not in ('div', 'mul'):
    return None
  total, divisor = sorted(ins, key=lambda value: not value.terms)
  if eqn.primitive.name == 'div' and total is not ins[0]:
    return None
  low, high = divisor.bounds
  if not total.terms or low != high or not low:
    return None
  full = math.prod(dim.size for dim in total.terms)
  number = low if eqn.primitive.name == 'div' else 1 / low
  for count in (full, full - 1):  # the latter in an unbiased variance
    if isinstance(count, int) and count > 0 and abs(number - count) < 1e-4 * count / full:
      return Mean(total.terms, count)
  return None


def steps_of(eqn: Any, ins: Sequence[Value]) -> tuple[float, float] | None:
  """(start, step) of a result that counts along its first axis: places of a slice with a stride."""
  match eqn.primitive.name:
    case 'iota':
      return (0, 1) if eqn.params['dimension'] == 0 else None
    case 'convert_element_type':
      return ins[0].steps
    case 'broadcast_in_dim' | 'reshape':
      before, after = shape_of(eqn.invars[0]), shape_of(eqn.outvars[0])
      return ins[0].steps if after == (*before, *[1] * (len(after) - len(before))) else None
    case 'add' | 'mul':
      counted, other = sorted(ins, key=lambda value: value.steps is None)
      low, high = other.bounds
      if counted.steps is None or low != high:
        return None
      start, step = counted.steps
      adds = eqn.primitive.name == 'add'
      return (start + low, step) if adds else (start * low, step * low)
    case _:
      return None


def _unsure(value: Value) -> bool:
  """Whether it may be infinite where a channel is dead."""
  return any(
    one.kind == Kind.ANYTHING and not frozen(dim)
    for dim, one in zip(value.dims, value.dead, strict=True)
  )


def sealed(value: Value) -> Value:
  """A value on its way into or out of a call that replay cannot look into or out of."""
  return value._replace(dead=tuple(one.moved for one in value.dead))


def opened(jaxpr: Any) -> tuple[Any, Sequence[Any]]:
  """The jaxpr and its constants, of an open or a closed jaxpr."""
  return getattr(jaxpr, 'jaxpr', jaxpr), getattr(jaxpr, 'consts', ())


def live(jaxpr: Any) -> list[int]:
  """Indices of the equations that results depend on, or that have effects."""
  needed = {v for v in jaxpr.outvars if not isinstance(v, jex.Literal)}
  indices = []
  for i in reversed(range(len(jaxpr.eqns))):
    eqn = jaxpr.eqns[i]
    if eqn.effects or any(v in needed for v in eqn.outvars):
      needed.update(v for v in eqn.invars if not isinstance(v, jex.Literal))
      indices.append(i)
  return indices[::-1]


def fixed(size: Size, reason: str, hidden: bool = False) -> Dim:
  """A new dim that keeps its size."""
  return UNIT if is_one(size) else Atom(size, reason, hidden)


def fresh(size: Size) -> Dim:
  """A new dim about which nothing is known yet."""
  return UNIT if is_one(size) else Atom(size)


def plain(dims: Sequence[Dim], origin: int = ACTIVATION) -> Value:
  """A value about whose dead channels nothing is known."""
  return Value(tuple(dims), (ANYTHING,) * len(dims), origin)


def constant(value: Any) -> Value:
  """A captured constant or literal: free dims that will unify with what they meet."""
  is_key = hasattr(value, 'dtype') and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
  shape = getattr(value, 'shape', ())
  if is_key:
    return plain([fixed(s, 'a random key') for s in shape], CONSTANT)
  dims = tuple(fresh(s) for s in shape)
  return Value(dims, (GIVEN,) * len(dims), CONSTANT, interval.point(value))


def origin_of(ins: Sequence[Value]) -> int:
  """The origin of what is computed from several values."""
  return max((value.origin for value in ins), default=CONSTANT)


def shape_of(var: Any) -> tuple[Size, ...]:
  """The traced shape of a variable."""
  return tuple(var.aval.shape)
