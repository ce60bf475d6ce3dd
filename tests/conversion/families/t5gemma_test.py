"""T5Gemma's config.json, there and back, and what is refused."""

import dataclasses
import json
from pathlib import Path

import pytest

from t5flan.configurables import parse
from t5flan.conversion import convert
from t5flan.conversion.families.t5gemma import t5gemma_fields, with_defaults
from t5flan.conversion.huggingface_config import family_of, to_model_config
from t5flan.errors import UserError
from t5flan.models.config import ModelConfig
from tests.conversion.round_trip import there_and_back

GEMMA2_9B = {
    'hidden_size': 3584,
    'intermediate_size': 14336,
    'num_hidden_layers': 42,
    'num_attention_heads': 16,
    'num_key_value_heads': 8,
}


def read(fields, tied=True):
    return to_model_config(Path('config.json'), {'model_type': 't5gemma', **fields}, tied)


@pytest.mark.parametrize('name, encoder', [('t5gemma_2b_2b', {}), ('t5gemma_9b_2b', GEMMA2_9B)])
def test_published_sizes_are_the_shapes_in_gin(name, encoder):
    """transformers leaves out of config.json what is its default, which is the size 2B."""
    shape = dataclasses.replace(parse([f'models/{name}']).read(ModelConfig), dtype='float32')
    assert read({'encoder': encoder, 'decoder': {}}) == shape
    assert family_of(shape, 'x') == 't5gemma'
    assert read(t5gemma_fields(shape, {})) == shape


SMALL = {
    'vocab_size': 64,
    'hidden_size': 16,
    'intermediate_size': 24,
    'num_hidden_layers': 3,
    'num_attention_heads': 4,
    'num_key_value_heads': 2,
    'head_dim': 4,
    'sliding_window': 5,
}


@pytest.mark.parametrize(
    'encoder, decoder',
    [
        ({}, {}),
        ({'num_hidden_layers': 5, 'hidden_size': 8, 'query_pre_attn_scalar': 7}, {}),
        ({'layer_types': ['full_attention'] * 3, 'attn_logit_softcapping': None}, {'rms_norm_eps': 1e-5}),
        ({'sliding_window': 1}, {'layer_types': ['full_attention'] * 3, 'attention_bias': True}),
        ({'rope_parameters': {'rope_type': 'linear', 'factor': 4.0, 'rope_theta': 500.0}}, {'vocab_size': 64}),
    ],
)
def test_two_stacks_there_and_back(encoder, decoder):
    config = read({'encoder': SMALL | encoder, 'decoder': SMALL | decoder, 'dropout_rate': 0.1})
    assert config.num_encoder_layers == encoder.get('num_hidden_layers', 3) and config.dropout_rate == 0.1
    assert family_of(config, 'x') == 't5gemma'
    assert read(json.loads(json.dumps(t5gemma_fields(config, {})))) == config


def test_token_ids_come_from_the_decoder():
    fields = with_defaults({'decoder': SMALL | {'eos_token_id': [1, 7]}, 'encoder': SMALL, 'bos_token_id': 5})
    assert (fields['bos_token_id'], fields['eos_token_id'], fields['vocab_size']) == (5, [1, 7], 64)


@pytest.mark.parametrize(
    'encoder, decoder, message',
    [
        ({'vocab_size': 65}, {}, 'its encoder has 65 tokens, its decoder 64; expected one vocabulary'),
        ({'hidden_activation': 'silu'}, {}, "hidden_activation 'silu' of its encoder is not converted"),
        ({}, {'sliding_window': 0}, 'sliding_window is 0, expected a number of tokens'),
        ({}, {'rope_parameters': {'rope_type': 'longrope', 'factor': 2}}, "rope_type 'longrope' is not converted"),
        (
            {'num_attention_heads': 3},
            {},
            'config.json: ModelConfig.encoder: ModelConfig.num_kv_heads=2, expected a div',
        ),
        ({'hidden_size': 'wide'}, {}, "ModelConfig.emb_dim='wide'"),
        ({'layer_types': ['chunked_attention'] * 3}, {}, "layer_types has 'chunked_attention'"),
    ],
)
def test_what_is_not_converted_is_refused_in_one_line(encoder, decoder, message):
    with pytest.raises(UserError, match=message) as error:
        read({'encoder': SMALL | encoder, 'decoder': SMALL | decoder})
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    'change, message',
    [
        ({'share_embeddings': True}, "ModelConfig.share_embeddings=True, but Hugging Face's t5gemma has False"),
        ({'mlp_activations': ('silu', 'linear')}, r"mlp_activations=.*, but Hugging Face's t5gemma has \('gelu'"),
        ({'encoder': {'qk_norm': True}}, "x: its encoder: ModelConfig.qk_norm=True, but Hugging Face's t5gemma has F"),
    ],
)
def test_other_models_cannot_be_written(change, message):
    config = read({'encoder': SMALL, 'decoder': SMALL})
    with pytest.raises(UserError, match=message):
        family_of(dataclasses.replace(config, **change), 'x')


def test_there_and_back_is_the_identity(tmp_path, shared):
    """Through both formats and back, bit for bit; settings that t5flan does not read are kept."""
    source = convert.read(shared / 'fixtures' / 'hf' / 't5gemma', 'hf')
    there_and_back(source, tmp_path)
    fields = json.loads((tmp_path / 't5flan_back' / 'config.json').read_text())
    assert fields['encoder']['max_position_embeddings'] == 512 and fields['bos_token_id'] == 2
