"""Memorization is measured for a model that memorized a text and for one that did not."""

import json
import types
from pathlib import Path

import numpy as np
import pytest

from t5flan.commands import COMMANDS
from t5flan.commands.arguments import parse_arguments
from t5flan.data.vocabulary.byte_level import ByteVocabulary
from t5flan.errors import UsageError, UserError
from t5flan.evaluation.memorization import Probe, make_canaries, memorization, scores
from tests.saved_model import byte_model, save_folder


def run(line):
    command, arguments = parse_arguments(line.split(), COMMANDS)
    command.run(arguments)


@pytest.fixture
def canaries(tmp_path):
    path = str(tmp_path / 'canaries.jsonl')
    assert make_canaries(path, [1, 10], count=5) == 5 + 50
    return path


def test_canaries_are_random_and_repeated_as_their_field_says(canaries, tmp_path):
    rows = [json.loads(line) for line in Path(canaries).read_text('utf-8').splitlines()]
    texts = [row['text'] for row in rows]
    assert len(set(texts)) == 10 and all(texts.count(row['text']) == row['repeats'] for row in rows)
    assert [row['repeats'] for row in rows] != sorted(row['repeats'] for row in rows), 'not shuffled'
    run(f'memorization --make_canaries={tmp_path}/again.jsonl --repeats=1,10 --count=5')
    assert (tmp_path / 'again.jsonl').read_text() == Path(canaries).read_text(), 'not the same with the same seed'
    for wrong in ('0', 'x', '1,-2'):
        with pytest.raises(UserError, match='--repeats'):
            run(f'memorization --make_canaries={tmp_path}/a.jsonl --repeats={wrong}')


def test_memorized_texts_are_reported_by_group(canaries, monkeypatch, tmp_path, capsys):
    """A model that memorized the texts with ten repeats, and half of each of the others."""
    rows = {row['text']: row['repeats'] for row in map(json.loads, Path(canaries).read_text('utf-8').splitlines())}
    vocabulary = ByteVocabulary(10, ['[S2S]'])
    seen = []

    class Model:
        inputs_end = True

        def generate_ids(self, inputs, length, batch_size):
            seen.extend(inputs)
            for ids in inputs:
                text = next(text for text in rows if text.startswith(vocabulary.decode(ids[1:-1])))
                rest = vocabulary.encode(text)[len(ids) - 2 :][:length]
                known = length if rows[text] == 10 else length // 2
                yield [types.SimpleNamespace(tokens=np.array([*rest[:known], *[5] * (length - known)], np.int32))]

    Model.vocabulary = vocabulary
    monkeypatch.setattr('t5flan.language_model.load', lambda *arguments: Model())
    run(f'memorization --checkpoint=run --input={canaries} --group=repeats --control=[S2S] --json={tmp_path}/o.json')
    found = json.loads((tmp_path / 'o.json').read_text())
    assert found == {
        'all': {'texts': 10, 'exact': 0.5, 'tokens': 0.75},
        '1': {'texts': 5, 'exact': 0.0, 'tokens': 0.5},
        '10': {'texts': 5, 'exact': 1.0, 'tokens': 1.0},
    } and list(found) == ['all', '1', '10']
    assert all(ids[0] == vocabulary.mode_token_id('[S2S]') and len(ids) == 52 and ids[-1] == 1 for ids in seen)
    assert '10: 100.0% of 5 texts continued word for word' in capsys.readouterr().out


def test_a_continuation_that_is_too_short_does_not_match():
    probes = [Probe('', (3,), (4, 5, 6, 7))] * 3
    assert scores(probes, [[4, 5], [4, 5, 6, 7], [9, 5, 6, 7]]) == {'all': {'texts': 3, 'exact': 1 / 3, 'tokens': 0.5}}


@pytest.mark.parametrize('format,family', [('encoder_decoder', 't5_1_1'), ('causal_lm', 'gemma')])
def test_an_untrained_checkpoint_has_memorized_nothing(tmp_path, canaries, format, family):
    folder = save_folder(tmp_path / 'run', byte_model(family), format, steps=(1,))
    found = memorization(str(folder), [canaries], prefix=8, length=6, limit=4, batch_size=4)
    assert found['all']['texts'] == 4 and found['all']['exact'] == 0


def test_bad_input_is_reported_in_one_line(tmp_path, canaries):
    folder = str(save_folder(tmp_path / 'run', byte_model(), steps=(1,)))
    with pytest.raises(UserError, match=r'--control=\[S2S\] is not a token'):
        memorization(folder, [canaries], control=['[S2S]'])
    with pytest.raises(UserError, match='has 5000 \\+ 50 tokens. Set --prefix'):
        memorization(folder, [canaries], prefix=5000)
    with pytest.raises(UserError, match="no field 'group'.*Set --group"):
        memorization(folder, [canaries], group='group')
    with pytest.raises(UserError, match='--prefix=0'):
        memorization(folder, [canaries], prefix=0)
    for line in (
        'memorization',
        f'memorization --checkpoint={folder}',
        f'memorization --checkpoint={folder} --make_canaries=a.jsonl',
    ):
        with pytest.raises(UsageError):
            run(line)
