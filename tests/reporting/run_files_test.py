"""Files of a run that are missing, damaged or cut off are read as far as they go."""

import json

import pytest

from t5flan.reporting.run_files import read_json, read_lines


@pytest.mark.parametrize('content', [None, '', '{"a": ', '[1]', '\x00'])
def test_what_is_not_an_object_is_empty(tmp_path, content):
    path = tmp_path / 'a.json'
    if content is not None:
        path.write_text(content)
    assert read_json(path) == {}
    path.write_text('{"a": 1}')
    assert read_json(path) == {'a': 1}


def test_lines_that_are_not_objects_are_skipped(tmp_path):
    for name, expected in (('a.jsonl', [{'step': 1}, {'b': 2}]), ('metrics.jsonl', [{'step': 1}])):
        (tmp_path / name).write_text(json.dumps({'step': 1}) + '\n[3]\n{"b": 2}\n{"c": ')
        assert read_lines(tmp_path / name) == expected
    assert read_lines(tmp_path / 'none.jsonl') == []
