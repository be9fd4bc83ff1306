"""Pooling as ONNX Runtime can run it."""

from __future__ import annotations

from typing import Any

__all__ = ['pool_in_space']

_MOST = 3  # axes that a pooling of ONNX Runtime may have


def pool_in_space(model: Any) -> None:
  """Lets maxima over windows run over the axes that they pool alone, in place.

  jax2onnx writes one as Unsqueeze, Unsqueeze, MaxPool, Squeeze: the whole array is one image of one
  channel, and its batch and channels are axes with windows of 1. ONNX Runtime pools over three axes
  at most ('Unsupported pooling size'); so of four or five, two with windows of 1 become batch and
  channels: Transpose, MaxPool, Transpose. Where there are no two of them all is left as it was.

  Args:
    model: an onnx.ModelProto that jax2onnx made.
  """
  from onnx import helper  # pyright: ignore

  graph = model.graph
  makers = {name: node for node in graph.node for name in node.output}
  used = [name for node in graph.node for name in node.input]
  nodes: list[Any] = []
  gone: set[str] = set()
  for node in graph.node:
    found = _in_space(node) if node.op_type == 'MaxPool' else None
    if found is None:
      nodes.append(node)
      continue
    order, attributes = found
    inner, pooled = node.input[0], node.output[0]
    outer = makers[inner].input[0]
    source = makers[outer].input[0]
    (squeeze,) = (n for n in graph.node if pooled in n.input)
    back = [order.index(axis) for axis in range(len(order))]
    before, after = f'{pooled}_before', f'{pooled}_after'
    nodes += [
      helper.make_node('Transpose', [source], [before], perm=order),
      helper.make_node('MaxPool', [before], [after], node.name, **attributes),
      helper.make_node('Transpose', [after], list(squeeze.output), perm=back),
    ]
    gone |= {pooled, *(name for name in (inner, outer) if used.count(name) == 1)}
  kept = [node for node in nodes if not gone & {*node.input, *node.output}]
  known = [value for value in graph.value_info if value.name not in gone]
  del graph.node[:], graph.value_info[:]
  graph.node.extend(kept)
  graph.value_info.extend(known)


def _in_space(pool: Any) -> tuple[list[int], dict[str, list[int]]] | None:
  """The axes with a batch and channels first, and the attributes of the others; None as it is."""
  given = {a.name: list(a.ints) for a in pool.attribute if a.ints}
  n = len(given['kernel_shape'])
  per_axis = {name: given.get(name, [1] * n) for name in ('kernel_shape', 'strides', 'dilations')}
  pads = given.get('pads', [0] * 2 * n)
  idle = [
    axis
    for axis in range(n)
    if all(v[axis] == 1 for v in per_axis.values()) and pads[axis] == pads[n + axis] == 0
  ]
  if not _MOST < n <= _MOST + 2 or len(idle) < 2:
    return None
  rest = [axis for axis in range(n) if axis not in idle[:2]]
  attributes = {name: [v[axis] for axis in rest] for name, v in per_axis.items()}
  attributes['pads'] = [pads[end + axis] for end in (0, n) for axis in rest]
  return [*idle[:2], *rest], attributes
