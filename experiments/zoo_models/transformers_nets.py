"""The Flax models of transformers and diffusers, called as their users call them."""

import sys

# The libraries are an extra.
# pyright: reportMissingImports=false
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.zoo_models.model import Model, images, tokens

# The names that most configurations share, and those of the older ones.
_SIZES = {
  'vocab_size': 96,
  'hidden_size': 32,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'intermediate_size': 64,
  'max_position_embeddings': 32,
}
_GPT = {'vocab_size': 96, 'n_embd': 32, 'n_layer': 2, 'n_head': 4, 'n_positions': 32}
_VISION = {'image_size': 32, 'patch_size': 8, 'num_labels': 10}
_SEQUENCE = {
  'vocab_size': 96,
  'd_model': 32,
  'encoder_layers': 2,
  'decoder_layers': 2,
  'encoder_attention_heads': 4,
  'decoder_attention_heads': 4,
  'encoder_ffn_dim': 64,
  'decoder_ffn_dim': 64,
  'max_position_embeddings': 32,
}
_T5 = {'vocab_size': 96, 'd_model': 32, 'd_kv': 8, 'd_ff': 64, 'num_layers': 2, 'num_heads': 4}
_CLIP = {k: v for k, v in _SIZES.items() if k != 'vocab_size'}
_TEXT = (2, 12)

