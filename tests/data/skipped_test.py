"""t5flan/data/skipped.py: tasks that cannot be loaded, and notes on mixtures."""

import pytest

from t5flan.data import skipped
from t5flan.errors import UserError


@pytest.fixture(autouse=True)
def nothing_skipped(monkeypatch):
    monkeypatch.setattr(skipped, '_skipped', {})
    monkeypatch.setattr(skipped, '_notes', {})
    monkeypatch.setattr(skipped, '_rows', set())
    monkeypatch.setattr(skipped, '_left_out', {})


def test_an_error_stops_the_run_or_is_recorded():
    message = 'no file. Name one. Set --skip_broken to continue without a_task'
    with pytest.raises(UserError, match=message), skipped.skip_on_error('a_task', skip_broken=False):
        raise UserError('no file. Name one.')
    assert skipped.skipped_tasks() == {}
    with skipped.skip_on_error('a_task', skip_broken=True):
        raise UserError('no file.\n Name one.')
    assert skipped.skipped_tasks() == {'a_task': 'no file. Name one.'}
    with pytest.raises(KeyError), skipped.skip_on_error('a_task', skip_broken=True):  # a bug is never hidden
        raise KeyError('bug')


def test_a_summary_counts_them_all_and_shows_a_few():
    lines = skipped.summary({f'task{i}': 'why.' for i in range(1, 9)}, shown=2)
    assert lines == ['8 tasks skipped (skip_broken):', '  task1: why.', '  task2: why.', '  and 6 more']
    assert skipped.summary({'one': 'why.'})[0] == '1 task skipped (skip_broken):' and skipped.summary({}) == []


def test_notes_are_kept_by_mixture():
    skipped.note('some_mixture', ['part_a: why.', 'part_b: why.'])
    assert skipped.note_lines(['another', 'some_mixture']) == [
        'some_mixture lacks:',
        '  part_a: why.',
        '  part_b: why.',
    ]
    skipped.note('some_mixture', [])
    assert skipped.notes('some_mixture') == [] and skipped.note_lines(['some_mixture']) == []


def test_rows_are_counted_apart_and_places_are_not_repeated():
    skipped.skip('a_task', 'a_task: no file.')
    for line in (3, 8):
        skipped.skip(f'f line {line}', f'f line {line}: not JSON.', is_row=True)
    lines = ['1 task and 2 rows skipped (skip_broken):', '  a_task: no file.', '  f line 3: not JSON.', '  and 1 more']
    assert skipped.summary(skipped.skipped_tasks(), shown=2) == lines


def test_problems_of_a_file_are_collected_and_reported():
    problems = skipped.Problems(skip_broken=True)

    def rows():
        yield 1
        raise UserError('f line 2: not gzip.')

    assert list(problems.until_broken(rows(), 'f')) == [1]
    problems.on_error('f line 1', UserError('f line 1: bad.'))
    for line in (4, 5):
        problems.on_left_out(f'f line {line}', 'empty rows')
    skipped.report('f', problems.to_json())
    assert skipped.skipped_tasks() == {'f from there on': 'f line 2: not gzip.', 'f line 1': 'bad.'}
    assert skipped.left_out_lines() == ['f: left out empty rows (2; the first: line 4)']
    assert 'no rows can be used; the first problem: f line 2: not gzip.' in str(
        skipped.nothing_left('f', problems.to_json(), 'rows', 'X.y')
    )
    strict = skipped.Problems()
    with pytest.raises(UserError, match='f line 2: not gzip.$'):
        list(strict.until_broken(rows(), 'f'))
    with pytest.raises(UserError, match='bad. Set --skip_broken to continue without it.'):
        strict.on_error('f line 1', UserError('f line 1: bad.'))
