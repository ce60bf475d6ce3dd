"""t5flan/training/checkpoints/whole.py: damage is found and named; resuming takes the newest whole step."""

import json
import os
import shutil

import jax
import jax.numpy as jnp
import pytest

from t5flan.errors import UserError
from t5flan.files import checksums
from t5flan.models.config import ModelConfig
from t5flan.training import checkpoints
from t5flan.training.checkpoints import whole
from t5flan.training.config import CheckpointConfig
from t5flan.training.state import TrainState, saved_position

MODEL = ModelConfig(
    architecture='decoder_only', vocab_size=32, emb_dim=8, num_heads=2, head_dim=4, mlp_dim=16, num_decoder_layers=1
)
STEPS = (2, 4, 6)
AT = {'slot': [0, 4], 'batch': 2, 'tasks': {'file': [4, 0]}}
POSITION = {'stream_count': 1, 'records': {'file': 39}, 'streams': {'0': AT}}


def state(step):
    tree = {'encoder': {'kernel': jnp.full((8, 4), float(step)), 'scale': jnp.full((3,), 2.0 * step, jnp.bfloat16)}}
    return TrainState(step=jnp.asarray(step, jnp.int32), model=tree, opt_state={'v': jnp.full(4, float(step))})


ABSTRACT = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(0))


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp('run')
    fields = {'size': 32, 'fingerprint': 'f'}
    checkpoints.Description(MODEL, 'causal_lm', {'targets': 8}, fields, {'seed': 0}).write(folder)
    (folder / 'config.gin').write_text('A = 1\n')
    (folder / 'vocabulary').mkdir()
    (folder / 'vocabulary' / 'vocabulary.json').write_text('{}')
    manager = checkpoints.CheckpointManager(folder, CheckpointConfig(keep=5))
    for step in STEPS:
        manager.save(state(step), {'seed': 0, 'position': POSITION})
    manager.close()
    return folder


@pytest.fixture
def run(made, tmp_path):
    whole.tell.cache_clear()
    return shutil.copytree(made, tmp_path / 'run')


def largest(folder):
    return max((path for path in folder.rglob('*') if path.is_file()), key=lambda path: path.stat().st_size)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def other_step(path):
    return path.parent.parent / '4'


def swap(path):
    one, two = [path for path in sorted((path / 'parameters').rglob('*')) if path.is_file()][:2]
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)


def replace(path, other):
    shutil.rmtree(path)
    shutil.copytree(other, path)


def to_folder(path):
    path.unlink()
    path.mkdir()


def to_link(path):
    path.rename(path.with_name('moved'))
    path.symlink_to('moved')


def edit_meta(path, **fields):
    file = path / 'meta' / 'metadata'
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


DAMAGE = {
    'a flipped bit of the parameters': lambda step: flip(largest(step / 'parameters')),
    'a flipped bit of the metadata': lambda step: flip(step / 'parameters' / '_METADATA'),
    'a flipped bit of the checksums': lambda step: flip(step / 'checksums.json'),
    'a file cut short': lambda step: os.truncate(largest(step / 'parameters'), 10),
    'an empty file': lambda step: os.truncate(step / 'meta' / 'metadata', 0),
    'a missing file': lambda step: largest(step / 'parameters').unlink(),
    'no commit': lambda step: (step / 'commit_success.txt').unlink(),
    'a missing item': lambda step: shutil.rmtree(step / 'parameters'),
    'one more file': lambda step: (step / 'parameters' / 'encoder.kernel' / 'more').write_text(''),
    'one more folder': lambda step: (step / 'parameters' / 'more').mkdir(),
    'one more item': lambda step: (step / 'more').mkdir(),
    'swapped files': swap,
    'a folder in place of a file': lambda step: to_folder(step / 'meta' / 'metadata'),
    'a link in place of a file': lambda step: to_link(step / 'meta' / 'metadata'),
    'a copy of another step': lambda step: replace(step, step.parent / '4'),
    'parameters of another step': lambda step: replace(step / 'parameters', step.parent / '4' / 'parameters'),
    'a null position': lambda step: edit_meta(step, position=None),
    'a huge position': lambda step: edit_meta(step, position='9' * 10_000),
    'an empty folder': lambda step: (shutil.rmtree(step), step.mkdir()),
    'another step number': lambda step: edit_meta(step, step=10**30),
}


@pytest.mark.parametrize('damage', DAMAGE.values(), ids=DAMAGE)
def test_damage_is_named_and_resuming_takes_the_newest_whole_step(run, damage):
    damage(run / 'checkpoints' / '6')
    with pytest.raises(UserError) as error:
        checkpoints.restore_parameters(run, ABSTRACT.model)
    assert (
        '\n' not in str(error.value) and 'step 4 is whole' in str(error.value) and 'checkpoints/6' in str(error.value)
    )
    assert float(checkpoints.restore_parameters(run, ABSTRACT.model, 4)['encoder']['kernel'][0, 0]) == 4.0
    manager = checkpoints.CheckpointManager(run, CheckpointConfig(keep=5))
    assert manager.latest_step == 4 and any('step 4' in line for line in manager.lines)
    restored, meta = manager.restore(ABSTRACT)
    assert int(restored.step) == 4 == meta['step']
    manager.save(state(6), {'seed': 0, 'position': POSITION})  # the damaged one is not in the way
    manager.close()
    assert float(checkpoints.restore_parameters(run, ABSTRACT.model)['encoder']['kernel'][0, 0]) == 6.0
    assert (run / 'checkpoints' / '6.damaged').exists()


