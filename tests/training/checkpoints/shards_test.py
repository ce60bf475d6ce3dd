"""t5flan/training/checkpoints/shards.py: the files are a zarr array's, each is written once, and Orbax reads them."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore as ts

from t5flan import sharding as sharding_lib
from t5flan.files import checksums
from t5flan.mesh import MeshConfig
from t5flan.training.checkpoints import shards


def save(handler, path, tree):
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(path, args=ocp.args.PyTreeSave(tree))


def placed(axes, shape=(16, 8), dtype=jnp.float32, **mesh):
    sharding = sharding_lib.create_sharding(MeshConfig(**mesh))
    array = jnp.arange(np.prod(shape)).reshape(shape).astype(dtype)
    return jax.device_put(array, sharding.named(axes))


TREE = {
    'kernel': jnp.arange(600_000.0).reshape(3, 100, 2000),  # written directly
    'scale': jnp.arange(5).astype(jnp.bfloat16),
    'count': jnp.asarray(7, jnp.int32),
    'nested': {'bits': jnp.asarray([[True], [False]]), 'bytes': jnp.arange(3, dtype=jnp.uint8)},
}


def test_the_files_are_those_of_a_zarr_array(tmp_path):
    save(shards.tree_handler(), tmp_path / 'item', TREE)
    assert np.fromfile(tmp_path / 'item' / 'kernel' / '0.0.0', '<f4').tolist() == TREE['kernel'].ravel().tolist()
    assert np.fromfile(tmp_path / 'item' / 'count' / '0', '<i4').tolist() == [7]
    for name, array in {**TREE, **{f'nested.{name}': array for name, array in TREE['nested'].items()}}.items():
        if name != 'nested':
            store = {'driver': 'file', 'path': str(tmp_path / 'item' / name)}
            found = ts.open({'driver': 'zarr', 'kvstore': store}, read=True, open=True).result()
            assert found.dtype.name == array.dtype.name
            assert found.fill_value is None  # a chunk that is gone is an error, not zeros
            np.testing.assert_array_equal(found.read().result(), np.asarray(array))


def test_orbax_reads_them_without_being_told_what_they_are(tmp_path):
    save(shards.tree_handler(), tmp_path / 'item', TREE)
    with ocp.PyTreeCheckpointer() as checkpointer:
        found = checkpointer.restore(tmp_path / 'item')
    assert jax.tree.structure(found) == jax.tree.structure(TREE)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(TREE), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize('axes', [('embed', 'mlp'), ('embed', None), (None, 'mlp'), (None, None)])
def test_each_shard_is_a_file(tmp_path, axes):
    array = placed(axes, fsdp=4, tensor=2)
    save(shards.tree_handler(), tmp_path / 'item', {'w': array})
    rows, columns = (4 if axes[0] else 1), (2 if axes[1] else 1)
    files = {path.name for path in (tmp_path / 'item' / 'w').iterdir()} - {'.zarray'}
    assert files == {f'{row}.{column}' for row in range(rows) for column in range(columns)}
    for row in range(rows):
        for column in range(columns):
            part = np.split(np.split(np.asarray(array), rows)[row], columns, 1)[column]
            content = np.fromfile(tmp_path / 'item' / 'w' / f'{row}.{column}', np.float32)
            np.testing.assert_array_equal(content, part.ravel())


@pytest.mark.parametrize('axes', [('embed', 'mlp'), ('embed', None), (None, 'mlp'), (None, None)])
def test_one_device_writes_each_shard_and_all_take_turns(axes):
    array = placed(axes, fsdp=4, tensor=2)
    device_of = lambda shard: next(iter(shard.devices()))
    writers = collections.Counter()
    for number in range(8):
        own = list(shards._own_shards(array, number))
        assert len({name for name, _ in own}) == len(own) == (4 if axes[0] else 1) * (2 if axes[1] else 1)
        writers.update(device_of(shard) for _, shard in own)
    assert len(writers) == 8 and len(set(writers.values())) == 1


def test_memory_for_copies_is_kept(tmp_path):
    handler = shards.ShardHandler()
    first = handler._copied([np.arange(5000, dtype=np.uint8), np.arange(7, dtype=np.uint8)])
    second = handler._copied([np.arange(7, dtype=np.uint8), np.arange(4000, dtype=np.uint8)])
    assert np.shares_memory(first[0], second[0])
    assert all(copy.ctypes.data % 4096 == 0 for copy in first + second)
    assert not np.shares_memory(*second)
    assert second[1].tolist() == np.arange(4000, dtype=np.uint8).tolist()
    assert handler._copied([]) == []


def test_digests_of_written_files_are_those_that_reading_finds(tmp_path):
    save(shards.tree_handler(), tmp_path / 'parameters', TREE)
    digests = shards.take_digests(tmp_path)
    written = [path for path in tmp_path.rglob('*') if path.is_file() and path.parent.parent.name == 'parameters']
    chunks = {path.relative_to(tmp_path).as_posix(): path for path in written if path.name != '.zarray'}
    assert len(chunks) == 5
    assert digests == {name: checksums.digest(path) for name, path in chunks.items()}
    assert shards.take_digests(tmp_path) == {}  # their records are gone
    assert checksums.scan(tmp_path) == checksums.scan(tmp_path, digests=digests)


def test_an_array_without_numbers_is_refused(tmp_path):
    with pytest.raises(ValueError, match='zero size.*name=empty'):
        save(shards.tree_handler(), tmp_path / 'item', {'empty': jnp.zeros((0, 3))})


def test_a_failed_write_is_raised(tmp_path, monkeypatch):
    def write(path, content):
        if path.endswith('scale/0'):
            raise OSError(28, 'No space left on device', path)

    monkeypatch.setattr(shards.direct, 'write', write)
    with pytest.raises(OSError, match='No space left'):
        save(shards.tree_handler(), tmp_path / 'item', TREE)
    assert not (tmp_path / 'item').exists()
