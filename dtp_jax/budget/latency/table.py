"""A latency table: the time of every operator at every width, measured on the present device."""

from __future__ import annotations

import itertools
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from dtp_jax.budget.device import device_name, tile
from dtp_jax.budget.latency.cost import Curve, LatencyCost, Term
from dtp_jax.budget.latency.measure import grid, resizable, time_calls
from dtp_jax.files import read_json, write_text
from dtp_jax.graph import Graph
from dtp_jax.graph.cost import Polynomial

__all__ = ['LatencyTable', 'Timed']

_FORMAT = 'dtp_jax.latency_table'
_VERSION = 1
_SLOWER = 1.03  # what measured times may be off by


class Timed(NamedTuple):
  """An operator: its name and primitive, which curve it follows, and its widths."""

  name: str
  primitive: str
  curve: int
  widths: tuple[Polynomial, ...]


@dataclass(frozen=True, eq=False)
class LatencyTable:
  """Measured time of the operators of a network, the unit of `Budget(0.6, of=table)`.

  It holds all that a cost needs and no network: it can be saved, and used on any trace of the same
  network. Only convolutions and matrix products are timed, each compiled alone; normalisation,
  activations, pooling and what a compiler fuses are not in it.

  Attributes:
    device: what it was measured on.
    batch_size: examples of a call.
    repeats: timed calls behind each figure, a median.
    overhead: nanoseconds of an empty call, subtracted from every figure.
    groups: {group: channels} of the network.
    operators: the timed operators in the order of the program.
    curves: their curves; operators with equal signatures share one.
    untimed: names of operators in the body of a loop, which cannot be run alone.
  """

  device: str
  batch_size: int
  repeats: int
  overhead: int
  groups: Mapping[str, int]
  operators: tuple[Timed, ...]
  curves: tuple[Curve, ...]
  untimed: tuple[str, ...] = ()

  @classmethod
  def measure(
    cls, graph: Graph, *, batch_size: int | None = None, points: int = 5, repeats: int = 20
  ) -> LatencyTable:
    """Times every operator of a network alone, on the present device.

    Args:
      graph: from `dtp_jax.graph.trace`. The batch axis must be known to time another batch size
        than 1: trace with two examples or more.
      batch_size: examples of a call; default: as traced.
      points: widths on a grid axis, 1 and the full width among them, >= 2. An operator with one
        width, or more than two (a grouped convolution, an attention head), gets about points^2 in
        all.
      repeats: timed calls of each, interleaved, >= 2.

    Returns:
      The table. Medians of a busy machine are noisy; the cost made of it rises nevertheless.

    Raises:
      ValueError: an argument out of range, a graph without operators, or one traced with a single
        example and another batch size.
      TypeError: no graph.
    """
    if not isinstance(graph, Graph):
      raise TypeError(f'the graph is a {type(graph).__name__}; expected that of dtp_jax.trace.')
    batch_size = _batch_size(graph, batch_size)
    for name, value in (('points', points), ('repeats', repeats)):
      if not isinstance(value, int) or value < 2:
        raise ValueError(f'{name} is {value!r}; expected an integer >= 2.')
    named = [(op, resizable(op.bare, batch_size)) for op in graph.operators if op.bare is not None]
    if not named:
      raise ValueError(f'the graph has no operator that can be timed alone:\n{graph}')
    channels, _ = tile(device_name())
    distinct = {p.signature: p for _, p in named}
    knots = {key: grid(p.full, points, channels) for key, p in distinct.items()}
    calls = {
      key: [(p.operator, p.eqn, p.shapes(widths)) for widths in itertools.product(*knots[key])]
      for key, p in distinct.items()
    }
    times, overhead = time_calls(itertools.chain(*calls.values()), repeats=repeats)
    curves = []
    for key, at in knots.items():
      measured = [times[operator, shapes] for operator, _, shapes in calls[key]]
      curves.append(Curve(at, np.asarray(measured, np.int64).reshape(tuple(map(len, at)))))
    place = {key: i for i, key in enumerate(distinct)}
    return cls(
      device=device_name(),
      batch_size=batch_size,
      repeats=repeats,
      overhead=overhead,
      groups=graph.sizes,
      operators=tuple(Timed(o.name, o.primitive, place[p.signature], p.widths) for o, p in named),
      curves=tuple(curves),
      untimed=tuple(op.name for op in graph.operators if op.bare is None),
    )

  def cost(self, sizes: Mapping[str, int]) -> LatencyCost:
    """The cost in nanoseconds of a network whose groups have `sizes` channels.

    Raises:
      ValueError: a group that the measured network does not have, or has at another size.
    """
    for name, size in sizes.items():
      if self.groups.get(name) != size:
        raise ValueError(
          f'group {name!r} has {size} channels; the latency table knows '
          f'{self.groups.get(name, "no such group")}. Measure one of this network.'
        )
    terms = [Term(self.curves[o.curve], o.widths) for o in self.operators]
    return LatencyCost(terms, self.groups)

  def save(self, path: str | pathlib.Path) -> None:
    """Writes the table as JSON, as measured."""
    data = {
      'format': _FORMAT,
      'version': _VERSION,
      'device': self.device,
      'batch_size': self.batch_size,
      'repeats': self.repeats,
      'overhead_ns': self.overhead,
      'groups': dict(self.groups),
      'operators': [
        {**o._asdict(), 'widths': [list(w.terms.items()) for w in o.widths]} for o in self.operators
      ],
      'curves': [{'knots': c.knots, 'measured_ns': c.measured.tolist()} for c in self.curves],
      'untimed': self.untimed,
    }
    write_text(pathlib.Path(path), json.dumps(data) + '\n')

  @classmethod
  def load(cls, path: str | pathlib.Path, *, any_device: bool = False) -> LatencyTable:
    """Reads a table.

    Args:
      path: what `save` wrote.
      any_device: accept a table of another kind of device, as one measured on the phone or
        accelerator that the network will run on. Without it that is an error: figures of one
        device say little about another.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: not a latency table, one of another version, or one of another device.
    """
    if not pathlib.Path(path).is_file():
      raise FileNotFoundError(
        f'{path} is no file; expected a latency table, as '
        f'LatencyTable.measure(graph).save({str(path)!r}) writes it.'
      )
    data = read_json(pathlib.Path(path))
    try:
      made_as, version = data['format'], data['version']
      table = _from_json(data) if (made_as, version) == (_FORMAT, _VERSION) else None
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
      raise ValueError(
        f'{path} is no latency table ({type(error).__name__}: {error}); expected what '
        'LatencyTable.save writes.'
      ) from error
    if table is None:
      raise ValueError(
        f'{path} is {made_as!r} version {version!r}; expected {_FORMAT!r} version {_VERSION}. '
        'Measure it anew.'
      )
    if not any_device and table.device != device_name():
      raise ValueError(
        f'{path} was measured on {table.device!r}, this is {device_name()!r}. Measure one here, or '
        'load it with any_device=True to prune for that device.'
      )
    return table

  def nanoseconds(self, counts: Mapping[str, int]) -> list[int]:
    """The time of each operator when groups keep `counts` channels; others keep all."""
    return [
      LatencyCost([Term(self.curves[o.curve], o.widths)], self.groups).at(counts)
      for o in self.operators
    ]

  def rising(self, group: str, widths: Sequence[int]) -> tuple[int, ...]:
    """Of some widths of a group those that no wider one is faster than, as measured.

    Args:
      group: its name; all others keep all channels.
      widths: increasing counts.

    Returns:
      The widths without those that take more than 3 % longer than a wider one.
    """
    mine = [o for o in self.operators if any(group in w.groups for w in o.widths)]

    def seconds(count: int) -> float:
      counts = {**self.groups, group: count}
      found = 0.0
      for o in mine:
        curve = self.curves[o.curve]
        above, below = curve.at([w.at(counts) for w in o.widths], curve.unsmoothed)
        found += above / below
      return found

    kept, fastest = [], math.inf
    for count in reversed(widths):
      taken = seconds(count)
      if taken <= _SLOWER * fastest:
        kept.append(count)
      fastest = min(fastest, taken)
    return tuple(reversed(kept))

  def __str__(self) -> str:
    """Every operator at full and at half width of all groups."""
    full = self.nanoseconds({})
    half = self.nanoseconds({name: max(1, n // 2) for name, n in self.groups.items()})
    width = max(len('operator'), *(len(o.name) for o in self.operators))
    lines = [
      f'{len(self.operators)} operators on {self.device}, batch size {self.batch_size}',
      f'{"operator":{width}}  {"primitive":20}  {"full, ns":>12}  {"half, ns":>12}  {"half":>5}',
    ]
    rows = [(o.name, o.primitive, f, h) for o, f, h in zip(self.operators, full, half, strict=True)]
    for name, primitive, f, h in (*rows, ('sum', '', sum(full), sum(half))):
      lines.append(f'{name:{width}}  {primitive:20}  {f:>12,}  {h:>12,}  {h / max(f, 1):>4.0%}')
    if self.untimed:
      lines.append(f'not timed, in the body of a loop: {", ".join(self.untimed)}')
    return '\n'.join(lines)


def _batch_size(graph: Graph, batch_size: Any) -> int:
  batch = graph.batch_size if batch_size is None else batch_size
  if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
    raise ValueError(f'batch_size is {batch!r}; expected an integer >= 1.')
  if graph.batch_size == 1 and batch != 1:
    raise ValueError(
      f'batch_size is {batch}, but the graph knows no batch axis: it was traced with one example, '
      'or a product sums over the batch. Trace it with two or more examples, or leave batch_size '
      'out.'
    )
  return batch


def _from_json(data: Mapping[str, Any]) -> LatencyTable:
  groups = {str(name): int(size) for name, size in data['groups'].items()}
  curves = tuple(
    Curve(tuple(map(tuple, c['knots'])), np.asarray(c['measured_ns'])) for c in data['curves']
  )

  def width(terms: list[Any]) -> Polynomial:
    found = {tuple(names): int(n) for names, n in terms}
    return Polynomial(found, {name: groups[name] for names in found for name in names})

  operators = tuple(
    Timed(o['name'], o['primitive'], int(o['curve']), tuple(map(width, o['widths'])))
    for o in data['operators']
  )
  for o in operators:
    full = tuple(knots[-1] for knots in curves[o.curve].knots)
    if full != tuple(w.total for w in o.widths):
      raise ValueError(
        f'operator {o.name!r} has the widths {[w.total for w in o.widths]} and a curve up to '
        f'{list(full)}; expected the same.'
      )
  return LatencyTable(
    device=data['device'],
    batch_size=data['batch_size'],
    repeats=data['repeats'],
    overhead=data['overhead_ns'],
    groups=groups,
    operators=operators,
    curves=curves,
    untimed=tuple(data['untimed']),
  )