def test_the_optimizer_of_another_step_is_found_by_who_reads_it(run):
    step = run / 'checkpoints' / '6'
    replace(step / 'optimizer', run / 'checkpoints' / '4' / 'optimizer')
    checkpoints.restore_parameters(run, ABSTRACT.model)  # it reads no optimizer
    with pytest.raises(UserError, match=r'6/optimizer/.*; step 4 is whole .set .*checkpoints/4'):
        checkpoints.restore_state(run, 6, ABSTRACT)
    assert checkpoints.CheckpointManager(run, CheckpointConfig()).latest_step == 4


@pytest.mark.parametrize('name', ['99999999999', '007', '٨'])
def test_absurd_steps_and_empty_ones_are_told_and_set_aside(run, name, capsys):
    (run / 'checkpoints' / name).mkdir()
    assert checkpoints.find_step(run) == 6
    assert f'checkpoints/{name} is not a complete checkpoint: ignored' in capsys.readouterr().err
    manager = checkpoints.CheckpointManager(run, CheckpointConfig(keep=5))
    assert manager.latest_step == 6 and name in manager.lines[0]
    assert checkpoints.whole.not_steps(run) == []


def test_a_run_without_a_whole_step_is_not_started_again(run):
    for step in STEPS:
        flip(run / 'checkpoints' / str(step) / '_CHECKPOINT_METADATA')
    with pytest.raises(UserError, match=r'step 6 is damaged: .*no other step is whole.*another --workdir'):
        checkpoints.CheckpointManager(run, CheckpointConfig())
    assert checkpoints.saved_steps(run) == [*STEPS]  # nothing is renamed
    with pytest.raises(UserError, match='no other step is whole'):
        checkpoints.find_step(run, 2) and checkpoints.restore_parameters(run, ABSTRACT.model, 2)


def test_checkpoints_without_checksums_are_read_with_a_note(run, capsys):
    (run / 'checkpoints' / '6' / 'checksums.json').unlink()
    assert float(checkpoints.restore_parameters(run, ABSTRACT.model)['encoder']['kernel'][0, 0]) == 6.0
    assert capsys.readouterr().err.count('its files are not verified') == 1
    manager = checkpoints.CheckpointManager(run, CheckpointConfig())
    assert manager.latest_step == 6 and 'not verified' in manager.lines[0]
    (run / 'checkpoints' / '6' / 'parameters' / 'encoder.kernel' / '.zarray').write_text('{')
    with pytest.raises(UserError, match=r'parameters cannot be read: ') as error:
        checkpoints.restore_parameters(run, ABSTRACT.model)
    assert '\n' not in str(error.value)


def test_a_changed_description_is_refused_and_changed_settings_are_told(run, capsys):
    path = run / 't5flan.json'
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(fields | {'step': 4, 'started_in': ['/elsewhere']}))  # what users may set
    assert checkpoints.find_step(run) == 4 and capsys.readouterr().err == ''
    (run / 'config.gin').write_text('A = 2\n')
    fields['model']['dropout_rate'] = 0.5  # a run may change it
    path.write_text(json.dumps(fields))
    checkpoints.find_step(run)
    told = capsys.readouterr().err
    assert 'config.gin has changed since step 6' in told and 'dropout_rate is 0.5, it was 0.0' in told
    for name, value in (('format', 'prefix_lm'), ('feature_lengths', {'targets': 9}), ('data', {'seed': 1})):
        path.write_text(json.dumps(fields | {name: value}))
        with pytest.raises(UserError, match=rf't5flan.json is damaged: {name}.*Set it back'):
            checkpoints.find_step(run)
    path.write_text(json.dumps(fields | {'model': fields['model'] | {'norm_epsilon': 1e-5}}))
    with pytest.raises(UserError, match=r'model.norm_epsilon is 1e-05, it was 1e-06'):
        checkpoints.find_step(run)


@pytest.mark.parametrize(
    'text', ['[]', 'null', '3', '"x"', '{"model": 3}', '{"model": {}, "data": []}', '\x00\xff', '[' * 10**5, '']
)
def test_a_description_of_another_kind_is_one_line(run, text):
    (run / 't5flan.json').write_text(text, 'latin-1')
    with pytest.raises(UserError, match='is not the description of a checkpoint') as error:
        checkpoints.find_step(run)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    'position',
    [
        None,
        {},
        [],
        {**POSITION, 'streams': {}},
        {**POSITION, 'streams': {'0': {**AT, 'slot': [0, 1, 2]}}},
        {**POSITION, 'streams': {'0': {**AT, 'slot': [0, -1]}}},
        {**POSITION, 'streams': {'0': {**AT, 'batch': 10**30}}},
        {**POSITION, 'streams': {'0': {**AT, 'tasks': {'file': [None, 0]}}}},
        {**POSITION, 'records': {'file': 'many'}},
    ],
)
def test_a_position_without_its_structure_is_refused(position):
    assert saved_position({'step': 2, 'position': POSITION}, 'run') == POSITION
    with pytest.raises(UserError, match='data position of step 2'):
        saved_position({'step': 2, 'position': position}, 'run')
    with pytest.raises(UserError, match='was converted, not trained'):
        saved_position({'step': 2}, 'run')


def test_every_flipped_bit_of_the_checksums_is_found(tmp_path):
    (tmp_path / 'a').write_text('content')
    checksums.write(tmp_path, {'step': 1})
    content = checksums.read(tmp_path)
    checksums.compare(tmp_path, content, ())
    path = tmp_path / 'checksums.json'
    good = path.read_bytes()
    for place in range(0, len(good), 3):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        try:
            found = checksums.read(tmp_path)
        except checksums.Damaged:
            continue
        assert found == content  # white space
