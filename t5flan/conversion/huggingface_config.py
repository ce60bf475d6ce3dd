"""Hugging Face's config.json <-> ModelConfig; decoder-only families are in `families/decoders.py`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t5flan.conversion.checkpoint import T5_FIELDS, require_fields
from t5flan.conversion.families import t5gemma, t5gemma2
from t5flan.conversion.families.decoders import (
    ARCHITECTURES,
    decoder_family,
    decoder_fields,
    from_decoder,
    needed_fields,
    require_plain,
)
from t5flan.conversion.families.t5gemma import T5GEMMA
from t5flan.conversion.families.t5gemma2 import T5GEMMA2
from t5flan.conversion.names import HF_GEMMA_2, HF_LLAMA, HF_LONGT5, HF_T5, HF_T5GEMMA, HF_T5GEMMA2, Table
from t5flan.errors import UserError
from t5flan.files import parse_object, read_object
from t5flan.models.config import ModelConfig

LONGT5 = 'longt5'
T5_FAMILY = ('t5', 'mt5', 'umt5', LONGT5)
_POST_NORMS = ('gemma2', 'gemma3_text')
UNTIED = ('llama', 'mistral', 'qwen2', 'qwen3')  # families whose logits are not tied unless config.json says so
REPLACED = ('rope_scaling', 'rope_theta', 'rope_local_base_freq', 'layer_types', 'no_rope_layers')
"""Fields of another version's config.json that `to_fields` writes in its own way, or leaves out."""
_GATED = {'gelu': 'gelu', 'gelu_new': 'gelu', 'silu': 'silu', 'relu': 'relu'}  # 'gated-gelu' is the tanh form
_ACTIVATIONS: Mapping[str, tuple[str, ...]] = {  # feed_forward_proj -> mlp_activations
    'relu': ('relu',),
    'gelu_new': ('gelu',),
    'silu': ('silu',),
    **{f'gated-{theirs}': (ours, 'linear') for theirs, ours in _GATED.items()},
}

