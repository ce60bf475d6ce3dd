"""t5flan/training/checkpoints.py: restored is what was saved; incomplete and foreign checkpoints are refused."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5flan import sharding as sharding_lib
from t5flan.errors import UserError
from t5flan.files import checksums
from t5flan.mesh import MeshConfig
from t5flan.models.config import ModelConfig
from t5flan.training import checkpoints as checkpoints_lib
from t5flan.training.config import CheckpointConfig
from t5flan.training.state import TrainState

MODEL = ModelConfig(
    architecture='decoder_only', vocab_size=32, emb_dim=8, num_heads=2, head_dim=4, mlp_dim=16, num_decoder_layers=1
)


def state(step, value=1.0):
    tree = {'encoder': {'kernel': jnp.full((8, 4), value), 'scale': jnp.full((3,), 2 * value, jnp.bfloat16)}}
    return TrainState(step=jnp.asarray(step, jnp.int32), model=tree, opt_state={'v': (jnp.arange(4.0), jnp.zeros(()))})


def abstract(like):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)


def describe(folder):
    checkpoints_lib.Description(MODEL, 'causal_lm', {'targets': 8}, {'size': 32, 'fingerprint': 'f'}).write(folder)


def make_manager(folder, **settings):
    return checkpoints_lib.CheckpointManager(folder, CheckpointConfig(**settings))


def test_restored_is_what_was_saved(tmp_path):
    manager = make_manager(tmp_path)
    manager.save(state(3), {'position': {'streams': [7]}})
    manager.wait()
    restored, meta = manager.restore(abstract(state(3)))
    for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(state(3)), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    assert meta['position'] == {'streams': [7]} and int(restored.step) == 3
    manager.close()


def test_donated_buffers_do_not_change_what_is_being_saved(tmp_path):
    manager, now = make_manager(tmp_path), state(0)
    big = TrainState(now.step, {'w': jnp.zeros((1500, 1500))}, {'v': jnp.zeros(())})
    add = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    manager.save(big, {})
    like = abstract(big)
    for _ in range(5):
        big = add(big)
    jax.block_until_ready(big)
    manager.wait()
    assert float(jnp.max(manager.restore(like)[0].model['w'])) == 0.0
    manager.close()


def test_chunks_are_not_read_back_for_their_checksums(tmp_path, monkeypatch):
    read, digest = [], checksums.digest
    monkeypatch.setattr(checksums, 'digest', lambda path: read.append(os.fspath(path)) or digest(path))
    manager = make_manager(tmp_path)
    manager.save(state(3), {})
    manager.close()
    step = tmp_path / 'checkpoints' / '3'
    chunks = [path for path in step.glob('*/*/*') if path.name != '.zarray']
    files = checksums.read(step)['files']
    assert chunks and not any(one.endswith(f'/{path.parent.name}/{path.name}') for one in read for path in chunks)
    for path in chunks:
        assert files[path.relative_to(step).as_posix()] == [path.stat().st_size, digest(path)]
    assert not list(step.rglob('digests.process_*'))


def test_another_mesh_restores_the_same_numbers(tmp_path):
    manager = make_manager(tmp_path)
    manager.save(state(1), {})
    manager.wait()
    mesh = sharding_lib.create_sharding(MeshConfig(fsdp=4, tensor=2))
    like = abstract(state(1))
    placed = TrainState(
        like.step,
        {
            'encoder': {
                'kernel': jax.ShapeDtypeStruct((8, 4), jnp.float32, sharding=mesh.named(('embed', 'mlp'))),
                'scale': like.model['encoder']['scale'],
            }
        },
        like.opt_state,
    )
    kernel = manager.restore(placed)[0].model['encoder']['kernel']
    assert kernel.addressable_shards[0].data.shape == (2, 2)
    np.testing.assert_array_equal(kernel, np.ones((8, 4)))
    manager.close()


def test_the_newest_and_the_best_are_kept(tmp_path):
    manager = make_manager(tmp_path, keep=2, best_metric='eval/loss')
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, 2.5), (5, 2.2)):
        manager.save(state(step), {})
        manager.record(step, {'eval/loss': loss, 'eval/accuracy': 0.5})
    assert manager.best_step() == 2 and manager.evaluations_without_gain() == 3
    manager.close()
    assert checkpoints_lib.saved_steps(tmp_path) == [2, 4, 5]


def test_the_last_step_may_be_the_best(tmp_path):
    manager = make_manager(tmp_path, keep=1, best_metric='exact_match')
    for step, matches in ((1, 3.0), (2, 9.0), (3, 9.0), (4, 11.0)):
        manager.save(state(step), {})
        manager.record(step, {'eval/exact_match': matches})
        assert manager.best_step() == {1: 1, 2: 2, 3: 2, 4: 4}[step], 'the earliest of equals'
    manager.close()
    assert checkpoints_lib.saved_steps(tmp_path) == [4]


def test_an_incomplete_checkpoint_is_ignored(tmp_path):
    manager = make_manager(tmp_path)
    manager.save(state(4), {})
    manager.close()
    os.rename(tmp_path / 'checkpoints' / '4', tmp_path / 'checkpoints' / '4.orbax-checkpoint-tmp')
    assert checkpoints_lib.latest_step(tmp_path) is None
    manager = make_manager(tmp_path)
    assert manager.latest_step is None
    manager.save(state(4, value=5.0), {})  # the same step again
    manager.wait()
    assert checkpoints_lib.saved_steps(tmp_path) == [4] and not list((tmp_path / 'checkpoints').glob('*tmp*'))
    assert float(manager.restore(abstract(state(4)))[0].model['encoder']['kernel'][0, 0]) == 5.0
    manager.close()


@pytest.mark.parametrize(
    'change, message',
    [
        (
            lambda model: model | {'extra': jnp.zeros((2,))},
            r'extra is absent in the checkpoint, of shape \[2\].*ModelConfig',
        ),
        (
            lambda model: {'encoder': {'kernel': jnp.zeros((8, 5)), 'scale': model['encoder']['scale']}},
            r'encoder/kernel is of shape \[8, 4\] in the checkpoint, of shape \[8, 5\]',
        ),
        (
            lambda model: {'encoder': {'kernel': model['encoder']['kernel']}},
            r'encoder/scale is of shape \[3\].*absent in this run',
        ),
    ],
)
def test_arrays_of_another_model_are_named(tmp_path, change, message):
    describe(tmp_path)
    manager = make_manager(tmp_path)
    manager.save(state(1), {})
    manager.close()
    with pytest.raises(UserError, match=message):
        checkpoints_lib.restore_parameters(tmp_path, abstract(change(state(1).model)))


def test_a_description_reads_back(tmp_path):
    describe(tmp_path)
    assert checkpoints_lib.read_description(tmp_path).model == MODEL
    assert checkpoints_lib.checkpoint_root(tmp_path / 'checkpoints' / '5') == checkpoints_lib.epath.Path(tmp_path)


def test_folders_without_a_checkpoint_are_refused(tmp_path):
    with pytest.raises(UserError, match=r'does not exist.*--checkpoint'):
        checkpoints_lib.read_description(tmp_path / 'nowhere')
    with pytest.raises(UserError, match='has no t5flan.json'):
        checkpoints_lib.read_description(tmp_path)
    describe(tmp_path)
    with pytest.raises(UserError, match='no complete checkpoint yet'):
        checkpoints_lib.find_step(tmp_path)
    (tmp_path / 't5flan.json').write_text(json.dumps({'model': {}}))
    with pytest.raises(UserError):
        checkpoints_lib.read_description(tmp_path)
    (tmp_path / 't5flan.json').write_text('{"mod')
    with pytest.raises(UserError, match='not the description of a checkpoint'):
        checkpoints_lib.read_description(tmp_path)


FULL_DISK = """
import resource, sys
import jax.numpy as jnp, numpy as np
from t5flan.errors import UserError
from t5flan.files import checksums
from t5flan.training import checkpoints as c
from t5flan.training.config import CheckpointConfig
from t5flan.training.state import TrainState
folder = sys.argv[1]
weights = jnp.asarray(np.random.default_rng(0).random((700, 700)))
state = lambda step: TrainState(jnp.asarray(step), {'w': weights}, {'v': jnp.zeros(())})
manager = c.CheckpointManager(folder, CheckpointConfig())
manager.save(state(1), {})
manager.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    manager.save(state(2), {})
    manager.wait()
except UserError as error:
    print('ONE LINE:', error)
    print('STEPS:', c.saved_steps(folder))
"""


def test_a_full_disk_is_one_line_and_leaves_the_last_checkpoint_complete(tmp_path):
    """A limit on file sizes stands in for a full disk: the write fails in the same place."""
    done = subprocess.run([sys.executable, '-c', FULL_DISK, str(tmp_path)], capture_output=True, text=True, timeout=120)
    lines = [line for line in done.stdout.splitlines() if line.startswith('ONE LINE:')]
    assert lines, done.stdout + done.stderr
    assert 'File too large' in lines[0] and 'last complete checkpoint is step 1' in lines[0]
    assert 'STEPS: [1]' in done.stdout
    restored, _ = make_manager(tmp_path).restore(
        abstract(TrainState(jnp.asarray(1), {'w': jnp.zeros((700, 700))}, {'v': jnp.zeros(())}))
    )
    np.testing.assert_array_equal(restored.model['w'], np.random.default_rng(0).random((700, 700)).astype(np.float32))
