"""SeqIO's metrics of a checkpoint get the predictions and scores that SeqIO's Evaluator would give them."""

import json
import shutil

import numpy as np
import pytest
import seqio

from t5flan.data.instruction_config import InstructionConfig
from t5flan.data.preprocessing.examples import example_fn
from t5flan.data.preprocessing.tokenization import append_eos, tokenize
from t5flan.data.records.sources import IndexedSource
from t5flan.data.vocabulary.byte_level import ByteVocabulary
from t5flan.data.vocabulary.seqio_vocabulary import text_features
from t5flan.decoding.config import Decoding
from t5flan.decoding.generate import Generation
from t5flan.errors import UserError
from t5flan.evaluation.evaluator import evaluate, evaluate_tasks, expand, task_prompts
from t5flan.evaluation.measures import mean_metrics
from t5flan.language_model import LanguageModel
from t5flan.scoring.metrics import exact_match, log_likelihood
from tests.saved_model import LENGTHS, byte_model, save_folder

TEXTS = ['one', 'another one', 'a row whose input is much too long', 'four']


def _records(count):
    return [{'inputs': text, 'targets': f'Because. #{i}'} for i, text in enumerate(TEXTS[:count])]


def _answer(text, is_target=False, example=None):
    assert example['inputs_pretokenized'] in TEXTS
    return text.partition('#')[2] if is_target else f'{len(text)} letters'


def _lengths(targets, predictions):
    """Checks what the postprocessor returned."""
    assert targets == [str(i) for i in range(len(targets))] and all(text.endswith('letters') for text in predictions)
    return {'rows': seqio.metrics.Scalar(len(targets)), 'note': seqio.metrics.Text('not a number')}


def _with_scores(targets, predictions, aux_values):
    return {'mean_score': sum(aux_values['scores']) / len(predictions)}


@pytest.fixture(scope='module', autouse=True)
def registered_tasks():
    add = lambda name, count, splits=('train', 'validation'), **settings: seqio.TaskRegistry.add(
        name,
        source=IndexedSource({split: (lambda: _records(count)) for split in splits}),
        preprocessors=[tokenize, append_eos],
        output_features=text_features(),
        **settings,
    )
    add('evaluate_answers', 4, postprocess_fn=_answer, metric_fns=[_lengths, _with_scores])
    add('evaluate_both', 3, metric_fns=[exact_match, log_likelihood])
    add('evaluate_scored', 2, metric_fns=[log_likelihood])
    add('evaluate_unmeasured', 2, metric_fns=[])
    add('evaluate_train_only', 2, splits=('train',), metric_fns=[exact_match])
    names = ['evaluate_both', 'evaluate_scored', 'evaluate_unmeasured', 'evaluate_train_only']
    seqio.MixtureRegistry.add('evaluate_mixture', names, default_rate=1.0)
    yield
    seqio.MixtureRegistry.remove('evaluate_mixture')
    for name in [*names, 'evaluate_answers']:
        seqio.TaskRegistry.remove(name)


@example_fn
def _asked(example, context):
    return {**example, 'inputs': f'{context.instructions.rationale:.1f}'}


@pytest.fixture(scope='module')
def model():
    return LanguageModel(byte_model(), ByteVocabulary(), 'encoder_decoder', LENGTHS)


def test_metrics_get_what_seqio_would_pass(model):
    rows, done = [], []
    results = evaluate_tasks(
        model, ['evaluate_answers', 'evaluate_mixture'], rows=rows, progress=lambda *counts: done.append(counts)
    )
    assert list(results) == ['evaluate_answers', 'evaluate_both', 'evaluate_scored']
    assert results['evaluate_answers']['rows'] == 4.0 and 'note' not in results['evaluate_answers']
    assert (results['evaluate_answers']['examples'], results['evaluate_answers']['cut']) == (4, 1)
    assert done == [(7, 7)] and len(rows) == 9 and results['evaluate_both']['samples'] == rows[4:7]

    both = rows[4:7]
    assert [row['prediction'] for row in both[:2]] == model.generate(TEXTS[:2])
    scores = model.score(TEXTS[:2], [f'Because. #{i}' for i in range(2)])
    assert [row['score'] for row in both[:2]] == pytest.approx(scores, rel=1e-5)
    assert results['evaluate_scored']['log_likelihood'] == pytest.approx(sum(scores) / 2, rel=1e-5)
    assert 'prediction' not in rows[-1] and results['evaluate_both']['exact_match'] == 0.0
    assert results['evaluate_answers']['mean_score'] < 0


