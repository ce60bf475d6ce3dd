"""T5X's forms: arrays in chunks or bfloat16, scanned layers, Orbax; what the files do not say; and broken files."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore as ts
from flax import serialization
from flax.traverse_util import unflatten_dict

from t5flan.conversion import convert, names, t5x
from t5flan.data.vocabulary.byte_level import ByteVocabulary
from t5flan.errors import UserError
from t5flan.models.config import ModelConfig
from tests.vocabulary import small_vocabulary_model

GOLDEN = Path(__file__).parent / 'golden'
FORMS = {
    'plain': {},
    'chunked': {'chunks': True},
    'bfloat16': {'dtype': 'bfloat16'},
    'scanned': {'scanned': True},
    'joined and scanned': {'scanned': True, 'joined': True},
    'orbax': {'orbax': True},
    'orbax scanned bfloat16': {'orbax': True, 'scanned': True, 'dtype': 'bfloat16'},
    'one file': {'one_file': True},
}


def target_of(source, scanned, joined) -> dict[str, np.ndarray]:
    """A checkpoint's arrays as in T5X, by name."""
    arrays, layers = {}, {}
    for shape, layer, array in source.pieces():
        if scanned and layer is not None:
            layers.setdefault(shape.name, []).append(array.reshape(names.t5x_unscanned_shape(shape, joined)))
            if layer == shape.layers - 1:
                arrays[names.t5x_scanned_name(shape)] = np.stack(layers[shape.name], 1)
        else:
            arrays[names.t5x_name(shape, layer)] = array.reshape(names.t5x_unscanned_shape(shape, joined))
    return arrays


