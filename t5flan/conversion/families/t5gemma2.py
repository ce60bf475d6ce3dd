"""Hugging Face's config.json <-> ModelConfig for T5Gemma 2 (arXiv:2512.14856): two Gemma 3 stacks, text only.

The decoder's self-attention reads the encoder's output too, in one softmax; encoder, decoder and logits share one
embedding, but for one token: `eoi_embedding` takes the place of the end of an image, unscaled. In the encoder a window
of W tokens holds W of them: (W - 1) // 2 before a token, and W // 2 after it.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from t5flan.conversion.checkpoint import require_fields
from t5flan.conversion.families.decoders import decoder_fields, from_decoder, needed_fields
from t5flan.conversion.families.t5gemma import STACK_DEFAULTS, TOKENS, encoder_as_decoder, require_alike
from t5flan.errors import UserError
from t5flan.models.config import ENCODER_FIELDS, ModelConfig

T5GEMMA2 = 't5gemma2'
ARCHITECTURE = 'T5Gemma2ForConditionalGeneration'
_STACK = 'gemma3_text'
_END_OF_IMAGE = 256000
_DEFAULTS = {'vocab_size': 262208, **STACK_DEFAULTS}
_VISION = ('model.encoder.vision_tower.', 'model.encoder.multi_modal_projector.')
_LEFT_OUT = 'the parts that read images are left out: vision tower and projector'
Array = TypeVar('Array')


def with_defaults(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The content of config.json with whole parts, and at the top the ids of tokens and the size of the vocabulary."""
    encoder = dict(fields.get('encoder') or {})
    encoder['text_config'] = {**_DEFAULTS, **dict(encoder.get('text_config') or {})}
    decoder = {**_DEFAULTS, **dict(fields.get('decoder') or {})}
    shared = {name: decoder.get(name, value) for name, value in TOKENS.items()}
    top = {'vocab_size': decoder['vocab_size'], 'eoi_token_index': encoder.get('eoi_token_index', _END_OF_IMAGE)}
    return {**shared, **fields, 'encoder': encoder, 'decoder': decoder, **top}


def text_arrays(
    fields: Mapping[str, Any], arrays: Mapping[str, Array]
) -> tuple[dict[str, Any], dict[str, Array], tuple[str, ...]]:
    """The fields and arrays of the text model, under the names of files (no `text_model`), and what was left out.

    Without `eoi_embedding` no token has an embedding of its own.
    """
    text = {
        name.replace('model.encoder.text_model.', 'model.encoder.'): array
        for name, array in arrays.items()
        if not name.startswith(_VISION)
    }
    notes = (_LEFT_OUT,) if len(text) < len(arrays) else ()
    if any(name.endswith('.eoi_embedding') for name in text):
        return dict(fields), text, notes
    return {**fields, 'encoder': {**fields['encoder'], 'eoi_token_index': None}}, text, notes


def from_t5gemma2(file: Path, kind: str, fields: Mapping[str, Any], tied: bool) -> dict[str, Any]:
    """Fields of ModelConfig; arguments as of `to_model_config`.

    Raises:
        KeyError: a size is missing.
        UserError: an option of the model is not supported.
    """
    fields = with_defaults(fields)
    if not tied:
        raise UserError(f'{file}: the logits of a {kind} have a kernel of their own, which is not converted.')
    parts = fields['encoder']['text_config'], fields['decoder']
    require_alike(file, *parts)
    sizes = [part['hidden_size'] for part in parts]
    if sizes[0] != sizes[1]:
        problem = f'its encoder has hidden_size {sizes[0]}, its decoder {sizes[1]}'
        raise UserError(f'{file}: {problem}; expected one size: the decoder reads both with the same projections.')
    encoder, decoder = (from_decoder(file, _STACK, part, tied) for part in parts)
    window = encoder['attention_window']
    if window is not None:
        encoder |= {'attention_window': (window - 1) // 2 + 1, 'attention_window_ahead': window // 2}
    return {
        **decoder,
        'architecture': 'encoder_decoder',
        'num_encoder_layers': encoder['num_decoder_layers'],
        'encoder': {name: encoder[name] for name in ENCODER_FIELDS if name in encoder},
        'merged_attention': True,
        'unscaled_token': fields['eoi_token_index'],
        'dropout_rate': fields.get('dropout_rate', 0.0),
    }


def require_t5gemma2(config: ModelConfig, where: str) -> None:
    """Raises a UserError unless the model is a T5Gemma 2."""
    of, decoder = "Hugging Face's t5gemma2", needed_fields(config, _STACK)
    del decoder['unscaled_token']
    require_fields(where, config, decoder | {'share_embeddings': True, 'tie_embeddings': True}, of)
    encoder = encoder_as_decoder(config)
    require_fields(f'{where}: its encoder', encoder, needed_fields(encoder, _STACK), of)
    own = config.encoder_config
    window, ahead = own.attention_window, own.attention_window_ahead
    if window is not None and ahead not in (None, window):
        fix = f'{of} has as many tokens after a token as before it ({window - 1}), or one more'
        raise UserError(f'{where}: its encoder: ModelConfig.attention_window_ahead={ahead}, but {fix}.')


def t5gemma2_fields(config: ModelConfig, original: Mapping[str, Any]) -> dict[str, Any]:
    """The content of config.json, besides the ids of tokens; `original` is that of the checkpoint's source, or {}."""
    own = config.encoder_config
    encoder = decoder_fields(encoder_as_decoder(config), _STACK)
    if own.attention_window is not None:
        ahead = own.attention_window - 1 if own.attention_window_ahead is None else own.attention_window_ahead
        encoder['sliding_window'] = own.attention_window + ahead
    decoder = decoder_fields(
        dataclasses.replace(
            config,
            architecture='decoder_only',
            num_encoder_layers=0,
            encoder=None,
            merged_attention=False,
            unscaled_token=None,
        ),
        _STACK,
    )
    # A token that no text has, if none has an embedding of its own.
    end_of_image = config.vocab_size if config.unscaled_token is None else config.unscaled_token
    before = dict(original.get('encoder') or {})
    kept = lambda part: {name: value for name, value in dict(part or {}).items() if name != 'rope_scaling'}
    shared = {'dropout_rate': config.dropout_rate, 'tie_word_embeddings': True}
    text = kept(before.get('text_config')) | encoder | shared | {'model_type': 't5gemma2_text'}
    return {
        'encoder': before | {'model_type': 't5gemma2_encoder', 'text_config': text, 'eoi_token_index': end_of_image},
        'decoder': kept(original.get('decoder')) | decoder | shared | {'model_type': 't5gemma2_decoder'},
        'eoi_token_index': end_of_image,
        'vocab_size': config.vocab_size,
        'is_encoder_decoder': True,
        'dropout_rate': config.dropout_rate,
    }
