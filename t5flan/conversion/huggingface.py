"""Hugging Face folders (config.json, safetensors, tokenizer files) <-> a Checkpoint. torch is not needed."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from t5flan.conversion import names
from t5flan.conversion.checkpoint import Checkpoint, match_arrays, one_dtype
from t5flan.conversion.families.t5gemma2 import T5GEMMA2, text_arrays
from t5flan.conversion.huggingface_config import (
    LONGT5,
    REPLACED,
    T5_FAMILY,
    UNTIED,
    family_of,
    parse_json,
    read_fields,
    table_of,
    to_fields,
    to_model_config,
)
from t5flan.conversion.huggingface_tokenizer import read_vocabulary, require_rows, tokenizer_files
from t5flan.conversion.safetensors_files import FolderWriter, Stored, read_folder, strips
from t5flan.data.vocabulary.vocabulary import Vocabulary
from t5flan.errors import UserError, reading

SHARD_SIZE = 5 * 10**9  # bytes, as in transformers
LARGEST_EXTRA = 2**26  # bytes; a larger file is not a tokenizer's
_JSON = ('config', 'generation_config', 'tokenizer', 'tokenizer_config', 'special_tokens_map', 'added_tokens')
_EXTRAS = (*(f'{name}.json' for name in _JSON), 'spiece.model', 'tokenizer.model', 'chat_template.jinja')


@dataclasses.dataclass(frozen=True)
class Source:
    """A model in Hugging Face's terms: a folder, or a file of another format that was read as one.

    Attributes:
        where: the folder or file.
        fields: the content of config.json.
        arrays: name -> array.
        table: t5flan's parameter names and those of `arrays`.
        files: the other small files, name -> content; None to find the tokenizer in the folder `where`.
        described_by: what holds the settings of the model, for messages.
        fix: how to fix arrays that are not the model's, for messages.
    """

    where: Path
    fields: Mapping[str, Any]
    arrays: Mapping[str, Stored]
    table: names.Table
    files: Mapping[str, bytes] | None = None
    described_by: str = 'config.json'
    fix: str = 'Download the folder again, or fix config.json.'


def read(folder: Path, vocabulary: Vocabulary | None = None) -> Checkpoint:
    """Opens a folder written by save_pretrained; `vocabulary` is used instead of its tokenizer.

    Raises:
        UserError: files are missing or broken, the family is not supported, or the arrays are not those of config.json.
    """
    if not folder.is_dir():
        fix = (
            'Set --from=gguf.' if folder.suffix == '.gguf' else 'Give one written by save_pretrained (config.json, …).'
        )
        raise UserError(f'{folder} is not a folder. {fix}')
    with reading(f'{folder}: its JSON files', 'Download the folder again.'):
        return _read(folder, vocabulary)


def _read(folder: Path, vocabulary: Vocabulary | None) -> Checkpoint:
    fields, stored = read_fields(folder), read_folder(folder)
    kind, notes = str(fields.get('model_type')), tuple[str, ...]()
    if kind == T5GEMMA2:
        fields, stored, notes = text_arrays(fields, stored)
    _require_logits(folder, fields, kind, stored)
    arrays = _without_copies(folder, stored, kind)
    checkpoint = read_source(Source(folder, fields, arrays, table_of(kind)), vocabulary)
    return dataclasses.replace(checkpoint, notes=(*checkpoint.notes, *(f'{folder}: {note}' for note in notes)))


def read_source(source: Source, vocabulary: Vocabulary | None = None) -> Checkpoint:
    """Opens a model in Hugging Face's terms; `vocabulary` is used instead of its tokenizer.

    Raises:
        UserError: the family is not supported, or the arrays are not those of its settings.
    """
    where, fields, table = source.where, source.fields, source.table
    described = where / 'config.json' if source.files is None else where
    tied = dict(table).get('decoder/logits_dense/kernel') not in source.arrays
    config = to_model_config(described, fields, tied)
    layers = config.num_encoder_layers + config.num_decoder_layers
    if layers > len(source.arrays):  # before a list of them is made
        raise UserError(f'{where}: {source.described_by} has {layers:,} layers, too many for its arrays. {source.fix}')
    expected = {
        (shape.name, layer): (names.hf_name(table, shape, layer), [names.hf_shape(shape)])
        for shape, layer in names.all_pieces(config)
    }
    kind = fields['model_type']
    places = match_arrays(str(where), f'{source.described_by} ({kind})', source.fix, expected, source.arrays)
    dtypes = {
        name: one_dtype(str(where), name, {places[name, layer].dtype for layer in shape.pieces})
        for name, shape in names.shapes(config).items()
    }

    def read_one(shape: names.Shape, layer: int | None) -> np.ndarray:
        stored = places[shape.name, layer]
        array = stored.read() if shape.matrix is None else stored.read_transposed()
        return array.reshape(shape.one).astype(dtypes[shape.name], copy=False)

    extras = source.files
    if extras is None:
        files = [where / name for name in _EXTRAS]
        small = [file for file in files if file.is_file() and file.stat().st_size <= LARGEST_EXTRA]
        extras = {file.name: file.read_bytes() for file in small}
    found, notes = (vocabulary, ()) if vocabulary is not None else read_vocabulary(where, fields, source.files)
    require_rows(where, found, config.vocab_size)
    notes = (*notes, *_generation_notes(where, extras, found, config.vocab_size))
    format = 'causal_lm' if config.architecture == 'decoder_only' else 'encoder_decoder'
    return Checkpoint(str(where), config, dtypes, read_one, found, format, extras=extras, notes=notes)


def _require_logits(folder: Path, fields: Mapping[str, Any], kind: str, arrays: Mapping[str, Stored]) -> None:
    """Raises a UserError if config.json says that the logits have a kernel of their own and the weights lack it.

    transformers leaves out of config.json what is the default of a family: Llama's logits are not tied.
    """
    if kind == LONGT5:  # they always are: tie_word_embeddings only says whether they are scaled
        return
    tied = fields.get('tie_word_embeddings', kind not in UNTIED)
    head = dict(table_of(kind))['decoder/logits_dense/kernel']
    if tied is False and head not in arrays:
        problem = f'config.json says that the logits are not tied to the embedding, but {head} is missing'
        fix = 'Save the model with its head (T5ForConditionalGeneration, LlamaForCausalLM), or set tie_word_embeddings'
        raise UserError(f'{folder}: {problem}. {fix}.')


def _generation_notes(folder: Path, files: Mapping[str, bytes], vocabulary: Vocabulary, rows: int) -> list[str]:
    """A note if generation_config.json ends texts with another token than the tokenizer.

    Raises:
        UserError: the file is broken, or names an id that the embedding lacks.
    """
    file = folder / 'generation_config.json'
    content = files.get(file.name)
    given = None if content is None else parse_json(file, content).get('eos_token_id')
    ids = given if isinstance(given, list) else [] if given is None else [given]
    for id in ids:
        if not isinstance(id, int) or not 0 <= id < rows:
            fix = 'Correct it, or remove the file.'
            raise UserError(f'{file}: eos_token_id {id!r} is no id of the model, which has {rows:,}. {fix}')
    known = (vocabulary.eos_id, vocabulary.turn_end_id)
    if not ids or set(ids) & set(known):
        return []
    ours = vocabulary.turn_end_id
    spelled = [f'{id} ({vocabulary.decode([id])!r})' for id in ids]
    return [f'{file} ends texts with {", ".join(spelled)}, the tokenizer with {ours}: texts end with {ours} here']


def _without_copies(folder: Path, arrays: dict[str, Stored], kind: str) -> dict[str, Stored]:
    """The arrays without those that no model reads, and with the token embedding under one name (tied logits too)."""
    arrays = dict(arrays)
    embedding = dict(table_of(kind))['token_embedder/embedding']
    copies = dict.fromkeys(names.HF_T5_COPIES, embedding) if kind in T5_FAMILY else {}
    copies |= names.HF_T5GEMMA2_COPIES if kind == T5GEMMA2 else {}
    for name, original in copies.items():
        if name in arrays and original not in arrays:
            arrays[original] = arrays.pop(name)  # some files have the embedding only under another name
    for name, original in copies.items():
        if name in arrays and not _equal(arrays[name], arrays[original]):
            problem = f'{name} differs from {original}: encoder and decoder have different token embeddings'
            raise UserError(f"{folder}: {problem}, which t5flan's models do not support.")
        arrays.pop(name, None)
    head = dict(table_of(kind))['decoder/logits_dense/kernel']
    if head in arrays and embedding in arrays and _equal(arrays[head], arrays[embedding]):
        del arrays[head]
    unread = names.HF_T5_UNREAD if kind in T5_FAMILY else [names.HF_LLAMA_UNREAD[0].format(i=i) for i in range(1000)]
    for name in unread:
        arrays.pop(name, None)
    return arrays


def _tokens_of(original: Mapping[str, Any], eos_id: int) -> dict[str, Any]:
    """The ids of special tokens in the config.json that a checkpoint came from, if the vocabulary is still its own."""
    ends = original.get('eos_token_id')
    if eos_id not in (ends if isinstance(ends, list) else [ends]):
        return {}
    names = ('bos_token_id', 'eos_token_id', 'pad_token_id', 'decoder_start_token_id')
    return {name: original[name] for name in names if name in original}


def _equal(a: Stored, b: Stored) -> bool:
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return False
    rows = strips(a.shape, a.dtype)
    return all(np.array_equal(a.rows(*one).view(np.uint8), b.rows(*one).view(np.uint8)) for one in rows)


def write(checkpoint: Checkpoint, folder: Path, allow_nan: bool = False, shard_size: int = SHARD_SIZE) -> list[str]:
    """Writes a folder that `from_pretrained` loads; it exists and is empty.

    Returns:
        What could not be kept, one line each.

    Raises:
        UserError: no family of Hugging Face has such a model.
    """
    config = checkpoint.config
    extras = dict(checkpoint.extras)
    original = json.loads(extras.pop('config.json', b'{}'))
    kind = family_of(config, checkpoint.where, original.get('model_type'))
    if kind == 't5' and original.get('model_type') == 'mt5' and not config.tie_embeddings:
        kind = 'mt5'
    shapes = names.shapes(config)
    floats = [checkpoint.dtypes[name].name for name in shapes]
    start, eos = checkpoint.vocabulary.start_id, checkpoint.vocabulary.eos_id
    before = original if original.get('model_type') == kind else {}
    fields = to_fields(config, kind, max(set(floats), key=floats.count), start, eos, before)
    if original.get('model_type') == kind:
        replaced = ('num_decoder_layers', *REPLACED)
        kept = {name: value for name, value in original.items() if name not in replaced}
        fields = kept | fields | _tokens_of(original, eos)
    elif config.architecture == 'decoder_only' and checkpoint.feature_lengths:
        fields['max_position_embeddings'] = sum(checkpoint.feature_lengths.values())  # a row of training
    (folder / 'config.json').write_text(json.dumps(fields, indent=2, sort_keys=True) + '\n', 'utf-8')
    files, notes = tokenizer_files(checkpoint.vocabulary, kind, extras)
    if 'generation_config.json' not in files:
        start_name = 'decoder_start_token_id' if kind in T5_FAMILY else 'bos_token_id'
        ids = {start_name: start, 'eos_token_id': eos, 'pad_token_id': 0}
        files['generation_config.json'] = json.dumps(ids).encode()
    longest = fields.get('max_position_embeddings')
    if longest and 'tokenizer_config.json' in files and 'tokenizer_config.json' not in extras:
        settings = json.loads(files['tokenizer_config.json'])
        files['tokenizer_config.json'] = json.dumps(settings | {'model_max_length': longest}, indent=2).encode()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    table = table_of(kind)
    arrays = {
        names.hf_name(table, shape, layer): (names.hf_shape(shape), checkpoint.dtypes[shape.name])
        for shape, layer in names.all_pieces(config)
    }
    writer = FolderWriter(folder, arrays, shard_size)
    for shape, layer, array in checkpoint.pieces(allow_nan):
        matrix = shape.matrix
        array = array.reshape(matrix or names.hf_shape(shape))
        writer.write(names.hf_name(table, shape, layer), array, matrix is not None)
    writer.close()
    return notes
