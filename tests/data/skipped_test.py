"""t5flan/data/skipped.py: tasks that cannot be loaded, and what a mixture has not."""

import pytest

from t5flan.data import skipped as broken
from t5flan.errors import UserError


@pytest.fixture(autouse=True)
def nothing_left_out(monkeypatch):
    monkeypatch.setattr(broken, '_left_out', {})
    monkeypatch.setattr(broken, '_notes', {})


def test_an_error_stops_or_is_kept():
    with pytest.raises(UserError, match='no file. Name one. --skip_broken goes on without a_task'):
        with broken.leaving_out('a_task', skip_broken=False):
            raise UserError('no file. Name one.')
    assert broken.left_out() == {}
    with broken.leaving_out('a_task', skip_broken=True):
        raise UserError('no file.\n Name one.')
    assert broken.left_out() == {'a_task': 'no file. Name one.'}
    with pytest.raises(KeyError):  # not the user's fault: never hidden
        with broken.leaving_out('a_task', skip_broken=True):
            raise KeyError('bug')


def test_a_summary_counts_them_all_and_shows_a_few():
    lines = broken.summary({f'task{i}': 'why.' for i in range(1, 9)}, shown=2)
    assert lines == ['8 tasks left out (skip_broken):', '  task1: why.', '  task2: why.', '  and 6 more']
    assert broken.summary({'one': 'why.'})[0] == '1 task left out (skip_broken):' and broken.summary({}) == []


def test_what_a_mixture_has_not_is_kept_by_its_name():
    broken.note('some_mixture', ['part_a: why.', 'part_b: why.'])
    assert broken.lacking(['another', 'some_mixture']) == [
        'some_mixture is without:',
        '  part_a: why.',
        '  part_b: why.',
    ]
    broken.note('some_mixture', [])
    assert broken.notes('some_mixture') == [] and broken.lacking(['some_mixture']) == []
