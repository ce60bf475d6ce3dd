"""T5X checkpoints <-> a Checkpoint.

It reads the format of the public checkpoints (checkpoint_N/checkpoint, a msgpack file that points to zarr arrays next
to it), the single file that holds its arrays itself, and the Orbax format (checkpoint_N/state), locally or under gs://.
Of several steps it reads the last. It writes the first format, which every T5X reads, and a config.gin.

T5X's files do not say which model they hold. The sizes come from the shapes of the arrays; the activations come from a
config.gin next to them, else from a packaged model of the same sizes, else from T5 1.1 or 1.0, with a note.
"""

import ast
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import serialization, traverse_util

from t5flan.conversion import names, zarr_arrays
from t5flan.conversion.checkpoint import T5_FIELDS, Checkpoint, match_arrays, one_dtype, require_fields
from t5flan.conversion.huggingface_tokenizer import IDS_ONLY
from t5flan.conversion.zarr_arrays import Folder, StoredArray, one_line
from t5flan.data.vocabulary.byte_level import ByteVocabulary, IdsVocabulary
from t5flan.data.vocabulary.sentencepiece_model import SentencePieceVocabulary
from t5flan.data.vocabulary.vocabulary import Vocabulary
from t5flan.errors import UserError
from t5flan.models.config import ModelConfig

VERSION = 3  # of T5X's format
_PREFIX = 'checkpoint_'
_GIN_FIELDS = {'mlp_activations', 'head_dim', 'dropout_rate'}
_SIZE_FIELDS = ('emb_dim', 'num_heads', 'num_encoder_layers', 'num_decoder_layers', 'head_dim', 'mlp_dim')
_GIN_HEAD = """\
# What T5X needs to run this checkpoint.
from __gin__ import dynamic_registration

import seqio
from t5x.examples.{example} import network

"""
_GIN_SENTENCEPIECE = """\
VOCABULARY = @seqio.SentencePieceVocabulary()
seqio.SentencePieceVocabulary.sentencepiece_model_file = "sentencepiece.model"
seqio.SentencePieceVocabulary.extra_ids = {extra_ids}

"""
_SCANNED = 'encoder/encoder/mlp/wo/kernel'  # an array that only scanned checkpoints have

Arrays = Mapping[str, Any]  # name -> NumPy array or StoredArray
Settings = Callable[[dict[str, Any]], ModelConfig]  # of the fields of a ModelConfig that were found
KnownModels = Callable[[], list[ModelConfig]]


def read(
    where: str,
    vocabulary: Vocabulary | None = None,
    known_models: KnownModels = list,
    settings: Settings | None = None,
) -> Checkpoint:
    """Opens a T5X checkpoint.

    Args:
        where: checkpoint_N, the folder above it, or a single file; local or gs://.
        vocabulary: the vocabulary; None looks for one that a config.gin names.
        known_models: returns the models to search for one of the same sizes.
        settings: maps the fields of a ModelConfig that were found to the ModelConfig, with the user's settings.

    Raises:
        UserError: there is no checkpoint, it is broken, or its arrays are not those of a T5.
    """
    arrays, step, gin = _open(where)
    target = {name.removeprefix('target/'): array for name, array in arrays.items() if name.startswith('target/')}
    if not target:
        held = ', '.join(sorted(arrays)[:3]) or 'nothing'
        raise UserError(f'{where} holds no parameters (target/…); it has {held}. Give a T5X checkpoint.')
    config, notes = _find_config(where, target, gin.text, known_models, settings)
    scanned = _SCANNED in target  # then one array has all layers, else each layer has its own
    pieces = {name: [None] if scanned else shape.pieces for name, shape in names.shapes(config).items()}
    keys = [(name, layer) for name, layers in pieces.items() for layer in layers]
    expected = {key: _their_array(names.shapes(config)[key[0]], key[1], scanned) for key in keys}
    stored = {f'target/{name}': array for name, array in target.items()}
    fix = 'Copy the checkpoint again, or set ModelConfig to the values of its training.'
    places = match_arrays(where, 'a T5 of these sizes', fix, expected, stored)
    layer_dtypes = {name: {places[name, layer].dtype for layer in layers} for name, layers in pieces.items()}
    dtypes = {name: one_dtype(where, name, found) for name, found in layer_dtypes.items()}

    def read_one(shape: names.Shape, layer: int | None) -> np.ndarray:
        array = places[shape.name, None if scanned else layer]
        if not scanned or layer is None:
            values = array.read() if isinstance(array, StoredArray) else array
        elif isinstance(array, StoredArray):
            values = array.layer(1, layer)
        else:
            values = np.ascontiguousarray(np.take(array, layer, 1))
        return values.reshape(shape.one).astype(dtypes[shape.name], copy=False)

    if any(name.startswith('state/param_states/') for name in arrays):
        notes.append('the optimizer state is not converted')
    vocabulary = vocabulary or _vocabulary(gin) or IdsVocabulary(config.vocab_size)
    if isinstance(vocabulary, IdsVocabulary):
        notes.append(f'{where} has no vocabulary: {IDS_ONLY}')
    return Checkpoint(where, config, dtypes, read_one, vocabulary, 'encoder_decoder', step, notes=tuple(notes))


