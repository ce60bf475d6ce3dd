"""T5Gemma 2's config.json, there and back, what is refused, and a tiny model of transformers."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

import t5flan
from t5flan.configurables import parse
from t5flan.conversion import convert
from t5flan.conversion.adaptation.adapt import adapt
from t5flan.conversion.families.t5gemma2 import t5gemma2_fields, with_defaults
from t5flan.conversion.huggingface_config import family_of, to_model_config
from t5flan.errors import UserError
from t5flan.models.config import ModelConfig
from tests.conversion.round_trip import there_and_back

GOLDEN = Path(__file__).parents[1] / 'golden'
GEMMA3 = {
    't5gemma2_270m_270m': dict(hidden_size=640, intermediate_size=2048, num_hidden_layers=18, sliding_window=512),
    't5gemma2_1b_1b': dict(hidden_size=1152, intermediate_size=6912, num_hidden_layers=26, sliding_window=512),
}
ONE_KEY_HEAD = {'vocab_size': 262144, 'num_attention_heads': 4, 'num_key_value_heads': 1}


def read(encoder, decoder, tied=True, **more):
    fields = {'model_type': 't5gemma2', 'encoder': {'text_config': encoder, **more}, 'decoder': decoder}
    return to_model_config(Path('config.json'), fields, tied)


@pytest.mark.parametrize('name', GEMMA3)
def test_published_sizes_are_the_shapes_in_gin(name):
    shape = dataclasses.replace(parse([f'models/{name}']).read(ModelConfig), dtype='float32')
    part = GEMMA3[name] | ONE_KEY_HEAD
    assert read(part, part) == shape
    assert family_of(shape, 'x') == 't5gemma2'
    fields = t5gemma2_fields(shape, {})
    assert fields['encoder']['text_config']['sliding_window'] == fields['decoder']['sliding_window'] == 512
    assert to_model_config(Path('config.json'), {'model_type': 't5gemma2', **fields}, True) == shape


SMALL = {
    'vocab_size': 64,
    'hidden_size': 16,
    'intermediate_size': 24,
    'num_hidden_layers': 3,
    'num_attention_heads': 4,
    'num_key_value_heads': 2,
    'head_dim': 4,
    'sliding_window': 6,
    'layer_types': ['sliding_attention', 'sliding_attention', 'full_attention'],
}


@pytest.mark.parametrize(
    'encoder, decoder',
    [
        ({}, {}),
        ({'sliding_window': 1}, {'sliding_window': 1}),
        ({'sliding_window': 5, 'num_hidden_layers': 6, 'layer_types': None}, {'final_logit_softcapping': 7.0}),
        ({'layer_types': ['full_attention'] * 3}, {'attention_bias': True, 'num_attention_heads': 2}),
        ({'rope_parameters': {'full_attention': {'rope_type': 'linear', 'factor': 4.0, 'rope_theta': 500.0}}}, {}),
    ],
)
def test_two_stacks_there_and_back(encoder, decoder):
    config = read(SMALL | encoder, SMALL | decoder, eoi_token_index=9)
    assert config.merged_attention and config.unscaled_token == 9
    assert family_of(config, 'x') == 't5gemma2'
    fields = json.loads(json.dumps(t5gemma2_fields(config, {})))
    assert to_model_config(Path('config.json'), {'model_type': 't5gemma2', **fields}, True) == config


@pytest.mark.parametrize('window, seen', [(1, 1), (2, (0, 1)), (5, 3), (6, (2, 3))])
def test_an_encoders_window_holds_as_many_tokens_as_it_says(window, seen):
    kind = read(SMALL | {'sliding_window': window}, SMALL).encoder_config.layer_kinds[0]
    assert kind.seen(bidirectional=True) == seen


@pytest.mark.parametrize(
    'encoder, decoder, tied, message',
    [
        ({'vocab_size': 65}, {}, True, 'its encoder has 65 tokens, its decoder 64; expected one vocabulary'),
        ({'hidden_size': 32}, {}, True, 'its encoder has hidden_size 32, its decoder 16; expected one size'),
        ({'hidden_activation': 'gelu'}, {}, True, "hidden_activation 'gelu' of its encoder is not converted"),
        ({}, {}, False, 'the logits of a t5gemma2 have a kernel of their own, which is not converted'),
        ({'sliding_window': 0}, {}, True, 'sliding_window is 0, expected a number of tokens'),
        ({}, {'num_attention_heads': 3}, True, 'ModelConfig.num_kv_heads=2, expected a divisor of num_heads=3'),
        ({'use_bidirectional_attention': True}, {}, True, 'use_bidirectional_attention is true'),
        ({'final_logit_softcapping': 0}, {'final_logit_softcapping': -1.0}, True, 'ModelConfig.logits_soft_cap=-1.0'),
    ],
)
def test_what_is_not_converted_is_refused_in_one_line(encoder, decoder, tied, message):
    with pytest.raises(UserError, match=message) as error:
        read(SMALL | encoder, SMALL | decoder, tied)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    'change, message',
    [
        ({'mlp_activations': ('silu', 'linear')}, r"mlp_activations=.*, but Hugging Face's t5gemma2 has \('gelu'"),
        ({'tie_embeddings': False}, 'ModelConfig.tie_embeddings=False, but'),
        ({'attention_soft_cap': 5.0}, 'ModelConfig.attention_soft_cap=5.0, but'),
        ({'encoder': {'attention_window': 3, 'attention_window_ahead': 1}}, 'attention_window_ahead=1, but .* as many'),
    ],
)
def test_other_models_cannot_be_written(change, message):
    with pytest.raises(UserError, match=message):
        family_of(dataclasses.replace(read(SMALL, SMALL), **change), 'x')


def test_a_config_without_parts_has_the_defaults():
    fields = with_defaults({'decoder': {'bos_token_id': 5}})
    assert (fields['bos_token_id'], fields['vocab_size'], fields['eoi_token_index']) == (5, 262208, 256000)


def test_an_adapted_gemma_3_is_written_as_one(tmp_path):
    """With merged attention and no token of its own: the index of the end of an image is that of no token."""
    source = adapt(convert.read(GOLDEN / 'gemma3_linear', 'hf'))
    convert.write(source, tmp_path / 'hf', 'hf')
    back = convert.read(tmp_path / 'hf', 'hf')
    convert.compare(source, back, 'hf')
    assert back.config == source.config
    fields = json.loads((tmp_path / 'hf' / 'config.json').read_text())
    assert (fields['model_type'], fields['eoi_token_index']) == ('t5gemma2', source.config.vocab_size)


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    """A model of transformers with random parameters, and its folder; 3 layers, even windows, an own word."""
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    if not hasattr(transformers, 'T5Gemma2Config'):
        pytest.skip('needs a transformers with T5Gemma 2')
    part = SMALL | {'query_pre_attn_scalar': 7, 'rms_norm_eps': 1e-3, 'max_position_embeddings': 64}
    vision = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=16)
    config = transformers.T5Gemma2Config(
        encoder={
            'text_config': part | {'num_hidden_layers': 4, 'layer_types': ['sliding_attention', 'full_attention'] * 2},
            'vision_config': vision | {'patch_size': 8, 'model_type': 'siglip_vision_model'},
            'eoi_token_index': 11,
            'mm_tokens_per_image': 4,
        },
        decoder=part | {'final_logit_softcapping': 6.0, 'sliding_window': 3},
        attn_implementation='eager',
    )
    torch.manual_seed(0)
    model = transformers.T5Gemma2ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    folder = tmp_path_factory.mktemp('tiny') / 't5gemma2'
    model.save_pretrained(folder)
    return model, folder


@pytest.mark.slow
def test_logits_and_greedy_tokens_are_transformers(tiny, tmp_path):
    """Text only: encoder and merged attention with even windows, the word of its own, padding, cached decoding."""
    import torch

    theirs, folder = tiny
    checkpoint = convert.read(folder, 'hf')
    assert any('images are left out' in note for note in checkpoint.notes)
    convert.write(checkpoint, tmp_path / 'own', 't5flan')
    ours = t5flan.load(tmp_path / 'own')
    rng = np.random.default_rng(0)
    source_BS, target_BT = rng.integers(3, 64, (3, 14)), rng.integers(3, 64, (3, 9))
    source_BS[:, 4], target_BT[:, 3], target_BT[:, 0] = 11, 11, 2
    source_BS[1, 9:] = 0
    inputs = {'input_ids': torch.tensor(source_BS), 'attention_mask': torch.tensor((source_BS > 0).astype(int))}
    with torch.no_grad():
        expected = theirs(**inputs, decoder_input_ids=torch.tensor(target_BT)).logits.numpy()
        greedy_BT = theirs.generate(**inputs, max_new_tokens=8, do_sample=False)[:, 1:].tolist()
    logits = ours.logits({'encoder_input_tokens': source_BS, 'decoder_input_tokens': target_BT})
    np.testing.assert_allclose(logits, expected, atol=2e-4, rtol=0)
    results = ours.generate_ids([row[row > 0].tolist() for row in source_BS], 8)
    assert [one.tokens.tolist() for (one,) in results] == [
        row[: row.index(1) + 1] if 1 in row else row for row in greedy_BT
    ]


@pytest.mark.slow
def test_there_and_back_is_the_identity(tiny, tmp_path):
    """Bit for bit; and transformers loads what is written."""
    import torch
    import transformers

    theirs, folder = tiny
    source = convert.read(folder, 'hf')
    there_and_back(source, tmp_path)
    again = transformers.T5Gemma2ForConditionalGeneration.from_pretrained(
        tmp_path / 't5flan_back', attn_implementation='eager'
    ).eval()
    tokens = {'input_ids': torch.arange(3, 20)[None], 'decoder_input_ids': torch.arange(20, 30)[None]}
    with torch.no_grad():
        assert torch.equal(again(**tokens).logits, theirs(**tokens).logits)
