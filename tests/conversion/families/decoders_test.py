"""config.json of decoders, as published (in the form before transformers 5): each is a shape of gin/models."""

import dataclasses
from pathlib import Path

import pytest

from t5flan.configurables import parse
from t5flan.conversion.families.decoders import decoder_family, decoder_fields
from t5flan.conversion.huggingface_config import to_model_config
from t5flan.errors import UserError
from t5flan.models.config import ModelConfig


def sizes(vocab, hidden, inner, layers, heads, kv_heads, **others):
    return {
        'vocab_size': vocab,
        'hidden_size': hidden,
        'intermediate_size': inner,
        'num_hidden_layers': layers,
        'num_attention_heads': heads,
        'num_key_value_heads': kv_heads,
        'rms_norm_eps': 1e-6,
        **others,
    }


LLAMA3 = {'low_freq_factor': 1.0, 'high_freq_factor': 4.0, 'original_max_position_embeddings': 8192}
QWEN2 = {'hidden_act': 'silu', 'max_window_layers': 24, 'sliding_window': 131072, 'use_sliding_window': False}
GEMMA2 = {'attn_logit_softcapping': 50.0, 'final_logit_softcapping': 30.0, 'sliding_window': 4096}
GEMMA3 = {'rope_theta': 1000000, 'rope_local_base_freq': 10000, 'sliding_window_pattern': 6, 'rope_scaling': None}
PUBLISHED = {
    'qwen2_0_5b': ('qwen2', sizes(151936, 896, 4864, 24, 14, 2, rope_theta=1e6, **QWEN2)),
    'qwen3_0_6b': (
        'qwen3',
        sizes(151936, 1024, 3072, 28, 16, 8, head_dim=128, rope_theta=1000000, rope_scaling=None, **QWEN2),
    ),
    'llama3_1_8b': (
        'llama',
        sizes(128256, 4096, 14336, 32, 32, 8, rope_theta=500000.0, attention_bias=False, mlp_bias=False)
        | {'rms_norm_eps': 1e-5, 'rope_scaling': {'factor': 8.0, 'rope_type': 'llama3', **LLAMA3}},
    ),
    'mistral_7b': ('mistral', sizes(32000, 4096, 14336, 32, 32, 8, rope_theta=10000.0) | {'rms_norm_eps': 1e-5}),
    'smollm3_3b': (
        'smollm3',
        sizes(128256, 2048, 11008, 36, 16, 4, rope_theta=5000000.0, no_rope_layers=[1, 1, 1, 0] * 9)
        | {'layer_types': ['full_attention'] * 36, 'sliding_window': None, 'use_sliding_window': False},
    ),
    'gemma2_2b': ('gemma2', sizes(256000, 2304, 9216, 26, 8, 4, head_dim=256, query_pre_attn_scalar=256, **GEMMA2)),
    'gemma2_27b': ('gemma2', sizes(256000, 4608, 36864, 46, 32, 16, head_dim=128, query_pre_attn_scalar=144, **GEMMA2)),
    'gemma3_1b': (
        'gemma3_text',
        sizes(262144, 1152, 6912, 26, 4, 1, head_dim=256, query_pre_attn_scalar=256, sliding_window=512, **GEMMA3),
    ),
}


def read(kind, fields, tied=True):
    return to_model_config(Path('config.json'), {'model_type': kind, **fields}, tied)


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_files_are_the_shapes_in_gin(name):
    kind, fields = PUBLISHED[name]
    shape = dataclasses.replace(parse([f'models/{name}']).read(ModelConfig), dtype='float32')
    assert read(kind, fields, shape.tie_embeddings) == shape
    assert decoder_family(shape, 'x', None) == kind
    assert read(kind, decoder_fields(shape, kind), shape.tie_embeddings) == shape


SMALL = sizes(64, 16, 24, 4, 4, 2, head_dim=4)


