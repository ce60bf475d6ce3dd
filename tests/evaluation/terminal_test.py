"""Progress is a bar on a terminal and a few lines elsewhere."""

import io
import sys

import pytest

from t5flan.evaluation.terminal import print_steps, row_progress


class _Terminal(io.StringIO):
    def isatty(self):
        return True


def test_rows_are_a_line_for_every_tenth_of_them(capsys):
    with row_progress(5, 105) as progress:
        for done in range(6, 106):
            progress(done)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10 and lines[-1].startswith('105 of 105 rows, ') and lines[0].startswith('11 of 105')


def test_rows_are_a_bar_on_a_terminal(monkeypatch):
    monkeypatch.setattr(sys, 'stderr', shown := _Terminal())
    with row_progress(2, 8) as progress:
        progress(8)
    assert '8/8' in shown.getvalue() and 'rows' in shown.getvalue()


@pytest.mark.parametrize('more', [{'means': {}}, {'means': {'all': {'f1': 50.0}}}])
def test_checkpoints_are_lines_of_a_table(capsys, more):
    found = [
        {'checkpoint': 'run', 'step': step, 'tasks': {'a': {'examples': 2, 'f1': 1.0 * step}}, **more}
        for step in (3, 4)
    ]
    print_steps(found[:1])
    assert capsys.readouterr().out == ''
    print_steps(found)
    shown = capsys.readouterr().out
    assert 'run, 2 checkpoints' in shown and ('all: f1' if more['means'] else 'a: f1') in shown
    assert ('4.00' in shown) == (not more['means'])
