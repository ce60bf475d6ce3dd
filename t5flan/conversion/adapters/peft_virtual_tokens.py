"""Prompts, prefixes and gated prompts in PEFT's format; `peft.py` reads and writes the files.

t5flan                                   PEFT
prompt [P, D], prompt/embedding [P, D]   prompt_embeddings [P, D]; of P-tuning, what its network computed
decoder/prefix [2 L, P, K, H]            prompt_embeddings [P, 2 L K H]
decoder/adaption_prompt [A, P, D]        adaption_prompt [1, P, D], after the name of a layer's attention
decoder/adaption_gate [A]                adaption_gate [1], likewise
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from t5flan.adapters.adapter import adapter_arrays
from t5flan.adapters.config import Adapter
from t5flan.adapters.methods.llama_adapter import LlamaAdapter
from t5flan.adapters.methods.p_tuning import PromptEncoder, PTuning
from t5flan.adapters.methods.prefix_tuning import PrefixNetwork, PrefixTuning
from t5flan.adapters.methods.prompt_tuning import PromptTuning
from t5flan.conversion.adapters import folder as adapter_folder
from t5flan.conversion.checkpoint import match_arrays
from t5flan.conversion.safetensors_files import Stored
from t5flan.errors import UserError
from t5flan.models.config import ModelConfig
from t5flan.models.parameters import Scope, replace_parameters

Modules = Mapping[tuple[str, int | None], str]  # (path of a kernel, layer) -> its module in transformers
Arrays = dict[str, np.ndarray]
VirtualTokens = PromptTuning | PTuning | PrefixTuning
_VIRTUAL = 'prompt_embeddings'


def read_virtual_tokens(
    where: str, fields: Mapping[str, Any], stored: Mapping[str, Stored], config: ModelConfig
) -> tuple[Adapter, Arrays]:
    """Reads a prompt or a prefix, which PEFT stores as one array; `fields` are those of the configuration.

    What a network computed (P-tuning, prefix_projection) is stored without the network.

    Raises:
        UserError: a field is missing, or the array does not fit the model.
    """
    tokens, layers = _required(where, fields, 'num_virtual_tokens'), config.num_decoder_layers
    rows = tokens * (fields.get('num_transformer_submodules') or 1)
    settings: Adapter
    if fields['peft_type'] == 'PREFIX_TUNING':
        settings = PrefixTuning(tokens, shared=config.architecture == 'encoder_decoder')
        shape: tuple[int, ...] = (tokens, 2 * layers * config.kv_heads * config.head_dim)
    else:
        is_prompt = fields['peft_type'] == 'PROMPT_TUNING'
        settings = PromptTuning(tokens, rows=rows) if is_prompt else PTuning(tokens, encoder='none', rows=rows)
        shape = (rows, config.emb_dim)
    [name] = adapter_arrays(adapter_folder.abstract_adapted(config, settings))
    fix = 'Set --base to the model it was trained on.'
    array = match_arrays(where, 'adapter_config.json', fix, {name: (_VIRTUAL, [shape])}, stored)[name].read()
    if isinstance(settings, PrefixTuning):
        array = array.reshape(tokens, 2 * layers, config.kv_heads, config.head_dim).swapaxes(0, 1)
    return settings, {name: np.ascontiguousarray(array.astype(np.float32))}


def _required(where: str, fields: Mapping[str, Any], name: str) -> Any:
    if fields.get(name) is None:
        raise UserError(f'{where}: its adapter_config.json lacks {name}. Copy the folder again.')
    return fields[name]


def virtual_tokens(
    settings: VirtualTokens, arrays: Mapping[str, np.ndarray], config: ModelConfig
) -> tuple[Arrays, dict[str, Any]]:
    """A prompt or a prefix as PEFT stores it, and the content of adapter_config.json.

    Raises:
        UserError: PEFT has no such prefix.
    """
    apart = config.architecture == 'encoder_decoder'
    fields: dict[str, Any] = {
        'base_model_name_or_path': None,
        'inference_mode': True,
        'task_type': 'SEQ_2_SEQ_LM' if apart else 'CAUSAL_LM',
        'num_virtual_tokens': settings.tokens,
        'num_transformer_submodules': 2 if apart else 1,
        'num_layers': config.num_decoder_layers,
        'num_attention_heads': config.num_heads,
        'token_dim': config.emb_dim,
    }
    if isinstance(settings, PrefixTuning):
        projected = settings.projection_size is not None
        array = _computed_prefix(settings, arrays, config) if projected else arrays['decoder/prefix']
        return _prefix(settings, array, config, fields)
    if isinstance(settings, PTuning):
        hidden = settings.hidden_size or config.emb_dim
        kind = 'LSTM' if settings.encoder == 'lstm' else 'MLP'
        fields |= {'peft_type': 'P_TUNING', 'encoder_reparameterization_type': kind, 'encoder_hidden_size': hidden}
        fields |= {'encoder_num_layers': settings.lstm_layers, 'encoder_dropout': 0.0}
        array = _computed(settings, arrays, config)
    else:
        fields |= {'peft_type': 'PROMPT_TUNING', 'prompt_tuning_init': 'RANDOM'}
        array = arrays['prompt']
    if not apart:
        return {_VIRTUAL: array[: settings.tokens]}, fields
    # PEFT stores a prompt for the decoder too, which is not read.
    return {_VIRTUAL: np.concatenate([array, array]) if len(array) == settings.tokens else array}, fields


def _prefix(
    settings: PrefixTuning, array: np.ndarray, config: ModelConfig, fields: dict[str, Any]
) -> tuple[Arrays, dict[str, Any]]:
    projection = settings.projection_size
    fields |= {'peft_type': 'PREFIX_TUNING', 'encoder_hidden_size': projection or config.emb_dim}
    fields |= {'prefix_projection': projection is not None}
    if config.architecture == 'decoder_only':
        width = config.kv_heads * config.head_dim
        fields |= {'num_attention_heads': config.kv_heads, 'token_dim': width}
        fields |= {'encoder_hidden_size': projection or width}
    elif not settings.shared:
        problem = 'PrefixTuning.shared=False, but in PEFT two layers of T5 share a prefix'
        raise UserError(f'{problem}: it cannot be written. Train with PrefixTuning.shared=True.')
    return {_VIRTUAL: np.ascontiguousarray(array.swapaxes(0, 1)).reshape(settings.tokens, -1)}, fields


def _computed(settings: PTuning, arrays: Mapping[str, np.ndarray], config: ModelConfig) -> np.ndarray:
    """The vectors that the network of P-tuning computes, float32 [P, D]."""
    network = jax.eval_shape(lambda: PromptEncoder(settings, config.emb_dim, Scope(jax.random.key(0))))
    network = replace_parameters(network, {name.removeprefix('prompt/'): x for name, x in arrays.items()})
    return np.asarray(jax.jit(lambda network: network())(network))


def _computed_prefix(settings: PrefixTuning, arrays: Mapping[str, np.ndarray], config: ModelConfig) -> np.ndarray:
    """The keys and values that the network of a prefix computes, float32 [2 L, P, K, H]."""
    assert settings.projection_size is not None
    shape = 2 * config.num_decoder_layers, settings.tokens, config.kv_heads, config.head_dim
    sizes = config.emb_dim, settings.projection_size, shape
    network = jax.eval_shape(lambda: PrefixNetwork(*sizes, Scope(jax.random.key(0))))
    network = replace_parameters(network, {name.removeprefix('decoder/prefix/'): x for name, x in arrays.items()})
    return np.asarray(jax.jit(lambda network: network())(network))


def read_gated_prompts(
    where: str, fields: Mapping[str, Any], stored: Mapping[str, Stored], config: ModelConfig, modules: Modules
) -> tuple[Adapter, Arrays]:
    """Reads LLaMA-Adapter's vectors and gates.

    Raises:
        UserError: the base is an encoder-decoder, or has fewer layers.
    """
    tokens, layers = (_required(where, fields, name) for name in ('adapter_len', 'adapter_layers'))
    settings = LlamaAdapter(tokens, layers)
    names = _gated_names(settings, config, modules)
    shapes = {'adaption_prompt': (1, settings.tokens, config.emb_dim), 'adaption_gate': (1,)}
    expected = {(part, i): (f'{name}.{part}', [shape]) for part, shape in shapes.items() for i, name in names.items()}
    fix = 'Set --base to the model it was trained on.'
    found = match_arrays(where, 'adapter_config.json', fix, expected, stored)
    concatenate = lambda part: np.concatenate([found[part, i].read() for i in names]).astype(np.float32)
    return settings, {f'decoder/{part}': concatenate(part) for part in shapes}


def gated_prompts(
    settings: LlamaAdapter, arrays: Mapping[str, np.ndarray], config: ModelConfig, modules: Modules
) -> tuple[Arrays, dict[str, Any]]:
    """LLaMA-Adapter's vectors and gates as PEFT stores them, and the content of adapter_config.json.

    Raises:
        UserError: the model is an encoder-decoder, for which PEFT has no such adapter.
    """
    names = _gated_names(settings, config, modules)
    theirs = {
        f'{name}.{part}': arrays[f'decoder/{part}'][i : i + 1]
        for part in ('adaption_prompt', 'adaption_gate')
        for i, name in enumerate(names.values())
    }
    return theirs, {
        'base_model_name_or_path': None,
        'inference_mode': True,
        'task_type': 'CAUSAL_LM',
        'peft_type': 'ADAPTION_PROMPT',
        'adapter_len': settings.tokens,
        'adapter_layers': len(names),
        'target_modules': next(iter(names.values())).rpartition('.')[2],
    }


def _gated_names(settings: LlamaAdapter, config: ModelConfig, modules: Modules) -> dict[int, str]:
    """Layer -> the name of its attention in PEFT's file, for the adapted layers."""
    if config.architecture != 'decoder_only':
        raise UserError('PEFT has ADAPTION_PROMPT for decoder-only models, but the base is an encoder_decoder.')
    adapter_folder.abstract_adapted(config, settings)  # checks the number of layers
    layers = config.num_decoder_layers
    first = layers - (layers if settings.layers is None else settings.layers)
    of = {i: modules['decoder/layers/self_attention/query/kernel', i] for i in range(first, layers)}
    return {i: f'base_model.model.{name.rpartition(".")[0]}' for i, name in of.items()}
