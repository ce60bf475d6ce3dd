"""T5X checkpoints <-> a Checkpoint.

Read: the format of the public checkpoints (checkpoint_N/checkpoint, a msgpack file that points at zarr arrays beside it),
the single file that holds its arrays itself, and the Orbax form (checkpoint_N/state); here or under gs://. A folder with
several steps gives its last. Written: the first of these, which every T5X reads, with a config.gin for T5X beside it.

T5X's files do not say what model they are of. Sizes are read off the arrays; the rest (activations, the largest distance)
comes from a config.gin beside them, from a packaged model of the same sizes, or from T5 1.1's, and is said.
"""

import ast
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import serialization, traverse_util

from t5flan.conversion import names, zarr_arrays
from t5flan.conversion.checkpoint import Checkpoint, one_dtype
from t5flan.conversion.zarr_arrays import Folder, StoredArray, one_line
from t5flan.data.vocabulary.byte_level import ByteVocabulary, IdsVocabulary
from t5flan.data.vocabulary.sentencepiece_model import SentencePieceVocabulary
from t5flan.data.vocabulary.vocabulary import Vocabulary
from t5flan.errors import UserError
from t5flan.models.config import ModelConfig

VERSION = 3  # of T5X's format
_PREFIX = 'checkpoint_'
_GIN_FIELDS = {'mlp_activations', 'head_dim', 'dropout_rate'}


def read(
    where: str,
    vocabulary: Vocabulary | None = None,
    known_models: Callable[[], list[ModelConfig]] = list,
    settings: Callable[[dict[str, Any]], ModelConfig] | None = None,
) -> Checkpoint:
    """What a T5X checkpoint holds.

    Args:
        where: checkpoint_N, a folder of such, or a single file; local or gs://.
        vocabulary: the vocabulary; T5X's files have none (a config.gin may name one that can be read).
        known_models: makes the models among which one of the same sizes is looked for.
        settings: what was found out as fields of a ModelConfig -> the ModelConfig, with what the user sets.

    Raises:
        UserError: no checkpoint, a broken one, or arrays that are no T5.
    """
    arrays, step, gin = _open(where)
    target = {name.removeprefix('target/'): array for name, array in arrays.items() if name.startswith('target/')}
    if not target:
        raise UserError(
            f'{where} holds no parameters (target/…); it has {", ".join(sorted(arrays)[:3]) or "nothing"}. Give a '
            'checkpoint of T5X.'
        )
    config, notes = _config(where, target, gin.text, known_models, settings)
    places = _places(where, config, target)
    dtypes = {
        name: one_dtype(where, name, {place(layer)[0].dtype for layer in names.shapes(config)[name].pieces})
        for name, place in places.items()
    }

    def read_one(shape: names.Shape, layer: int | None) -> np.ndarray:
        array, scanned = places[shape.name](layer)
        whole = not isinstance(array, StoredArray)
        if scanned:
            values = np.ascontiguousarray(np.take(array, layer, 1)) if whole else array.layer(1, layer)
        else:
            values = array if whole else array.read()
        return values.reshape(shape.one).astype(dtypes[shape.name], copy=False)

    if any(name.startswith('state/param_states/') for name in arrays):
        notes.append('the optimizer state was left behind')
    found = vocabulary or _vocabulary(gin) or IdsVocabulary(config.vocab_size)
    if isinstance(found, IdsVocabulary):
        notes.append(
            f'{where} has no vocabulary: the result takes and gives token ids, not text. Set --vocabulary to bring one.'
        )
    return Checkpoint(where, config, dtypes, read_one, found, 'encoder_decoder', step, notes=tuple(notes))


# -- Opening --------------------------------------------------------------------------------------------------------


class _Gin(NamedTuple):
    """A config.gin and where it lies; no text where there is none."""

    text: str = ''
    folder: str = ''


def _open(where: str) -> tuple[dict[str, Any], int, _Gin]:
    """(name -> array or StoredArray, step, the config.gin beside it)."""
    if '://' not in where and Path(where).is_file():
        file = Path(where)
        if file.name == 'checkpoint' and file.parent.name.startswith(_PREFIX):
            return _open(str(file.parent))
        return (*_unpack(where, file.read_bytes(), None), _gin_beside(Folder(str(file.parent))))
    if '://' not in where and not Path(where).is_dir():
        raise UserError(
            f'{where} does not exist. Give a T5X checkpoint: checkpoint_N, the folder above it, or a single file.'
        )
    folder = Folder(where)
    packed = folder.read_file('checkpoint')
    if packed is not None:
        return (*_unpack(f'{where}/checkpoint', packed, folder), _gin_beside(folder))
    if _is_orbax(folder, 'state/'):
        return (*_open_orbax(f'{folder.where}/state', folder.where), _gin_beside(folder))
    if _is_orbax(folder, ''):
        return (*_open_orbax(folder.where, folder.where), _gin_beside(folder))
    steps = {int(found[1]) for name in folder.names() if (found := re.match(rf'{_PREFIX}(\d+)/', name))}
    if not steps:
        raise UserError(
            f'{where} has no file `checkpoint` and no folder `state`: it is no checkpoint of T5X, or not a whole one. '
            'Copy it again, or give the folder that holds checkpoint_N.'
        )
    return _open(f'{folder.where}/{_PREFIX}{max(steps)}')