# -- Opening --------------------------------------------------------------------------------------------------------


class _Gin(NamedTuple):
    """A config.gin and its folder; empty if there is none."""

    text: str = ''
    folder: str = ''


def _open(where: str) -> tuple[Arrays, int, _Gin]:
    """(arrays by name, step, the config.gin next to them)."""
    file = Path(where)
    if '://' not in where and file.is_file():
        if file.name == 'checkpoint' and file.parent.name.startswith(_PREFIX):
            return _open(str(file.parent))
        return (*_unpack(where, file.read_bytes(), None), _find_gin(Folder(str(file.parent))))
    if '://' not in where and not file.is_dir():
        fix = 'Give a T5X checkpoint: checkpoint_N, the folder above it, or a single file.'
        raise UserError(f'{where} does not exist. {fix}')
    folder = Folder(where)
    packed = folder.read_file('checkpoint')
    if packed is not None:
        return (*_unpack(f'{where}/checkpoint', packed, folder), _find_gin(folder))
    for inside in ('state/', ''):
        if any(folder.read_file(inside + name) is not None for name in ('_METADATA', 'manifest.ocdbt')):
            return (*_open_orbax(f'{folder.where}/{inside}', folder.where), _find_gin(folder))
    steps = {int(found[1]) for name in folder.names() if (found := re.match(rf'{_PREFIX}(\d+)/', name))}
    if not steps:
        problem = f'{where} has no file `checkpoint` and no folder `state`: it is not a complete T5X checkpoint'
        raise UserError(f'{problem}. Copy it again, or give the folder that holds checkpoint_N.')
    return _open(f'{folder.where}/{_PREFIX}{max(steps)}')


def _find_gin(folder: Folder) -> _Gin:
    """The config.gin in the folder of the checkpoint or above it."""
    for place in (folder.where, folder.where.rsplit('/', 1)[0]):
        if place and not place.endswith(':/'):
            found = Folder(place).read_file('config.gin')
            if found is not None:
                return _Gin(found.decode('utf-8', 'replace'), place)
    return _Gin()


def _unpack(file: str, packed: bytes, folder: Folder | None) -> tuple[Arrays, int]:
    """The arrays of a msgpack file, and those in `folder` that it points to."""
    try:
        optimizer = serialization.msgpack_restore(packed)['optimizer']
        step = int(np.asarray(optimizer['state']['step']))
    except Exception as error:
        problem = f'{type(error).__name__}: {one_line(error)[:80]}'
        raise UserError(f'{file} is not a complete T5X checkpoint file ({problem}). Copy it again.') from None
    arrays: dict[str, Any] = {}
    is_spec = lambda path, value: 'driver' in value  # of TensorStore, for an array
    for name, leaf in traverse_util.flatten_dict(optimizer, sep='/', is_leaf=is_spec).items():
        if not isinstance(leaf, Mapping):
            arrays[name] = np.asarray(leaf)
        elif not name.startswith('target/'):
            arrays[name] = None
        elif folder is None:
            raise UserError(f'{file} points to arrays next to it. Give the folder checkpoint_N.')
        else:
            path = leaf.get('path') or leaf['kvstore']['path']
            arrays[name] = folder.open(path.rstrip('/').rsplit('/', 1)[-1])
    return arrays, step


def _open_orbax(where: str, above: str) -> tuple[Arrays, int]:
    folder = Folder(where)
    found = folder.array_names()
    arrays = {
        name.replace('.', '/'): folder.open(name) if name.startswith(('target.', 'target/')) else None for name in found
    }
    number = re.search(rf'{_PREFIX}(\d+)$', above)
    step = int(folder.open('state.step').read()) if 'state.step' in found else int(number[1]) if number else 0
    return arrays, step


# -- The model ------------------------------------------------------------------------------------------------------