# ModelConfig's field -> config.json's.
_T5_NAMES = {
    'vocab_size': 'vocab_size',
    'emb_dim': 'd_model',
    'num_heads': 'num_heads',
    'head_dim': 'd_kv',
    'mlp_dim': 'd_ff',
    'num_encoder_layers': 'num_layers',
    'num_decoder_layers': 'num_decoder_layers',
    'relative_buckets': 'relative_attention_num_buckets',
    'relative_max_distance': 'relative_attention_max_distance',
    'norm_epsilon': 'layer_norm_epsilon',
    'dropout_rate': 'dropout_rate',
}
_BUCKET_DEFAULTS = {'relative_attention_num_buckets': 32, 'relative_attention_max_distance': 128}
_T5_DEFAULTS = {**_BUCKET_DEFAULTS, 'layer_norm_epsilon': 1e-6, 'dropout_rate': 0.0}


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UserError: the file is missing or is not a JSON object.
    """
    if not file.is_file():
        raise UserError(f'{file.parent} has no {file.name}. Give a folder written by save_pretrained.')
    return read_object(file, fix='Download it again.')


def parse_json(file: Path, content: bytes) -> dict[str, Any]:
    """The JSON object that is the content of a file.

    Raises:
        UserError: it is not a JSON object.
    """
    return parse_object(file, content, fix='Download it again.')


def table_of(model_type: str) -> Table:
    """The parameter names of a family."""
    own = {LONGT5: HF_LONGT5, T5GEMMA: HF_T5GEMMA, T5GEMMA2: HF_T5GEMMA2, **dict.fromkeys(_POST_NORMS, HF_GEMMA_2)}
    return own.get(model_type, HF_T5 if model_type in T5_FAMILY else HF_LLAMA)


def read_fields(folder: Path) -> dict[str, Any]:
    """The content of a folder's config.json, with the ids of tokens and the size of the vocabulary at the top.

    Raises:
        UserError: the file is missing or is not a JSON object.
    """
    fields = read_json(folder / 'config.json')
    families = {T5GEMMA: t5gemma.with_defaults, T5GEMMA2: t5gemma2.with_defaults}
    whole = families.get(str(fields.get('model_type')))
    return fields if whole is None else whole(fields)


def to_model_config(file: Path, fields: Mapping[str, Any], tied: bool) -> ModelConfig:
    """The model that config.json and its weights describe.

    Args:
        file: config.json, for messages.
        fields: its content.
        tied: the weights have no separate logits kernel.

    Raises:
        UserError: the family, or an option of the model, is not supported.
    """
    kind = fields.get('model_type')
    readers = {**dict.fromkeys(T5_FAMILY, _t5), **dict.fromkeys(ARCHITECTURES, from_decoder)}
    readers |= {T5GEMMA: t5gemma.from_t5gemma, T5GEMMA2: t5gemma2.from_t5gemma2}
    if kind not in readers:
        raise UserError(f'{file}: model_type {kind!r} is not converted; expected one of {", ".join(readers)}.')
    if fields.get('quantization_config') is not None:
        problem = f'{file} has a quantization_config, and quantized weights are not converted'
        raise UserError(f'{problem}. Save the model with its weights dequantized, or convert its GGUF file.')
    try:
        return ModelConfig(**readers[kind](file, kind, fields, tied), dtype='float32')
    except KeyError as error:
        name = error.args[0]
        raise UserError(f'{file} lacks {name!r}, which a model of type {kind!r} needs. Download it again.') from None
    except UserError as error:
        raise UserError(f'{file}: {error}' if 'ModelConfig' in str(error) else str(error)) from None
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(f'{file} has a field of a wrong type or size ({error}). Download it again.') from None


def _t5(file: Path, kind: str, fields: Mapping[str, Any], tied: bool) -> dict[str, Any]:
    require_plain(file, fields)
    projection = fields.get('feed_forward_proj', 'relu' if kind in ('t5', LONGT5) else 'gated-gelu')
    if projection not in _ACTIVATIONS:
        known = ', '.join(_ACTIVATIONS)
        raise UserError(f'{file}: feed_forward_proj {projection!r} is not converted; expected one of {known}.')
    # transformers 5 writes `scale_decoder_outputs`, and calls every T5 tied; before it, only tied models scaled.
    by_default = tied if kind == 't5' else tied and fields.get('tie_word_embeddings', True)  # LongT5's are always tied
    scaled = False if kind == 'mt5' else fields.get('scale_decoder_outputs', by_default)
    if scaled and not tied:
        problem = f'{file}: scale_decoder_outputs is true, but lm_head.weight differs from shared.weight'
        fix = 'Set it to false if this is a T5 1.1.'
        raise UserError(f'{problem}: only logits of tied embeddings are scaled. {fix}')
    given = {**_T5_DEFAULTS, **fields}
    if given.get('num_decoder_layers') is None:
        given['num_decoder_layers'] = given.get('num_layers')
    return {
        'architecture': 'encoder_decoder',
        **{ours: given[theirs] for ours, theirs in _T5_NAMES.items()},
        'relative_bias_per_layer': kind == 'umt5',
        'mlp_activations': _ACTIVATIONS[projection],
        'tie_embeddings': tied,
        'scale_tied_logits': bool(scaled) if tied else True,
        'encoder': _local_attention(file, given) if kind == LONGT5 else None,
    }


def _local_attention(file: Path, fields: Mapping[str, Any]) -> dict[str, Any]:
    """What LongT5's encoder has that T5's has not: a token sees those at a distance up to the radius."""
    attention, radius = fields.get('encoder_attention_type', 'local'), fields.get('local_radius', 127)
    if attention != 'local':
        problem = f'encoder_attention_type {attention!r}, whose blocks have tokens of their own, is not converted'
        raise UserError(f'{file}: {problem}; expected local.')
    if not isinstance(radius, int) or radius < 1:
        raise UserError(f'{file}: local_radius is {radius!r}, expected a number of tokens of 1 or more.')
    return {'attention_window': radius + 1}


def family_of(config: ModelConfig, where: str, source: str | None = None) -> str:
    """The model_type as which a model can be written.

    Args:
        config: the model.
        where: the checkpoint, for messages.
        source: the model_type that the checkpoint came from, if any; a decoder stays of it if it can.

    Raises:
        UserError: no family has such a model.
    """
    if config.architecture == 'decoder_only':
        return decoder_family(config, where, source)
    if config.merged_attention:
        t5gemma2.require_t5gemma2(config, where)
        return T5GEMMA2
    if config.position == 'rope':
        needed, encoder = t5gemma.needed_by_t5gemma(config)
        ahead = {'attention_window_ahead': None}
        require_fields(f'{where}: its encoder', config.encoder_config, ahead, "Hugging Face's t5gemma")
        require_fields(where, config, needed, "Hugging Face's t5gemma")
        require_fields(f'{where}: its encoder', encoder, needed_fields(encoder, 'gemma2'), "Hugging Face's t5gemma")
        return T5GEMMA
    local = config.encoder is not None and set(config.encoder) == {'attention_window'}
    kind = 'umt5' if config.relative_bias_per_layer else LONGT5 if local else 't5'
    needed = dict(T5_FIELDS)
    if kind == LONGT5:
        needed |= {'encoder': config.encoder, 'tie_embeddings': True}
    if config.kv_heads != config.num_heads:
        needed['num_kv_heads'] = None
    if config.mlp_activations not in _ACTIVATIONS.values():
        given = f'ModelConfig.mlp_activations={config.mlp_activations}'
        raise UserError(f"{where}: {given} has no name in Hugging Face's T5.")
    require_fields(where, config, needed, f"Hugging Face's {kind}")
    return kind


def to_fields(
    config: ModelConfig, kind: str, dtype: str, start_id: int, eos_id: int, original: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The content of config.json for a model of a family; `original` is that which it came from, if of that family."""
    t5 = kind in T5_FAMILY
    known = {**ARCHITECTURES, LONGT5: 'LongT5ForConditionalGeneration'}
    known |= {T5GEMMA: t5gemma.ARCHITECTURE, T5GEMMA2: t5gemma2.ARCHITECTURE}
    fields = {
        'architectures': [known.get(kind, f'{kind.upper()}ForConditionalGeneration')],
        'model_type': kind,
        **dict.fromkeys(('torch_dtype', 'dtype'), dtype),
        'decoder_start_token_id' if t5 else 'bos_token_id': start_id,
        'eos_token_id': eos_id,
        'pad_token_id': 0,
        'use_cache': True,
        'tie_word_embeddings': config.tie_embeddings,
    }
    if kind in (T5GEMMA, T5GEMMA2):
        write = t5gemma.t5gemma_fields if kind == T5GEMMA else t5gemma2.t5gemma2_fields
        return fields | write(config, original or {})
    if not t5:
        return fields | decoder_fields(config, kind)
    fields |= {theirs: getattr(config, ours) for ours, theirs in _T5_NAMES.items()}
    fields['is_encoder_decoder'] = True
    fields['feed_forward_proj'] = next(name for name, found in _ACTIVATIONS.items() if found == config.mlp_activations)
    if kind == LONGT5:
        fields |= {'encoder_attention_type': 'local', 'local_radius': (config.encoder_config.attention_window or 1) - 1}
    if kind != 'mt5':  # transformers before version 5 scales if tied, and reads no such field
        fields['scale_decoder_outputs'] = config.tie_embeddings and config.scale_tied_logits
    return fields