def write_zarr(folder: Path, array: np.ndarray, chunks: bool) -> dict:
    sizes = [max(1, size // 2 + 1) for size in array.shape] if chunks else list(array.shape)
    metadata = {'shape': list(array.shape), 'chunks': sizes, 'compressor': {'id': 'gzip', 'level': 1}}
    store = ts.open(
        {'driver': 'zarr', 'kvstore': {'driver': 'file', 'path': f'{folder}/'}, 'metadata': metadata},
        dtype=ts.dtype(array.dtype),
        create=True,
    ).result()
    store.write(array).result()
    return {
        'driver': 'zarr',
        'dtype': array.dtype.name,
        'kvstore': {'driver': 'gfile', 'path': f'gs://elsewhere/{folder.name}/'},
        'metadata': metadata,
    }


def write_form(
    source, folder: Path, *, chunks=False, dtype=None, scanned=False, joined=None, orbax=False, one_file=False
):
    """Writes checkpoint_7 in a form of T5X's and returns its content."""
    source = source if dtype is None else source.cast(dtype)
    joined = (not scanned and not orbax) if joined is None else joined
    target = target_of(source, scanned, joined)
    step = folder / 'checkpoint_7'
    slots = {'v': np.zeros(3, np.float32)}
    if orbax:
        tree = {'target': unflatten_dict(target, sep='/'), 'state': {'step': np.int32(7), 'param_states': {'a': slots}}}
        handler = ocp.CompositeCheckpointHandler(state=ocp.PyTreeCheckpointHandler(use_ocdbt=True))
        with ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(step.absolute(), ocp.args.Composite(state=ocp.args.PyTreeSave(tree)))
        return source
    step.mkdir(parents=True)
    leaves = dict(target)
    if not one_file:
        for name, array in target.items():
            leaves[name] = write_zarr(step / f'target.{name.replace("/", ".")}', array, chunks)
    optimizer = {
        'target': unflatten_dict(leaves, sep='/'),
        'state': {'step': np.int32(7), 'param_states': {'a': slots}},
    }
    packed = serialization.msgpack_serialize({'version': 3, 'optimizer': optimizer})
    if one_file:
        step.rmdir()
        step.write_bytes(packed)
    else:
        (step / 'checkpoint').write_bytes(packed)
    return source


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('family', ['t5_1_1', 'umt5', 't5_1_0'])
def test_every_form_is_read(tmp_path, form, family):
    source = write_form(convert.read(GOLDEN / family, 'hf'), tmp_path, **FORMS[form])
    for where in (tmp_path / 'checkpoint_7', *([] if form == 'one file' else [tmp_path])):
        made = convert.read(where, 't5x')
        assert made.step == 7 and 'the optimizer state is not converted' in made.notes
        convert.compare(source, made, form)


def test_the_last_step_is_taken(tmp_path):
    source = convert.read(GOLDEN / 't5_1_1', 'hf')
    for step in (9, 10):
        convert.write(dataclasses.replace(source, step=step), tmp_path / str(step), 't5x')
        (tmp_path / str(step) / f'checkpoint_{step}').rename(tmp_path / f'checkpoint_{step}')
    assert convert.read(tmp_path, 't5x').step == 10
    assert convert.read(tmp_path / 'checkpoint_9', 't5x').step == 9
    assert convert.read(tmp_path / 'checkpoint_9' / 'checkpoint', 't5x').step == 9


def test_activations_come_from_gin_a_packaged_model_or_t5(tmp_path):
    source = convert.read(GOLDEN / 'ul2', 'hf')
    write_form(source, tmp_path / 'bare')
    made = convert.read(tmp_path / 'bare', 't5x')
    assert made.config.mlp_activations == ('gelu', 'linear')
    note = "assumed are ('gelu', 'linear'), those of T5 1.1 (--gin.ModelConfig.mlp_activations=… sets others)"
    assert note in made.notes[0]

    known = lambda: [
        dataclasses.replace(source.config, vocab_size=32128),
        ModelConfig('decoder_only', 9, 8, 2, 4, 8, 1),
    ]
    made = convert.read(tmp_path / 'bare', 't5x', None, known)
    assert made.config.mlp_activations == ('silu', 'linear') and 'the packaged model of the same sizes' in made.notes[0]

    chosen = lambda found: ModelConfig(**found | {'mlp_activations': ('relu', 'linear'), 'dropout_rate': 0.2})
    made = convert.read(tmp_path / 'bare', 't5x', None, known, chosen)
    assert (made.config.mlp_activations, made.config.dropout_rate) == (('relu', 'linear'), 0.2)
    assert not any('does not say its activations' in note for note in made.notes)

    convert.write(source, tmp_path / 'ours', 't5x')
    assert convert.read(tmp_path / 'ours', 't5x').config == source.config
    assert convert.read(tmp_path / 'ours' / 'checkpoint_0', 't5x').config == source.config
    block = "network.T5Config:\n  emb_dim = 16\n  mlp_activations = ('silu', 'linear')  # SwiGLU\n"
    (tmp_path / 'bare' / 'config.gin').write_text(f'DROPOUT_RATE = 0.1\n{block}  dropout_rate = %DROPOUT_RATE\n')
    assert convert.read(tmp_path / 'bare', 't5x').config.mlp_activations == ('silu', 'linear')


def test_the_vocabulary_is_kept_through_t5x(tmp_path):
    vocabulary = small_vocabulary_model(tmp_path / 'small.model')
    source = dataclasses.replace(convert.read(GOLDEN / 't5_1_1', 'hf'), vocabulary=vocabulary)
    convert.write(source, tmp_path / 'spm', 't5x')
    assert convert.read(tmp_path / 'spm', 't5x').vocabulary == vocabulary
    convert.write(dataclasses.replace(source, vocabulary=ByteVocabulary()), tmp_path / 'bytes', 't5x')
    assert convert.read(tmp_path / 'bytes', 't5x').vocabulary == ByteVocabulary()
    write_form(source, tmp_path / 'bare')
    assert 'Set --vocabulary to add one' in convert.read(tmp_path / 'bare', 't5x').notes[-1]
    assert convert.read(tmp_path / 'bare', 't5x', 'bytes').vocabulary == ByteVocabulary()


def damage_array(step: Path) -> None:
    chunk = next((step / 'target.encoder.layers_0.mlp.wo.kernel').glob('0*'))
    chunk.write_bytes(chunk.read_bytes()[:20])


@pytest.mark.parametrize(
    'damage, message',
    [
        (lambda step: (step / 'checkpoint').unlink(), 'has no file `checkpoint` and no folder `state`'),
        (
            lambda step: (step / 'checkpoint').write_bytes((step / 'checkpoint').read_bytes()[:300]),
            'is not a complete T5X checkpoint file',
        ),
        (lambda step: (step / 'checkpoint').write_bytes(b''), 'is not a complete T5X checkpoint file'),
        (
            lambda step: (step / 'target.encoder.layers_0.mlp.wo.kernel' / '.zarray').unlink(),
            'has no array target.encoder.layers_0.mlp.wo.kernel',
        ),
        (lambda step: (step / 'target.encoder.layers_0.mlp.wo.kernel' / '.zarray').write_text('{'), 'has no array'),
        (damage_array, 'target.encoder.layers_0.mlp.wo.kernel cannot be read'),
    ],
)
def test_a_broken_checkpoint_is_refused(tmp_path, damage, message):
    write_form(convert.read(GOLDEN / 't5_1_1', 'hf'), tmp_path)
    damage(tmp_path / 'checkpoint_7')
    with pytest.raises(UserError, match=message):
        for _ in convert.read(tmp_path / 'checkpoint_7', 't5x').pieces():
            pass


def test_a_missing_chunk_is_not_read_as_zeros(tmp_path):
    write_form(convert.read(GOLDEN / 't5_1_1', 'hf'), tmp_path, chunks=True)
    sorted((tmp_path / 'checkpoint_7' / 'target.encoder.layers_0.mlp.wo.kernel').glob('1.0'))[0].unlink()
    with pytest.raises(UserError, match='encoder.layers_0.mlp.wo.kernel cannot be read: .*missing'):
        list(convert.read(tmp_path, 't5x').pieces())


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda t: t.pop('decoder/layers_1/mlp/wo/kernel'), r'lacks target/decoder/layers_1/mlp/wo/kernel \[24, 16\]'),
        (
            lambda t: t.update({'decoder/layers_1/mlp/wo/kernel': np.zeros((24, 17), np.float32)}),
            r'wo/kernel has shape \[24, 17\], but a T5 of these sizes requires \[24, 16\]',
        ),
        (
            lambda t: t.update({'decoder/extra/scale': np.zeros(3, np.float32)}),
            'holds target/decoder/extra/scale, which a T5 of these sizes',
        ),
        (
            lambda t: t.pop('encoder/relpos_bias/rel_embedding'),
            'lacks target/encoder/relpos_bias/rel_embedding: it is not a T5',
        ),
        (lambda t: t.clear(), 'holds no parameters'),
    ],
)
def test_arrays_that_are_not_those_of_a_t5_are_named(tmp_path, change, message):
    target = target_of(convert.read(GOLDEN / 't5_1_1', 'hf'), False, True)
    change(target)
    packed = serialization.msgpack_serialize(
        {'version': 3, 'optimizer': {'target': unflatten_dict(target, sep='/'), 'state': {'step': np.int32(0)}}}
    )
    (tmp_path / 'x').write_bytes(packed)
    with pytest.raises(UserError, match=message):
        convert.read(tmp_path / 'x', 't5x')


