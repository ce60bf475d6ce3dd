"""Memorization is measured for a model that memorized a text and for one that did not."""

import json
import types
from pathlib import Path

import numpy as np
import pytest

from t5flan.commands import COMMANDS
from t5flan.commands.arguments import parse_arguments
from t5flan.data.vocabulary.byte_level import ByteVocabulary
from t5flan.decoding.likelihood import Likelihood
from t5flan.errors import UsageError, UserError
from t5flan.evaluation.memorization import Measured, Probe, exposures, make_canaries, memorization, scores
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

        def likelihoods(self, inputs, targets, batch_size):
            known = {tuple(vocabulary.encode(text)[50:100]): rows[text] for text in rows}
            for target in targets:
                repeats = known.get(tuple(target), 0)
                right = {0: 1, 1: 25, 10: 50}[repeats]
                yield Likelihood(-3.0 * (50 - right) - 0.01 * target[0], right == 50, right)

    Model.vocabulary = vocabulary
    Model.likelihoods = lambda self, *given, _one=Model.likelihoods, **more: list(_one(self, *given, **more))
    monkeypatch.setattr('t5flan.language_model.load', lambda *arguments: Model())
    run(f'memorization --checkpoint=run --input={canaries} --control=[S2S] --json={tmp_path}/o.json --references=31')
    found = json.loads((tmp_path / 'o.json').read_text())
    shown = {
        name: {what: one[what] for what in ('texts', 'exact', 'tokens', 'accuracy')} for name, one in found.items()
    }
    assert shown == {
        'all': {'texts': 10, 'exact': 0.5, 'tokens': 0.75, 'accuracy': 0.75},
        '1': {'texts': 5, 'exact': 0.0, 'tokens': 0.5, 'accuracy': 0.5},
        '10': {'texts': 5, 'exact': 1.0, 'tokens': 1.0, 'accuracy': 1.0},
    } and list(found) == ['all', '1', '10']
    for name, one in found.items():
        assert set(one['intervals']) == set(one) - {'texts', 'intervals'}
        for what, (low, high) in one['intervals'].items():
            assert low <= one[what] <= high, (name, what)
    assert found['1']['intervals']['exact'] == [0.0, pytest.approx(0.434, abs=1e-3)], 'Wilson: none of five'
    assert found['10']['log_likelihood'] > found['1']['log_likelihood']
    assert found['10']['exposure'] == found['1']['exposure'] == 5, 'likelier than all 31'
    assert found['10']['exposure_fit'] > found['1']['exposure_fit'] > 10, 'the fit tells them apart'
    run(f'memorization --checkpoint=run --input={canaries} --group=canary --control=[S2S] --json={tmp_path}/o.json')
    assert len(found := json.loads((tmp_path / 'o.json').read_text())) == 11 and 'exposure' not in found['all']
    assert all(ids[0] == vocabulary.mode_token_id('[S2S]') and len(ids) == 52 and ids[-1] == 1 for ids in seen)
    assert '10: 100.0% of 5 texts continued word for word' in capsys.readouterr().out


def test_a_continuation_that_is_too_short_does_not_match():
    probes = [Probe('', (3,), (4, 5, 6, 7))] * 3
    written = [[4, 5], [4, 5, 6, 7], [9, 5, 6, 7]]
    found = scores(probes, [Measured(tokens, 2, -4.0) for tokens in written])['all']
    del found['intervals']
    assert found == {'texts': 3, 'exact': 1 / 3, 'tokens': 0.5, 'accuracy': 0.5, 'log_likelihood': -1.0}


def test_exposure_is_that_of_the_definition():
    """Carlini et al. 2019: log2 of the size of the space minus log2 of the rank in it."""
    rng = np.random.default_rng(0)
    space = rng.normal(-100, 5, 4096)
    for rank in (1, 2, 16, 1024, 4096):
        text = np.sort(space)[-rank]
        others = np.delete(space, np.argmax(space == text))
        found = exposures(text, others.tolist())
        assert found['exposure'] == pytest.approx(12 - np.log2(rank), abs=1e-9)
        assert found['exposure_fit'] == pytest.approx(found['exposure'], abs=1.5 if rank < 32 else 0.3)
    unseen = [exposures(rng.normal(-100, 5), rng.normal(-100, 5, 200).tolist()) for _ in range(300)]
    for name in ('exposure', 'exposure_fit'):  # of a text that was never seen: 1 / ln 2 on average
        assert np.mean([one[name] for one in unseen]) == pytest.approx(1.44, abs=0.3)
    skewed = rng.gamma(4, 1, 5000)
    assert exposures(float(np.quantile(skewed, 0.99)), skewed.tolist())['exposure_fit'] == pytest.approx(6.64, abs=0.4)
    assert exposures(1.0, [1.0] * 9)['exposure'] == 0, 'a model that finds all texts equally likely'


@pytest.mark.parametrize('format,family', [('encoder_decoder', 't5_1_1'), ('causal_lm', 'gemma')])
def test_an_untrained_checkpoint_has_memorized_nothing(tmp_path, canaries, format, family):
    folder = save_folder(tmp_path / 'run', byte_model(family), format, steps=(1,))
    found = memorization(str(folder), [canaries], prefix=8, length=6, limit=4, batch_size=4)
    assert found['all']['texts'] == 4 and found['all']['exact'] == 0
    found = memorization(str(folder), [canaries], prefix=8, length=6, limit=4, batch_size=4, references=15)
    assert 0 <= found['all']['exposure'] < 4 and found['all']['log_likelihood'] < -1 and found['all']['accuracy'] < 0.5


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
    with pytest.raises(UserError, match='--references=-1'):
        memorization(folder, [canaries], references=-1)
    for name, text in (('a.txt', 'words ' * 99), ('a.jsonl', json.dumps({'text': 'words ' * 99}))):
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match='--references compares canaries'):
            memorization(folder, [str(tmp_path / name)], references=9)
    for line in (
        'memorization',
        f'memorization --checkpoint={folder}',
        f'memorization --checkpoint={folder} --make_canaries=a.jsonl',
    ):
        with pytest.raises(UsageError):
            run(line)
