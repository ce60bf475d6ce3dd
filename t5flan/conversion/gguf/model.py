"""A model in a GGUF file -> a Checkpoint.

    general.architecture      -> model_type       llama.block_count -> num_hidden_layers, ...
    blk.3.attn_q.weight       =  model.layers.3.self_attn.q_proj.weight
    tokenizer.ggml.*          -> tokenizer.json or a SentencePiece model

What follows is that of a Hugging Face folder. Names of tensors are those of the `gguf` package for Hugging Face's.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from t5flan.conversion import names
from t5flan.conversion.checkpoint import Checkpoint
from t5flan.conversion.gguf import file as gguf_file
from t5flan.conversion.gguf import tokenizer
from t5flan.conversion.gguf.file import spelled
from t5flan.conversion.gguf.tensor import Tensor
from t5flan.conversion.huggingface import Source, read_source
from t5flan.conversion.huggingface_config import table_of
from t5flan.data.vocabulary.vocabulary import Vocabulary
from t5flan.errors import UserError
from t5flan.models.config import RopeScaling
from t5flan.models.positions import scale_frequencies

SUFFIX = '.gguf'
ARCHITECTURES = {
    'llama': 'llama',
    'gemma': 'gemma',
    'gemma2': 'gemma2',
    'gemma3': 'gemma3_text',
    'qwen2': 'qwen2',
    'qwen3': 'qwen3',
    'smollm3': 'smollm3',
    't5': 't5',
}
"""general.architecture -> model_type. Mistral's models have the architecture llama."""
_DECODER = {  # after 'llama.' -> config.json's
    'block_count': 'num_hidden_layers',
    'context_length': 'max_position_embeddings',
    'embedding_length': 'hidden_size',
    'feed_forward_length': 'intermediate_size',
    'attention.head_count': 'num_attention_heads',
    'attention.layer_norm_rms_epsilon': 'rms_norm_eps',
}
_T5 = {
    'block_count': 'num_layers',
    'context_length': 'n_positions',
    'embedding_length': 'd_model',
    'feed_forward_length': 'd_ff',
    'attention.head_count': 'num_heads',
    'attention.key_length': 'd_kv',
    'attention.layer_norm_epsilon': 'layer_norm_epsilon',
    'attention.relative_buckets_count': 'relative_attention_num_buckets',
}
_READ = (  # read by to_fields, beside the tables
    'attention.head_count_kv',
    'attention.key_length',
    'attention.value_length',
    'decoder_block_count',
    'decoder_start_token_id',
    'rope.dimension_count',
    'rope.freq_base',
    'rope.scaling.type',
    'rope.scaling.factor',
    'rope.scaling.original_context_length',
)
_READ_FOR_GEMMA = (
    'attn_logit_softcapping',
    'final_logit_softcapping',
    'attention.sliding_window',
    'attention.sliding_window_pattern',
    'rope.freq_base_swa',
)
_LARGE_GEMMAS = {'gemma2': 46, 'gemma3_text': 62}  # layers of those whose logits are scaled by hidden_size / heads
_PUBLISHED_SCALING = {'low_freq_factor': 1.0, 'high_freq_factor': 4.0, 'original_max_position_embeddings': 8192}
_ROPE_FREQS = 'rope_freqs.weight'
_NO_MATTER = ('vocab_size', 'tensor_data_layout', 'rope.scaling.finetuned', 'attention.layer_norm_rms_epsilon')
_ON_BY_DEFAULT = 'attention.causal'  # other options that are 0 or false change nothing
_UNREAD = ('dec.blk.0.cross_attn_rel_b.weight', _ROPE_FREQS)  # of old T5 files; and what _rope_scaling reads
_PER_LAYER_BIAS = 'enc.blk.1.attn_rel_b.weight'  # UMT5's, which has T5's architecture
_LARGEST = 2**31
_AGAIN = 'Download the file again, or convert the Hugging Face folder.'


def read(path: Path, vocabulary: Vocabulary | None = None) -> Checkpoint:
    """Opens a GGUF file; `vocabulary` is used instead of its tokenizer.

    Raises:
        UserError: the file is damaged, or its architecture, an option of it, a type of numbers or the tokenizer is not
            converted.
    """
    file = gguf_file.read(path)
    fields = to_fields(file)
    kind = fields['model_type']
    table = gguf_table(kind, file.metadata['general.architecture'])
    files = {} if vocabulary is not None else tokenizer.files(path, file.metadata)
    files['config.json'] = json.dumps(fields, indent=2, sort_keys=True).encode()
    files |= _generation_config(path, file, fields)
    tensors = {name: tensor for name, tensor in file.tensors.items() if name not in _UNREAD}
    arrays = {name: _as_in_hugging_face(name, tensor, fields) for name, tensor in tensors.items()}
    fix = 'Download the file again.'
    checkpoint = read_source(Source(path, fields, arrays, table, files, 'the metadata', fix), vocabulary)
    notes = () if vocabulary is not None else tokenizer.notes(path, file.metadata)
    return dataclasses.replace(checkpoint, notes=(*checkpoint.notes, *notes))


