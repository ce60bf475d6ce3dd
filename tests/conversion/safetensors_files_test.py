"""Safetensors: what is written is read back, from one file or shards, and each kind of broken file is reported."""

import json

import numpy as np
import pytest

from t5flan.conversion import safetensors_files
from t5flan.conversion.checkpoint import FLOATS, has_nan
from t5flan.conversion.safetensors_files import FolderWriter, read_folder, read_header, strips, transpose_into
from t5flan.errors import UserError


def write(folder, arrays, shard_size=10**9, transpose=False):
    folder.mkdir(exist_ok=True)
    writer = FolderWriter(
        folder, {name: (x.shape[::-1] if transpose else x.shape, x.dtype) for name, x in arrays.items()}, shard_size
    )
    for name in reversed(arrays):  # any order works
        writer.write(name, arrays[name], transpose)
    writer.close()
    return folder


def arrays(dtype):
    rng = np.random.default_rng(0)
    return {
        name: rng.normal(size=shape).astype(FLOATS[dtype])
        for name, shape in {'a': (5, 3), 'b.weight': (7,), 'c': (40, 30), 'd': (1, 1)}.items()
    }


@pytest.mark.parametrize('dtype', FLOATS)
@pytest.mark.parametrize('shard_size', [10**9, 1000, 1])
def test_what_is_written_is_read_back(tmp_path, dtype, shard_size):
    given = arrays(dtype)
    stored = read_folder(write(tmp_path / 'x', given, shard_size))
    assert stored.keys() == given.keys()
    for name, array in given.items():
        assert stored[name].dtype == array.dtype and stored[name].read().tobytes() == array.tobytes()
    assert (tmp_path / 'x' / safetensors_files.INDEX).exists() == (shard_size < 10**9)


def test_matrices_are_transposed_while_reading_and_writing(tmp_path):
    given = {name: x for name, x in arrays('bfloat16').items() if x.ndim == 2}
    stored = read_folder(write(tmp_path / 'x', given, transpose=True))
    for name, array in given.items():
        assert stored[name].read().tobytes() == np.ascontiguousarray(array.T).tobytes()
        assert stored[name].read_transposed().tobytes() == array.tobytes()


@pytest.mark.parametrize('rows', [0, 1, 15, 16, 17, 100])
def test_strips_cover_every_row_once(rows):
    given = np.random.default_rng(rows).normal(size=(rows, 9)).astype(np.float32)
    found = list(strips(given.shape, given.dtype, size=9 * 4 * 16))
    assert [row for first, last in found for row in range(first, last)] == list(range(rows))
    result = np.zeros((9, rows), np.float32)
    transpose_into(result, given)
    np.testing.assert_array_equal(result, given.T)


def test_the_safetensors_library_reads_our_files_and_we_read_its(tmp_path):
    library = pytest.importorskip('safetensors.numpy', reason="the safetensors library is in the extra 'convert'")
    given = arrays('float32')
    write(tmp_path / 'x', given)
    theirs = library.load_file(tmp_path / 'x' / 'model.safetensors')
    assert all((theirs[name] == array).all() for name, array in given.items())
    library.save_file(given, tmp_path / 'y.safetensors')
    assert {name: one.read().tobytes() for name, one in read_header(tmp_path / 'y.safetensors').items()} == {
        name: array.tobytes() for name, array in given.items()
    }


@pytest.mark.parametrize('dtype', FLOATS)
@pytest.mark.parametrize('value', [np.nan, -np.nan, np.inf, -np.inf, 0.0, 1e30])
def test_nan_is_found_and_nothing_else(dtype, value):
    with np.errstate(over='ignore'):
        array = np.array([[1.0, -2.0], [value, 3.0]]).astype(FLOATS[dtype])
    assert has_nan(array) == np.isnan(value)


@pytest.mark.parametrize('length', [0, 5, 8, 60, 200])
def test_a_truncated_file_is_refused(tmp_path, length):
    file = write(tmp_path / 'x', arrays('float32')) / 'model.safetensors'
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(UserError, match='model.safetensors'):
        read_header(file)


def edited_header(file, edit):
    raw = file.read_bytes()
    end = 8 + int.from_bytes(raw[:8], 'little')
    header = json.loads(raw[8:end])
    edit(header)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, 'little') + text + raw[end:])


@pytest.mark.parametrize(
    'edit, message',
    [
        (lambda h: h['a'].update(dtype='F8_E4M3'), 'dtype F8_E4M3'),
        (lambda h: h['a'].update(shape=[5, 4]), 'cannot be read'),
        (lambda h: h['a'].update(data_offsets=[4, 64]), 'starts at byte'),
        (
            lambda h: h['c'].update(
                shape=[50, 30], data_offsets=[h['c']['data_offsets'][0], h['c']['data_offsets'][0] + 6000]
            ),
            'truncated|starts',
        ),
        (lambda h: h.pop('d'), 'belong to no array'),
        (lambda h: h['a'].pop('shape'), 'cannot be read'),
        (lambda h: h.update(a='x'), 'cannot be read'),
    ],
)
def test_a_wrong_header_is_refused(tmp_path, edit, message):
    file = write(tmp_path / 'x', arrays('float32')) / 'model.safetensors'
    edited_header(file, edit)
    with pytest.raises(UserError, match=message):
        read_header(file)


def break_index(folder, edit):
    index = folder / safetensors_files.INDEX
    fields = json.loads(index.read_text())
    edit(fields['weight_map'])
    index.write_text(json.dumps(fields))


@pytest.mark.parametrize(
    'damage, message',
    [
        (lambda folder: sorted(folder.glob('model-*'))[1].unlink(), r'lacks model-00002-of-.*\(1 of 3 shards'),
        (lambda folder: (folder / safetensors_files.INDEX).unlink(), 'but no model.safetensors.index.json'),
        (lambda folder: (folder / safetensors_files.INDEX).write_text('['), 'is not an index'),
        (lambda folder: break_index(folder, lambda m: m.update(e=m['a'])), 'lists e in model-.* does not hold it'),
        (lambda folder: break_index(folder, lambda m: m.pop('b.weight')), 'holds b.weight, which .* does not list'),
        (lambda folder: break_index(folder, lambda m: m.update(c='../x.safetensors')), 'is not an index'),
        (lambda folder: break_index(folder, lambda m: m.update(a=m['d'], d=m['a'])), 'lists . in .* does not hold it'),
    ],
)
def test_shards_that_disagree_with_their_index_are_refused(tmp_path, damage, message):
    folder = write(tmp_path / 'x', arrays('float32'), shard_size=100)
    damage(folder)
    with pytest.raises(UserError, match=message):
        read_folder(folder)


def test_pickles_are_refused(tmp_path):
    (tmp_path / 'pytorch_model.bin').write_bytes(b'\x80\x04.')
    with pytest.raises(UserError, match='a pickle file: loading one can run any code'):
        read_folder(tmp_path)
    with pytest.raises(UserError, match='has no model.safetensors'):
        read_folder(tmp_path / '..' / tmp_path.name / 'nowhere')
