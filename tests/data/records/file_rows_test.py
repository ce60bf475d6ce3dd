"""t5flan/data/records/file_rows.py: records are read from their offsets, with their numbers, when they are indexed."""

import json

import numpy as np
import pytest

from t5flan.data.records.file_rows import FileRows, read_bytes


@pytest.fixture
def paths(tmp_path):
    for name, words in (('a', ['eins', 'zwölf']), ('b', ['三', ''])):
        (tmp_path / name).write_text('\n'.join(words), 'utf-8')
    return [str(tmp_path / 'a'), str(tmp_path / 'b')]


def test_records_come_from_their_file_and_offset_with_their_numbers(paths):
    index = np.array([[1, 0, 3, 7, 8], [0, 5, 6, 9, 10], [0, 0, 4, 1, 2]])
    parse = lambda data, path, *numbers: {'text': data.decode(), 'from': path, 'numbers': numbers}
    rows = FileRows(paths, index, parse)
    assert len(rows) == 3
    assert rows[1] == {'text': 'zwölf', 'from': paths[0], 'numbers': (9, 10)}
    assert [row['text'] for row in rows] == ['三', 'zwölf', 'eins'] and rows[-1] == rows[2]
    with pytest.raises(IndexError):
        rows[3]


def test_a_record_is_read_when_it_is_indexed(tmp_path):
    (tmp_path / 'a').write_text('[1]')
    rows = FileRows([str(tmp_path / 'a')], np.array([[0, 1, 1]]), lambda data, path: {'value': json.loads(data)})
    (tmp_path / 'a').write_text('[2]')
    assert rows[0] == {'value': 2}


def test_part_of_a_file(paths):
    assert read_bytes(paths[0], 5, 2) == b'zw' and read_bytes(paths[0], 5, 100) == 'zwölf'.encode()
