"""BIG-Bench Hard: prompts of the release, and the rule that reads completions."""

import doctest
import json
from pathlib import Path

import pytest

from t5flan.errors import UserError
from t5flan.scoring.benchmark import Answer, score
from t5flan.tasks.benchmarks import bbh, find

EXEMPLARS = """canary GUID 0
-----
Evaluate the result of a random Boolean expression.

Q: not True is
A: Let's think step by step.
not True = False. So the answer is False.

Q: not False is
A: Let's think step by step.
not False
 = True. So the answer is True.

Q: True is
A: Let's think step by step.
It is. So the answer is True."""
TASK = 'boolean_expressions'


@pytest.fixture
def folder(tmp_path):
    (tmp_path / 'bbh').mkdir()
    (tmp_path / 'cot-prompts').mkdir()
    examples = [{'input': 'not not True is', 'target': 'True'}, {'input': 'False is', 'target': 'False'}]
    (tmp_path / 'bbh' / f'{TASK}.json').write_text(json.dumps({'canary': '', 'examples': examples}))
    (tmp_path / 'cot-prompts' / f'{TASK}.txt').write_text(EXEMPLARS)
    return tmp_path


def test_worked_examples():
    results = doctest.testmod(bbh)
    assert results.attempted and not results.failed


def test_prompts_are_those_of_the_release(folder):
    benchmark = find('bbh_cot')
    assert benchmark.tasks(str(folder)) == [TASK]
    question, last = benchmark.questions(str(folder), TASK)
    assert question.prompt() == (
        EXEMPLARS.partition('-----\n')[2] + "\n\nQ: not not True is\nA: Let's think step by step."
    )
    assert question.prompt(2).count('Q: ') == 2 and 'Q: True is' in question.prompt(2)
    assert (last.index, last.target) == (1, 'False')
    assert len(benchmark.questions(str(folder), TASK, limit=1)) == 1


def test_direct_prompts_show_the_answers_only(folder):
    [question, _] = find('bbh_direct').questions(str(folder / 'bbh'), TASK)
    assert question.prompt() == (
        'Evaluate the result of a random Boolean expression.\n\nQ: not True is\nA: False\n\nQ: not False is\nA: True'
        '\n\nQ: True is\nA: True\n\nQ: not not True is\nA:'
    )


@pytest.mark.parametrize(
    ('completion', 'answer'),
    [
        ('A = True. So the answer is True.', 'True'),
        ('So the answer is (A).\n\nQ: Another\nA: ... So the answer is (B).', '(A)'),
        ('So the answer is (A). Q: Another A: ... So the answer is (B).', '(A)'),  # a vocabulary without newlines
        ('So the answer is (A). Wait. So the answer is (C)', '(C)'),
        ('so The Answer Is: no. I hope this helps.', 'no'),
        ('So, we need "]", "}". So the answer is ] } ].', '] } ]'),
        ('So the answer is costume counterpart oven.', 'costume counterpart oven'),
        ('So the answer is -11520.', '-11520'),
        ('So the answer is 3.5.', '3.5'),
        ('the answer is\n12', '12'),
        ('So the answer is (A) or (B).', '(A) or (B)'),
        ('I do not know', None),
        ('', None),
        ('So the answer is', ''),
        ('Q: So the answer is (A).', None),
    ],
)
def test_the_answer_of_a_rationale(completion, answer):
    assert find('bbh_cot').extract(completion, TASK) == answer


@pytest.mark.parametrize(
    ('completion', 'answer'),
    [
        (' True', 'True'),
        (' (A)\n\nQ: x\nA: (B)', '(A)'),
        ('] ] }', '] ] }'),
        ('\nYes.', 'Yes'),
        ('valid Q: x', 'valid'),
        ('', None),
        ('\n\n', None),
        (' .', None),
    ],
)
def test_a_direct_answer(completion, answer):
    assert find('bbh_direct').extract(completion, TASK) == answer


