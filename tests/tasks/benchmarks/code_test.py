"""HumanEval and MBPP: prompts, and programs made of completions of many forms."""

import gzip
import json

import pytest

from t5flan.errors import UserError
from t5flan.scoring.benchmark import Answer
from t5flan.tasks.benchmarks import find

PROMPT = 'import math\n\ndef area(r):\n    """The area of a circle."""\n'
TARGET = {'prompt': PROMPT, 'test': 'def check(f):\n    assert round(f(1), 2) == 3.14\n', 'entry_point': 'area'}
BODY = '    return math.pi * r**2\n'

RIGHT = {
    'body': BODY,
    'stripped': 'return math.pi * r**2',
    'stripped, two lines': 'x = r * r\n    return math.pi * x',
    'nested': '    def square(x):\n        return x * x\n    return math.pi * square(r)\n',
    'stripped, nested': 'def square(x):\n        return x * x\n    return math.pi * square(r)\n',
    'more follows': f'{BODY}\ndef other(:',
    'a call follows': f'{BODY}\nprint(area(1)',
    'a comment follows': f'{BODY}\n# Now\nnot python',
    'whole function': f'{PROMPT}{BODY}',
    'function without imports': f'def area(r):\n{BODY}',
    'fence': f'Here it is:\n```python\n{PROMPT}{BODY}```\nThis computes it.',
    'fence of the body': f'```\n{BODY}```',
    'open fence': f'```python\n{PROMPT}{BODY}',
}
WRONG = {
    'empty': '',
    'prose': 'I cannot do that.',
    'wrong': '    return r\n',
    'another function': '\ndef other(r):\n    return 3.14159\n',
    'loop': '    while True:\n        pass\n',
}


@pytest.mark.parametrize('completion', RIGHT.values(), ids=RIGHT)
def test_right_completions_pass(completion):
    assert find('human_eval').judge(Answer('human_eval', 0, (completion,), TARGET)) == {'pass@1': 1}


@pytest.mark.parametrize('completion', WRONG.values(), ids=WRONG)
def test_wrong_completions_fail(completion):
    assert find('human_eval').judge(Answer('human_eval', 0, (completion,), TARGET)) == {'pass@1': 0}


def test_samples_give_pass_at_k():
    samples = (BODY, *['    return r'] * 9)
    assert find('human_eval').judge(Answer('human_eval', 0, samples, TARGET)) == {'pass@1': 0.1, 'pass@10': 1}


def test_human_eval_prompts(tmp_path):
    row = json.dumps({'task_id': 'HumanEval/0', 'canonical_solution': BODY, **TARGET}) + '\n'
    (tmp_path / 'HumanEval.jsonl.gz').write_bytes(gzip.compress(row.encode() * 2))
    benchmark = find('human_eval')
    assert benchmark.tasks(str(tmp_path)) == ['human_eval']
    first, second = benchmark.questions(str(tmp_path), 'human_eval')
    assert first.prompt() == PROMPT and first.target == TARGET and second.index == 1
    json.dumps(first.target)


def mbpp(number):
    return {
        'task_id': number,
        'text': f'Write a function to add {number}.',
        'code': f'def add(x):\r\n    return x + {number}',
        'test_setup_code': 'import math',
        'test_list': [f'assert add(1) == {1 + number}', 'assert math.pi'],
    }


def test_mbpp_asks_its_test_split_after_three_exemplars(tmp_path):
    numbers = [1, 2, 3, 4, 10, 11, 12, 510, 511]
    (tmp_path / 'mbpp.jsonl').write_text(''.join(json.dumps(mbpp(number)) + '\n' for number in numbers))
    benchmark = find('mbpp')
    questions = benchmark.questions(str(tmp_path), 'mbpp')
    assert len(questions) == 3
    prompt = questions[0].prompt()
    assert prompt.startswith(
        'You are an expert Python programmer, and here is your task: Write a function to add 2. '
        'Your code should pass these tests:\n\nassert add(1) == 3\nassert math.pi\n[BEGIN]\ndef add(x):'
    )
    assert prompt.endswith(
        'add 11. Your code should pass these tests:\n\nassert add(1) == 12\nassert math.pi\n[BEGIN]\n'
    )
    assert prompt.count('[DONE]') == 3
    judge = lambda text: benchmark.judge(Answer('mbpp', 0, (text,), questions[0].target))['pass@1']
    assert judge(mbpp(11)['code'] + '\n[DONE]\n\nYou are') == 1
    assert judge(f'```python\n{mbpp(11)["code"]}\n```') == 1
    assert judge(mbpp(12)['code']) == judge('') == 0


def test_bad_input_is_reported_in_one_line(tmp_path):
    (tmp_path / 'mbpp.jsonl').write_text(json.dumps(mbpp(11)) + '\n')
    with pytest.raises(UserError, match='lacks the exemplars, task_id 2'):
        find('mbpp').questions(str(tmp_path), 'mbpp')
    (tmp_path / 'mbpp.jsonl').write_text(json.dumps(mbpp(11) | {'test_list': []}) + '\n')
    with pytest.raises(UserError, match="'test_list'"):
        find('mbpp').questions(str(tmp_path), 'mbpp')
    with pytest.raises(UserError, match=r'has no HumanEval.jsonl\*'):
        find('human_eval').tasks(str(tmp_path))
    with pytest.raises(UserError, match='target of question 3 of human_eval is not an object with entry_point'):
        find('human_eval').judge(Answer('human_eval', 3, ('',), 'a text'))


def test_solutions_of_the_releases_pass(shared):
    """A few of each; the whole releases take a minute."""
    folder = str(shared / 'data')
    benchmark = find('human_eval')
    with gzip.open(f'{folder}/human_eval/HumanEval.jsonl.gz', 'rt') as file:
        solutions = [json.loads(line)['canonical_solution'] for line in file]
    questions = benchmark.questions(folder, 'human_eval')
    assert len(questions) == len(solutions) == 164
    chosen = range(0, 164, 20)
    answers = [Answer('human_eval', i, (solutions[i],), questions[i].target) for i in chosen]
    assert all(one == {'pass@1': 1} for one in benchmark.judge_all(answers))
    assert len(find('mbpp').questions(folder, 'mbpp')) == 500
