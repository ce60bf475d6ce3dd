import dataclasses
import json

import pytest

from t5flan.errors import UserError
from t5flan.models.config import ModelConfig
from tests.models.small_models import FAMILIES, small_config


@pytest.mark.parametrize('family', FAMILIES)
def test_a_configuration_survives_json(family):
    config = small_config(family)
    again = ModelConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config and hash(again) == hash(config)


@pytest.mark.parametrize(
    'fields, says',
    [
        ({'emb_dim': 0}, r'emb_dim=0, expected an integer of 1 or more'),
        ({'emb_dim': 2.5}, r'emb_dim=2.5, expected int'),
        ({'emb_dim': True}, r'emb_dim=True, expected int'),
        ({'dropout_rate': 1}, r'dropout_rate=1.0, expected a number of 0 or more and below 1'),
        ({'norm': 'batch'}, r"norm='batch', expected one of 'rms', 'layer'"),
        ({'mlp_activations': ['swish']}, r"mlp_activations=.*'gelu', 'relu', 'silu', 'linear'"),
        ({'mlp_activations': []}, r'mlp_activations=\(\), expected at least one'),
        ({'num_kv_heads': 3}, r'num_kv_heads=3, expected a divisor of num_heads=4'),
        ({'num_kv_heads': 0}, r'num_kv_heads=0, expected a divisor of num_heads=4'),
        ({'num_encoder_layers': 0}, r'num_encoder_layers=0, expected a number above 0'),
        ({'architecture': 'decoder_only'}, r'num_encoder_layers=2, expected 0 for a decoder_only model'),
        ({'parallel_block': True}, r'parallel_block=True, expected False for an encoder_decoder'),
        ({'position': 'rope', 'head_dim': 7}, r'head_dim=7, expected an even number'),
        ({'relative_buckets': 30}, r'relative_buckets=30, expected a multiple of 4'),
        ({'relative_max_distance': 16}, r'relative_max_distance=16, expected more than'),
        ({'attention_window': 0}, r'attention_window=0, expected a number above 0, or None'),
        (
            {'attention_window': 2, 'layer_pattern': ['full']},
            r'attention_window=2, expected None, because layer_pattern',
        ),
        ({'layer_pattern': ['window']}, r"attention_window=None, expected a number for layer_pattern's windows"),
        ({'layer_pattern': ['sliding']}, r"layer_pattern=\['sliding'\], expected .*'full', 'window', 'nope'"),
        ({'layer_pattern': []}, r'layer_pattern=\(\), expected at least one layer'),
        ({'layer_pattern': ['nope']}, r"layer_pattern=\('nope',\), expected no 'nope' without position='rope'"),
        ({'position': 'rope', 'rope_local_base': 5.0}, r'rope_local_base=5.0, expected None without attention_window'),
        ({'rope_scaling': {'rope_type': 'linear', 'factor': 2}}, r"rope_scaling=.*None with position='relative_bias'"),
        (
            {'rope_scaling': {'rope_type': 'ntk', 'factor': 2}},
            r"rope_scaling.rope_type='ntk', expected one of 'linear'",
        ),
        ({'rope_scaling': {'rope_type': 'linear'}}, r'rope_scaling.factor=None, expected a value'),
        ({'rope_scaling': {'rope_type': 'linear', 'factor': 0}}, r'rope_scaling.factor=0.0, expected a number above 0'),
        ({'rope_scaling': {'rope_type': 'llama3', 'factor': 8}}, r'original_max_position_embeddings=None, expected'),
        ({'rope_scaling': {'kind': 'linear'}}, r"rope_scaling has 'kind'; expected fields of rope_type"),
        ({'rope_scaling': 'linear'}, r"rope_scaling='linear', expected .*dict such as"),
        ({'query_pre_attn_scalar': 4}, r'query_pre_attn_scalar=4.0, expected None with scale_attention=False'),
        (
            {'encoder': {'vocab_size': 3}},
            r"ModelConfig.encoder has 'vocab_size'; expected fields of emb_dim, num_heads",
        ),
        ({'encoder': {'num_heads': 0}}, r'ModelConfig.encoder: ModelConfig.num_heads=0, expected an integer of 1'),
        ({'encoder': {'emb_dim': 8}}, r'share_embeddings=True, expected False, because emb_dim or scale_embedding'),
        ({'encoder': 5}, r'encoder=5, expected dict of str to anything or None'),
        (
            {'architecture': 'decoder_only', 'num_encoder_layers': 0, 'encoder': {'mlp_dim': 8}},
            r'encoder=.*expected None for a decoder_only model',
        ),
        (
            {'architecture': 'decoder_only', 'num_encoder_layers': 0, 'share_embeddings': False},
            r'share_embeddings=False, expected True for a decoder_only model',
        ),
        (
            {'attention_window_ahead': 3},
            r"attention_window_ahead=3, expected None without an encoder's attention_window",
        ),
        ({'attention_window': 2, 'attention_window_ahead': -1}, r'attention_window_ahead=-1, expected an integer of 0'),
        (
            {
                'architecture': 'decoder_only',
                'num_encoder_layers': 0,
                'attention_window': 3,
                'attention_window_ahead': 1,
            },
            r'attention_window_ahead=1, expected None without an encoder',
        ),
        ({'unscaled_token': -1}, r'unscaled_token=-1, expected an integer of 0 or more'),
        ({'merged_attention': True}, r"merged_attention=True, expected False with position='relative_bias'"),
        ({'embdim': 3}, r"no field 'embdim'; did you mean 'emb_dim'"),
    ],
)
def test_invalid_fields_raise_a_one_line_error(fields, says):
    with pytest.raises(UserError, match=says) as error:
        ModelConfig.from_dict({**small_config('t5_1_1').to_dict(), **fields})
    assert '\n' not in str(error.value)