# {name: (configuration, its fields, model, input names)}.
_TABLE: dict[str, tuple[str, dict[str, Any], str, tuple[str, ...]]] = {
  'bert': ('BertConfig', _SIZES, 'FlaxBertForMaskedLM', ('input_ids',)),
  'roberta': ('RobertaConfig', _SIZES, 'FlaxRobertaForSequenceClassification', ('input_ids',)),
  'electra': (
    'ElectraConfig',
    {**_SIZES, 'embedding_size': 16},
    'FlaxElectraForPreTraining',
    ('input_ids',),
  ),
  'albert': (
    'AlbertConfig',
    {**_SIZES, 'embedding_size': 16},
    'FlaxAlbertForMaskedLM',
    ('input_ids',),
  ),
  'distilbert': (
    'DistilBertConfig',
    {'vocab_size': 96, 'dim': 32, 'n_layers': 2, 'n_heads': 4, 'hidden_dim': 64},
    'FlaxDistilBertForSequenceClassification',
    ('input_ids',),
  ),
  'big_bird': (
    'BigBirdConfig',
    {**_SIZES, 'attention_type': 'original_full'},
    'FlaxBigBirdForMaskedLM',
    ('input_ids',),
  ),
  'gpt2': ('GPT2Config', _GPT, 'FlaxGPT2LMHeadModel', ('input_ids',)),
  'gpt_neo': (
    'GPTNeoConfig',
    {
      **_SIZES,
      'num_layers': 2,
      'num_heads': 4,
      'attention_types': [[['global', 'local'], 1]],
      'window_size': 4,
    },
    'FlaxGPTNeoForCausalLM',
    ('input_ids',),
  ),
  'gptj': ('GPTJConfig', {**_GPT, 'rotary_dim': 4}, 'FlaxGPTJForCausalLM', ('input_ids',)),
  'bloom': (
    'BloomConfig',
    {'vocab_size': 96, 'hidden_size': 32, 'n_layer': 2, 'n_head': 4},
    'FlaxBloomForCausalLM',
    ('input_ids',),
  ),
  'opt': (
    'OPTConfig',
    {**_SIZES, 'ffn_dim': 64, 'word_embed_proj_dim': 32},
    'FlaxOPTForCausalLM',
    ('input_ids',),
  ),
  'xglm': (
    'XGLMConfig',
    {'vocab_size': 96, 'd_model': 32, 'num_layers': 2, 'attention_heads': 4, 'ffn_dim': 64},
    'FlaxXGLMForCausalLM',
    ('input_ids',),
  ),
  'llama': (
    'LlamaConfig',
    {**_SIZES, 'num_key_value_heads': 2},
    'FlaxLlamaForCausalLM',
    ('input_ids',),
  ),
  'mistral': (
    'MistralConfig',
    {**_SIZES, 'num_key_value_heads': 2},
    'FlaxMistralForCausalLM',
    ('input_ids',),
  ),
  'gemma': (
    'GemmaConfig',
    {**_SIZES, 'num_key_value_heads': 1, 'head_dim': 8},
    'FlaxGemmaForCausalLM',
    ('input_ids',),
  ),
  't5': ('T5Config', _T5, 'FlaxT5ForConditionalGeneration', ('input_ids', 'decoder_input_ids')),
  'bart': (
    'BartConfig',
    _SEQUENCE,
    'FlaxBartForConditionalGeneration',
    ('input_ids', 'decoder_input_ids'),
  ),
  'mbart': (
    'MBartConfig',
    _SEQUENCE,
    'FlaxMBartForConditionalGeneration',
    ('input_ids', 'decoder_input_ids'),
  ),
  'marian': (
    'MarianConfig',
    {**_SEQUENCE, 'pad_token_id': 0},
    'FlaxMarianMTModel',
    ('input_ids', 'decoder_input_ids'),
  ),
  'pegasus': (
    'PegasusConfig',
    _SEQUENCE,
    'FlaxPegasusForConditionalGeneration',
    ('input_ids', 'decoder_input_ids'),
  ),
  'whisper': (
    'WhisperConfig',
    {
      **_SEQUENCE,
      'num_mel_bins': 8,
      'max_source_positions': 12,
      'max_target_positions': 16,
      'pad_token_id': 0,
      'bos_token_id': 1,
      'eos_token_id': 2,
      'decoder_start_token_id': 1,
    },
    'FlaxWhisperForConditionalGeneration',
    ('input_features', 'decoder_input_ids'),
  ),
  'wav2vec2': (
    'Wav2Vec2Config',
    {
      **_SIZES,
      'conv_dim': (16, 16),
      'conv_stride': (5, 2),
      'conv_kernel': (10, 3),
      'num_feat_extract_layers': 2,
      'num_conv_pos_embeddings': 8,
      'num_conv_pos_embedding_groups': 2,
      'do_stable_layer_norm': True,
      'feat_extract_norm': 'layer',
      'vocab_size': 20,
    },
    'FlaxWav2Vec2ForCTC',
    ('input_values',),
  ),
  'vit': (
    'ViTConfig',
    {**_SIZES, **_VISION},
    'FlaxViTForImageClassification',
    ('pixel_values',),
  ),
  'beit': (
    'BeitConfig',
    {**_SIZES, **_VISION, 'use_relative_position_bias': True},
    'FlaxBeitForImageClassification',
    ('pixel_values',),
  ),
  'dinov2': (
    'Dinov2Config',
    {**_SIZES, **_VISION, 'mlp_ratio': 2},
    'FlaxDinov2ForImageClassification',
    ('pixel_values',),
  ),
  'clip': (
    'CLIPConfig',
    {
      'text_config': {**_SIZES, 'eos_token_id': 2},
      'vision_config': {**_CLIP, 'image_size': 32, 'patch_size': 8},
      'projection_dim': 24,
    },
    'FlaxCLIPModel',
    ('input_ids', 'pixel_values'),
  ),
  'resnet': (
    'ResNetConfig',
    {'embedding_size': 16, 'hidden_sizes': [32, 48], 'depths': [2, 2], 'num_labels': 10},
    'FlaxResNetForImageClassification',
    ('pixel_values',),
  ),
  'regnet': (
    'RegNetConfig',
    {
      'embedding_size': 16,
      'hidden_sizes': [32, 48],
      'depths': [2, 2],
      'groups_width': 8,
      'num_labels': 10,
    },
    'FlaxRegNetForImageClassification',
    ('pixel_values',),
  ),
}
_INPUTS = {
  'input_ids': lambda: tokens(*_TEXT),
  'decoder_input_ids': lambda: tokens(2, 8),
  'pixel_values': lambda: images(2, 3, 32, 32),
  'input_features': lambda: images(2, 8, 24),
  'input_values': lambda: images(2, 400),
}


