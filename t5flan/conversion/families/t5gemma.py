"""Hugging Face's config.json <-> ModelConfig for T5Gemma (arXiv:2504.06225): two Gemma 2 stacks, perhaps of two sizes.

Each stack has the fields of a Gemma 2 in a part of its own. In the encoder a window of W tokens hides those at a
distance above W, in the decoder those at a distance of W or more.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t5flan.conversion.families.decoders import decoder_fields, from_decoder, needed_fields
from t5flan.errors import UserError
from t5flan.models.config import ENCODER_FIELDS, ModelConfig

T5GEMMA = 't5gemma'
ARCHITECTURE = 'T5GemmaForConditionalGeneration'
STACKS = ('encoder', 'decoder')
STACK_DEFAULTS = {  # transformers leaves out of config.json what is the default
    'hidden_size': 2304,
    'intermediate_size': 9216,
    'num_hidden_layers': 26,
    'num_attention_heads': 8,
    'num_key_value_heads': 4,
    'head_dim': 256,
    'hidden_activation': 'gelu_pytorch_tanh',
    'rms_norm_eps': 1e-6,
}
_DEFAULTS = {
    'vocab_size': 256000,
    **STACK_DEFAULTS,
    'attn_logit_softcapping': 50.0,
    'final_logit_softcapping': 30.0,
}
TOKENS = {'bos_token_id': 2, 'eos_token_id': 1, 'pad_token_id': 0}


def with_defaults(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The content of config.json with both parts whole, and the ids of tokens and the vocabulary's size at the top."""
    parts = {name: {**_DEFAULTS, **dict(fields.get(name) or {})} for name in STACKS}
    shared = {name: parts['decoder'].get(name, value) for name, value in TOKENS.items()}
    return {**shared, **fields, **parts, 'vocab_size': parts['decoder']['vocab_size']}


def from_t5gemma(file: Path, kind: str, fields: Mapping[str, Any], tied: bool) -> dict[str, Any]:
    """Fields of ModelConfig; arguments as of `to_model_config`.

    Raises:
        KeyError: a size is missing.
        UserError: an option of the model is not supported.
    """
    fields = with_defaults(fields)
    parts = [fields[name] for name in STACKS]
    require_alike(file, *parts)
    encoder, decoder = (from_decoder(file, 'gemma2', part, tied) for part in parts)
    if encoder['attention_window'] is not None:
        encoder['attention_window'] += 1
    return {
        **decoder,
        'architecture': 'encoder_decoder',
        'num_encoder_layers': encoder['num_decoder_layers'],
        'encoder': {name: encoder[name] for name in ENCODER_FIELDS if name in encoder},
        'share_embeddings': False,
        'dropout_rate': fields.get('dropout_rate', 0.0),
    }


def require_alike(file: Path, encoder: Mapping[str, Any], decoder: Mapping[str, Any]) -> None:
    """Raises a UserError if the parts of config.json have two vocabularies, or an activation that is not converted."""
    for name, part in zip(STACKS, (encoder, decoder), strict=True):
        if part['hidden_activation'] not in ('gelu_pytorch_tanh', 'gelu_new'):
            problem = f'hidden_activation {part["hidden_activation"]!r} of its {name} is not converted'
            raise UserError(f'{file}: {problem}; expected gelu_pytorch_tanh.')
    sizes = encoder['vocab_size'], decoder['vocab_size']
    if sizes[0] != sizes[1]:
        problem = f'its encoder has {sizes[0]:,} tokens, its decoder {sizes[1]:,}'
        raise UserError(f'{file}: {problem}; expected one vocabulary.')


def needed_by_t5gemma(config: ModelConfig) -> tuple[dict[str, Any], ModelConfig]:
    """Fields of ModelConfig that T5Gemma fixes; and the encoder, as a decoder, which must have those of Gemma 2."""
    needed = needed_fields(config, 'gemma2') | {'share_embeddings': False, 'merged_attention': False}
    return needed, _as_decoder(config)


def _as_decoder(config: ModelConfig) -> ModelConfig:
    """The encoder as a Gemma 2, whose window is counted as in config.json."""
    window = config.encoder_config.attention_window
    return dataclasses.replace(
        encoder_as_decoder(config), attention_window=None if window is None else max(window - 1, 1)
    )


def encoder_as_decoder(config: ModelConfig) -> ModelConfig:
    """The encoder as a decoder-only model, whose window has as many tokens as before a token of the encoder."""
    return dataclasses.replace(
        config.encoder_config,
        architecture='decoder_only',
        num_decoder_layers=config.num_encoder_layers,
        num_encoder_layers=0,
        share_embeddings=True,
        merged_attention=False,
        attention_window_ahead=None,
        unscaled_token=None,
    )


def t5gemma_fields(config: ModelConfig, original: Mapping[str, Any]) -> dict[str, Any]:
    """The content of config.json, besides the ids of tokens; `original` is that of the checkpoint's source, or {}."""
    decoder = dataclasses.replace(
        config, architecture='decoder_only', num_encoder_layers=0, encoder=None, share_embeddings=True
    )
    both = {'encoder': _as_decoder(config), 'decoder': decoder}
    parts = {}
    for name, one in both.items():
        fields = decoder_fields(one, 'gemma2') | {'is_decoder': name == 'decoder', 'dropout_rate': config.dropout_rate}
        fields |= {'model_type': 't5_gemma_module', 'tie_word_embeddings': config.tie_embeddings}
        kept = {key: value for key, value in dict(original.get(name) or {}).items() if key not in ('rope_scaling',)}
        parts[name] = kept | fields
    parts['decoder']['cross_attention_hidden_size'] = config.encoder_config.emb_dim
    return {
        **parts,
        'vocab_size': config.vocab_size,
        'is_encoder_decoder': True,
        'dropout_rate': config.dropout_rate,
    }
