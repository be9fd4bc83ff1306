"""Rules of loops and branches: the bodies of scan and while, the branches of cond.

What a loop carries must be the same before and after its body: its dims are unified, and the body
is visited again until what is promised of it going in also holds of it coming out. What a scan runs
along is frozen; all of its steps keep the same channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from dtp_jax.graph.bounds import UNBOUNDED, hull
from dtp_jax.graph.dead import STEADY, together
from dtp_jax.graph.dims import Dim, freeze, unify
from dtp_jax.graph.flow import Flow, Scope, Stack, Value, call_rule, fixed, origin_of, sealed


class Scan(NamedTuple):
  """The scope of a scan: its body."""

  body: Scope


class While(NamedTuple):
  """The scopes of a while loop: what asks whether to go on, and its body."""

  test: Scope
  body: Scope


class Cond(NamedTuple):
  """The scopes of a choice, one per branch."""

  branches: tuple[Scope, ...]


def scan_counts(eqn: Any) -> tuple[int, int]:
  """How many operands of a scan are constants, and how many are carried."""
  if 'ft_in' in eqn.params:  # jax 0.12
    consts, carry, _ = eqn.params['ft_in'].unpack()
    return len(consts), len(carry)
  return eqn.params['num_consts'], eqn.params['num_carry']


@call_rule('scan')
def scan(flow: Flow, eqn: Any, ins: list[Value]) -> tuple[list[Value], Scan]:
  """Enters the body; what is carried is one with what it starts as, the axis run along freezes."""
  first, carried = scan_counts(eqn)
  behind = first + carried
  consts, xs = [sealed(value) for value in ins[:first]], ins[behind:]
  trips = _trips(flow, eqn, xs)
  slices = [sealed(value.without([0])) for value in xs]

  def visit(carry: list[Value]) -> tuple[list[Value], Scan]:
    outs, body = flow.walk(eqn.params['jaxpr'], [*consts, *carry, *slices])
    return outs, Scan(body)

  summed, _, counted, _ = flow.noted()
  outs, entered = _settled(flow, eqn, ins[first:behind], visit)
  flow.stacks.append(Stack(tuple(xs), entered.body, range(summed, len(flow.contractions))))
  flow.operations[counted:] = [
    op._replace(dims=(*op.dims, trips), eqn=None, operands=()) for op in flow.operations[counted:]
  ]
  stacked = [
    y._replace(dims=(trips, *y.dims), dead=(STEADY, *y.dead)) for y in map(sealed, outs[carried:])
  ]
  return [*outs[:carried], *stacked], entered


@call_rule('while')
def while_(flow: Flow, eqn: Any, ins: list[Value]) -> tuple[list[Value], While]:
  """Enters the test and the body; nobody knows how often they run, so their MACs count once."""
  first = eqn.params['cond_nconsts']
  behind = first + eqn.params['body_nconsts']
  asked, consts = [list(map(sealed, part)) for part in (ins[:first], ins[first:behind])]

  def visit(carry: list[Value]) -> tuple[list[Value], While]:
    (answer,), test = flow.walk(eqn.params['cond_jaxpr'], [*asked, *carry])
    outs, body = flow.walk(eqn.params['body_jaxpr'], [*consts, *carry])
    return [out._replace(origin=origin_of([answer, out])) for out in outs], While(test, body)

  counted = len(flow.operations)
  outs, entered = _settled(flow, eqn, ins[behind:], visit)
  flow.operations[counted:] = [
    op._replace(eqn=None, operands=()) for op in flow.operations[counted:]
  ]
  return outs, entered


@call_rule('cond')
def cond(flow: Flow, eqn: Any, ins: list[Value]) -> tuple[list[Value], Cond] | None:
  """Enters every branch; their results must have the same dims. MACs are those of all branches."""
  if eqn.params.get('branches_platforms') is not None:
    return None
  which, *operands = map(sealed, ins)
  visited = [flow.walk(branch, operands) for branch in eqn.params['branches']]
  reason = flow.reason(eqn, ' whose branches give other dims')
  outs: list[Value] = []
  for results in zip(*(outs for outs, _ in visited), strict=True):
    dims = results[0].dims
    for other in results[1:]:
      _same(dims, other.dims, reason)
    dead = tuple(together(parts) for parts in zip(*(r.dead for r in results), strict=True))
    out = Value(dims, dead, origin_of([which, *results]), hull([r.bounds for r in results]))
    outs.append(sealed(out))
  return outs, Cond(tuple(scope for _, scope in visited))


def _trips(flow: Flow, eqn: Any, xs: Sequence[Value]) -> Dim:
  """The axis that a scan runs along, that of all its operands."""
  reason = flow.reason(eqn, ' runs along it')
  trips = fixed(eqn.params['length'], reason)
  for value in xs:
    unify(trips, value.dims[0], reason)
    freeze(value.dims[0], reason)
  return trips


def _settled(
  flow: Flow,
  eqn: Any,
  start: Sequence[Value],
  visit: Callable[[list[Value]], tuple[list[Value], Any]],
) -> tuple[list[Value], Any]:
  """Visits a body until it carries what it has been entered with; the last visit counts.

  What is known of a carried value only ever becomes less, so there is an end.
  """
  reason = flow.reason(eqn, ' whose body gives what it carries other dims')
  before, noted = list(map(sealed, start)), flow.noted()
  while True:
    outs, entered = visit(before)
    after = [_carried(a, b) for a, b in zip(before, outs, strict=False)]
    for a, b in zip(before, outs, strict=False):
      _same(a.dims, b.dims, reason)
    if after == before:
      return [*before, *outs[len(before) :]], entered
    flow.forget(noted)
    before = after


def _carried(before: Value, after: Value) -> Value:
  """What holds of a carried value at any step."""
  (low, high), (lower, higher) = before.bounds, after.bounds
  dead = tuple(together(pair).moved for pair in zip(before.dead, after.dead, strict=True))
  return Value(
    before.dims,
    dead,
    origin_of([before, after]),
    before.bounds if low <= lower and higher <= high else UNBOUNDED,
  )


def _same(a: Sequence[Dim], b: Sequence[Dim], reason: str) -> None:
  for one, other in zip(a, b, strict=True):
    unify(one, other, reason)
