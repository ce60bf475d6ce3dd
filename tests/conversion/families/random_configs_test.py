"""Models of transformers with random settings and parameters have the same logits here."""

import random

import numpy as np
import pytest

from t5flan.conversion import convert
from t5flan.conversion.families.decoders import ARCHITECTURES
from tests.conversion.adaptation.adapt_test import logits_of

pytestmark = pytest.mark.slow

VOCABULARY = 48
SEEDS = 4


@pytest.fixture(scope='module')
def transformers():
    pytest.importorskip('torch')
    return pytest.importorskip('transformers')


def rope(rng: random.Random) -> dict:
    """One of the kinds of rotary embedding."""
    kinds = {
        'default': {},
        'linear': {'factor': 3.0},
        'llama3': {'factor': 4.0, 'low_freq_factor': 1.0, 'high_freq_factor': 3.0},
        'yarn': rng.choice(({}, {'truncate': False, 'beta_fast': 9.0}, {'mscale': 0.7, 'mscale_all_dim': 0.4})),
    }
    kind = rng.choice(list(kinds))
    found = {'rope_type': kind, 'rope_theta': rng.choice((100.0, 5000.0)), **kinds[kind]}
    if kind in ('llama3', 'yarn'):
        found['original_max_position_embeddings'] = rng.choice((8, 32))
    if kind == 'yarn':
        found['factor'] = rng.choice((2.0, 8.0))
    return found


def layers_of(rng: random.Random, layers: int) -> dict:
    types = [rng.choice(('full_attention', 'sliding_attention')) for _ in range(layers)]
    return {'layer_types': types, 'sliding_window': rng.choice((1, 2, 5))}