@pytest.mark.parametrize(
    'kind, fields, window, pattern',
    [
        ('mistral', {'sliding_window': None}, None, None),
        ('mistral', {}, 4096, None),
        (
            'qwen2',
            {'use_sliding_window': True, 'max_window_layers': 3, 'sliding_window': 9},
            9,
            ('full',) * 3 + ('window',),
        ),
        ('qwen2', {'use_sliding_window': True, 'max_window_layers': 0, 'sliding_window': 9}, 9, None),
        ('qwen3', {'use_sliding_window': False, 'sliding_window': 9}, None, None),
        ('gemma2', {'sliding_window': 5}, 5, ('window', 'full')),
        ('gemma3_text', {'sliding_window': 5, 'sliding_window_pattern': 2}, 5, ('window', 'full')),
        ('gemma3_text', {'sliding_window': 5, 'layer_types': ['full_attention'] * 4}, None, None),
        ('smollm3', {}, None, ('full', 'full', 'full', 'nope')),
        ('smollm3', {'no_rope_layers': [1] * 4}, None, None),
        ('llama', {'sliding_window': 7}, None, None),
    ],
)
def test_windows_and_patterns(kind, fields, window, pattern):
    config = read(kind, SMALL | fields)
    assert (config.attention_window, config.layer_pattern) == (window, pattern)
    assert read(kind, SMALL | decoder_fields(config, kind)) == config


def test_soft_caps_are_those_that_a_family_applies():
    """Gemma 3 has both fields, and applies the cap of the logits only; Llama reads neither."""
    caps = {'attn_logit_softcapping': 5.0, 'final_logit_softcapping': 7.0}
    found = {kind: read(kind, SMALL | caps) for kind in ('gemma2', 'gemma3_text', 'llama')}
    given = [(config.attention_soft_cap, config.logits_soft_cap) for config in found.values()]
    assert given == [(5.0, 7.0), (None, 7.0), (None, None)]
    assert decoder_family(found['gemma3_text'], 'x', None) == 'gemma3_text'
    assert read('gemma3_text', SMALL | decoder_fields(found['gemma3_text'], 'gemma3_text')) == found['gemma3_text']


def test_soft_caps_that_a_file_does_not_have_are_those_of_the_family():
    """transformers writes null for no cap; Gemma 3 has none."""
    found = [
        read('gemma2', SMALL),
        read('gemma2', SMALL | {'attn_logit_softcapping': None}),
        read('gemma3_text', SMALL),
    ]
    caps = [(config.attention_soft_cap, config.logits_soft_cap) for config in found]
    assert caps == [(50.0, 30.0), (None, 30.0), (None, None)]


YARN = {'factor': 4.0, 'original_max_position_embeddings': 64}


@pytest.mark.parametrize(
    'fields, expected',
    [
        ({'rope_parameters': {'rope_type': 'default', 'type': 'linear', 'factor': 2.0}}, None),
        (
            {'rope_scaling': {'type': 'linear', 'factor': 2.0}, 'rope_parameters': {'rope_type': 'default'}},
            ('linear', None),
        ),
        ({'rope_parameters': {'rope_type': 'yarn', **YARN}}, ('yarn', 64)),
        ({'rope_parameters': {'rope_type': 'yarn', **YARN}, 'original_max_position_embeddings': 32}, ('yarn', 32)),
        ({'rope_scaling': {'type': 'yarn', 'factor': 4.0}, 'max_position_embeddings': 16}, ('yarn', 16)),
    ],
)
def test_of_two_settings_of_the_rotary_embedding_the_one_that_transformers_reads_counts(fields, expected):
    scaling = read('llama', SMALL | fields).rope_scaling
    assert (scaling and (scaling.rope_type, scaling.original_max_position_embeddings)) == expected


BOTH_TYPES = {name: {'rope_type': 'default', 'rope_theta': 9.0} for name in ('full_attention', 'sliding_attention')}
LINEAR = {'rope_type': 'linear', 'factor': 2.0}