def test_a_model_with_right_answers_scores_100(model):
    class Oracle(LanguageModel):
        def generate_ids(self, inputs, *_, **__):
            answers = [self.vocabulary.encode(f'Because. #{i}') for i in range(len(inputs))]
            return [[Generation(np.array(tokens), np.zeros(1), True, 0.0)] for tokens in answers]

    oracle = Oracle(model.model, model.vocabulary, model.format, model.feature_lengths)
    result = evaluate_tasks(oracle, ['evaluate_both'])['evaluate_both']
    assert result['exact_match'] == 100.0 and all(row['correct'] for row in result['samples'])


def test_evaluate_prints_a_table_and_writes_files(model, tmp_path, capsys):
    folder = save_folder(tmp_path / 'run', model.model, steps=(6,))
    summary = evaluate(
        str(folder),
        ['evaluate_mixture', 'evaluate_answers'],
        limit=2,
        json_file=str(tmp_path / 'sub' / 'e.json'),
        predictions=str(tmp_path / 'p.jsonl'),
    )
    assert json.loads((tmp_path / 'sub' / 'e.json').read_text()) == summary
    assert summary['step'] == 6 and summary['tasks']['evaluate_both']['examples'] == 2
    assert set(summary['means']) == {'evaluate_mixture', 'all'} and 'samples' not in summary['tasks']['evaluate_both']
    rows = [json.loads(line) for line in (tmp_path / 'p.jsonl').read_text().split('\n')[:-1]]
    assert [row['index'] for row in rows] == [0, 1] * 3
    shown = capsys.readouterr().out
    assert 'evaluate_scored' in shown and 'mean of evaluate_mixture' in shown


@pytest.fixture
def run(model, tmp_path):
    return str(save_folder(tmp_path / 'run', model.model, steps=(4, 8)))


def files(tmp_path):
    return {'json_file': str(tmp_path / 'e.json'), 'predictions': str(tmp_path / 'p.jsonl')}


def without_seconds(path):
    found = json.loads(path.read_text())
    for one in found.get('steps', [found]):
        del one['seconds']
    return found


def test_steps_and_tasks_with_results_are_not_evaluated_again(run, tmp_path, monkeypatch, capsys):
    settings = {'limit': 2, 'decoding': Decoding(max_new_tokens=2), **files(tmp_path)}
    asked = ['evaluate_both', 'evaluate_scored']
    whole = evaluate(run, asked, steps=iter([4, 8]), **settings)
    assert whole['step'] == 8 and '2 checkpoints' in capsys.readouterr().out
    expected, rows = without_seconds(tmp_path / 'e.json'), (tmp_path / 'p.jsonl').read_text()
    assert [one['step'] for one in expected['steps']] == [4, 8] and rows.count('"step": 4') == 4

    for name in ('e.json', 'p.jsonl'):
        (tmp_path / name).unlink()
    evaluate(run, asked[:1], steps=iter([4]), **settings)  # stopped here
    calls = []
    real = LanguageModel.generate_ids
    monkeypatch.setattr(
        LanguageModel, 'generate_ids', lambda self, *a, **k: calls.append(self.step) or real(self, *a, **k)
    )
    evaluate(run, asked, steps=iter([4, 8]), **settings)
    assert without_seconds(tmp_path / 'e.json') == expected and (tmp_path / 'p.jsonl').read_text() == rows
    monkeypatch.setattr('t5flan.evaluation.steps.load', None)
    evaluate(run, asked, steps=iter([4, 8]), **settings)  # nothing is loaded
    assert 'step 8: the results of 2 of 2 tasks are there already' in capsys.readouterr().err
    with pytest.raises(UserError, match=r'e.json has results of another settings.limit \(2, and now 1\)'):
        evaluate(run, asked, steps=iter([4]), **{**settings, 'limit': 1})
    assert without_seconds(tmp_path / 'e.json') == expected


