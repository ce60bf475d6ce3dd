"""Hugging Face's own parameters give its own logits: T5 1.0, T5 1.1, UMT5 and Llama, as transformers recorded them."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from t5flan.models.build import build_model
from t5flan.models.config import ModelConfig
from t5flan.models.parameters import named_parameters, replace_parameters

SIZES = ModelConfig(architecture='encoder_decoder', vocab_size=128, emb_dim=32, num_heads=4, head_dim=8, mlp_dim=64,
                    num_encoder_layers=2, num_decoder_layers=2, dtype='float32').to_dict()
FAMILIES = {
    't5_v1_0': {'mlp_activations': ['relu'], 'tie_embeddings': True},
    't5_v1_1': {},
    'umt5': {'relative_bias_per_layer': True},
    'llama': {'architecture': 'decoder_only', 'num_encoder_layers': 0, 'num_kv_heads': 2, 'position': 'rope',
              'scale_attention': True, 'mlp_activations': ['silu', 'linear']},
}
# Our words -> Hugging Face's; {i} is the layer.
T5_NAMES = {
    'token_embedder/embedding': 'shared.weight',
    'decoder/logits_dense/kernel': 'lm_head.weight',
    '/encoder_norm/scale': '.final_layer_norm.weight', '/decoder_norm/scale': '.final_layer_norm.weight',
    '/layers/pre_attention_layer_norm/scale': '.block.{i}.layer.0.layer_norm.weight',
    '/layers/pre_self_attention_layer_norm/scale': '.block.{i}.layer.0.layer_norm.weight',
    '/layers/pre_cross_attention_layer_norm/scale': '.block.{i}.layer.1.layer_norm.weight',
    'encoder/layers/pre_mlp_layer_norm/scale': 'encoder.block.{i}.layer.1.layer_norm.weight',
    'decoder/layers/pre_mlp_layer_norm/scale': 'decoder.block.{i}.layer.2.layer_norm.weight',
    '/relpos_bias/rel_embedding': '.block.{i}.layer.0.SelfAttention.relative_attention_bias.weight',
    '/layers/attention/': '.block.{i}.layer.0.SelfAttention.',
    '/layers/self_attention/': '.block.{i}.layer.0.SelfAttention.',
    '/layers/encoder_decoder_attention/': '.block.{i}.layer.1.EncDecAttention.',
    'encoder/layers/mlp/': 'encoder.block.{i}.layer.1.DenseReluDense.',
    'decoder/layers/mlp/': 'decoder.block.{i}.layer.2.DenseReluDense.',
    'query/kernel': 'q.weight', 'key/kernel': 'k.weight', 'value/kernel': 'v.weight', 'out/kernel': 'o.weight',
    'wi/kernel': 'wi.weight', 'wi_0/kernel': 'wi_0.weight', 'wi_1/kernel': 'wi_1.weight', 'wo/kernel': 'wo.weight',
}
LLAMA_NAMES = {
    'token_embedder/embedding': 'model.embed_tokens.weight',
    'decoder/logits_dense/kernel': 'lm_head.weight',
    'decoder/decoder_norm/scale': 'model.norm.weight',
    'decoder/layers/': 'model.layers.{i}.',
    'pre_self_attention_layer_norm/scale': 'input_layernorm.weight',
    'pre_mlp_layer_norm/scale': 'post_attention_layernorm.weight',
    'self_attention/query/kernel': 'self_attn.q_proj.weight', 'self_attention/key/kernel': 'self_attn.k_proj.weight',
    'self_attention/value/kernel': 'self_attn.v_proj.weight', 'self_attention/out/kernel': 'self_attn.o_proj.weight',
    'mlp/wi_0/kernel': 'mlp.gate_proj.weight', 'mlp/wi_1/kernel': 'mlp.up_proj.weight',
    'mlp/wo/kernel': 'mlp.down_proj.weight',
}


def read_safetensors(file: Path) -> dict[str, np.ndarray]:
    """Eight bytes of header length, a JSON header, raw little-endian arrays."""
    raw = file.read_bytes()
    start = 8 + int.from_bytes(raw[:8], 'little')
    header = json.loads(raw[8:start])
    header.pop('__metadata__', None)
    assert all(entry['dtype'] == 'F32' for entry in header.values())
    return {name: np.frombuffer(raw[start:][slice(*entry['data_offsets'])], '<f4').reshape(entry['shape'])
            for name, entry in header.items()}


def from_hf(model, tensors: dict[str, np.ndarray], names: dict[str, str]):
    """Kernels are transposed (torch keeps [outputs, inputs]); the relative bias is [buckets, heads] there."""

    def value(name: str, shape: tuple[int, ...]) -> np.ndarray:
        theirs = name
        for ours, word in names.items():
            theirs = theirs.replace(ours, word)
        matrix = name.endswith(('kernel', 'rel_embedding'))
        per_layer = '/layers/' in name or (name.endswith('rel_embedding') and len(shape) == 3)
        arrays = [tensors[theirs.format(i=i)] for i in range(shape[0] if per_layer else 1)]
        arrays = [array.T if matrix else array for array in arrays]
        return np.stack(arrays).reshape(shape)

    return replace_parameters(model, {name: value(name, leaf.shape) for name, leaf in named_parameters(model).items()})


@pytest.mark.parametrize('family', FAMILIES)
def test_logits_are_hugging_faces(family, shared):
    folder = shared / 'fixtures' / 'hf' / family
    if not folder.is_dir():
        pytest.skip(f'no recording {folder}')
    expected = np.load(folder / 'expected.npz')
    model = build_model(ModelConfig.from_dict({**SIZES, **FAMILIES[family]}), jax.random.key(0))
    model = from_hf(model, read_safetensors(folder / 'model.safetensors'), LLAMA_NAMES if family == 'llama' else T5_NAMES)
    if family == 'llama':
        batch = {'decoder_input_tokens': expected['input_ids']}
    else:
        assert ((expected['input_ids'] > 0) == expected['attention_mask']).all()
        batch = {'encoder_input_tokens': expected['input_ids'], 'decoder_input_tokens': expected['decoder_input_ids']}
    logits_BTV = jax.jit(lambda model, batch: model(batch))(model, batch)
    np.testing.assert_allclose(logits_BTV, expected['logits'], atol=2e-4, rtol=0)


@pytest.mark.parametrize('family', ['t5_v1_1', 'umt5'])
def test_long_inputs_reach_the_far_buckets(family, shared):
    folder = shared / 'fixtures' / 'hf' / family
    if not folder.is_dir():
        pytest.skip(f'no recording {folder}')
    expected = np.load(folder / 'expected.npz')
    model = build_model(ModelConfig.from_dict({**SIZES, **FAMILIES[family]}), jax.random.key(0))
    model = from_hf(model, read_safetensors(folder / 'model.safetensors'), T5_NAMES)
    labels_BT = expected['long_labels']
    batch = {'encoder_input_tokens': expected['long_input_ids'],
             'decoder_input_tokens': np.pad(labels_BT[:, :-1], ((0, 0), (1, 0)))}
    logits_BTV = jax.jit(lambda model, batch: model(batch))(model, batch)[:, ::int(expected['long_logits_stride'])]
    np.testing.assert_allclose(logits_BTV, expected['long_logits'], atol=2e-4, rtol=0)