def _is_orbax(folder: Folder, under: str) -> bool:
    return any(folder.read_file(under + name) is not None for name in ('_METADATA', 'manifest.ocdbt'))


def _gin_beside(folder: Folder) -> _Gin:
    """config.gin in the folder of the checkpoint or above it."""
    for place in (folder.where, folder.where.rsplit('/', 1)[0]):
        if place and not place.endswith(':/'):
            found = Folder(place).read_file('config.gin')
            if found is not None:
                return _Gin(found.decode('utf-8', 'replace'), place)
    return _Gin()


def _unpack(file: str, packed: bytes, folder: Folder | None) -> tuple[dict[str, Any], int]:
    try:
        tree = serialization.msgpack_restore(packed)
        optimizer = tree['optimizer']
        step = int(np.asarray(optimizer['state']['step']))
    except Exception as error:
        raise UserError(
            f'{file} is no checkpoint file of T5X, or not a whole one ({type(error).__name__}: {one_line(error)[:80]}). '
            'Copy it again.'
        ) from None
    arrays: dict[str, Any] = {}
    for name, leaf in zarr_arrays.nested_names(optimizer).items():
        if isinstance(leaf, Mapping):
            path = leaf.get('path') or leaf['kvstore']['path']
            if name.startswith('target/'):
                if folder is None:
                    raise UserError(f'{file} points at arrays beside it. Give the folder checkpoint_N.')
                arrays[name] = folder.open(path.rstrip('/').rsplit('/', 1)[-1])
            else:
                arrays[name] = None
        else:
            arrays[name] = np.asarray(leaf)
    return arrays, step


def _open_orbax(where: str, above: str) -> tuple[dict[str, Any], int]:
    folder = Folder(where)
    found = folder.array_names()
    arrays: dict[str, Any] = {}
    for name in found:
        plain = name.replace('.', '/')
        arrays[plain] = folder.open(name) if plain.startswith('target/') else None
    number = re.search(rf'{_PREFIX}(\d+)$', above)
    step = int(folder.open('state.step').read()) if 'state.step' in found else int(number[1]) if number else 0
    return arrays, step


# -- What model it is -----------------------------------------------------------------------------------------------


def _config(
    where: str,
    target: Mapping[str, Any],
    gin: str,
    known_models: Callable[[], list[ModelConfig]],
    settings: Callable[[dict[str, Any]], ModelConfig] | None,
) -> tuple[ModelConfig, list[str]]:
    sizes = _sizes(where, target)
    notes, chosen = [], _gin_settings(gin)
    if not chosen:
        gated = sizes.pop('gated')
        alike = [
            model
            for model in known_models()
            if all(
                getattr(model, field) == value
                for field, value in sizes.items()
                if field not in ('tie_embeddings', 'vocab_size')
            )
        ]
        chosen = {'mlp_activations': ('gelu', 'linear') if gated else ('relu',)}
        source = 'T5 1.1' if gated else 'T5 1.0'
        alike = [model for model in alike if len(model.mlp_activations) == 1 + gated]
        if alike and len({model.mlp_activations for model in alike}) == 1:
            chosen['mlp_activations'] = alike[0].mlp_activations
            source = 'the packaged model of the same sizes'
        notes.append(
            f'the checkpoint does not say its activations: taken are {chosen["mlp_activations"]}, as of {source} '
            '(--gin.ModelConfig.mlp_activations=… sets others)'
        )
    sizes.pop('gated', None)
    fields = {**sizes, **chosen, 'dtype': 'float32'}
    made = settings(fields) if settings else ModelConfig(**fields)
    return made, notes if made.mlp_activations == tuple(chosen['mlp_activations']) else []