def decoder(kind: str, rng: random.Random) -> dict:
    """Settings of a decoder, or of a stack of an encoder-decoder."""
    layers, hidden = rng.randint(1, 4), rng.choice((16, 32))
    fields = {
        'vocab_size': VOCABULARY,
        'hidden_size': hidden,
        'intermediate_size': rng.choice((12, 20)),
        'num_hidden_layers': layers,
        'num_attention_heads': 4,
        'num_key_value_heads': rng.choice((1, 2, 4)),
        'head_dim': rng.choice((4, 6, hidden // 4)),
        'rms_norm_eps': rng.choice((1e-6, 1e-2)),
        'max_position_embeddings': 64,
        'tie_word_embeddings': rng.random() < 0.5,
        'attention_bias': rng.random() < 0.5,
        'rope_parameters': rope(rng),
        'pad_token_id': 0,
        'bos_token_id': 2,
        'eos_token_id': 1,
    }
    if kind == 'mistral':
        fields['sliding_window'] = rng.choice((None, 1, 4))
    if kind in ('qwen2', 'qwen3'):
        by_number = {'layer_types': None, 'max_window_layers': rng.randint(0, layers), 'sliding_window': 3}
        fields |= rng.choice((layers_of(rng, layers), by_number))
        fields |= {'use_sliding_window': True}
        if rng.random() < 0.3:
            fields |= {'use_sliding_window': False, 'layer_types': None}
    if kind == 'smollm3':
        fields['no_rope_layers'] = rng.choice((None, [rng.randint(0, 1) for _ in range(layers)]))
        fields |= layers_of(rng, layers) | {'use_sliding_window': True} if rng.random() < 0.7 else {}
    if kind in ('gemma2', 'gemma3_text'):
        fields |= rng.choice((layers_of(rng, layers), {'sliding_window': 4, 'layer_types': None}))
        fields['query_pre_attn_scalar'] = rng.choice((fields['head_dim'], 7))
        fields['final_logit_softcapping'] = rng.choice((None, 6.0))
        fields['attn_logit_softcapping'] = rng.choice((None, 3.0))
    if kind == 'gemma3_text':
        local = {'rope_type': 'default', 'rope_theta': rng.choice((50.0, 700.0))}
        fields['rope_parameters'] = {'full_attention': fields['rope_parameters'], 'sliding_attention': local}
    return fields


def t5(kind: str, rng: random.Random) -> dict:
    fields = {
        'vocab_size': VOCABULARY,
        'd_model': rng.choice((16, 24)),
        'd_kv': rng.choice((3, 4, 8)),
        'd_ff': rng.choice((12, 20)),
        'num_layers': rng.randint(1, 3),
        'num_decoder_layers': rng.choice((None, 1, 3)),
        'num_heads': rng.choice((1, 4)),
        'relative_attention_num_buckets': rng.choice((8, 32)),
        'relative_attention_max_distance': rng.choice((20, 128)),
        'layer_norm_epsilon': rng.choice((1e-6, 1e-2)),
        'feed_forward_proj': rng.choice(('relu', 'gelu_new', 'gated-gelu', 'gated-silu', 'gated-relu')),
        'tie_word_embeddings': rng.random() < 0.5,
        'decoder_start_token_id': 0,
    }
    return fields | ({'local_radius': rng.choice((1, 3))} if kind == 'longt5' else {})


def build(transformers, kind: str, seed: int):
    """A model with random parameters."""
    import torch

    rng = random.Random(f'{kind} {seed}')
    if kind in ('t5gemma', 't5gemma2'):
        stack = 'gemma2' if kind == 't5gemma' else 'gemma3_text'
        encoder, own = decoder(stack, rng), decoder(stack, rng)
        shared = ('num_attention_heads', 'num_key_value_heads', 'head_dim', 'tie_word_embeddings')
        shared += ('hidden_size',) if kind == 't5gemma2' else ()
        encoder |= {name: own[name] for name in (*shared, 'attention_bias')}
        if kind == 't5gemma2':
            vision = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=16)
            vision |= {'patch_size': 8, 'model_type': 'siglip_vision_model'}
            encoder = {'text_config': encoder, 'vision_config': vision, 'eoi_token_index': 11, 'mm_tokens_per_image': 4}
        fields = {'encoder': encoder, 'decoder': own, 'tie_word_embeddings': own['tie_word_embeddings']}
        fields |= {'tie_word_embeddings': True} if kind == 't5gemma2' else {}
    else:
        fields = decoder(kind, rng) if kind in ARCHITECTURES else t5(kind, rng)
    config = transformers.AutoConfig.for_model(kind, **fields)
    named = transformers.AutoModelForCausalLM if kind in ARCHITECTURES else transformers.AutoModelForSeq2SeqLM
    model = named.from_config(config, attn_implementation='eager').eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model


@pytest.mark.parametrize('seed', range(SEEDS))
@pytest.mark.parametrize('kind', [*ARCHITECTURES, 't5', 'mt5', 'umt5', 'longt5', 't5gemma', 't5gemma2'])
def test_logits_are_those_of_transformers(kind, seed, transformers, tmp_path):
    import torch

    model = build(transformers, kind, seed)
    model.save_pretrained(tmp_path / 'model')
    rng = np.random.default_rng(seed)
    source_BS, target_BT = (rng.integers(3, VOCABULARY, (2, length)) for length in (17, 13))
    source_BS[1, 12:] = 0
    ours = {'decoder_input_tokens': target_BT.astype(np.int32)}
    theirs = {'input_ids': torch.tensor(target_BT)}
    if kind not in ARCHITECTURES:
        ours['encoder_input_tokens'] = source_BS.astype(np.int32)
        theirs = {'input_ids': torch.tensor(source_BS), 'decoder_input_ids': torch.tensor(target_BT)}
        theirs['attention_mask'] = torch.tensor((source_BS > 0).astype(np.int64))
    with torch.no_grad():
        expected_BTV = model(**theirs).logits.numpy()
    found_BTV = logits_of(convert.read(tmp_path / 'model', 'hf'), ours)
    np.testing.assert_allclose(found_BTV, expected_BTV, atol=2e-4 * max(1.0, np.abs(expected_BTV).max()), rtol=0)
