"""Hugging Face's config.json <-> ModelConfig, for decoder-only families.

Llama (1 to 3), Mistral, SmolLM3, Qwen2, Qwen3, Gemma, Gemma 2 and Gemma 3 are settings of one stack. Newer files hold
`rope_parameters` and `layer_types`; older ones `rope_theta`, `rope_scaling` and a rule for the layers of each family.
Both are read; the newer are written, and with them the older that say the same.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from t5flan.conversion.checkpoint import require_fields
from t5flan.errors import UserError
from t5flan.models.config import LayerKind, ModelConfig, RopeScaling, shortest_period

ARCHITECTURES = {
    'llama': 'LlamaForCausalLM',
    'gemma': 'GemmaForCausalLM',
    'gemma2': 'Gemma2ForCausalLM',
    'gemma3_text': 'Gemma3ForCausalLM',
    'mistral': 'MistralForCausalLM',
    'qwen2': 'Qwen2ForCausalLM',
    'qwen3': 'Qwen3ForCausalLM',
    'smollm3': 'SmolLM3ForCausalLM',
}
_GEMMAS = ('gemma', 'gemma2', 'gemma3_text')
_PATTERNED = ('qwen2', 'qwen3', 'smollm3', 'gemma2', 'gemma3_text')
_WINDOWED = ('mistral', *_PATTERNED)
_QUERY_SCALED = ('gemma2', 'gemma3_text')
_TANH = {'gelu_pytorch_tanh': 'gelu', 'gelu_new': 'gelu'}
_GELU = {**_TANH, 'gelu': 'gelu'}  # Gemma 1 reads 'gelu' as the tanh form; Gemma 2 and 3 do not
_NAMES = {  # ModelConfig's field -> config.json's
    'vocab_size': 'vocab_size',
    'emb_dim': 'hidden_size',
    'num_heads': 'num_attention_heads',
    'mlp_dim': 'intermediate_size',
    'num_decoder_layers': 'num_hidden_layers',
    'norm_epsilon': 'rms_norm_eps',
}
_SOFT_CAPS = {'attention_soft_cap': 'attn_logit_softcapping', 'logits_soft_cap': 'final_logit_softcapping'}
_CAPS = {'gemma2': tuple(_SOFT_CAPS), 'gemma3_text': ('logits_soft_cap',)}  # those that a family applies
_CAP_DEFAULTS = {'gemma2': {'attn_logit_softcapping': 50.0, 'final_logit_softcapping': 30.0}}  # null is no cap
_BY_TYPE = 'gemma3_text'
"""The family whose rotary embedding has settings for each type of layer."""
_ROPE_BASES = {'smollm3': 2e6, 'gemma3_text': 1e6}  # where config.json has none; others: 10,000
_LOCAL_ROPE_BASE = 1e4
_WINDOW = 4096  # where config.json has none
_HEAD_DIMS = {'qwen3': 128, **dict.fromkeys(_GEMMAS, 256)}  # where config.json has none; others: hidden_size / heads
_MOST_LAYERS = 10_000
_FULL, _SLIDING = 'full_attention', 'sliding_attention'


def from_decoder(file: Path, kind: str, fields: Mapping[str, Any], tied: bool) -> dict[str, Any]:
    """Fields of ModelConfig; arguments as of `to_model_config`, `kind` is the model_type.

    Raises:
        KeyError: a size is missing.
        UserError: an option of the model is not supported.
    """
    gemma = kind in _GEMMAS
    require_plain(file, fields)
    sizes = {ours: fields[theirs] for ours, theirs in _NAMES.items()}
    heads = sizes['num_heads']
    kv_heads = fields.get('num_key_value_heads') or heads
    size = fields.get('head_dim') or _HEAD_DIMS.get(kind) or _heads_fit(file, sizes['emb_dim'], heads)
    scalar = fields.get('query_pre_attn_scalar', 256) if kind in _QUERY_SCALED else size
    biased = bool(fields.get('attention_bias')) and kind != 'mistral'  # whose attention never has biases
    return {
        'architecture': 'decoder_only',
        **sizes,
        'head_dim': size,
        'num_kv_heads': None if kv_heads == heads else kv_heads,
        'scale_attention': True,
        'query_pre_attn_scalar': None if scalar == size else scalar,
        **_soft_caps(kind, fields),
        'attention_bias': biased or kind == 'qwen2',
        'attention_out_bias': biased and kind != 'qwen2',
        'qk_norm': kind in ('qwen3', 'gemma3_text'),
        'post_norms': kind in ('gemma2', 'gemma3_text'),
        **_layers(file, kind, fields, sizes['num_decoder_layers']),
        'position': 'rope',
        **_rope(file, kind, fields),
        'mlp_activations': (_activation(file, kind, fields), 'linear'),
        **dict.fromkeys(('norm_scale_plus_one', 'scale_embedding'), gemma),
        'tie_embeddings': tied,
        'scale_tied_logits': not tied,
    }


def require_plain(file: Path, fields: Mapping[str, Any]) -> None:
    """Raises a UserError at an option that transformers applies to every family, or to several, and t5flan does not."""
    if fields.get('mlp_bias'):
        raise UserError(f'{file}: mlp_bias is true, but the MLPs of t5flan have no biases.')
    for name, bad in (('use_bidirectional_attention', True), ('is_causal', False)):
        if fields.get(name) not in (None, not bad):
            raise UserError(f'{file}: {name} is {str(fields[name]).lower()}, but decoders of t5flan are causal.')
    if fields.get('per_layer_config'):
        raise UserError(f'{file}: per_layer_config gives layers settings of their own, which are not converted.')


def _soft_caps(kind: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The soft caps that a family applies; a missing one has the default, and null is none."""
    defaults, applied = _CAP_DEFAULTS.get(kind, {}), _CAPS.get(kind, ())
    found = {ours: fields.get(theirs, defaults.get(theirs)) for ours, theirs in _SOFT_CAPS.items()}
    return {ours: value if ours in applied else None for ours, value in found.items()}


