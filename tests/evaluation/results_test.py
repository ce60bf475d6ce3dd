"""Files of results keep the steps and tasks of one run with the same settings, and nothing else."""

import json

import pytest

from t5flan.errors import UserError
from t5flan.evaluation.results import StepResults, StepRows

HEADER = {'checkpoint': 'runs/mine', 'settings': {'limit': 5, 'decoding': {'stop': ()}}}


def entry(step, saved=1, **tasks):
    return {'step': step, 'saved': saved, 'tasks': tasks}


def test_one_step_is_the_file_and_several_are_a_list(tmp_path):
    path = tmp_path / 'e.json'
    StepResults(path, HEADER, several=False).add(entry(10, a=1))
    StepResults(path, HEADER, several=False).add(entry(20, a=2))
    found = json.loads(path.read_text())
    assert found['step'] == 20 and found['checkpoint'] == 'runs/mine' and 'steps' not in found
    StepResults(path, HEADER, several=True).add(entry(10, a=1))
    StepResults(path, HEADER, several=False).add(entry(30, a=3))  # it has several, and goes on to
    found = json.loads(path.read_text())
    assert [one['step'] for one in found['steps']] == [10, 20, 30] and found['settings']['limit'] == 5


def test_only_the_same_checkpoint_is_known(tmp_path):
    path = tmp_path / 'e.json'
    StepResults(path, HEADER, several=True).add(entry(10, saved=7, a=1))
    results = StepResults(path, HEADER, several=True)
    assert results.known(10, 7)['tasks'] == {'a': 1}
    assert results.known(10, 8) == results.known(20, 7) == results.known(10, None) == {}


def test_results_of_other_settings_are_kept_from_harm(tmp_path):
    path, other = tmp_path / 'e.json', {**HEADER, 'settings': {'limit': 6, 'decoding': {'stop': ()}}}
    StepResults(path, HEADER, several=False).add(entry(10))
    assert StepResults(path, other, several=False).known(10, 1) == {}  # one step is replaced, as ever
    for change, words in ((other, r'settings.limit \(5, and now 6\)'), ({**HEADER, 'checkpoint': 'b'}, 'checkpoint')):
        with pytest.raises(UserError, match=f'e.json has results of another {words}.* Set another file, or remove it'):
            StepResults(path, change, several=True)


@pytest.mark.parametrize('content', ['', '[]', '{"tasks": 3', '{}'])
def test_a_file_of_something_else_is_replaced(tmp_path, content):
    path = tmp_path / 'e.json'
    path.write_text(content)
    StepResults(path, HEADER, several=True).add(entry(10))
    assert json.loads(path.read_text())['steps'][0]['step'] == 10


def test_rows_are_kept_by_step_and_task(tmp_path):
    path = tmp_path / 'p.jsonl'
    row = lambda step, task, index: {'step': step, 'task': task, 'index': index}
    StepRows(path).add([row(1, 'a', 0), row(1, 'a', 1), row(1, 'b', 0)], [])
    rows = StepRows(path)
    assert rows.has(1, 'a', 2) and not rows.has(1, 'a', 3) and not rows.has(2, 'a', 2)
    rows.add([row(2, 'a', 0)], [(1, 'a')])
    assert [json.loads(line) for line in path.open()] == [row(1, 'a', 0), row(1, 'a', 1), row(2, 'a', 0)]
    assert StepRows(None).has(1, 'a', 2)
