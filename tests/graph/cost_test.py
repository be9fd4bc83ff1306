"""cost: exact polynomials of kept channels, on the host and on soft masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from dtp_jax.graph import shrink, trace
from dtp_jax.graph.cost import Polynomial, add, counts_of
from dtp_jax.models import CifarResNet, ResNet
from tests.graph.agreement import one_left, random_masks
from tests.graph.models import CASES


def example():
  """3 + 2 ab + 5 a^2 with 4 channels in a and 6 in b."""
  a, b = Polynomial.count('a', 4), Polynomial.count('b', 6)
  two, five = Polynomial.constant(2), Polynomial.constant(5)
  return add([Polynomial.constant(3), two * a * b, five * a * a])


def test_a_polynomial_by_hand():
  cost = example()
  assert cost.total == 3 + 2 * 24 + 5 * 16
  assert cost.at({'a': 2}) == 3 + 2 * 12 + 5 * 4
  assert cost.at({'a': 2, 'b': 1, 'elsewhere': 9}) == 3 + 4 + 20
  assert cost.without('a') == 128
  assert (cost.degree, cost.groups) == (2, ('a', 'b'))
  assert Polynomial.constant(7).degree == 0
  for count in (5, -1, 1.5):
    with pytest.raises(ValueError, match=r"'a' cannot keep .* \[0, 4\]"):
      cost.at({'a': count})


@given(st.lists(st.floats(0, 1, width=32), min_size=10, max_size=10))
def test_soft_cost_is_the_polynomial_of_the_sums(entries):
  cost = example()
  masks = {'a': jnp.asarray(entries[:4]), 'b': jnp.asarray(entries[4:])}
  a, b = sum(entries[:4]), sum(entries[4:])
  np.testing.assert_allclose(cost.soft(masks), 3 + 2 * a * b + 5 * a * a, rtol=1e-5)
  np.testing.assert_allclose(cost.fraction(masks), cost.soft(masks) / cost.total, rtol=1e-5)
  slope = jax.grad(lambda masks: cost.soft(masks))(masks)
  np.testing.assert_allclose(slope['a'], np.full(4, 2 * b + 10 * a), rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(slope['b'], np.full(6, 2 * a), rtol=1e-4, atol=1e-5)


def test_soft_cost_of_absent_and_odd_masks():
  cost = example()
  assert cost.fraction({}) == 1
  assert cost.fraction({'elsewhere': jnp.zeros(3)}) == 1
  np.testing.assert_allclose(cost.soft({'b': jnp.zeros(6)}), 83, rtol=1e-6)
  with pytest.raises(ValueError, match=r"'a' has shape \(5,\); expected \(4,\)"):
    cost.soft({'a': jnp.ones(5)})
  assert np.isfinite(jax.grad(lambda m: cost.soft({'a': m}))(jnp.zeros(4))).all()


@pytest.mark.parametrize('name', CASES)
def test_cost_of_a_mask_is_the_cost_of_the_slim_model(name):
  case = CASES[name]()
  graph = trace(case.fn, case.variables, *case.inputs, **case.eval)
  for hard in (random_masks(graph, 0), one_left(graph)):
    slim = shrink(
      graph,
      jax.eval_shape(lambda: case.variables) if 'equinox' not in name else case.variables,
      hard,
    )
    again = trace(slim.apply, slim.variables, *case.inputs, **case.eval)
    counts = counts_of(hard)
    assert counts == {name: len(kept) for name, kept in slim.kept.items()}
    assert graph.macs.at(counts) == again.macs.total
    assert graph.params.at(counts) == again.params.total == parameters(slim.variables)
    masks = {name: jnp.asarray(mask, jnp.float32) for name, mask in hard.items()}
    np.testing.assert_allclose(graph.macs.soft(masks), again.macs.total, rtol=1e-5)
    np.testing.assert_allclose(graph.params.soft(masks), again.params.total, rtol=1e-5)


def parameters(variables):
  """Counted without the graph: the sizes of the arrays."""
  if isinstance(variables, dict) and 'params' in variables:
    variables = variables['params']
  return sum(
    int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(variables) if hasattr(leaf, 'shape')
  )


def traced(module, size, batch=2):
  x = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.float32)
  variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, False), x)
  return trace(module.apply, variables, x, train=False), variables


def test_resnet20_by_hand():
  graph, _ = traced(CifarResNet(20), 32)
  assert graph.macs.total == 40_813_184
  assert traced(CifarResNet(20), 32, batch=1)[0].macs.total == 40_813_184


def test_resnet18_dense_and_halved():
  graph, variables = traced(ResNet(18), 224)
  assert graph.params.total == 11_689_512
  assert graph.macs.total == 1_814_073_344
  halved = {name: group.size // 2 for name, group in graph.groups.items()}
  assert round(graph.params.at(halved) / 1e6, 2) == 3.06
  assert graph.macs.at(halved) == 483_149_824
  # The published 1.82 G and 0.487 G also count batch norm (2 per element), ReLU, the inputs of the
  # poolings, and the bias of the classifier.
  norms, relus, pools, bias = 2_483_712, 2_308_096, 802_816 + 25_088, 1000
  assert round((graph.macs.total + 2 * norms + relus + pools + bias) / 1e9, 2) == 1.82
  extra = (2 * norms + relus + pools) // 2 + bias
  assert round((graph.macs.at(halved) + extra) / 1e9, 3) == 0.487
  hard = {name: np.arange(2 * n) % 2 == 0 for name, n in halved.items()}
  slim = shrink(graph, variables, hard)
  assert parameters(slim.variables) == graph.params.at(halved)


def test_products_of_activations_count():
  """Scores and mixtures of values, of an attention with 3 heads of 4, over 5 tokens, by hand."""

  def attention(w, x):
    q, k, v = (jnp.einsum('btc,chd->bthd', x, w[name]) for name in 'qkv')
    scores = jax.nn.softmax(jnp.einsum('bqhd,bkhd->bhqk', q, k))
    return jnp.einsum('bqhd,hdc->bqc', jnp.einsum('bhqk,bkhd->bqhd', scores, v), w['o'])

  w = {name: jnp.ones((6, 3, 4)) for name in 'qkv'} | {'o': jnp.ones((3, 4, 6))}
  graph = trace(attention, w, jnp.ones((2, 5, 6)))
  assert graph.macs.total == 4 * (5 * 6 * 12) + 2 * (5 * 5 * 12)
  heads, inner, values = (graph.sizes[name] for name in ('q:1', 'q:2', 'v'))
  assert (heads, inner, values) == (3, 4, 4)
  found = graph.macs.at({'q:1': 2, 'q:2': 3, 'v': 1})
  assert found == 2 * (5 * 6 * 2 * 3) + 5 * 5 * 2 * 3 + 2 * (5 * 6 * 2 * 1) + 5 * 5 * 2 * 1


BEHIND = {
  'a scalar': {'a': np.float32(1)},
  'a flag with an axis': {'a': np.ones(1, np.float32)},
  'a raw key': {'a': jax.random.key_data(jax.random.key(0))},
  'positions': {'a': np.arange(3)},
  'labels': {'a': np.arange(4)},
}


@pytest.mark.parametrize('name', BEHIND)
def test_macs_are_those_of_one_example_whatever_comes_before_the_images(name):
  w = {'in': jnp.ones((3, 8)), 'out': jnp.ones((8, 2))}

  def net(w, inputs):
    return jnp.tanh(inputs['image'] @ w['in']) @ w['out'], inputs['a'] * 2

  graph = trace(net, w, {**BEHIND[name], 'image': jnp.ones((4, 3))})
  assert (graph.macs.total, graph.batch_size) == (3 * 8 + 8 * 2, 4)
  two_arguments = lambda w, a, image: net(w, {'a': a, 'image': image})
  graph = trace(two_arguments, w, BEHIND[name]['a'], jnp.ones((4, 3)))
  assert graph.macs.total == 3 * 8 + 8 * 2


def two_towers(w, image, text):
  """Every image against every text, as in a contrastive loss."""
  return jnp.tanh(image @ w['image']) @ jnp.tanh(text @ w['text']).T


def in_parts(w, image, text):
  """The batch in two parts, one after the other, as where memory is short."""
  parts = jax.lax.map(lambda x: jnp.tanh(x @ w['image']), image.reshape(2, -1, 3))
  return parts.reshape(-1, 8) + jnp.tanh(text.reshape(2, -1, 5) @ w['text']).reshape(-1, 8)


def with_memory(w, image, memory):
  """Attention to a memory with as many slots as there are images."""
  slots = memory @ w['text']
  return jax.nn.softmax(jnp.tanh(image @ w['image']) @ slots.T) @ slots


# MACs of one example with four of them, and what the second input's tower costs of these.
@pytest.mark.parametrize(
  ('fn', 'macs'),
  [
    (two_towers, 3 * 8 + 5 * 8 + 8),  # one pair
    (in_parts, 3 * 8 + 5 * 8),
    (with_memory, 3 * 8 + 4 * (5 * 8) + 2 * 4 * 8),  # summed over: no batch, but slots of each
  ],
)
def test_macs_of_one_example_of_two_inputs(fn, macs):
  w = {'image': jnp.ones((3, 8)), 'text': jnp.ones((5, 8))}
  graph = trace(fn, w, jnp.ones((4, 3)), jnp.ones((4, 5)))
  assert graph.macs.total == macs


def dispatched(w, x):
  """A mixture of experts: one-hot gates sum over the batch to send examples to experts and back."""
  sent = jax.nn.one_hot(jnp.argmax(x @ w['gate'], -1), 2)  # (batch, experts)
  inside = jnp.einsum('be,bf->ef', sent, x)
  hidden = jax.nn.relu(jnp.einsum('ef,efh->eh', inside, w['in']))
  return sent @ jnp.einsum('eh,eho->eo', hidden, w['out'])


@pytest.mark.parametrize(
  ('fn', 'batch', 'macs', 'said'),
  [
    (dispatched, 4, 4 * (3 * 2 + 2 * 3 + 2 * 5) + 2 * (3 * 8 + 8 * 5), 'of the whole call'),
    (dispatched, 1, 3 * 2 + 2 * 3 + 2 * 5 + 2 * (3 * 8 + 8 * 5), 'for one example'),
    (lambda w, x: (x @ w['gate']) @ w['gate'].T, 4, 2 * 3 * 2, 'for one example'),
    (lambda w, x: w['gate'] @ w['gate'].T * x, None, 3 * 2 * 3, 'of the whole call'),
  ],
)
def test_the_report_says_what_macs_are_of(fn, batch, macs, said):
  w = {'gate': jnp.ones((3, 2)), 'in': jnp.ones((2, 3, 8)), 'out': jnp.ones((2, 8, 5))}
  graph = trace(fn, w, jnp.ones((batch, 3)) if batch else jnp.ones(()))
  assert graph.macs.total == macs
  assert graph.per_example == (said == 'for one example')
  assert f'% of {macs:,} MACs {said}' in str(graph)


def test_statistics_of_nnx_are_no_parameters():
  """The whole state of a module, keys of its dropout too; against the count of its nnx.Param."""

  class Net(nnx.Module):
    def __init__(self, rngs):
      self.a = nnx.Linear(3, 8, rngs=rngs)
      self.norm = nnx.BatchNorm(8, rngs=rngs, use_running_average=True)
      self.drop = nnx.Dropout(0.5, rngs=rngs, deterministic=True)
      self.b = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
      return self.b(self.drop(nnx.relu(self.norm(self.a(x)))))

  definition, state = nnx.split(nnx.eval_shape(lambda: Net(nnx.Rngs(0))))
  graph = trace(lambda state, x: nnx.merge(definition, state)(x), state, jnp.ones((4, 3)))
  assert graph.params.total == 3 * 8 + 8 + 2 * 8 + 8 * 2 + 2
  (group,) = graph.groups.values()
  assert {'norm/mean/value:0', 'norm/var/value:0'} <= set(map(str, group.slices))
  assert graph.params.at({group.name: 7}) == 3 * 7 + 7 + 2 * 7 + 7 * 2 + 2