def _heads_fit(file: Path, size: int, heads: int) -> int:
    if size % heads:
        problem = f'num_attention_heads={heads} do not divide hidden_size={size}, and head_dim is not set'
        raise UserError(f'{file}: {problem}. Download config.json again.')
    return size // heads


def _activation(file: Path, kind: str, fields: Mapping[str, Any]) -> str:
    known = _GELU if kind == 'gemma' else _TANH if kind in _GEMMAS else {'silu': 'silu'}
    given = fields.get('hidden_act') if kind not in _QUERY_SCALED else None
    activation = fields.get('hidden_activation') or given or next(iter(known))
    if activation not in known:
        problem = f'hidden_act {activation!r} of a {kind} model is not converted'
        raise UserError(f'{file}: {problem}; expected {", ".join(known)}.')
    return known[activation]


def _layers(file: Path, kind: str, fields: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """The window and the pattern of layers."""
    window = fields.get('sliding_window', _WINDOW)
    if kind not in _PATTERNED:  # all layers are alike, and transformers does not read `layer_types`
        return {'attention_window': _window(file, window) if kind in _WINDOWED and window is not None else None}
    if layers > _MOST_LAYERS:
        raise UserError(f'{file}: num_hidden_layers is {layers:,}, too many for its arrays. Download it again.')
    types = fields.get('layer_types') or _default_types(kind, fields, layers)
    for name in dict.fromkeys(types):
        if name not in (_FULL, _SLIDING):
            raise UserError(
                f'{file}: layer_types has {name!r}, which is not converted; expected {_FULL} or {_SLIDING}.'
            )
    rotated = _rotated_layers(kind, fields, layers)
    for name, given in (('no_rope_layers', rotated), ('layer_types', types)):
        if len(given) != layers:
            wrong = f'{name} has {len(given)} layers, num_hidden_layers is {layers}'
            raise UserError(f'{file}: {wrong}. Download config.json again.')
    if kind in ('qwen2', 'qwen3') and not fields.get('use_sliding_window'):
        window = None
    windowed = [name == _SLIDING for name in types]
    kinds = {(False, True): 'full', (True, True): 'window', (False, False): 'nope', (True, False): 'window_nope'}
    named = shortest_period([kinds[one] for one in zip(windowed, rotated, strict=True)])
    pattern = None if named in (('full',), ('window',)) else named
    return {'attention_window': _window(file, window) if any(windowed) else None, 'layer_pattern': pattern}


def _window(file: Path, window: Any) -> int:
    if not isinstance(window, int) or window < 1:
        raise UserError(f'{file}: sliding_window is {window!r}, expected a number of tokens of 1 or more.')
    return window


def _default_types(kind: str, fields: Mapping[str, Any], layers: int) -> list[str]:
    """`layer_types` of a file that has none."""
    window, every = fields.get('sliding_window', _WINDOW), range(layers)
    if kind in ('qwen2', 'qwen3'):
        first = fields.get('max_window_layers', 28)
        slides = [bool(fields.get('use_sliding_window')) and window is not None and i >= first for i in every]
    elif kind == 'smollm3':
        on = bool(fields.get('use_sliding_window')) and fields.get('sliding_window') is not None
        slides = [on and not rotated for rotated in _rotated_layers(kind, fields, layers)]
    elif kind == 'gemma2':
        slides = [i % 2 == 0 for i in every]
    else:  # gemma3_text
        period = fields.get('sliding_window_pattern') or fields.get('_sliding_window_pattern') or 6
        slides = [(i + 1) % period != 0 for i in every]
    return [_SLIDING if one else _FULL for one in slides]


def _rotated_layers(kind: str, fields: Mapping[str, Any], layers: int) -> list[bool]:
    if kind != 'smollm3':
        return [True] * layers
    given = fields.get('no_rope_layers')  # 1 where there is rotary embedding, in spite of the name
    every = fields.get('no_rope_layer_interval') or 4
    return [(i + 1) % every != 0 for i in range(layers)] if given is None else [bool(one) for one in given]


def _rope(file: Path, kind: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The bases and the scaling of rotary embedding."""
    given = dict(fields.get('rope_parameters') or {})
    by_type = bool({_FULL, _SLIDING} & given.keys())
    if given and by_type != (kind == _BY_TYPE):
        expected = 'full_attention and sliding_attention' if kind == _BY_TYPE else 'settings of all layers'
        raise UserError(f'{file}: rope_parameters of a {kind} has {", ".join(map(str, given))}; expected {expected}.')
    theirs = given.get(_FULL) or {} if by_type else given
    older = dict(fields.get('rope_scaling') or {})  # it counts, if there are both
    scaling = {**theirs, **older} if by_type else older or dict(theirs)
    base = scaling.pop('rope_theta', None) or fields.get('rope_theta') or _ROPE_BASES.get(kind, 1e4)
    found: dict[str, Any] = {'rope_base': float(base), 'rope_scaling': _scaling(file, scaling, fields)}
    if kind != _BY_TYPE:
        return found
    local = dict(given.get(_SLIDING) or {}) if by_type else {}
    local_base = local.pop('rope_theta', None) or fields.get('rope_local_base_freq') or _LOCAL_ROPE_BASE
    if _scaling(file, local, fields):
        raise UserError(f'{file}: rope_parameters scale the rotary embedding of {_SLIDING}, which is not converted.')
    windows = _SLIDING in (fields.get('layer_types') or (_SLIDING,))
    return found | {'rope_local_base': float(local_base) if windows else None}


def _scaling(file: Path, given: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any] | None:
    """`RopeScaling`'s fields, or None for the default rotary embedding."""
    scaling = {name: value for name, value in given.items() if value is not None}
    old, name = scaling.pop('type', 'default'), scaling.pop('rope_type', None)
    name = old if name is None else name
    if scaling.pop('partial_rotary_factor', 1.0) != 1.0 or fields.get('partial_rotary_factor') not in (None, 1.0):
        raise UserError(f'{file}: partial_rotary_factor is not converted; expected 1.0.')
    if name == 'default':
        return None
    if name not in ('linear', 'llama3', 'yarn'):
        raise UserError(f'{file}: rope_type {name!r} is not converted; expected default, linear, llama3 or yarn.')
    if name != 'linear':
        scaling.setdefault('original_max_position_embeddings', fields.get('max_position_embeddings'))
        if original := fields.get('original_max_position_embeddings'):  # this one counts, if there are two
            scaling['original_max_position_embeddings'] = original
    if 'factor' not in scaling:
        raise UserError(f'{file}: the {name} scaling of its rotary embedding has no factor. Download it again.')
    return {'rope_type': name, **scaling}


def decoder_family(config: ModelConfig, where: str, source: str | None) -> str:
    """The model_type as which a decoder can be written: `source` if that has such models, or the simplest that does.

    Raises:
        UserError: no family has such a model.
    """
    nearest = _nearest_family(config)
    for kind in (source, nearest):
        if kind in ARCHITECTURES and all(
            getattr(config, name) == value for name, value in needed_fields(config, kind).items()
        ):
            return str(kind)
    require_fields(where, config, needed_fields(config, nearest), f"Hugging Face's {nearest}")
    return nearest


def _nearest_family(config: ModelConfig) -> str:
    kinds = config.layer_kinds
    if config.norm_scale_plus_one:
        if config.qk_norm:
            return 'gemma3_text'
        return 'gemma2' if config.post_norms else 'gemma'
    if config.qk_norm:
        return 'qwen3'
    if config.attention_bias and not config.attention_out_bias:
        return 'qwen2'
    if len(kinds) > 1 or not kinds[0].rotary:
        return 'smollm3'
    return 'llama' if kinds[0].window is None else 'mistral'


def needed_fields(config: ModelConfig, kind: str) -> dict[str, Any]:
    """Fields of ModelConfig that a family fixes."""
    gemma = kind in _GEMMAS
    needed: dict[str, Any] = {'position': 'rope', 'norm': 'rms', 'parallel_block': False, 'scale_attention': True}
    needed |= dict.fromkeys(('norm_scale_plus_one', 'scale_embedding'), gemma)
    needed['mlp_activations'] = ('gelu' if gemma else 'silu', 'linear')
    needed['post_norms'] = kind in ('gemma2', 'gemma3_text')
    needed['qk_norm'] = kind in ('qwen3', 'gemma3_text')
    if kind == 'qwen2':
        needed |= {'attention_bias': True, 'attention_out_bias': False}
    elif kind == 'mistral':
        needed |= {'attention_bias': False, 'attention_out_bias': False}
    else:
        needed['attention_out_bias'] = config.attention_bias
    needed |= {name: None for name in _SOFT_CAPS if name not in _CAPS.get(kind, ())}
    needed['unscaled_token'] = None
    if kind not in _QUERY_SCALED:
        needed['query_pre_attn_scalar'] = None
    if kind not in _WINDOWED:
        needed['attention_window'] = None
    if kind != 'smollm3' and any(not one.rotary for one in config.layer_kinds):
        needed['layer_pattern'] = None
    if kind == 'mistral':
        needed['layer_pattern'] = None if len(config.layer_kinds) > 1 else config.layer_pattern
    if kind != 'gemma3_text':
        needed['rope_local_base'] = None
    if config.tie_embeddings:
        needed['scale_tied_logits'] = False
    return needed


def decoder_fields(config: ModelConfig, kind: str) -> dict[str, Any]:
    """The content of config.json for a decoder, besides the ids of tokens."""
    activation = next(iter(_GELU)) if kind in _GEMMAS else 'silu'
    layers, types = config.num_decoder_layers, config.layer_kinds
    kinds: Sequence[LayerKind] = [types[i % len(types)] for i in range(layers)]
    scaling = config.rope_scaling
    assert scaling is None or isinstance(scaling, RopeScaling)
    rope = {'rope_type': 'default'} if scaling is None else _scaling_fields(scaling)
    fields = {
        **{theirs: getattr(config, ours) for ours, theirs in _NAMES.items()},
        'num_key_value_heads': config.kv_heads,
        'head_dim': config.head_dim,
        'hidden_act': activation,
        'rope_theta': config.rope_base,
        'rope_parameters': {**rope, 'rope_theta': config.rope_base},
        'attention_bias': config.attention_bias and kind != 'qwen2',
    }
    if scaling is not None:
        fields['rope_scaling'] = rope
    if kind in _GEMMAS:
        fields['hidden_activation'] = activation
    if kind in _QUERY_SCALED:
        scalar = config.query_pre_attn_scalar or config.head_dim
        fields['query_pre_attn_scalar'] = int(scalar) if scalar == int(scalar) else scalar  # transformers: an int
    fields |= {_SOFT_CAPS[name]: getattr(config, name) for name in _CAPS.get(kind, ())}
    if kind in _WINDOWED:
        windowed = any(one.window for one in kinds)
        fields['sliding_window'] = config.attention_window
        fields |= {} if kind in ('mistral', *_QUERY_SCALED) else {'use_sliding_window': windowed}
        if kind != 'mistral':
            fields['layer_types'] = [_SLIDING if one.window else _FULL for one in kinds]
    if kind == 'smollm3':
        fields['no_rope_layers'] = [int(one.rotary) for one in kinds]
    if kind == 'gemma3_text':
        local = config.rope_local_base or config.rope_base
        of_windows = {'rope_type': 'default', 'rope_theta': local}
        fields |= {'rope_parameters': {_FULL: fields['rope_parameters'], _SLIDING: of_windows}}
        fields['rope_local_base_freq'] = local
    return fields


def _scaling_fields(scaling: RopeScaling) -> dict[str, Any]:
    """The fields that belong to the type of scaling, and are given."""
    names = {'linear': (), 'llama3': ('original_max_position_embeddings', 'low_freq_factor', 'high_freq_factor')}
    yarn = ('original_max_position_embeddings', 'beta_fast', 'beta_slow', 'attention_factor', 'mscale')
    given = names.get(scaling.rope_type, (*yarn, 'mscale_all_dim', 'truncate'))
    values = {name: getattr(scaling, name) for name in ('rope_type', 'factor', *given)}
    return {name: value for name, value in values.items() if value is not None}
