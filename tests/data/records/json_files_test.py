"""t5flan/data/records/json_files.py: rows by byte offset are those of json.loads, for any window size."""

import json

import pytest

from t5flan.data.records import json_files
from t5flan.errors import UserError

VALUES = [{'a': 'ä\u2028"]}', 'n': [1, {'b': '日本'}]}, 12, 'x\\"', {}, [], None, 3.5, {'c': '\\ud83d'}, -7]


@pytest.mark.parametrize('window', [1, 3, 7, 64, 4096])
@pytest.mark.parametrize('indent', [None, 1])
@pytest.mark.parametrize('ascii', [True, False])
def test_rows_of_a_list_and_of_an_object(tmp_path, monkeypatch, window, indent, ascii):
    monkeypatch.setattr(json_files, '_WINDOW', window)
    for name, value in (('list', VALUES), ('object', {f'k{i}"ü': value for i, value in enumerate(VALUES)})):
        path = tmp_path / f'{name}.json'
        path.write_text(json.dumps(value, indent=indent, ensure_ascii=ascii), 'utf-8')
        rows = list(json_files.json_rows(str(path)))
        assert [row.value for row in rows] == VALUES
        assert [json_files.read_json(str(path), row.offset, row.size) for row in rows] == VALUES
    assert rows[1].where.endswith("""object.json 'k1"ü'""")


def test_rows_of_lines_and_of_empty_files(tmp_path):
    path = tmp_path / 'a.jsonl'
    path.write_text('\n'.join(json.dumps(value, ensure_ascii=False) for value in VALUES[:3]) + '\n\n', 'utf-8')
    rows = list(json_files.json_rows(str(path)))
    assert [row.value for row in rows] == VALUES[:3] and rows[2].where.endswith('a.jsonl line 3')
    for text in ('[]', '{}', ' [ ] '):
        (tmp_path / 'b.json').write_text(text)
        assert list(json_files.json_rows(str(tmp_path / 'b.json'))) == []


@pytest.mark.parametrize(
    'text,pattern',
    [
        ('[{"a": 1}, {"a": }]', 'a.json row 2: not JSON'),
        ('[{"a": 1} {"a": 2}]', r"a.json byte 10: not JSON \(found '\{', expected one of , \]\). Fix the file"),
        ('[{"a": 1}', "not JSON .found 'the end', expected one of"),
        ('{"a": 1, b: 2}', 'a key: not JSON'),
        ('"text"', "begins with '\"', expected a list or object of rows"),
        ('', "begins with ' ', expected a list or object of rows"),
        (b'["\xff"]', 'row 1: not JSON .not UTF-8'),
    ],
)
def test_one_line_for_invalid_json(tmp_path, text, pattern):
    path = tmp_path / 'a.json'
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=pattern) as error:
        list(json_files.json_rows(str(path)))
    assert '\n' not in str(error.value)
