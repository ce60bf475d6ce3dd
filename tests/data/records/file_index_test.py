"""t5flan/data/records/file_index.py: an index is stored and used until its file changes."""

import numpy as np
import pytest

from t5flan.data.records import file_index as lib
from t5flan.data.records.file_index import FileIndex, file_index


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setattr(lib, 'SMALLEST', 10)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    (tmp_path / 'a.jsonl').write_text('0123456789')
    return tmp_path / 'a.jsonl'


def test_an_index_is_made_once_and_again_when_the_file_changes(path, tmp_path):
    made = []

    def make():
        made.append(path.read_text())
        return FileIndex(np.arange(6).reshape(2, 3) + len(made), {'ä': [1, None]})

    first = file_index(str(path), 'kind-1', make)
    again = file_index(str(path), 'kind-1', make)
    assert len(made) == 1 and (again.rows == first.rows).all() and again.info == first.info
    file_index(str(path), 'kind-2', make)
    assert len(made) == 2, 'another kind is another index'
    path.write_text('0123456789+')
    assert file_index(str(path), 'kind-1', make).rows[0, 0] == 3 and len(made) == 3
    for file in (tmp_path / 'cache' / 't5flan').iterdir():
        file.write_bytes(b'damaged')
    assert file_index(str(path), 'kind-1', make).rows[0, 0] == 4
    path.write_text('small')
    assert [int(file_index(str(path), 'kind-1', make).rows[0, 0]) for _ in range(2)] == [5, 6], 'too small to store'


def test_an_index_needs_no_writable_home(path, tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file' / 'no_folder'))
    assert file_index(str(path), 'kind-1', lambda: FileIndex(np.zeros((1, 1)))).rows.shape == (1, 1)
