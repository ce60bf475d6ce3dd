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
        ({'embdim': 3}, r"no field 'embdim'; did you mean 'emb_dim'"),
    ],
)
def test_invalid_fields_raise_a_one_line_error(fields, says):
    with pytest.raises(UserError, match=says) as error:
        ModelConfig.from_dict({**small_config('t5_1_1').to_dict(), **fields})
    assert '\n' not in str(error.value)


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
