"""Hugging Face's config.json <-> ModelConfig, for the T5 family, Llama and Gemma."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t5flan.conversion.checkpoint import T5_FIELDS, require_fields
from t5flan.conversion.names import HF_LLAMA, HF_T5, Table
from t5flan.errors import UserError
from t5flan.models.config import ModelConfig

T5_FAMILY = ('t5', 'mt5', 'umt5')
DECODERS = ('llama', 'gemma')
_GATED = {'gelu': 'gelu', 'gelu_new': 'gelu', 'silu': 'silu', 'relu': 'relu'}  # 'gated-gelu' is the tanh form
_ACTIVATIONS: Mapping[str, tuple[str, ...]] = {  # feed_forward_proj -> mlp_activations
    'relu': ('relu',),
    'gelu_new': ('gelu',),
    'silu': ('silu',),
    **{f'gated-{theirs}': (ours, 'linear') for theirs, ours in _GATED.items()},
}
_HIDDEN_ACTS = {  # hidden_act of a gated MLP -> the first of mlp_activations
    'llama': {'silu': 'silu'},
    'gemma': {'gelu_pytorch_tanh': 'gelu', 'gelu': 'gelu', 'gelu_new': 'gelu'},
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
_DECODER_NAMES = {
    'vocab_size': 'vocab_size',
    'emb_dim': 'hidden_size',
    'num_heads': 'num_attention_heads',
    'mlp_dim': 'intermediate_size',
    'num_decoder_layers': 'num_hidden_layers',
    'norm_epsilon': 'rms_norm_eps',
}


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UserError: the file is missing or is not a JSON object.
    """
    if not file.is_file():
        raise UserError(f'{file.parent} has no {file.name}. Give a folder written by save_pretrained.')
    return parse_json(file, file.read_bytes())


def parse_json(file: Path, content: bytes) -> dict[str, Any]:
    """The JSON object that is the content of a file.

    Raises:
        UserError: it is not a JSON object.
    """
    try:
        fields = json.loads(content.decode('utf-8'))
        if not isinstance(fields, dict):
            raise ValueError
        return fields
    except ValueError:
        raise UserError(f'{file} is not a JSON object. Download it again.') from None


def table_of(model_type: str) -> Table:
    """The parameter names of a family."""
    return HF_T5 if model_type in T5_FAMILY else HF_LLAMA


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
    known = (*T5_FAMILY, *DECODERS)
    if kind not in known:
        raise UserError(f'{file}: model_type {kind!r} is not converted; expected one of {", ".join(known)}.')
    try:
        return ModelConfig(**(_t5 if kind in T5_FAMILY else _decoder)(file, kind, fields, tied), dtype='float32')
    except KeyError as error:
        name = error.args[0]
        raise UserError(f'{file} lacks {name!r}, which a model of type {kind!r} needs. Download it again.') from None
    except UserError as error:
        raise UserError(f'{file}: {error}' if 'ModelConfig' in str(error) else str(error)) from None


def _t5(file: Path, kind: str, fields: Mapping[str, Any], tied: bool) -> dict[str, Any]:
    projection = fields.get('feed_forward_proj', 'relu' if kind == 't5' else 'gated-gelu')
    if projection not in _ACTIVATIONS:
        known = ', '.join(_ACTIVATIONS)
        raise UserError(f'{file}: feed_forward_proj {projection!r} is not converted; expected one of {known}.')
    # transformers 5 writes `scale_decoder_outputs`, and calls every T5 tied; before it, only tied models scaled.
    scaled = fields.get('scale_decoder_outputs', tied) if kind == 't5' else tied and kind == 'umt5'
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
    }