def gguf_table(kind: str, architecture: str) -> names.Table:
    """t5flan's parameter names and GGUF's, by the `gguf` package's table of Hugging Face's names."""
    import gguf

    known = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], 1)
    found = []
    for ours, theirs in table_of(kind):
        module, _, ending = theirs.format(i=0).rpartition('.')
        name = known.get_name(module)
        if name is not None:
            found.append((ours, f'{name}.{ending}'.replace('blk.0.', 'blk.{i}.')))
    return found


def _as_in_hugging_face(name: str, tensor: Tensor, fields: Mapping[str, Any]) -> Tensor:
    """The tensor with its rows and numbers as Hugging Face's model has them."""
    kind = fields['model_type']
    if kind in ('gemma', *_LARGE_GEMMAS) and name.endswith('norm.weight'):
        return dataclasses.replace(tensor, shift=-1.0)  # llama.cpp's norm multiplies by the number that it finds
    heads = {'attn_q': fields.get('num_attention_heads'), 'attn_k': fields.get('num_key_value_heads')}
    count = heads.get(name.split('.')[-2]) if kind in ('llama', 'smollm3') and name.startswith('blk.') else None
    if count and not tensor.shape[0] % (2 * count):  # if it does not divide, the shape is wrong, and named later
        return dataclasses.replace(tensor, heads=count)
    return tensor


def _generation_config(path: Path, file: gguf_file.GgufFile, fields: Mapping[str, Any]) -> dict[str, bytes]:
    """The file that names the tokens which end a text, if the end of a reply is another one."""
    given = tokenizer.ids(path, file.metadata)
    ends = sorted({given[name] for name in ('eos', 'eot') if name in given})
    if len(ends) < 2:
        return {}
    return {'generation_config.json': json.dumps({'bos_token_id': given.get('bos'), 'eos_token_id': ends}).encode()}


def to_fields(file: gguf_file.GgufFile) -> dict[str, Any]:
    """The content of config.json that the metadata and the names of tensors stand for.

    Raises:
        UserError: the architecture or an option of it is not converted, or a size is missing or no size.
    """
    architecture = file.metadata.get('general.architecture')
    if architecture not in ARCHITECTURES:
        known = ', '.join(ARCHITECTURES)
        problem = f'general.architecture {spelled(architecture)} is not converted; expected one of {known}'
        raise UserError(f'{file.where}: {problem}.')
    kind = 'umt5' if architecture == 't5' and _PER_LAYER_BIAS in file.tensors else ARCHITECTURES[architecture]
    given = _Settings(file, architecture)
    more = _READ_FOR_GEMMA if kind in _LARGE_GEMMAS else ()
    given.require_known((*_READ, *more, *(_T5 if architecture == 't5' else _DECODER), *_NO_MATTER))
    embedding = file.tensors.get('token_embd.weight')
    if embedding is None:
        raise UserError(f'{file.where} lacks token_embd.weight, the token embedding. {_AGAIN}')
    ids = tokenizer.ids(Path(file.where), file.metadata)
    tokens = {f'{name}_token_id': ids[name] for name in ('bos', 'eos', 'pad') if name in ids}
    fields = {
        'model_type': kind,
        'vocab_size': embedding.shape[0],
        'tie_word_embeddings': 'output.weight' not in file.tensors,
        **tokens,
    }
    if architecture == 't5':
        return fields | _t5_fields(given, file.tensors)
    fields |= _decoder_fields(given)
    if kind in _LARGE_GEMMAS:
        fields |= _gemma_fields(given, kind, fields)
    if _ROPE_FREQS in file.tensors:
        fields['rope_scaling'] = _rope_scaling(file, fields)
    return fields


