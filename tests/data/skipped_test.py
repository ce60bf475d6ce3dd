"""t5flan/data/skipped.py: tasks that cannot be loaded, and notes on mixtures."""

import pytest

from t5flan.data import skipped
from t5flan.errors import UserError


@pytest.fixture(autouse=True)
def nothing_skipped(monkeypatch):
    monkeypatch.setattr(skipped, '_skipped', {})
    monkeypatch.setattr(skipped, '_notes', {})


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
