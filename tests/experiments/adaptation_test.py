"""experiments/adaptation.py: runs that differ only in their beginning and objective, and tables of what is there."""

import json
import sys

import pytest

from t5flan.configurables import parse, training_settings
from tests.docs.markdown import ROOT

sys.path.insert(0, str(ROOT / 'experiments'))

import adaptation

GIVEN = ['--checkpoint=base', '--texts=books/*.txt']


@pytest.mark.parametrize('objective', adaptation.OBJECTIVES)
def test_the_settings_of_an_objective_are_known_and_make_rows_of_its_tasks(objective, tmp_path):
    arguments = adaptation.parse([*GIVEN, '--steps=40'])
    (tmp_path / 'run.gin').write_text(adaptation.settings_gin(objective, arguments))
    of_model = ["INITIALIZE_FROM='model'", "VOCABULARY='bytes'"]  # a run takes them from its folder
    settings = training_settings(parse(['models/tiny_encoder_decoder', str(tmp_path / 'run.gin')], of_model))
    assert settings['data'].mixture == f'files_{objective}'
    assert settings['data'].feature_lengths == {'inputs': 128, 'targets': 128}
    assert (settings['run'].steps, settings['evaluation'].every, settings['optimizer'].warmup_steps) == (40, 10, 4)


def test_the_tables_have_what_is_finished(tmp_path, capsys):
    for number, (objective, fresh) in enumerate(adaptation.arms()[:3]):
        folder = tmp_path / 'runs' / f'{objective}-{fresh}'
        folder.mkdir(parents=True)
        rows = [{'step': step, 'eval/loss': 5.0 + number - step / 10} for step in (0, 10)]
        (folder / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    value = {'mean': 12.34, 'low': 10.0, 'high': 15.0}
    folder = tmp_path / 'instructions' / 'ul2'
    folder.mkdir(parents=True)
    arms = {name: {'zero-shot: ROUGE-L': value} for name in ('most frequent answer', 'before', 'full finetuning')}
    (folder / 'results.json').write_text(json.dumps({'summary': arms}))
    adaptation.report(tmp_path, adaptation.parse(GIVEN))
    assert (tmp_path / 'table.md').read_text().splitlines() == [
        '| objective | copied | step 0 | step 10 |',
        '|---|---|---|---|',
        '| UL2 | both stacks | 5.000 | 4.000 |',
        '| UL2 | decoder alone | 7.000 | 6.000 |',
        '| prefix LM | both stacks | 6.000 | 5.000 |',
        '',
        '|  | zero-shot: ROUGE-L |',
        '|---|---|',
        '| adapted with UL2, before | 12.3 (10.0 to 15.0) |',
        '| adapted with UL2, full finetuning | 12.3 (10.0 to 15.0) |',
    ]
    assert (tmp_path / 'curves.png').stat().st_size > 1000 and 'table.md' in capsys.readouterr().out


def test_other_settings_in_a_folder_are_refused(tmp_path):
    adaptation.check_settings(tmp_path, adaptation.parse(GIVEN))
    with pytest.raises(adaptation.UserError, match='was started with --steps=60. Set the same, or another --workdir'):
        adaptation.check_settings(tmp_path, adaptation.parse([*GIVEN, '--steps=61']))