def test_predictions_alone_keep_the_results_beside_them(run, tmp_path, monkeypatch):
    settings = {'limit': 1, 'decoding': Decoding(max_new_tokens=2), 'predictions': str(tmp_path / 'p.jsonl')}
    first = evaluate(run, ['evaluate_both'], **settings)
    monkeypatch.setattr('t5flan.evaluation.steps.load', None)
    assert evaluate(run, ['evaluate_both'], **settings)['tasks'] == first['tasks']
    assert json.loads((tmp_path / 'p.run.json').read_text())['step'] == 8


def test_a_step_that_disappears_is_skipped(run, tmp_path, capsys):
    def steps():
        yield 4
        shutil.rmtree(f'{run}/checkpoints/8')
        yield 8

    evaluate(run, ['evaluate_scored'], limit=1, steps=steps(), json_file=str(tmp_path / 'e.json'))
    assert [one['step'] for one in json.loads((tmp_path / 'e.json').read_text())['steps']] == [4]
    assert 'step 8 was removed before it was read: skipped' in capsys.readouterr().err


def test_rows_hold_the_prompt_that_the_model_reads(model):
    rows = []
    evaluate_tasks(model, ['evaluate_answers'], decoding=Decoding(1), rows=rows)
    assert rows[0]['prompt'] == rows[0]['input'] == TEXTS[0]
    assert rows[2]['input'] == TEXTS[2] and rows[2]['prompt'] == TEXTS[2][: LENGTHS['inputs']]


def test_the_prompts_of_a_task_are_those_that_evaluate_reads(model):
    prompts = task_prompts(model, ['evaluate_answers', 'evaluate_mixture'], 'validation', limit=2)
    assert [(prompt.number, prompt.text) for prompt in prompts[:3]] == [(0, TEXTS[0]), (1, TEXTS[1]), (2, TEXTS[0])]
    assert prompts[1].row == {'task': 'evaluate_answers', 'inputs': TEXTS[1], 'target': 'Because. #1', 'index': 1}
    assert list(prompts[1].ids) == model.input_ids(TEXTS[1]) and len(prompts) == 8
    with pytest.raises(UserError, match="evaluate_train_only has no split 'test'; it has train. Set --split"):
        task_prompts(model, ['evaluate_train_only'], 'test')


@pytest.mark.parametrize(
    'tasks, split, words',
    [
        (['evaluate_bot'], 'validation', 'evaluate_both'),
        (['evaluate_train_only'], 'validation', "no split 'validation'; it has train"),
        (['evaluate_unmeasured'], 'validation', 'no metric_fns'),
        ([], 'validation', 'no task is given'),
    ],
)
def test_tasks_that_cannot_be_evaluated_are_reported(tasks, split, words):
    with pytest.raises(UserError, match=words):
        expand(tasks, split)


def test_one_continuation_is_evaluated_per_example():
    with pytest.raises(UserError, match='num_samples=2, expected 1: evaluate returns one'):
        evaluate('none', ['evaluate_both'], decoding=Decoding(num_samples=2))


def test_means_are_over_the_tasks_that_have_the_metric():
    results = [{'examples': 1, 'a': 1.0, 'samples': []}, {'a': 3.0, 'b': 5.0, 'cut': 2}]
    assert mean_metrics(results) == {'a': 2.0, 'b': 5.0}


def test_instruction_settings_decide_the_prompts(model):
    seqio.TaskRegistry.add(
        'evaluate_asked',
        source=IndexedSource({'validation': _records(1)}),
        preprocessors=[_asked, tokenize, append_eos],
        output_features=text_features(),
        metric_fns=[exact_match],
    )
    for settings, asked in ((InstructionConfig(), '0.5'), (InstructionConfig(rationale=0), '0.0')):
        rows = []
        evaluate_tasks(model, ['evaluate_asked'], decoding=Decoding(1), rows=rows, instructions=settings)
        assert [row['input'] for row in rows] == [asked]
    seqio.TaskRegistry.remove('evaluate_asked')