def _gemma_fields(given: '_Settings', kind: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """What Gemma 2 and 3 have beside others. Where a file has no setting, llama.cpp's model has that of the family."""
    layers, size = fields['num_hidden_layers'], fields['head_dim']
    large = layers == _LARGE_GEMMAS[kind]
    found = {'query_pre_attn_scalar': fields['hidden_size'] // fields['num_attention_heads'] if large else size}
    if kind == 'gemma2':
        caps = {'attn_logit_softcapping': 50.0, 'final_logit_softcapping': 30.0}
        found |= {name: given.number(name, default) for name, default in caps.items()}
        return found | {'sliding_window': given.size('attention.sliding_window', 4096)}
    if given.values.get('final_logit_softcapping'):
        found['final_logit_softcapping'] = given.number('final_logit_softcapping')
    if not given.values.get('attention.sliding_window'):
        return found | {'layer_types': ['full_attention'] * layers}
    found |= {'sliding_window': given.size('attention.sliding_window')}
    found |= {'sliding_window_pattern': given.size('attention.sliding_window_pattern', 6)}
    return found | {'rope_local_base_freq': given.number('rope.freq_base_swa', 10000.0)}


def _rope_scaling(file: gguf_file.GgufFile, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The scaling of Llama 3.1 to 3.3, of which a file has only the factor of each frequency.

    Raises:
        UserError: the factors are not those of the published settings.
    """
    given_H = file.tensors[_ROPE_FREQS].read().astype(np.float64).ravel()
    factor = round(float(given_H.max()), 3)
    scaling = {'rope_type': 'llama3', 'factor': factor, **_PUBLISHED_SCALING}
    if given_H.shape == (fields['head_dim'] // 2,) and factor > 1:
        base_H = np.asarray(fields['rope_theta'] ** (-np.arange(given_H.size) / given_H.size), np.float32)
        scaled_H = scale_frequencies(jnp.asarray(base_H), fields['rope_theta'], RopeScaling.from_dict(scaling))
        if np.allclose(base_H / np.asarray(scaled_H), given_H, rtol=1e-3):
            return scaling
    problem = (
        f'it has {_ROPE_FREQS}, the scaled rotary embedding of Llama 3.1 and later, with other numbers than theirs'
    )
    raise UserError(f'{file.where}: {problem}. Convert the Hugging Face folder.')


def _decoder_fields(given: '_Settings') -> dict[str, Any]:
    fields: dict[str, Any] = {
        theirs: given.size(name) for name, theirs in _DECODER.items() if not theirs.endswith('eps')
    }
    fields['rms_norm_eps'] = given.number('attention.layer_norm_rms_epsilon')
    heads = fields['num_attention_heads']
    size = given.size('attention.key_length', fields['hidden_size'] // heads)
    for name in ('attention.value_length', 'rope.dimension_count'):
        if given.size(name, size) != size:
            problem = f'{given.spelled(name)} differs from the size of a head, {size}'
            raise UserError(f'{given.where}: {problem}, which is not converted.')
    fields |= {'num_key_value_heads': given.size('attention.head_count_kv', heads), 'head_dim': size}
    fields['rope_theta'] = given.number('rope.freq_base', 10000.0)
    scaling = given.values.get('rope.scaling.type', 'none')
    if scaling != 'none':
        fields['rope_scaling'] = {'rope_type': scaling, 'factor': given.number('rope.scaling.factor')}
        original = given.size('rope.scaling.original_context_length', 0)
        fields['rope_scaling'] |= {'original_max_position_embeddings': original} if original else {}
    return fields


def _t5_fields(given: '_Settings', tensors: Iterable[str]) -> dict[str, Any]:
    fields: dict[str, Any] = {
        theirs: given.size(name) for name, theirs in _T5.items() if not theirs.endswith('epsilon')
    }
    fields['layer_norm_epsilon'] = given.number('attention.layer_norm_epsilon')
    fields['num_decoder_layers'] = given.size('decoder_block_count', fields['num_layers'])
    fields['decoder_start_token_id'] = given.size('decoder_start_token_id', 0)
    for name in ('attention.head_count_kv', 'attention.value_length'):
        same = fields['num_heads' if 'count' in name else 'd_kv']
        if given.size(name, same) != same:
            raise UserError(f'{given.where}: {given.spelled(name)}, expected {same}: a T5 has no other.')
    gated = any(name.endswith('ffn_gate.weight') for name in tensors)
    return fields | {'feed_forward_proj': 'gated-gelu' if gated else 'relu'}  # as llama.cpp decides


class _Settings:
    """The metadata of one architecture, without its name in front."""

    def __init__(self, file: gguf_file.GgufFile, architecture: str) -> None:
        self.where, self._prefix = file.where, f'{architecture}.'
        own = {name: value for name, value in file.metadata.items() if name.startswith(self._prefix)}
        self.values = {name.removeprefix(self._prefix): value for name, value in own.items()}

    def spelled(self, name: str) -> str:
        """'llama.block_count=30', for messages."""
        return f'{self._prefix}{name}={spelled(self.values.get(name))}'

    def require_known(self, known: Iterable[str]) -> None:
        """Raises a UserError at an option that is set and would change the model in an unknown way."""
        for name, value in self.values.items():
            is_off = isinstance(value, (int, float)) and not value and name != _ON_BY_DEFAULT
            if name not in known and not (is_off or (name, value) == (_ON_BY_DEFAULT, True)):
                raise UserError(f'{self.where}: {self.spelled(name)} is an option that is not converted.')

    def size(self, name: str, default: int | None = None) -> int:
        """A whole number of 1 or more, or the default."""
        value = self.values.get(name, default)
        if value is None:
            raise UserError(f'{self.where} lacks {self._prefix}{name}. {_AGAIN}')
        is_number = isinstance(value, int) and not isinstance(value, bool)
        if not is_number or (value != default and not 1 <= value < _LARGEST):
            raise UserError(f'{self.where}: {self.spelled(name)}, expected a size. {_AGAIN}')
        return int(value)

    def number(self, name: str, default: float | None = None) -> float:
        """A number above 0, or the default."""
        value = self.values.get(name, default)
        if value is None:
            raise UserError(f'{self.where} lacks {self._prefix}{name}. {_AGAIN}')
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < float('inf'):
            raise UserError(f'{self.where}: {self.spelled(name)}, expected a number above 0. {_AGAIN}')
        return float(value)
