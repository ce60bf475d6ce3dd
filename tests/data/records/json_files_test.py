"""t5flan/data/records/json_files.py: rows by byte offset are those of json.loads, for any window size."""

import json

import pytest

from t5flan.data.records import json_files
from t5flan.errors import UserError

VALUES = [{'a': 'ä\u2028"]}', 'n': [1, {'b': '日本'}]}, 12, 'x\\"', {}, [], None, 3.5, {'c': '\\ud83d'}, -7]


def values(path):
    """(offset, size) of every value of a list or object."""
    with json_files.JsonWalker(path) as walker:
        assert walker.peek() in '[{'
        return [walker.skip_value(f'{path} value {number}') for number, _ in enumerate(walker.members(), 1)]


@pytest.mark.parametrize('window', [1, 3, 7, 64, 4096])
@pytest.mark.parametrize('indent', [None, 1])
@pytest.mark.parametrize('ascii', [True, False])
def test_rows_of_a_list_and_of_an_object(tmp_path, monkeypatch, window, indent, ascii):
    monkeypatch.setattr(json_files, '_WINDOW', window)
    for name, value in (('list', VALUES), ('object', {f'k{i}"ü': value for i, value in enumerate(VALUES)})):
        path = tmp_path / f'{name}.json'
        path.write_text(json.dumps(value, indent=indent, ensure_ascii=ascii), 'utf-8')
        assert [json_files.read_json(str(path), offset, size) for offset, size in values(path)] == VALUES


def test_empty_lists_and_objects(tmp_path):
    for text in ('[]', '{}', ' [ ] '):
        (tmp_path / 'b.json').write_text(text)
        assert values(tmp_path / 'b.json') == []


@pytest.mark.parametrize(
    'text,pattern',
    [
        ('[{"a": 1}, {"a": }]', 'a.json value 2: not JSON'),
        ('[{"a": 1} {"a": 2}]', r"a.json byte 10: not JSON \(found '\{', expected one of , \]\). Fix the file"),
        ('[{"a": 1}', "not JSON .found 'the end', expected one of"),
        ('{"a": 1, b: 2}', 'a key: not JSON'),
        ('[' + '[' * 100_000, 'nested too deeply'),
        ('[1' + '0' * 5000 + ']', 'not JSON .Exceeds the limit'),
        (b'["\xff"]', 'value: not JSON .not UTF-8'),
    ],
)
def test_one_line_for_invalid_json(tmp_path, text, pattern):
    path = tmp_path / 'a.json'
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=pattern) as error:
        for offset, size in values(path):
            json_files.read_json(str(path), offset, size, f'{path} value')
    assert '\n' not in str(error.value)
