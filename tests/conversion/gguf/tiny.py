"""Tiny GGUF files, written with the `gguf` package as llama.cpp's convert_hf_to_gguf.py does."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from t5flan.conversion.safetensors_files import read_folder

gguf = pytest.importorskip('gguf', reason="the gguf package is in the extra 'convert'")

GOLDEN = Path(__file__).parents[1] / 'golden'
_T5 = {
    'num_layers': 'block_count',
    'd_model': 'embedding_length',
    'd_ff': 'feed_forward_length',
    'num_heads': 'attention.head_count',
    'd_kv': 'attention.key_length',
    'layer_norm_epsilon': 'attention.layer_norm_epsilon',
    'relative_attention_num_buckets': 'attention.relative_buckets_count',
    'decoder_start_token_id': 'decoder_start_token_id',
}
_DECODER = {
    'num_hidden_layers': 'block_count',
    'hidden_size': 'embedding_length',
    'intermediate_size': 'feed_forward_length',
    'num_attention_heads': 'attention.head_count',
    'num_key_value_heads': 'attention.head_count_kv',
    'head_dim': 'attention.key_length',
    'rms_norm_eps': 'attention.layer_norm_rms_epsilon',
}
Metadata = Mapping[str, Any]


def settings(family: str, folder: Path | None = None) -> dict[str, Any]:
    """The metadata of a golden model, or of the one in a folder: 'llama', 'gemma', 'gemma3', 't5_1_1', 'umt5', ..."""
    fields = json.loads(((folder or GOLDEN / family) / 'config.json').read_text())
    architecture = 't5' if 't5' in family else family
    table = _T5 if architecture == 't5' else _DECODER
    made = {f'{architecture}.{theirs}': fields[ours] for ours, theirs in table.items()}
    made |= {'general.architecture': architecture, f'{architecture}.context_length': 32}
    return made | {'tokenizer.ggml.bos_token_id': 2, 'tokenizer.ggml.eos_token_id': 1}


def arrays(
    family: str, held: Mapping[str, np.ndarray] | None = None, folder: Path | None = None
) -> dict[str, np.ndarray]:
    """A model's arrays (or `held`, by Hugging Face's names) under GGUF's names, as llama.cpp orders them."""
    folder = folder or GOLDEN / family
    fields = json.loads((folder / 'config.json').read_text())
    if held is None:
        held = {name: stored.read() for name, stored in read_folder(folder).items()}
    known = gguf.get_tensor_name_map(gguf.MODEL_ARCH['T5' if 't5' in family else family.upper()], 8)
    made = {}
    for name, array in held.items():
        theirs = known.get_name(name, try_suffixes=('.weight',))
        if family in ('llama', 'smollm3') and name.endswith(('q_proj.weight', 'k_proj.weight')):
            heads = fields['num_attention_heads' if 'q_proj' in name else 'num_key_value_heads']
            halves = array.reshape(heads, 2, -1, array.shape[-1])
            array = np.stack([halves[:, 0], halves[:, 1]], axis=2).reshape(array.shape)
        if family.startswith('gemma') and name.endswith('norm.weight'):
            array = array + np.float32(1)
        made[theirs] = array
    return made


def write(
    path: Path, metadata: Metadata, tensors: Mapping[str, Any], types: Mapping[str, str] | str = 'F32', **options
):
    """Writes a file; `types` is the type of all matrices, or of each tensor by name (others: F32)."""
    writer = gguf.GGUFWriter(path, metadata['general.architecture'], **options)
    for key, value in metadata.items():
        if key == 'general.architecture' or value is None:
            continue
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_array(key, value)
    for name, array in tensors.items():
        matrix = array.ndim > 1 and 'norm' not in name and 'rel_b' not in name
        type = gguf.GGMLQuantizationType[
            types.get(name, 'F32') if isinstance(types, dict) else types if matrix else 'F32'
        ]
        if array.dtype == np.uint8:
            writer.add_tensor(name, array, raw_dtype=type)  # blocks
        else:
            writer.add_tensor(name, gguf.quantize(array.astype(np.float32), type), raw_dtype=type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def of_folder(path: Path, folder: Path, family: str, metadata: Metadata, more: Mapping[str, Any] | None = None) -> Path:
    """The model of a Hugging Face folder as a GGUF file of an architecture."""
    made = arrays(family, folder=folder) | dict(more or {})
    return write(path, settings(family, folder) | dict(metadata), made)


def golden(path: Path, family: str, metadata: Metadata | None = None, tensors=lambda held: held, **options) -> Path:
    """A golden model as a GGUF file, with its metadata and tensors changed; None removes a key."""
    return write(path, settings(family) | dict(metadata or {}), tensors(arrays(family)), **options)