def _find_config(
    where: str, target: Arrays, gin: str, known_models: KnownModels, settings: Settings | None
) -> tuple[ModelConfig, list[str]]:
    """The model of a checkpoint, and notes about what was assumed."""
    sizes, gated = _sizes(where, target)
    chosen, note = _gin_settings(gin), ''
    if not chosen:
        activations, source = _likely_activations(sizes, gated, known_models())
        chosen = {'mlp_activations': activations}
        note = f'the checkpoint does not say its activations: assumed are {activations}, those of {source} '
        note += '(--gin.ModelConfig.mlp_activations=… sets others)'
    fields = {**sizes, **chosen, 'dtype': 'float32'}
    made = settings(fields) if settings else ModelConfig(**fields)
    return made, [note] if note and made.mlp_activations == tuple(chosen['mlp_activations']) else []


def _likely_activations(
    sizes: Mapping[str, Any], gated: bool, known_models: list[ModelConfig]
) -> tuple[tuple[str, ...], str]:
    """The activations of a model of these sizes, and the name of that model."""
    compared = sizes.keys() - {'tie_embeddings', 'vocab_size'}
    found = {
        model.mlp_activations
        for model in known_models
        if all(getattr(model, field) == sizes[field] for field in compared) and len(model.mlp_activations) == 1 + gated
    }
    if len(found) == 1:
        return found.pop(), 'the packaged model of the same sizes'
    return (('gelu', 'linear'), 'T5 1.1') if gated else (('relu',), 'T5 1.0')


def _sizes(where: str, target: Arrays) -> tuple[dict[str, Any], bool]:
    """The fields of ModelConfig that follow from the shapes of the arrays, and whether the MLP is gated."""
    scanned = _SCANNED in target
    first = lambda side, rest: f'{side}/{side}/{rest}' if scanned else f'{side}/layers_0/{rest}'
    layer_bias = first('encoder', 'relpos_bias/rel_embedding')
    bias = layer_bias if layer_bias in target else 'encoder/relpos_bias/rel_embedding'
    embedding, query = 'token_embedder/embedding', first('encoder', 'attention/query/kernel')
    encoder_wo, decoder_wo = (first(side, 'mlp/wo/kernel') for side in ('encoder', 'decoder'))
    for name in (embedding, encoder_wo, decoder_wo, bias, query):
        if name not in target:
            problem = f'it is not a T5 of T5X (it has {", ".join(sorted(target)[:3])}, …)'
            raise UserError(f'{where} lacks target/{name}: {problem}. Only encoder-decoders of T5X are converted.')

    def layers(side: str, wo: str) -> int:
        if scanned:
            return target[wo].shape[1]
        return len({name.split('/')[1] for name in target if name.startswith(f'{side}/layers_')})

    vocab_size, emb_dim = target[embedding].shape
    heads, query_shape = target[bias].shape[0], target[query].shape
    return {
        'architecture': 'encoder_decoder',
        'vocab_size': vocab_size,
        'emb_dim': emb_dim,
        'num_heads': heads,
        'head_dim': int(np.prod(query_shape)) // (emb_dim * heads * (query_shape[1] if scanned else 1)),
        'mlp_dim': target[encoder_wo].shape[0],
        'num_encoder_layers': layers('encoder', encoder_wo),
        'num_decoder_layers': layers('decoder', decoder_wo),
        'relative_buckets': target[bias].shape[-1],
        'relative_bias_per_layer': bias == layer_bias,
        'tie_embeddings': 'decoder/logits_dense/kernel' not in target,
    }, first('encoder', 'mlp/wi_0/kernel') in target


def _gin_settings(text: str) -> dict[str, Any]:
    """The fields of T5Config that a config.gin of T5X sets, in lines or in a block; {} without mlp_activations."""
    found: dict[str, Any] = {}
    inside = False  # a block that begins with `network.T5Config:`
    for line in text.splitlines():
        if re.match(r'\S', line):
            inside = bool(re.match(r'(\w+\.)*T5Config:\s*(#.*)?$', line))
        match = re.match(r'(?:\w+\.)*T5Config\.(\w+)\s*=\s*(.+)', line)
        if inside and match is None:
            match = re.match(r'\s+(\w+)\s*=\s*(.+)', line)
        if match and match[1] in _GIN_FIELDS:
            try:
                found[match[1]] = ast.literal_eval(match[2].split('#')[0].strip())
            except (ValueError, SyntaxError):
                continue  # a macro, whose value is not needed to read the parameters
    return found if 'mlp_activations' in found else {}


def _vocabulary(gin: _Gin) -> Vocabulary | None:
    """The vocabulary that a config.gin names, if it can be read."""
    if 'ByteVocabulary' in gin.text:
        return ByteVocabulary()
    named = re.search(r'sentencepiece_model_file\s*=\s*[\'"]([^\'"]+)', gin.text)
    if named is None:
        return None
    file = named[1] if '://' in named[1] or named[1].startswith('/') else f'{gin.folder}/{named[1]}'
    if file.startswith('gs://') and not gin.folder.startswith('gs://'):
        return None  # the reader of a local copy may have no access to the bucket, and would wait long to find out
    folder, _, name = file.rpartition('/')
    model = Folder(folder).read_file(name)
    if model is None:
        return None
    sentinels = re.search(r'SentencePieceVocabulary\.extra_ids\s*=\s*(\d+)', gin.text)
    vocabulary = SentencePieceVocabulary(file, int(sentinels[1]) if sentinels else 100, model=model)
    return vocabulary.without_duplicate_sentinels()


