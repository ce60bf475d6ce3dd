"""config.json of Hugging Face <-> ModelConfig, for the T5 family, Llama and Gemma."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t5flan.conversion.names import HF_LLAMA, HF_T5, Table
from t5flan.errors import UserError
from t5flan.models.config import ModelConfig

T5_FAMILY = ('t5', 'mt5', 'umt5')
DECODERS = ('llama', 'gemma')
_ACTIVATIONS = {  # feed_forward_proj -> mlp_activations; transformers reads 'gated-gelu' as the tanh form
    'relu': ('relu',),
    'gelu_new': ('gelu',),
    'silu': ('silu',),
    'gated-gelu': ('gelu', 'linear'),
    'gated-gelu_new': ('gelu', 'linear'),
    'gated-silu': ('silu', 'linear'),
    'gated-relu': ('relu', 'linear'),
}
_ARCHITECTURES = {
    't5': 'T5ForConditionalGeneration',
    'mt5': 'MT5ForConditionalGeneration',
    'umt5': 'UMT5ForConditionalGeneration',
    'llama': 'LlamaForCausalLM',
    'gemma': 'GemmaForCausalLM',
}


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UserError: the file is missing or holds none.
    """
    if not file.is_file():
        raise UserError(f'{file.parent} has no {file.name}. Give a folder written by save_pretrained.')
    try:
        fields = json.loads(file.read_text('utf-8'))
        if not isinstance(fields, dict):
            raise ValueError
        return fields
    except ValueError:
        raise UserError(f'{file} holds no JSON object. Download it again.') from None


def table_of(model_type: str) -> Table:
    """The parameter names of a family."""
    return HF_T5 if model_type in T5_FAMILY else HF_LLAMA


def to_model_config(file: Path, fields: Mapping[str, Any], tied: bool) -> ModelConfig:
    """The model that config.json and its weights describe; `tied`: the file holds no logits of its own.

    Raises:
        UserError: another family, or an option that t5flan's models do not have.
    """
    kind = fields.get('model_type')
    if kind not in (*T5_FAMILY, *DECODERS):
        raise UserError(
            f'{file}: model_type {kind!r} is not converted; expected one of {", ".join((*T5_FAMILY, *DECODERS))}.'
        )
    try:
        return (_t5 if kind in T5_FAMILY else _decoder)(file, kind, fields, tied)
    except KeyError as missing:
        raise UserError(
            f'{file} lacks {missing.args[0]!r}, which a model of type {kind!r} needs. Download it again.'
        ) from None
    except UserError as error:
        raise UserError(f'{file}: {error}' if 'ModelConfig' in str(error) else str(error)) from None


def _t5(file: Path, kind: str, fields: Mapping[str, Any], tied: bool) -> ModelConfig:
    projection = fields.get('feed_forward_proj', 'gated-gelu' if kind != 't5' else 'relu')
    if projection not in _ACTIVATIONS:
        raise UserError(
            f'{file}: feed_forward_proj {projection!r} is not converted; expected one of {", ".join(_ACTIVATIONS)}.'
        )
    # transformers 5 keeps `scale_decoder_outputs` and says "tied" of every T5; before it, tied models scaled, others did not.
    scaled = fields.get('scale_decoder_outputs', tied) if kind == 't5' else tied and kind == 'umt5'
    if scaled and not tied:
        raise UserError(
            f'{file}: scale_decoder_outputs is true, and lm_head.weight is another than shared.weight: logits are '
            'scaled for tied embeddings alone. Set it to false if this is a T5 1.1.'
        )
    return ModelConfig(
        architecture='encoder_decoder',
        vocab_size=fields['vocab_size'],
        emb_dim=fields['d_model'],
        num_heads=fields['num_heads'],
        head_dim=fields['d_kv'],
        mlp_dim=fields['d_ff'],
        num_encoder_layers=fields['num_layers'],
        num_decoder_layers=fields['num_layers']
        if fields.get('num_decoder_layers') is None
        else fields['num_decoder_layers'],
        relative_buckets=fields.get('relative_attention_num_buckets', 32),
        relative_max_distance=fields.get('relative_attention_max_distance', 128),
        relative_bias_per_layer=kind == 'umt5',
        norm_epsilon=fields.get('layer_norm_epsilon', 1e-6),
        mlp_activations=_ACTIVATIONS[projection],
        tie_embeddings=tied,
        scale_tied_logits=bool(scaled) if tied else True,
        dropout_rate=fields.get('dropout_rate', 0.0),
        dtype='float32',
    )


