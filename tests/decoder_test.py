"""The decoder: what of it can go, and checkpoints in Llama's layout against plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dtp_jax as dtp
from dtp_jax.files import write_safetensors
from dtp_jax.graph import trace
from dtp_jax.models import Decoder, Stretch, from_llama
from dtp_jax.trees import paths
from tests.graph.agreement import (
  QUICK,
  all_but_one,
  assert_agreement,
  compiled,
  masked,
  one_left,
  random_masks,
)
from tests.graph.models import randomized

TINY = Decoder(11, width=8, depth=2, heads=4, kv_heads=2, head_width=4, hidden=6)
STRETCH = Stretch(factor=8.0, low=1.0, high=4.0, context=40)
TOKENS = np.random.default_rng(0).integers(0, 11, (2, 7))


def structs(model):
  return jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 7), jnp.int32))


def applied(model, variables, tokens=TOKENS):
  return jax.jit(model.apply, compiler_options=QUICK)(variables, jnp.asarray(tokens, jnp.int32))


@pytest.fixture(scope='module')
def variables():
  return randomized(structs(TINY))


# Names and shapes of Hugging Face's LlamaForCausalLM, said a second time.


def checkpoint(model, seed=0):
  """A state dict of the sizes of a model, random, (out, in) as torch has it."""
  width, hidden, channels = model.width, model.hidden, model.head_width
  shapes = {'model.embed_tokens.weight': (model.num_classes, width), 'model.norm.weight': (width,)}
  if not model.tied:
    shapes['lm_head.weight'] = (model.num_classes, width)
  for i in range(model.depth):
    of_layer = {
      'self_attn.q_proj': (model.heads * channels, width),
      'self_attn.k_proj': (model.kv_heads * channels, width),
      'self_attn.v_proj': (model.kv_heads * channels, width),
      'self_attn.o_proj': (width, model.heads * channels),
      'mlp.gate_proj': (hidden, width),
      'mlp.up_proj': (hidden, width),
      'mlp.down_proj': (width, hidden),
      'input_layernorm': (width,),
      'post_attention_layernorm': (width,),
    }
    shapes |= {f'model.layers.{i}.{name}.weight': shape for name, shape in of_layer.items()}
  rng = np.random.default_rng(seed)
  return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def llama(state, tokens, model):
  """Logits in NumPy, float64, one position and one head at a time where it matters."""
  w = {name: array.astype(np.float64) for name, array in state.items()}
  channels, half = model.head_width, model.head_width // 2

  def norm(x, scale):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + model.epsilon) * scale

  def rotate_half(x):
    return np.concatenate([-x[half:], x[:half]])

  def speed(r):
    plain = 1.0 / model.theta ** (2 * r / channels)
    if model.stretch is None:
      return plain
    factor, low, high, context = model.stretch
    length = 2 * np.pi / plain
    if length > context / low:
      return plain / factor
    if length < context / high:
      return plain
    smooth = (context / length - low) / (high - low)
    return (1 - smooth) * plain / factor + smooth * plain

  def rotary(x, position):
    angles = np.array([position * speed(r % half) for r in range(channels)])
    return x * np.cos(angles) + rotate_half(x) * np.sin(angles)

  logits = []
  for sequence in tokens:
    x = w['model.embed_tokens.weight'][sequence]
    for i in range(model.depth):
      p = {n.split('.', 3)[3]: a for n, a in w.items() if n.startswith(f'model.layers.{i}.')}
      y = norm(x, p['input_layernorm.weight'])
      q, k, v = (y @ p[f'self_attn.{n}_proj.weight'].T for n in 'qkv')
      heads = []
      for h in range(model.heads):
        mine = slice(h * channels, (h + 1) * channels)
        served = h // (model.heads // model.kv_heads)
        theirs = slice(served * channels, (served + 1) * channels)
        rows = []
        for t in range(len(sequence)):
          query = rotary(q[t, mine], t)
          scores = [query @ rotary(k[s, theirs], s) / np.sqrt(channels) for s in range(t + 1)]
          shares = np.exp(scores - np.max(scores))
          rows.append(shares / shares.sum() @ v[: t + 1, theirs])
        heads.append(np.stack(rows))
      x = x + np.concatenate(heads, -1) @ p['self_attn.o_proj.weight'].T
      y = norm(x, p['post_attention_layernorm.weight'])
      gate = y @ p['mlp.gate_proj.weight'].T
      y = gate / (1 + np.exp(-gate)) * (y @ p['mlp.up_proj.weight'].T)
      x = x + y @ p['mlp.down_proj.weight'].T
    x = norm(x, w['model.norm.weight'])
    logits.append(x @ w.get('lm_head.weight', w['model.embed_tokens.weight']).T)
  return np.stack(logits)


@pytest.mark.parametrize(
  'fields',
  [{}, {'tied': False, 'scan': True}, {'heads': 2, 'theta': 50.0, 'stretch': STRETCH}],
  ids=['tied', 'scanned', 'stretched'],
)
def test_a_checkpoint_computes_what_llama_does(fields):
  model = TINY.clone(**fields)
  state = checkpoint(model)
  np.testing.assert_allclose(
    applied(model, from_llama(state, model)), llama(state, TOKENS, model), rtol=2e-4, atol=2e-4
  )


def test_shards_of_a_folder_and_half_precision_are_read(tmp_path, variables):
  state = {name: a.astype(jnp.bfloat16) for name, a in checkpoint(TINY).items()}
  old = {'model.layers.0.self_attn.rotary_emb.inv_freq': np.ones(2, np.float32)}
  for i in range(3):
    part = dict(list(state.items())[i::3])
    write_safetensors(tmp_path / f'model-{i}.safetensors', part | (old if i == 0 else {}))
  found = from_llama(tmp_path, TINY)
  assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, variables)
  assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype('float32')}
  direct = from_llama({name: a.astype(np.float32) for name, a in state.items()}, TINY)
  jax.tree.map(np.testing.assert_array_equal, found, direct)


def test_what_does_not_fit_is_refused(tmp_path):
  state = checkpoint(TINY)
  with pytest.raises(ValueError, match=r'1 left over: lm_head\.weight'):
    from_llama(state | {'lm_head.weight': state['model.embed_tokens.weight']}, TINY)
  with pytest.raises(ValueError, match=r'q_proj\.weight \(16, 8\) where \(8, 8\) was expected'):
    from_llama(state, TINY.clone(heads=2))
  with pytest.raises(ValueError, match=r'9 missing: model\.layers\.2'):
    from_llama(state, TINY.clone(depth=3))
  with pytest.raises(ValueError, match=r'holds no \.safetensors file'):
    from_llama(tmp_path, TINY)


@pytest.mark.parametrize(
  ('model', 'params'),
  [(Decoder.llama_3_2_1b(), 1_235_814_400), (Decoder.tinyllama_1_1b(), 1_100_048_384)],
  ids=['llama 3.2', 'tinyllama'],
)
def test_a_billion_parameters_are_counted_and_traced_without_memory_for_them(model, params):
  found = structs(model)
  assert sum(leaf.size for leaf in jax.tree.leaves(found)) == params
  graph = trace(model.apply, found, jax.ShapeDtypeStruct((1, 16), jnp.int32), train=False)
  assert graph.params.total == params
  assert len(graph.groups) == 1 + 5 * model.depth  # the stream; heads twice, channels twice, units


def test_every_block_can_go_and_slim_is_masked(variables):
  graph = trace(TINY.apply, variables, TOKENS, train=False)
  parts = {'query:1': 2, 'query:2': 2, 'query:3': 2, 'value': 4, 'gate': 6}
  layers = {f'layer{i}/{part}': size for i in range(2) for part, size in parts.items()}
  assert graph.sizes == {'embed': 8, **layers}
  assert [group.name for group in graph.frozen] == ['params/embed/embedding:0']
  reference = compiled(masked(graph), {'train': False}, grads=False)
  for masks in (random_masks(graph, 2), one_left(graph), all_but_one(graph)):
    assert_agreement(graph, variables, (TOKENS,), {'train': False}, masks, False, reference)


def test_a_key_head_goes_with_its_query_heads(variables):
  graph = trace(TINY.apply, variables, TOKENS, train=False)
  masks = {name: np.ones(size, bool) for name, size in graph.sizes.items()}
  masks['layer0/query:1'] = np.array([False, True])
  kept = paths(dtp.shrink(graph, variables, masks).variables)
  sizes = {name: kept[f'params/layer0/{name}/kernel'].shape for name in ('query', 'key', 'out')}
  assert sizes == {'query': (8, 1, 2, 4), 'key': (8, 1, 4), 'out': (1, 2, 4, 8)}
  assert kept['params/layer1/query/kernel'].shape == (8, 2, 2, 4)


def test_layers_under_scan_are_the_same_layers(variables):
  scanned = TINY.clone(scan=True)
  params = dict(variables['params'])
  layers = [params.pop(f'layer{i}') for i in range(2)]
  params['layers'] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
  assert jax.tree.map(jnp.shape, structs(scanned)['params']) == jax.tree.map(jnp.shape, params)
  np.testing.assert_allclose(
    applied(scanned, {'params': params}), applied(TINY, variables), rtol=1e-5, atol=1e-5
  )


def test_no_position_sees_a_later_token(variables):
  changed = TOKENS.copy()
  changed[:, 4] = (changed[:, 4] + 1) % 11
  differs = np.abs(applied(TINY, variables) - applied(TINY, variables, changed)).max((0, 2))
  assert (differs[:4] == 0).all()
  assert (differs[4:] > 1e-4).all()


@pytest.mark.parametrize(
  ('model', 'message'),
  [
    (Decoder(heads=4, kv_heads=3), 'heads is 4; expected a multiple of kv_heads, 3'),
    (Decoder(width=10), 'width is 10; expected a multiple of heads, 4'),
    (Decoder(width=12), 'a head has 3 channels; expected an even number'),
  ],
)
def test_errors_name_what_is_wrong(model, message):
  with pytest.raises(ValueError, match=message):
    structs(model)