def _their_array(shape: names.Shape, layer: int | None, scanned: bool) -> tuple[str, list[tuple[int, ...]]]:
    """The name of a parameter's array and the shapes it may have: heads and kv joined or not, layers on axis 1."""
    allowed: list[tuple[int, ...]] = [shape.one] + ([shape.matrix] if shape.matrix is not None else [])
    if not scanned:
        return f'target/{names.t5x_name(shape, layer)}', allowed
    if shape.layers is not None:
        allowed = [(first, shape.layers, *rest) for first, *rest in allowed]
    return f'target/{names.t5x_scanned_name(shape)}', allowed


# -- Writing --------------------------------------------------------------------------------------------------------


def write(checkpoint: Checkpoint, folder: Path, allow_nan: bool = False) -> list[str]:
    """Writes FOLDER/checkpoint_STEP and a config.gin; the folder exists and is empty.

    A model with a relative bias in each layer takes the names of T5X's examples/scalable_t5, others those of
    examples/t5.

    Returns:
        What could not be kept, one line each.

    Raises:
        UserError: T5X has no such model.
    """
    config, vocabulary = checkpoint.config, checkpoint.vocabulary
    _check_writable(config, checkpoint.where)
    step = folder / f'{_PREFIX}{checkpoint.step}'
    step.mkdir()
    target: dict[str, Any] = {}
    for shape, layer, array in checkpoint.pieces(allow_nan):
        name = names.t5x_name(shape, layer)
        dotted = 'target.' + name.replace('/', '.')
        array = array.reshape(names.t5x_unscanned_shape(shape, joined=not config.relative_bias_per_layer))
        metadata = zarr_arrays.write_array(step / dotted, array)
        target[name] = {
            'driver': 'zarr',
            'dtype': array.dtype.name,
            'kvstore': {'driver': 'file', 'path': f'{dotted}/'},
            'metadata': {key: metadata[key] for key in ('chunks', 'compressor', 'shape')},
        }
    # No `param_states`: T5X itself fails on an empty one.
    state = {'step': np.asarray(checkpoint.step, np.int32)}
    tree = {'target': traverse_util.unflatten_dict(target, sep='/'), 'state': state}
    (step / 'checkpoint').write_bytes(serialization.msgpack_serialize({'version': VERSION, 'optimizer': tree}))
    (folder / 'config.gin').write_text(_gin_text(config, vocabulary), 'utf-8')
    if isinstance(vocabulary, ByteVocabulary):
        return []
    if not isinstance(vocabulary, SentencePieceVocabulary):
        return ['T5X reads SentencePiece models and bytes: the vocabulary was not kept']
    (folder / 'sentencepiece.model').write_bytes(vocabulary.model)
    dropped = ', '.join((*vocabulary.mode_tokens, *vocabulary.added_tokens))
    return [f'T5X has no mode tokens and no added tokens: {dropped} were not kept'] if dropped else []


def _check_writable(config: ModelConfig, where: str) -> None:
    needed = {'architecture': 'encoder_decoder', **T5_FIELDS, 'norm_epsilon': 1e-6, 'relative_max_distance': 128}
    if config.tie_embeddings:
        needed['scale_tied_logits'] = True
    require_fields(where, config, needed, "T5X's T5")


def _gin_text(config: ModelConfig, vocabulary: Vocabulary) -> str:
    named = ''
    if isinstance(vocabulary, ByteVocabulary):
        named = 'VOCABULARY = @seqio.ByteVocabulary()\n\n'
    elif isinstance(vocabulary, SentencePieceVocabulary):
        named = _GIN_SENTENCEPIECE.format(extra_ids=vocabulary.extra_ids)
    fields = {'vocab_size': config.vocab_size, 'dtype': 'bfloat16'}
    fields |= {field: getattr(config, field) for field in (*_SIZE_FIELDS, 'mlp_activations', 'dropout_rate')}
    fields['logits_via_embedding'] = config.tie_embeddings
    if config.relative_bias_per_layer:
        fields['scan_layers'] = False
    example = 'scalable_t5' if config.relative_bias_per_layer else 't5'
    settings = ''.join(f'  {name} = {value!r}\n' for name, value in fields.items())
    return _GIN_HEAD.format(example=example) + named + 'network.T5Config:\n' + settings
