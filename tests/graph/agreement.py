"""The one statement that holds for every model: slim(x) == masked(x), gradients and state too."""

import jax
import jax.numpy as jnp
import numpy as np

from dtp_jax.graph import shrink
from dtp_jax.trees import is_array

# Compiling is what the tests spend their time on, and the code compiled here runs once.
QUICK = {'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}


def random_masks(graph, seed):
  """About half of the channels of every group, at least one."""
  rng = np.random.default_rng(seed)
  return {name: at_least_one(rng.random(group.size) < 0.5) for name, group in graph.groups.items()}


def at_least_one(mask):
  return mask if mask.any() else np.arange(len(mask)) == 0


def one_left(graph):
  """The most extreme pruning: one channel everywhere, not the first."""
  return {name: np.arange(group.size) == group.size - 1 for name, group in graph.groups.items()}


def all_but_one(graph):
  return {name: np.arange(group.size) != group.size // 2 for name, group in graph.groups.items()}


def masked(graph):
  """The traced function with masks as its first argument."""

  def fn(masks, variables, *inputs, **kwargs):
    return graph.fn(graph.apply_masks(variables, masks), *inputs, **kwargs)

  return fn


def compiled(fn, kwargs, grads):
  """fn(*arguments) compiled; with `grads`, (result, gradients) for floats of all arguments."""
  made = {}  # one compilation per structure

  def run(*args):
    leaves, treedef = jax.tree.flatten(args)
    traced = [leaf if is_array(leaf) else None for leaf in leaves]
    rest = [None if is_array(leaf) else leaf for leaf in leaves]

    def call(traced):
      full = [r if t is None else t for t, r in zip(traced, rest, strict=True)]
      floats = [is_array(x) and jnp.issubdtype(x.dtype, jnp.inexact) for x in full]

      def loss(values):
        given = [v if f else x for v, f, x in zip(values, floats, full, strict=True)]
        out = fn(*jax.tree.unflatten(treedef, given), **kwargs)
        first = jax.tree.leaves(out)[0]
        weights = jnp.cos(jnp.arange(first.size, dtype=first.dtype)).reshape(first.shape)
        return jnp.sum(first * weights), out

      values = [x if f else None for f, x in zip(floats, full, strict=True)]
      if not grads:
        return loss(values)[1], None
      slopes, out = jax.grad(loss, has_aux=True)(values)
      return out, slopes

    if treedef not in made:
      made[treedef] = jax.jit(call, compiler_options=QUICK)
    out, slopes = made[treedef](traced)
    if slopes is None:
      return out, None
    whole = [leaf if s is None else s for s, leaf in zip(slopes, leaves, strict=True)]
    return out, jax.tree.unflatten(treedef, whole)

  return run


def assert_agreement(
  graph, variables, inputs, kwargs, hard, grads=True, reference=None, scale=1e-5
):
  """slim == masked for this mask: results, new state on kept channels, gradients."""
  slim = shrink(graph, variables, hard)
  masks = {name: jnp.asarray(mask, jnp.float32) for name, mask in hard.items()}
  reference = reference or compiled(masked(graph), kwargs, grads)
  expected, expected_grads = reference(masks, variables, *inputs)
  result, slopes = compiled(slim.apply, kwargs, grads)(slim.variables, *inputs)
  assert_close(result, deleted_like(graph, variables, expected, hard), scale)
  if grads:
    assert_close(slopes[0], shrink(graph, expected_grads[1], hard).variables, 3 * scale)
    assert_close(slopes[1:], expected_grads[2:], 3 * scale)
  return slim


def deleted_like(graph, variables, expected, hard):
  """A result whose new state, if it has one, has lost its dead channels."""
  if not (isinstance(expected, tuple) and len(expected) == 2 and isinstance(expected[1], dict)):
    return expected
  kept = shrink(graph, {**variables, **expected[1]}, hard).variables
  return expected[0], {key: kept[key] for key in expected[1]}


def assert_close(result, expected, scale):
  """Equal to `scale` relative to the largest entry of each array (or a tenth of that of all)."""
  assert jax.tree.structure(result) == jax.tree.structure(expected)
  arrays = [np.asarray(b) for b in jax.tree.leaves(expected) if is_array(b) and b.size]
  largest = max((float(np.max(np.abs(b))) for b in arrays), default=0.0)
  for (keys, a), b in zip(
    jax.tree_util.tree_flatten_with_path(result)[0], jax.tree.leaves(expected), strict=True
  ):
    if not is_array(a):
      assert a is b
      continue
    assert a.shape == b.shape, (keys, a.shape, b.shape)
    a, b = np.asarray(a), np.asarray(b)
    size = max(largest / 10, float(np.max(np.abs(b))))
    error = float(np.max(np.abs(a - b)))
    assert error <= scale * size, f'{jax.tree_util.keystr(keys)}: {error:.2e} of {size:.2e}'