def test_an_encoder_has_the_settings_of_its_decoder_but_those_given():
    config = small_config('two_sizes', dropout_rate=0.5)
    encoder = config.encoder_config
    assert (encoder.emb_dim, encoder.mlp_dim, encoder.dropout_rate, encoder.encoder) == (24, 20, 0.5, None)
    same = dict(config.encoder or {}, emb_dim=config.emb_dim)
    assert 'emb_dim' not in dataclasses.replace(config, encoder=same).encoder  # only differences are stored
    assert dataclasses.replace(config, encoder={'emb_dim': 32}).encoder is None


def test_an_encoders_window_may_reach_farther_after_a_token():
    config = small_config('t5gemma2')
    window, full = config.encoder_config.layer_kinds
    assert (window.seen(True), window.seen(False), full.seen(True)) == ((1, 3), 2, None)
    same = dataclasses.replace(config, encoder={'attention_window': 4, 'attention_window_ahead': 3})
    assert same.encoder == {'attention_window': 4} and same.encoder_config.layer_kinds[0].seen(True) == 4


def test_a_missing_size_is_named():
    fields = small_config('palm').to_dict()
    del fields['mlp_dim']
    with pytest.raises(UserError, match='ModelConfig.mlp_dim is missing'):
        ModelConfig.from_dict(fields)


def test_key_value_heads_default_to_all_heads():
    config = small_config('t5_1_1')
    assert config.kv_heads == 4
    assert dataclasses.replace(config, num_kv_heads=1).kv_heads == 1
    assert config.attention_scale == 1
    assert dataclasses.replace(config, scale_attention=True).attention_scale == 8**-0.5


def test_kinds_of_layers_repeat_with_the_shortest_period():
    config = small_config('modern', layer_pattern=('window', 'full', 'window', 'full'))
    local, whole = config.layer_kinds
    assert (local.window, local.rope_base, local.rope_scaling) == (3, 50.0, None)
    assert (whole.window, whole.rope_base, whole.rope_scaling.factor) == (None, 10000.0, 4.0)
    assert len(small_config('modern', layer_pattern=None).layer_kinds) == 1
    assert small_config('gemma').layer_kinds == ((None, True, 10000.0, None, None),)
