"""Every field of transformers' configurations is read, or is known to change no logits: a new one makes a test fail."""

from pathlib import Path

import pytest

from t5flan.conversion.families.decoders import ARCHITECTURES, from_decoder
from t5flan.conversion.huggingface_config import T5_FAMILY, to_model_config

pytestmark = pytest.mark.slow

HARMLESS = {
    'initializer_range': 'of new models',
    'initializer_factor': 'of new models',
    'max_position_embeddings': 'a limit; read where a scaling needs it',
    'pretraining_tp': 'the order of sums',
    'use_cache': 'speed',
    'attention_dropout': 'training',
    'dropout_rate': 'training',
    'classifier_dropout': 'of classifiers',
    'global_block_size': "of LongT5's other attention",
    'tie_word_embeddings': 'the arrays say it',
    'cross_attention_hidden_size': "the encoder's, which the arrays require",
    'is_decoder': 'set by the model',
    'is_encoder_decoder': 'set by the model',
    'dense_act_fn': 'computed from feed_forward_proj',
    'is_gated_act': 'computed from feed_forward_proj',
    **dict.fromkeys(('pad_token_id', 'bos_token_id', 'eos_token_id', 'decoder_start_token_id'), 'of the tokenizer'),
    'scale_decoder_outputs': "read where a family's logits are scaled",
}
"""Field -> why the model computes the same with another value."""
TOPS = {
    'T5GemmaConfig': {'encoder', 'decoder', 'vocab_size', 'classifier_dropout_rate'},
    'T5Gemma2Config': {'encoder', 'decoder', 'vocab_size', 'classifier_dropout_rate', 'eoi_token_index'}
    | {'image_token_index'},  # of images
}
"""Fields of configurations that hold others."""
VARIANTS = (
    {},
    {'layer_types': None, 'no_rope_layers': None},
    {'layer_types': None, 'use_sliding_window': True, 'sliding_window': 8},
)
"""Which fields are read depends on the values of others."""


class Recorded(dict):
    """Remembers which keys were asked for."""

    def __init__(self, *given):
        super().__init__(*given)
        self.asked: set[str] = set()

    def get(self, key, default=None):
        self.asked.add(key)
        return super().get(key, default)

    def __getitem__(self, key):
        self.asked.add(key)
        return super().__getitem__(key)


@pytest.fixture(scope='module')
def transformers():
    return pytest.importorskip('transformers')


def require_read(transformers, config, read, known=()):
    """Requires each field to be asked for by `read` in one of the variants, or to be harmless."""
    fields = config.to_dict()
    asked = set(known)
    for variant in VARIANTS:
        changed = {name: value for name, value in variant.items() if name in fields}
        recorded = Recorded(fields | changed)
        read(recorded)
        asked |= recorded.asked
    general = transformers.PreTrainedConfig().to_dict().keys()
    unread = fields.keys() - asked - HARMLESS.keys() - general - {'model_type'}
    assert not unread, f'{type(config).__name__} has fields that nothing reads: {sorted(unread)}'


@pytest.mark.parametrize('kind', ARCHITECTURES)
def test_fields_of_decoders(kind, transformers):
    config = transformers.AutoConfig.for_model(kind)
    own = {'attn_logit_softcapping'} if kind == 'gemma3_text' else ()  # has it, and does not apply it
    require_read(transformers, config, lambda fields: from_decoder(Path('x'), kind, fields, True), own)


@pytest.mark.parametrize('kind', T5_FAMILY)
def test_fields_of_t5s(kind, transformers):
    config = transformers.AutoConfig.for_model(kind)
    sizes = {'vocab_size', 'd_model', 'num_heads', 'd_kv', 'd_ff', 'num_layers', 'num_decoder_layers'}
    sizes |= {'relative_attention_num_buckets', 'relative_attention_max_distance', 'layer_norm_epsilon', 'local_radius'}
    sizes |= {'encoder_attention_type'}
    require_read(transformers, config, lambda fields: to_model_config(Path('x'), fields, kind != 'mt5'), sizes)


@pytest.mark.parametrize('name, kind', [('T5GemmaConfig', 'gemma2'), ('T5Gemma2Config', 'gemma3_text')])
def test_fields_of_encoder_decoders(name, kind, transformers):
    if not hasattr(transformers, name):
        pytest.skip(f'needs a transformers with {name}')
    config = getattr(transformers, name)()
    general = transformers.PreTrainedConfig().to_dict().keys() | {'model_type'}
    assert not config.to_dict().keys() - TOPS[name] - HARMLESS.keys() - general
    for part in (config.encoder, config.decoder):
        part = getattr(part, 'text_config', part)
        own = {'attn_logit_softcapping'} if kind == 'gemma3_text' else ()
        require_read(transformers, part, lambda fields: from_decoder(Path('x'), kind, fields, True), own)