def test_a_model_that_t5x_does_not_have_is_refused(tmp_path):
    source = convert.read(GOLDEN / 'llama', 'hf')
    with pytest.raises(
        UserError, match="ModelConfig.architecture='decoder_only', but T5X's T5 has 'encoder_decoder': the model cannot"
    ):
        convert.write(source, tmp_path / 'x', 't5x')
    far = convert.read(GOLDEN / 't5_1_1', 'hf')
    far = dataclasses.replace(far, config=dataclasses.replace(far.config, relative_max_distance=64))
    with pytest.raises(UserError, match="relative_max_distance=64, but T5X's T5 has 128"):
        convert.write(far, tmp_path / 'x', 't5x')
    with pytest.raises(UserError, match='does not exist'):
        convert.read(tmp_path / 'nowhere', 't5x')


def test_the_written_form_is_t5xs(tmp_path):
    source = convert.read(GOLDEN / 't5_1_1', 'hf')
    convert.write(dataclasses.replace(source, step=3), tmp_path / 'x', 't5x')
    tree = serialization.msgpack_restore((tmp_path / 'x' / 'checkpoint_3' / 'checkpoint').read_bytes())
    assert tree['version'] == t5x.VERSION and int(tree['optimizer']['state']['step']) == 3
    leaf = tree['optimizer']['target']['encoder']['layers_0']['attention']['query']['kernel']
    assert leaf['metadata']['shape'] == [16, 12]
    assert leaf['kvstore']['path'] == 'target.encoder.layers_0.attention.query.kernel/'
    header = json.loads((tmp_path / 'x' / 'checkpoint_3' / leaf['kvstore']['path'] / '.zarray').read_text())
    assert {key: header[key] for key in leaf['metadata']} == leaf['metadata']