@pytest.mark.parametrize(
    ('completion', 'target', 'strict', 'flexible'),
    [
        ('(A)', '(A)', 1, 1),
        ('A', '(A)', 0, 1),
        ('(a) Louis', '(A)', 0, 1),
        ('(A) or (B)', '(A)', 0, 0),
        ('yes', 'Yes', 0, 1),
        ('No, because', 'No', 0, 1),
        ('not valid', 'valid', 0, 0),
        ('invalid', 'valid', 0, 0),
        (']]}', '] ] }', 0, 1),
        ('] ] }', '] ]', 0, 0),
        ('pear, fig', 'pear fig', 0, 1),
        ('20', '2', 0, 0),
        ('a pear', '(A)', 0, 1),  # as in "A pear": a letter alone counts as the option's
    ],
)
def test_strict_and_flexible_accuracy(completion, target, strict, flexible):
    found = find('bbh_cot').judge(Answer(TASK, 0, (f'So the answer is {completion}.',), target))
    assert (found['accuracy'], found['flexible_accuracy'], found['no_answer']) == (strict, flexible, 0)


REAL = json.loads((Path(__file__).parent / 'bbh_completions.json').read_text('utf-8'))['rows']


@pytest.mark.parametrize(('name', 'task', 'completion', 'target', 'right'), REAL)
def test_real_completions(name, task, completion, target, right):
    assert find(name).judge(Answer(task, 0, (completion,), target))['accuracy'] == right


def test_averages_are_those_of_the_papers():
    """Three sizes of one task count once among the 23 tasks, and three times among the 27 files."""
    names = ['word_sorting', *(f'logical_deduction_{size}_objects' for size in ('three', 'five', 'seven'))]
    answers = [Answer(name, 0, ('the answer is x',), 'x' if name == 'word_sorting' else 'y') for name in names]
    scores = score(find('bbh_cot'), answers)
    assert scores.averages['all'] == {'tasks': 4, 'accuracy': 25, 'flexible_accuracy': 25, 'no_answer': 0}
    assert scores.averages['23 tasks']['accuracy'] == scores.averages['algorithmic']['accuracy'] == 50
    assert 'NLP' not in scores.averages and len(scores.missing) == 23


def test_the_whole_release_can_be_read(shared):
    benchmark = find('bbh_cot')
    folder = str(shared / 'data')
    assert tuple(benchmark.tasks(folder)) == benchmark.known_tasks and len(benchmark.known_tasks) == 27
    questions = [question for task in benchmark.known_tasks for question in benchmark.questions(folder, task)]
    assert len(questions) == 6511
    assert all(len(question.exemplars) == 3 for question in questions)
    for task in benchmark.known_tasks:  # an exemplar's own answer is read from it
        assert all(benchmark.extract(one[2:], task) for one in benchmark.questions(folder, task, 1)[0].exemplars)


def broken(folder, name, text):
    (folder / name).write_text(text)
    with pytest.raises(UserError) as error:
        find('bbh_direct').questions(str(folder), TASK)
    return str(error.value)


def test_bad_files_are_reported_in_one_line(folder, tmp_path):
    assert 'has 1 exemplars' in broken(folder, f'cot-prompts/{TASK}.txt', EXEMPLARS.partition('\n\nQ: not False')[0])
    assert 'has 0 exemplars' in broken(folder, f'cot-prompts/{TASK}.txt', '')
    assert 'no "the answer is"' in broken(
        folder, f'cot-prompts/{TASK}.txt', EXEMPLARS.replace('answer is False', 'result is False')
    )
    (folder / 'cot-prompts' / f'{TASK}.txt').write_text(EXEMPLARS)
    assert 'not a file of BIG-Bench Hard' in broken(folder, f'bbh/{TASK}.json', '[1]')
    assert 'has no examples' in broken(folder, f'bbh/{TASK}.json', '{"examples": []}')
    (folder / 'cot-prompts' / f'{TASK}.txt').unlink()
    (folder / 'bbh' / f'{TASK}.json').write_text('{"examples": [{"input": "", "target": ""}]}')
    with pytest.raises(UserError, match='the exemplars of boolean_expressions'):
        find('bbh_cot').questions(str(folder), TASK)
    with pytest.raises(UserError, match='no such folder. Set --benchmark_dir'):
        find('bbh_cot').tasks(str(tmp_path / 'absent'))
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UserError, match='has no .*, the files of bbh_cot'):
        find('bbh_cot').tasks(str(tmp_path / 'empty'))


def test_an_unknown_benchmark_is_answered_with_the_nearest():
    with pytest.raises(UserError, match=r"'bbh_coot'; did you mean bbh_cot\?"):
        find('bbh_coot')