@pytest.mark.parametrize(
    'kind, fields, message',
    [
        ('llama', {'is_causal': False}, 'is_causal is false, but decoders of t5flan are causal'),
        ('gemma', {'use_bidirectional_attention': True}, 'use_bidirectional_attention is true'),
        ('mistral', {'per_layer_config': {'1': {'intermediate_size': 8}}}, 'per_layer_config gives layers settings'),
        ('smollm3', {'mlp_bias': True}, 'mlp_bias is true'),
        (
            'qwen3',
            {'rope_parameters': BOTH_TYPES},
            'of a qwen3 has full_attention, sliding_attention; expected settings of',
        ),
        ('gemma3_text', {'rope_parameters': LINEAR}, 'of a gemma3_text has rope_type, factor; expected full_attention'),
        (
            'gemma3_text',
            {'rope_parameters': {'sliding_attention': LINEAR}},
            'scale the rotary embedding of sliding_att',
        ),
        ('llama', {'rope_scaling': {'rope_type': 'proportional', 'factor': 2.0}}, "rope_type 'proportional' is not"),
        ('llama', {'rope_parameters': {'rope_type': 'default', 'partial_rotary_factor': 0.5}}, 'partial_rotary_factor'),
        ('gemma2', {'hidden_activation': 'gelu'}, "hidden_act 'gelu' of a gemma2 model is not converted"),
        ('llama', {'head_dim': 5}, 'head_dim=5, expected an even number'),
        ('llama', {'num_key_value_heads': 3}, 'num_kv_heads=3, expected a divisor of num_heads=4'),
        ('qwen2', {'layer_types': ['sliding_attention'] * 4}, 'sliding_window is None, expected a number of tokens'),
        ('gemma3', {'text_config': SMALL}, "model_type 'gemma3' is not converted"),
    ],
)
def test_settings_that_are_not_converted_are_refused_in_one_line(kind, fields, message):
    with pytest.raises(UserError, match=message) as error:
        read(kind, SMALL | fields)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('kind, size', [('qwen3', 128), ('gemma2', 256), ('llama', 4), ('qwen2', 4), ('mistral', 4)])
def test_a_head_has_its_familys_size_where_the_file_has_none(kind, size):
    assert read(kind, SMALL | {'head_dim': None}).head_dim == size


@pytest.mark.parametrize(
    'kind, biases', [('mistral', (False, False)), ('qwen2', (True, False)), ('qwen3', (True, True))]
)
def test_biases_are_those_that_a_family_has(kind, biases):
    config = read(kind, SMALL | {'attention_bias': True})
    assert (config.attention_bias, config.attention_out_bias) == biases


def test_a_decoder_stays_of_its_type_if_it_can():
    config = read('mistral', SMALL | {'sliding_window': None})
    assert [decoder_family(config, 'x', source) for source in (None, 'mistral', 'qwen2', 't5')] == [
        'llama',
        'mistral',
    ] + ['llama'] * 2
    assert decoder_family(read('gemma2', SMALL), 'x', 'gemma') == 'gemma2'
    with pytest.raises(UserError, match="x: ModelConfig.logits_soft_cap=9.0, but Hugging Face's llama has None"):
        decoder_family(dataclasses.replace(config, logits_soft_cap=9.0), 'x', 'mistral')


@pytest.mark.parametrize(
    'fields',
    [
        {'num_hidden_layers': 'many'},
        {'num_hidden_layers': 2**31},
        {'num_hidden_layers': -1},
        {'hidden_size': 'x', 'head_dim': None},
        {'no_rope_layers': 3},
        {'layer_types': 5},
        {'rope_parameters': 7},
        {'rope_scaling': 'linear'},
        {'rope_theta': 'far'},
        {'rope_scaling': {'rope_type': 'linear', 'factor': 'two'}},
        {'rope_scaling': {'rope_type': ['linear'], 'factor': 2}},
        {'num_attention_heads': 0, 'head_dim': None},
        {'no_rope_layer_interval': 'x'},
    ],
)
def test_fields_of_a_wrong_type_are_one_line(fields):
    with pytest.raises(UserError, match='config.json') as error:
        read('smollm3', SMALL | fields)
    assert '\n' not in str(error.value)