class _Numpy:
  """jax.numpy, whose clip still has the argument that T5 calls by its old name."""

  def __getattr__(self, name: str) -> Any:
    return getattr(jnp, name)

  @staticmethod
  def clip(x: Any, a_min: Any = None, a_max: Any = None) -> Any:
    return jnp.clip(x, a_min, a_max)


def _transformers(name: str) -> Model:
  """A model of the table; it is called by the names of its inputs, without dropout."""
  import transformers

  config, fields, model, names = _TABLE[name]
  config = getattr(transformers, config)(**{'num_labels': 3, **fields})
  shape = {'input_shape': (1, 32, 32, 3)} if names == ('pixel_values',) else {}
  if name == 'clip':
    shape = {'input_shape': ((1, 12), (1, 32, 32, 3))}
  if name == 'whisper':
    shape = {'input_shape': (1, 8, 24)}
  net = getattr(transformers, model)
  if name == 't5':
    sys.modules[net.__module__].jnp = _Numpy()  # pyright: ignore[reportAttributeAccessIssue]
  net = net(config, _do_init=False, **shape)

  def fn(variables: Any, *inputs: Any) -> Any:
    out = net(**dict(zip(names, inputs, strict=True)), params=variables)
    return out.logits if 'logits' in out else out.logits_per_text

  return Model(fn, _plain(net.params_shape_tree), tuple(_INPUTS[n]() for n in names))


def _plain(tree: Any) -> dict[str, Any]:
  """Plain dicts, as flax.serialization and every later version of Flax have them."""
  from flax.core import unfreeze

  return unfreeze(tree)


def _unet() -> Model:
  """Stable Diffusion's UNet: convolutions, self-attention, attention to a text."""
  from diffusers.models.unets.unet_2d_condition_flax import FlaxUNet2DConditionModel

  net = FlaxUNet2DConditionModel(
    sample_size=8,
    block_out_channels=(64, 128),
    layers_per_block=1,
    down_block_types=('CrossAttnDownBlock2D', 'DownBlock2D'),
    up_block_types=('UpBlock2D', 'CrossAttnUpBlock2D'),
    attention_head_dim=4,
    cross_attention_dim=24,
  )

  def fn(params: Any, noisy: Any, step: Any, text: Any) -> Any:
    return net.apply({'params': params}, noisy, step, text).sample

  inputs = (images(2, 4, 8, 8), np.array([3, 500], np.int32), images(2, 6, 24))
  return Model(fn, _plain(jax.eval_shape(net.init_weights, jax.random.key(0))), inputs)


def _vae() -> Model:
  """Stable Diffusion's autoencoder: the mode of its code, decoded."""
  from diffusers.models.vae_flax import FlaxAutoencoderKL

  net = FlaxAutoencoderKL(
    sample_size=16,
    block_out_channels=(32, 64),
    down_block_types=('DownEncoderBlock2D',) * 2,
    up_block_types=('UpDecoderBlock2D',) * 2,
    layers_per_block=1,
    norm_num_groups=8,
  )
  variables = _plain(jax.eval_shape(net.init_weights, jax.random.key(0)))
  return Model(
    lambda params, x: net.apply({'params': params}, x).sample, variables, (images(2, 3, 16, 16),)
  )


def _named(name: str) -> Callable[[], Model]:
  return lambda: _transformers(name)


MODELS: dict[str, Callable[[], Model]] = {
  **{f'transformers/{name}': _named(name) for name in _TABLE},
  'diffusers/unet': _unet,
  'diffusers/vae': _vae,
}
