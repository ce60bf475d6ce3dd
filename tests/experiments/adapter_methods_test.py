"""experiments/adapter_methods.py: the table of what was evaluated."""

import json
import sys

import pytest

from tests.docs.markdown import ROOT

sys.path.insert(0, str(ROOT / 'experiments'))

import adapter_methods


def test_the_interval_is_that_of_the_rows(tmp_path, capsys):
    folder = tmp_path / 'evaluations'
    folder.mkdir()
    rows = [{'prediction': 'POS' if number % 4 else 'NEG', 'target': 'POS'} for number in range(60)]
    (folder / 'before.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    adapter_methods.report(tmp_path, adapter_methods.parse(['--checkpoint=c', '--task=t']))
    result = json.loads((tmp_path / 'results.json').read_text())['results']['before']
    assert result['exact_match'] == pytest.approx(75)
    assert result['interval'] == pytest.approx([64, 86], abs=2)  # 75 plus or minus 1.96 standard errors of 5.6
    assert '75 %' in capsys.readouterr().out