def _decoder(file: Path, kind: str, fields: Mapping[str, Any], tied: bool) -> dict[str, Any]:
    gemma = kind == 'gemma'
    for option in ('attention_bias', 'mlp_bias'):
        if fields.get(option):
            raise UserError(f"{file}: {option} is true, but t5flan's projections have no biases.")
    rope = fields.get('rope_parameters') or {}
    scaling = fields.get('rope_scaling') or {}
    rope_type = rope.get('rope_type') or scaling.get('rope_type') or scaling.get('type') or 'default'
    if rope_type != 'default':
        raise UserError(f'{file}: rope_type {rope_type!r} is not converted; expected the default rotary embedding.')
    known = _HIDDEN_ACTS[kind]
    activation = fields.get('hidden_activation') or fields.get('hidden_act') or _hidden_act(kind)
    if activation not in known:
        problem = f'hidden_act {activation!r} of a {kind} model is not converted'
        raise UserError(f'{file}: {problem}; expected {", ".join(known)}.')
    sizes = {ours: fields[theirs] for ours, theirs in _DECODER_NAMES.items()}
    heads = sizes['num_heads']
    kv_heads = fields.get('num_key_value_heads') or heads
    return {
        'architecture': 'decoder_only',
        **sizes,
        'head_dim': fields.get('head_dim') or (256 if gemma else sizes['emb_dim'] // heads),
        'num_kv_heads': None if kv_heads == heads else kv_heads,
        'scale_attention': True,
        'position': 'rope',
        'rope_base': float(rope.get('rope_theta') or fields.get('rope_theta') or 10000.0),
        'mlp_activations': (known[activation], 'linear'),
        **dict.fromkeys(('norm_scale_plus_one', 'scale_embedding'), gemma),
        'tie_embeddings': tied,
        'scale_tied_logits': not tied,
    }


def family_of(config: ModelConfig, where: str) -> str:
    """The model_type as which a model can be written.

    Raises:
        UserError: no family has such a model.
    """
    if config.architecture == 'encoder_decoder':
        kind = 'umt5' if config.relative_bias_per_layer else 't5'
        needed = dict(T5_FIELDS)
        if config.kv_heads != config.num_heads:
            needed['num_kv_heads'] = None
        if config.mlp_activations not in _ACTIVATIONS.values():
            given = f'ModelConfig.mlp_activations={config.mlp_activations}'
            raise UserError(f"{where}: {given} has no name in Hugging Face's T5.")
    else:
        kind = 'gemma' if config.norm_scale_plus_one else 'llama'
        needed = {'position': 'rope', 'norm': 'rms', 'parallel_block': False, 'scale_attention': True}
        needed |= {'scale_embedding': kind == 'gemma', 'attention_soft_cap': None, 'logits_soft_cap': None}
        needed['mlp_activations'] = (_HIDDEN_ACTS[kind][_hidden_act(kind)], 'linear')
        if config.tie_embeddings:
            needed['scale_tied_logits'] = False
    require_fields(where, config, needed, f"Hugging Face's {kind}")
    return kind


def _hidden_act(kind: str) -> str:
    """The default hidden_act of a family."""
    return next(iter(_HIDDEN_ACTS[kind]))


def to_fields(config: ModelConfig, kind: str, dtype: str, start_id: int, eos_id: int) -> dict[str, Any]:
    """The content of config.json for a model of a family."""
    t5 = kind in T5_FAMILY
    fields = {
        'architectures': [f'{kind.upper()}ForConditionalGeneration' if t5 else f'{kind.title()}ForCausalLM'],
        'model_type': kind,
        **dict.fromkeys(('torch_dtype', 'dtype'), dtype),
        'decoder_start_token_id' if t5 else 'bos_token_id': start_id,
        'eos_token_id': eos_id,
        'pad_token_id': 0,
        'use_cache': True,
        'tie_word_embeddings': config.tie_embeddings,
        **{theirs: getattr(config, ours) for ours, theirs in (_T5_NAMES if t5 else _DECODER_NAMES).items()},
    }
    if not t5:
        return fields | {
            'num_key_value_heads': config.kv_heads,
            'head_dim': config.head_dim,
            'hidden_act': _hidden_act(kind),
            'rope_theta': config.rope_base,
            'rope_parameters': {'rope_type': 'default', 'rope_theta': config.rope_base},
            'attention_bias': False,
        }
    fields['is_encoder_decoder'] = True
    fields['feed_forward_proj'] = next(name for name, found in _ACTIVATIONS.items() if found == config.mlp_activations)
    if kind == 't5':  # transformers before version 5 scales if tied, and reads no such field
        fields['scale_decoder_outputs'] = config.tie_embeddings and config.scale_tied_logits
    return fields
