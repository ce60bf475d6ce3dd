"""experiments/instruction_scores.py: the rules that read answers, intervals over questions, spread over seeds."""

import sys

import pytest

from tests.docs.markdown import ROOT

sys.path.insert(0, str(ROOT / 'experiments'))

import instruction_scores as scores

QASC = 'What gives light?\nOptions:\n- (A) a stone\n- (B) the sun\n- (C) sand'


@pytest.mark.parametrize(
    ('task', 'prediction', 'answer'),
    [
        ('strategyqa', 'yes', 'yes'),
        ('strategyqa', 'No, it is not possible. Yes!', 'no'),
        ('strategyqa', 'Yes or no? He has none. So the answer is no.', 'no'),
        ('strategyqa', 'Nobody knows.', None),
        ('qasc', '(B)', '(B)'),
        ('qasc', 'B.', '(B)'),
        ('qasc', 'The sun', '(B)'),
        ('qasc', '(A) is cold. The sun is a star. So the answer is the sun.', '(B)'),
        ('qasc', 'So the answer is (C) sand.', '(C)'),
        ('qasc', '(F)', None),
        ('gsm8k', '16 - 3 = 13. So the answer is 13.', '13'),
        ('gsm8k', 'She has $1,013.00 left', '1013'),
        ('gsm8k', 'many', None),
    ],
)
def test_answers_are_found(task, prediction, answer):
    question = {'bare': QASC if task == 'qasc' else '?', 'targets': [answer or 'yes']}
    found = scores.reasoning_answer(task, question['bare'], prediction)
    assert str(found) == str(answer) or float(found) == float(answer)
    assert scores.is_right(task, question, prediction) == (answer is not None)


def test_natural_instructions_take_the_best_of_the_outputs():
    rows = [{'targets': ['A red fox', 'the fox'], 'bare': ''}, {'targets': ['yes'], 'bare': ''}]
    found = scores.score_rows('zero_shot', 'task1', rows, ['The fox.', 'no'])
    assert found == {'rouge_l': [1.0, 0.0], 'exact_match': [1.0, 0.0]}


EVALUATIONS = {
    **{f'{kind}.t{i}': {'kind': kind, 'task': f't{i}'} for kind in ('zero_shot', 'two_shot') for i in range(2)},
    'direct.qasc': {'kind': 'direct', 'task': 'qasc'},
    'rationale.qasc': {'kind': 'rationale', 'task': 'qasc'},
}


def fake_run(values):
    """Scores that are `values` for every task."""
    metrics = lambda kind: ('accuracy',) if kind in ('direct', 'rationale') else ('rouge_l', 'exact_match')
    return {name: {metric: list(values) for metric in metrics(one['kind'])} for name, one in EVALUATIONS.items()}


def test_estimates_have_an_interval_over_questions_and_a_spread_over_seeds():
    runs = [fake_run([1.0, 0.0, 1.0, 0.0]), fake_run([1.0, 0.0, 1.0, 1.0])]
    found = scores.estimate(runs, ['zero_shot.t0', 'zero_shot.t1'], 'rouge_l')
    assert found.seeds == (50.0, 75.0) and found.mean == 62.5
    assert found.spread == pytest.approx(17.68, abs=0.01) and found.low < 62.5 < found.high
    one = scores.estimate(runs[:1], ['direct.qasc'], 'accuracy')
    assert one.spread is None and str(one) == f'50.0 ({one.low:.1f} to {one.high:.1f})'
    certain = scores.estimate([fake_run([1.0] * 4)], ['direct.qasc'], 'accuracy')
    assert (certain.low, certain.high) == (100, 100)
    assert scores.estimate([], ['direct.qasc'], 'accuracy') is None


def test_tables_and_figure(tmp_path):
    arms = {'before': [fake_run([0.0, 1.0])], 'LoRA': [fake_run([1.0, 1.0]), fake_run([1.0, 0.5])]}
    summary = scores.summarize(arms, EVALUATIONS)
    titles = ['zero-shot: ROUGE-L', 'zero-shot: exact match', 'two-shot: ROUGE-L', 'two-shot: exact match']
    assert list(summary['LoRA']) == [*titles, 'QASC, direct', 'QASC, with rationale']
    first, second = scores.table(summary).split('\n\n')
    assert first.splitlines()[0] == f'|  | {" | ".join(titles)} |'
    assert first.splitlines()[3].startswith('| LoRA | 87.5 ± 17.7 (75.0 to 100.0) |')
    assert second.count('\n') == 3 and 'QASC, direct' in second
    found = scores.differences(arms, 'before', EVALUATIONS)
    assert set(found) == {'LoRA'} and found['LoRA']['QASC, direct']['difference'] == 37.5
    scores.draw(summary, tmp_path / 'figure.png')
    assert (tmp_path / 'figure.png').stat().st_size > 10_000


def test_baselines_read_no_instruction():
    questions = {name: [{'bare': '(A)', 'targets': ['(A)']}, {'bare': 'x', 'targets': ['(A)']}] for name in EVALUATIONS}
    for rows in (questions['direct.qasc'], questions['rationale.qasc']):
        for row in rows:
            row['bare'] = QASC
    found = scores.baselines(questions, EVALUATIONS)
    [frequent], [copied] = found['most frequent answer'], found['copying the input']
    assert frequent['direct.qasc']['accuracy'] == [1, 1] and frequent['zero_shot.t0']['exact_match'] == [1, 1]
    assert copied['zero_shot.t0']['exact_match'] == [1, 0]