def _decoder(file: Path, kind: str, fields: Mapping[str, Any], tied: bool) -> ModelConfig:
    gemma = kind == 'gemma'
    for option in ('attention_bias', 'mlp_bias'):
        if fields.get(option):
            raise UserError(
                f"{file}: {option} is true; t5flan's projections have no biases, so this model is not converted."
            )
    rope = fields.get('rope_parameters') or {}
    scaling = fields.get('rope_scaling') or {}
    rope_type = rope.get('rope_type') or scaling.get('rope_type') or scaling.get('type') or 'default'
    if rope_type != 'default':
        raise UserError(f'{file}: rope_type {rope_type!r} is not converted; expected the default rotary embedding.')
    activation = (
        fields.get('hidden_activation') or fields.get('hidden_act') or ('gelu_pytorch_tanh' if gemma else 'silu')
    )
    known = {'gelu': 'gelu', 'gelu_pytorch_tanh': 'gelu', 'gelu_new': 'gelu'} if gemma else {'silu': 'silu'}
    if activation not in known:
        raise UserError(
            f'{file}: hidden_act {activation!r} of a {kind} model is not converted; expected {", ".join(known)}.'
        )
    heads = fields['num_attention_heads']
    kv_heads = fields.get('num_key_value_heads') or heads
    return ModelConfig(
        architecture='decoder_only',
        vocab_size=fields['vocab_size'],
        emb_dim=fields['hidden_size'],
        num_heads=heads,
        head_dim=fields.get('head_dim') or (256 if gemma else fields['hidden_size'] // heads),
        mlp_dim=fields['intermediate_size'],
        num_decoder_layers=fields['num_hidden_layers'],
        num_kv_heads=None if kv_heads == heads else kv_heads,
        scale_attention=True,
        position='rope',
        rope_base=float(rope.get('rope_theta') or fields.get('rope_theta') or 10000.0),
        mlp_activations=(known[activation], 'linear'),
        norm_epsilon=fields['rms_norm_eps'],
        norm_scale_plus_one=gemma,
        scale_embedding=gemma,
        tie_embeddings=tied,
        scale_tied_logits=False if tied else True,
        dtype='float32',
    )


def family_of(config: ModelConfig, where: str) -> str:
    """The model_type that a model can be written as.

    Raises:
        UserError: none of them has such a model.
    """
    if config.architecture == 'encoder_decoder':
        kind = 'umt5' if config.relative_bias_per_layer else 't5'
        unwritable = {
            'position': 'relative_bias',
            'norm': 'rms',
            'num_kv_heads': None,
            'scale_attention': False,
            'norm_scale_plus_one': False,
            'scale_embedding': False,
            'attention_soft_cap': None,
            'logits_soft_cap': None,
        }
        if config.num_kv_heads == config.num_heads:
            unwritable.pop('num_kv_heads')
        if config.mlp_activations not in _ACTIVATIONS.values():
            raise UserError(
                f"{where}: ModelConfig.mlp_activations={config.mlp_activations} has no name in Hugging Face's T5."
            )
    else:
        kind = 'gemma' if config.norm_scale_plus_one else 'llama'
        unwritable = {
            'position': 'rope',
            'norm': 'rms',
            'parallel_block': False,
            'scale_attention': True,
            'scale_embedding': kind == 'gemma',
            'attention_soft_cap': None,
            'logits_soft_cap': None,
            'mlp_activations': ('gelu' if kind == 'gemma' else 'silu', 'linear'),
        }
        if config.tie_embeddings:
            unwritable['scale_tied_logits'] = False
    for field, needed in unwritable.items():
        if getattr(config, field) != needed:
            raise UserError(
                f"{where}: no model of Hugging Face's {kind} type has ModelConfig.{field}={getattr(config, field)!r} "
                f'(it is {needed!r} there), so this model cannot be written as one.'
            )
    return kind


def to_fields(config: ModelConfig, kind: str, dtype: str, start_id: int, eos_id: int) -> dict[str, Any]:
    """config.json of a model."""
    shared = {
        'architectures': [_ARCHITECTURES[kind]],
        'model_type': kind,
        'vocab_size': config.vocab_size,
        'torch_dtype': dtype,
        'dtype': dtype,
        'eos_token_id': eos_id,
        'pad_token_id': 0,
        'use_cache': True,
    }
    if kind in T5_FAMILY:
        projection = next(name for name, activations in _ACTIVATIONS.items() if activations == config.mlp_activations)
        fields = shared | {
            'is_encoder_decoder': True,
            'decoder_start_token_id': start_id,
            'd_model': config.emb_dim,
            'd_kv': config.head_dim,
            'd_ff': config.mlp_dim,
            'num_layers': config.num_encoder_layers,
            'num_decoder_layers': config.num_decoder_layers,
            'num_heads': config.num_heads,
            'feed_forward_proj': projection,
            'relative_attention_num_buckets': config.relative_buckets,
            'relative_attention_max_distance': config.relative_max_distance,
            'layer_norm_epsilon': config.norm_epsilon,
            'dropout_rate': config.dropout_rate,
            'tie_word_embeddings': config.tie_embeddings,
        }
        if kind == 't5':  # transformers before version 5 scales where tied, and reads no such field
            fields['scale_decoder_outputs'] = config.tie_embeddings and config.scale_tied_logits
        return fields
    return shared | {
        'bos_token_id': start_id,
        'hidden_size': config.emb_dim,
        'intermediate_size': config.mlp_dim,
        'num_hidden_layers': config.num_decoder_layers,
        'num_attention_heads': config.num_heads,
        'num_key_value_heads': config.kv_heads,
        'head_dim': config.head_dim,
        'rms_norm_eps': config.norm_epsilon,
        'hidden_act': 'gelu_pytorch_tanh' if kind == 'gemma' else 'silu',
        'tie_word_embeddings': config.tie_embeddings,
        'rope_theta': config.rope_base,
        'rope_parameters': {'rope_type': 'default', 'rope_theta': config.rope_base},
        'attention_bias': False,
        'max_position_embeddings': 8192,
    }
