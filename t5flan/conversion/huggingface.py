"""Hugging Face folders: config.json, safetensors and tokenizer files <-> a Checkpoint. No torch is needed."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from t5flan.conversion import names
from t5flan.conversion.checkpoint import Checkpoint, one_dtype
from t5flan.conversion.huggingface_config import T5_FAMILY, family_of, read_json, table_of, to_fields, to_model_config
from t5flan.conversion.huggingface_tokenizer import read_vocabulary, tokenizer_files
from t5flan.conversion.safetensors_files import FolderWriter, Stored, read_folder, strips
from t5flan.data.vocabulary.vocabulary import Vocabulary
from t5flan.errors import UserError

SHARD_SIZE = 5 * 10**9  # bytes, as transformers cuts them
LARGEST_EXTRA = 2**26  # bytes: tokenizer files travel, forgotten weights do not
_EXTRAS = (
    'config.json',
    'generation_config.json',
    'tokenizer.json',
    'tokenizer_config.json',
    'special_tokens_map.json',
    'added_tokens.json',
    'spiece.model',
    'tokenizer.model',
    'chat_template.jinja',
)


def read(folder: Path, vocabulary: Vocabulary | None = None) -> Checkpoint:
    """What a folder written by save_pretrained holds.

    Args:
        vocabulary: instead of the folder's own tokenizer.

    Raises:
        UserError: files are missing or broken, the family is another, or the arrays are not those of config.json.
    """
    if not folder.is_dir():
        raise UserError(f'{folder} is no folder. Give one written by save_pretrained (config.json, model.safetensors).')
    fields = read_json(folder / 'config.json')
    arrays = read_folder(folder)
    kind = fields.get('model_type')
    arrays = _without_copies(folder, dict(arrays), kind)
    config = to_model_config(folder / 'config.json', fields, tied='lm_head.weight' not in arrays)
    places = _places(folder, config, kind, arrays)
    shapes = names.shapes(config)
    dtypes = {
        name: one_dtype(str(folder), name, {places[name, layer].dtype for layer in shape.pieces})
        for name, shape in shapes.items()
    }

    def read_one(shape: names.Shape, layer: int | None) -> np.ndarray:
        stored = places[shape.name, layer]
        array = stored.read() if shape.matrix is None else stored.read_transposed()
        return array.reshape(shape.one).astype(dtypes[shape.name], copy=False)

    extras = {
        name: (folder / name).read_bytes()
        for name in _EXTRAS
        if (folder / name).is_file() and (folder / name).stat().st_size <= LARGEST_EXTRA
    }
    found, notes = (vocabulary, ()) if vocabulary is not None else read_vocabulary(folder, fields)
    decoder = config.architecture == 'decoder_only'
    return Checkpoint(
        str(folder),
        config,
        dtypes,
        read_one,
        found,
        'causal_lm' if decoder else 'encoder_decoder',
        extras=extras,
        notes=notes,
    )


def _without_copies(folder: Path, arrays: dict[str, Stored], kind: Any) -> dict[str, Stored]:
    """The arrays without second names of the token embedding, among them logits tied to it, and without what no model reads."""
    table = table_of(kind)
    embedding = dict(table)['token_embedder/embedding']
    copies = names.HF_T5_COPIES if kind in T5_FAMILY else ()
    for name in copies:
        if name in arrays and embedding not in arrays:
            arrays[embedding] = arrays.pop(name)  # some files have the embedding under its second name alone
    for name in copies:
        if name in arrays and not _equal(arrays[name], arrays[embedding]):
            raise UserError(
                f'{folder}: {name} differs from {embedding}: encoder and decoder embed tokens differently, '
                "which t5flan's models do not."
            )
        arrays.pop(name, None)
    if 'lm_head.weight' in arrays and embedding in arrays and _equal(arrays['lm_head.weight'], arrays[embedding]):
        del arrays['lm_head.weight']
    unread = names.HF_T5_UNREAD if kind in T5_FAMILY else [names.HF_LLAMA_UNREAD[0].format(i=i) for i in range(1000)]
    for name in unread:
        arrays.pop(name, None)
    return arrays


def _equal(a: Stored, b: Stored) -> bool:
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return False
    return all(
        np.array_equal(a.rows(*strip).view(np.uint8), b.rows(*strip).view(np.uint8))
        for strip in strips(a.shape, a.dtype)
    )


def _places(folder: Path, config: Any, kind: str, arrays: Mapping[str, Stored]) -> dict[tuple[str, int | None], Stored]:
    """(t5flan's name, layer) -> where it lies.

    Raises:
        UserError: an array is missing, of another shape, or there is one too many.
    """
    table, places, unused = table_of(kind), {}, dict(arrays)
    for shape, layer in names.all_pieces(config):
        name, expected = names.hf_name(table, shape, layer), names.hf_shape(shape)
        stored = unused.pop(name, None)
        if stored is None:
            raise UserError(
                f'{folder} lacks {name} {list(expected)}, which config.json ({kind}) asks for. Download the folder '
                'again, or mend config.json.'
            )
        if stored.shape != expected:
            raise UserError(
                f'{folder}: {name} has shape {list(stored.shape)}, config.json ({kind}) asks for {list(expected)}. '
                'They do not belong together.'
            )
        places[shape.name, layer] = stored
    if unused:
        name = min(unused)
        raise UserError(
            f'{folder} holds {name} {list(unused[name].shape)}, which a {kind} model of this config.json does not have '
            f'({len(unused)} such arrays). Mend config.json, or save the model alone.'
        )
    return places


def write(checkpoint: Checkpoint, folder: Path, allow_nan: bool = False, shard_size: int = SHARD_SIZE) -> list[str]:
    """Writes a folder that `from_pretrained` loads; `folder` exists and is empty.

    Returns:
        What could not be kept, a line each.

    Raises:
        UserError: no family of Hugging Face has such a model.
    """
    config = checkpoint.config
    kind = family_of(config, checkpoint.where)
    extras = dict(checkpoint.extras)
    before = json.loads(extras.pop('config.json', b'{}'))
    if kind == 't5' and before.get('model_type') == 'mt5' and not config.tie_embeddings:
        kind = 'mt5'
    shapes = names.shapes(config)
    floats = [checkpoint.dtypes[name].name for name in shapes]
    start, eos = checkpoint.vocabulary.start_id, checkpoint.vocabulary.eos_id
    fields = to_fields(config, kind, max(set(floats), key=floats.count), start, eos)
    if before.get('model_type') != kind:
        before = {}
    kept = {name: value for name, value in before.items() if name not in ('num_decoder_layers', 'rope_scaling')}
    (folder / 'config.json').write_text(json.dumps(kept | fields, indent=2, sort_keys=True) + '\n', 'utf-8')
    files, notes = tokenizer_files(checkpoint.vocabulary, kind, extras)
    if 'generation_config.json' not in files:
        start_name = 'decoder_start_token_id' if kind in T5_FAMILY else 'bos_token_id'
        files['generation_config.json'] = json.dumps(
            {start_name: start, 'eos_token_id': eos, 'pad_token_id': 0}
        ).encode()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    table = table_of(kind)
    arrays = {
        names.hf_name(table, shape, layer): (names.hf_shape(shape), checkpoint.dtypes[name])
        for name, shape in shapes.items()
        for layer in shape.pieces
    }
    writer = FolderWriter(folder, arrays, shard_size)
    for shape, layer, array in checkpoint.pieces(allow_nan):
        matrix = shape.matrix
        writer.write(
            names.hf_name(table, shape, layer), array if matrix is None else array.reshape(matrix), matrix is not None
        )
    writer.close()
    return notes