def _sizes(where: str, target: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of ModelConfig that the shapes of the arrays tell, and 'gated'."""
    scanned = 'encoder/encoder/mlp/wo/kernel' in target
    per_layer = (
        'encoder/encoder/relpos_bias/rel_embedding' in target or 'encoder/layers_0/relpos_bias/rel_embedding' in target
    )
    first = (lambda side, rest: f'{side}/{side}/{rest}') if scanned else (lambda side, rest: f'{side}/layers_0/{rest}')
    table = first('encoder', 'relpos_bias/rel_embedding') if per_layer else 'encoder/relpos_bias/rel_embedding'
    needed = (
        'token_embedder/embedding',
        first('encoder', 'mlp/wo/kernel'),
        first('decoder', 'mlp/wo/kernel'),
        table,
        first('encoder', 'attention/query/kernel'),
    )
    for name in needed:
        if name not in target:
            raise UserError(
                f'{where} lacks target/{name}: it is no T5 of T5X (it has {", ".join(sorted(target)[:3])}, …). '
                'Encoder-decoders of T5X are converted.'
            )
    vocab_size, emb_dim = target[needed[0]].shape
    heads, buckets = target[table].shape[0], target[table].shape[-1]
    query = target[needed[4]].shape
    layers = lambda side, wo: (
        target[wo].shape[1]
        if scanned
        else 1
        + max(int(name.split('/')[1].removeprefix('layers_')) for name in target if name.startswith(f'{side}/layers_'))
    )
    return {
        'architecture': 'encoder_decoder',
        'vocab_size': vocab_size,
        'emb_dim': emb_dim,
        'num_heads': heads,
        'head_dim': int(np.prod(query)) // (emb_dim * heads * (query[1] if scanned else 1)),
        'mlp_dim': target[needed[1]].shape[0],
        'num_encoder_layers': layers('encoder', needed[1]),
        'num_decoder_layers': layers('decoder', needed[2]),
        'relative_buckets': buckets,
        'relative_bias_per_layer': per_layer,
        'tie_embeddings': 'decoder/logits_dense/kernel' not in target,
        'gated': first('encoder', 'mlp/wi_0/kernel') in target,
    }


def _gin_settings(text: str) -> dict[str, Any]:
    """The fields of T5Config that a config.gin of T5X sets: `network.T5Config.field = …`, or in a block below `network.T5Config:`."""
    found: dict[str, Any] = {}
    inside = False
    for line in text.splitlines():
        if re.match(r'\S', line):
            inside = bool(re.match(r'(\w+\.)*T5Config:\s*(#.*)?$', line))
        match = re.match(r'(?:\w+\.)*T5Config\.(\w+)\s*=\s*(.+)', line) or (
            inside and re.match(r'\s+(\w+)\s*=\s*(.+)', line)
        )
        if match and match[1] in _GIN_FIELDS:
            try:
                found[match[1]] = ast.literal_eval(match[2].split('#')[0].strip())
            except (ValueError, SyntaxError):
                continue  # a macro; what it stands for is not needed to read the parameters
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
        return None  # whoever reads a copy here may have no access to the bucket, and waits long to learn it
    sentinels = re.search(r'SentencePieceVocabulary\.extra_ids\s*=\s*(\d+)', gin.text)
    model = Folder(file.rsplit('/', 1)[0]).read_file(file.rsplit('/', 1)[1])
    return (
        None if model is None else SentencePieceVocabulary(file, int(sentinels[1]) if sentinels else 100, model=model)
    )


def _places(where: str, config: ModelConfig, target: Mapping[str, Any]) -> dict[str, Callable]:
    """t5flan's name -> layer -> (the array, whether it holds all layers on axis 1).

    Raises:
        UserError: an array is missing, of another shape, or there is one too many.
    """
    scanned = 'encoder/encoder/mlp/wo/kernel' in target
    unused = dict(target)
    places: dict[str, Callable] = {}
    for name, shape in names.shapes(config).items():
        if scanned:
            theirs = {None: names.t5x_scanned_name(shape)}
            expected = [shape.one if shape.layers is None else (shape.one[0], shape.layers, *shape.one[1:])]
            if shape.matrix is not None and shape.layers is not None:
                expected.append((shape.matrix[0], shape.layers, shape.matrix[1]))
        else:
            theirs = {layer: names.t5x_name(shape, layer) for layer in shape.pieces}
            expected = [shape.one] + ([shape.matrix] if shape.matrix is not None else [])
        found = {}
        for layer, one in theirs.items():
            if one not in target:
                raise UserError(
                    f'{where} lacks target/{one} {list(expected[0])}. Copy the checkpoint again, or set ModelConfig as '
                    'it was trained.'
                )
            found[layer] = array = unused.pop(one)
            if tuple(array.shape) not in expected:
                raise UserError(
                    f'{where}: target/{one} has shape {list(array.shape)}, expected {list(expected[-1])}. Set '
                    'ModelConfig as it was trained.'
                )
        stacked = scanned and shape.layers is not None
        places[name] = lambda layer, found=found, stacked=stacked: (found[None if stacked else layer], stacked)
    if unused:
        raise UserError(
            f'{where} holds target/{min(unused)}, which a T5 of these sizes does not have ({len(unused)} such arrays). '
            'It is another model, which is not converted.'
        )
    return places


# -- Writing --------------------------------------------------------------------------------------------------------


def write(checkpoint: Checkpoint, folder: Path, allow_nan: bool = False) -> list[str]:
    """Writes FOLDER/checkpoint_STEP and a config.gin; the folder exists and is empty.

    A model with a relative bias in each layer takes T5X's scalable names, the others those of examples/t5.

    Returns:
        What could not be kept, a line each.

    Raises:
        UserError: T5X has no such model.
    """
    config = checkpoint.config
    _check_writable(config, checkpoint.where)
    step = folder / f'{_PREFIX}{checkpoint.step}'
    step.mkdir()
    joined = not config.relative_bias_per_layer
    target: dict[str, Any] = {}
    for shape, layer, array in checkpoint.pieces(allow_nan):
        name = names.t5x_name(shape, layer)
        dotted = 'target.' + name.replace('/', '.')
        array = array.reshape(names.t5x_unscanned_shape(shape, joined))
        metadata = zarr_arrays.write_array(step / dotted, array)
        target[name] = {
            'driver': 'zarr',
            'dtype': array.dtype.name,
            'kvstore': {'driver': 'file', 'path': f'{dotted}/'},
            'metadata': {key: metadata[key] for key in ('chunks', 'compressor', 'shape')},
        }
    # No `param_states`: T5X itself trips over an empty one.
    tree = {
        'target': traverse_util.unflatten_dict(target, sep='/'),
        'state': {'step': np.asarray(checkpoint.step, np.int32)},
    }
    (step / 'checkpoint').write_bytes(serialization.msgpack_serialize({'version': VERSION, 'optimizer': tree}))
    notes = []
    vocabulary = checkpoint.vocabulary
    if isinstance(vocabulary, SentencePieceVocabulary):
        (folder / 'sentencepiece.model').write_bytes(vocabulary.model)
        if vocabulary.mode_tokens:
            notes.append(f'T5X has no mode tokens: {", ".join(vocabulary.mode_tokens)} were left behind')
    elif not isinstance(vocabulary, ByteVocabulary):
        notes.append('T5X reads SentencePiece models and bytes: the vocabulary was left behind')
    (folder / 'config.gin').write_text(_gin_text(config, vocabulary), 'utf-8')
    return notes


def _check_writable(config: ModelConfig, where: str) -> None:
    needed = {
        'architecture': 'encoder_decoder',
        'position': 'relative_bias',
        'norm': 'rms',
        'scale_attention': False,
        'norm_scale_plus_one': False,
        'scale_embedding': False,
        'attention_soft_cap': None,
        'logits_soft_cap': None,
        'norm_epsilon': 1e-6,
        'relative_max_distance': 128,
    }
    if config.tie_embeddings:
        needed['scale_tied_logits'] = True
    for field, value in needed.items():
        if getattr(config, field) != value:
            raise UserError(
                f"{where}: T5X's T5 has ModelConfig.{field}={value!r}, this model {getattr(config, field)!r}: it cannot be "
                'written as one.'
            )


def _gin_text(config: ModelConfig, vocabulary: Vocabulary) -> str:
    lines = [
        '# What T5X needs to run this checkpoint.',
        'from __gin__ import dynamic_registration',
        '',
        'import seqio',
        f'from t5x.examples.{"scalable_t5" if config.relative_bias_per_layer else "t5"} import network',
        '',
    ]
    if isinstance(vocabulary, ByteVocabulary):
        lines += ['VOCABULARY = @seqio.ByteVocabulary()', '']
    elif isinstance(vocabulary, SentencePieceVocabulary):
        lines += [
            'VOCABULARY = @seqio.SentencePieceVocabulary()',
            'seqio.SentencePieceVocabulary.sentencepiece_model_file = "sentencepiece.model"',
            f'seqio.SentencePieceVocabulary.extra_ids = {vocabulary.extra_ids}',
            '',
        ]
    lines += ['network.T5Config:', f'  vocab_size = {config.vocab_size}', "  dtype = 'bfloat16'"]
    lines += [
        f'  {field} = {getattr(config, field)}'
        for field in ('emb_dim', 'num_heads', 'num_encoder_layers', 'num_decoder_layers', 'head_dim', 'mlp_dim')
    ]
    lines += [
        f'  mlp_activations = {config.mlp_activations!r}',
        f'  dropout_rate = {config.dropout_rate}',
        f'  logits_via_embedding = {config.tie_embeddings}',
    ]
    if config.relative_bias_per_layer:
        lines += ['  scan_layers = False']
    return '\n'.join(lines) + '\n'
