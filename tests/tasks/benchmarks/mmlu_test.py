"""MMLU: prompts, letters in completions, categories."""

import json

import pytest

from t5flan.errors import UserError
from t5flan.scoring.benchmark import Answer, score
from t5flan.tasks.benchmarks import find

COT = (
    "About world religions.\n\nQ: One?\n(A) a (B) b\nA: Let's think step by step. The answer is (B).\n\nQ:  Two?\nA: x"
)


@pytest.fixture
def folder(tmp_path):
    for split, count in (('dev', 5), ('test', 2)):
        (tmp_path / split).mkdir()
        rows = [f'"Question {i}, {split}?",yes,"no, no",3,4,{"ABCD"[i % 4]}\n' for i in range(count)]
        (tmp_path / split / f'world_religions_{split}.csv').write_text(''.join(rows))
    (tmp_path / 'mmlu-cot.json').write_text(json.dumps({'world_religions': COT}))
    return tmp_path


def test_direct_prompts_are_those_of_the_release(folder):
    first, second = find('mmlu_direct').questions(str(folder), 'world_religions')
    assert first.prompt().startswith(
        'The following are multiple choice questions (with answers) about world religions.\n\n'
        'Question 0, dev?\nA. yes\nB. no, no\nC. 3\nD. 4\nAnswer: A\n\nQuestion 1, dev?'
    )
    assert first.prompt().endswith('Answer: A\n\nQuestion 0, test?\nA. yes\nB. no, no\nC. 3\nD. 4\nAnswer:')
    assert first.prompt().count('Answer:') == 6 and first.options == () and (second.target, second.index) == ('B', 1)
    [asked] = find('mmlu_likelihood').questions(str(folder), 'world_religions', 1)
    assert asked.prompt() == first.prompt() and asked.options == (' A', ' B', ' C', ' D')


def test_prompts_with_chain_of_thought(folder):
    [question, _] = find('mmlu_cot').questions(str(folder), 'world_religions')
    assert question.prompt() == (
        COT.replace('Q:  Two', 'Q: Two')
        + "\n\nQ: Question 0, test?\n(A) yes (B) no, no (C) 3 (D) 4\nA: Let's think step by step."
    )


@pytest.mark.parametrize(
    ('text', 'letter'),
    [
        (' B', 'B'),
        ('(b)', 'B'),
        ('B.', 'B'),
        ('B) no', 'B'),
        ('B\n\nQuestion 2\nA. x', 'B'),
        ('**C**', 'C'),
        ('Answer: D', 'D'),
        ('The answer is (A).', 'A'),
        ('The correct answer is: D', 'D'),
        ('Option C', 'C'),
        ('(B) the second', 'B'),
        ('A dog', None),
        ('Apple', None),
        ('(A) or (B)', None),
        ('E', None),
        ('', None),
        ('none', None),
        ('Question: x (A)', None),
    ],
)
def test_a_direct_answer(text, letter):
    assert find('mmlu_direct').extract(text, 'virology') == letter


@pytest.mark.parametrize(
    ('text', 'letter'),
    [
        ('It is red. The answer is (C).', 'C'),
        ('(A) is wrong. The answer is (D). Q: Next? The answer is (B).', 'D'),
        ('The answer is (B).\n\nQ: (A)', 'B'),
        ('the answer is B', 'B'),
        ('The answer is (A). No: the answer is (B).', 'B'),
        ('The answer is blue.', None),
        ('So it is (C).', None),
        ('', None),
    ],
)
def test_the_answer_of_a_rationale(text, letter):
    assert find('mmlu_cot').extract(text, 'virology') == letter


def test_the_four_categories_cover_the_57_subjects():
    benchmark = find('mmlu_direct')
    sizes = {name: len(subjects) for name, subjects in benchmark.categories.items()}
    assert sizes == {'STEM': 18, 'humanities': 13, 'social sciences': 12, 'other': 14}
    assert len(benchmark.known_tasks) == 57
    answers = [
        Answer('virology', 0, ('A',), 'A'),
        Answer('anatomy', 0, ('A',), 'B'),
        Answer('astronomy', 0, ('A',), 'A'),
    ]
    found = score(benchmark, answers).averages
    assert {name: one['accuracy'] for name, one in found.items()} == {'all': 200 / 3, 'STEM': 100, 'other': 50}


def test_the_release_can_be_read(shared):
    benchmark, folder = find('mmlu_direct'), str(shared / 'data')
    questions = [one for task in benchmark.tasks(folder) for one in benchmark.questions(folder, task)]
    assert len(benchmark.tasks(folder)) == 19 and len(questions) == 4277
    assert {len(one.exemplars) for one in questions} == {5}


def test_bad_files_are_reported_in_one_line(folder):
    def message(benchmark, path=None, text=None):
        if path is not None:
            (folder / path).write_text(text)
        with pytest.raises(UserError) as error:
            find(benchmark).questions(str(folder), 'world_religions')
        return str(error.value)

    assert 'row 1 has 3 columns, expected question, A, B, C, D' in message(
        'mmlu_direct', 'test/world_religions_test.csv', 'a,b,c\n'
    )
    assert "has 6 columns and ends with 'answer'" in message(
        'mmlu_direct', 'test/world_religions_test.csv', 'question,A,B,C,D,answer\n'
    )
    assert 'has no rows' in message('mmlu_direct', 'test/world_religions_test.csv', '')
    (folder / 'test' / 'world_religions_test.csv').write_text('q,1,2,3,4,A\n')
    assert 'has no exemplars' in message('mmlu_cot', 'mmlu-cot.json', '{"world_religions": "x"}')
    assert "no prompt of 'world_religions'" in message('mmlu_cot', 'mmlu-cot.json', '[]')
    assert 'has no rows' in message('mmlu_direct', 'dev/world_religions_dev.csv', '')
    (folder / 'dev' / 'world_religions_dev.csv').unlink()
    assert 'world_religions_dev.csv: no such file' in message('mmlu_direct')
    (folder / 'mmlu-cot.json').unlink()
    assert 'the exemplars of mmlu_cot. Copy it there' in message('mmlu_cot')
    with pytest.raises(UserError, match='has no test/virology_test.csv'):
        find('mmlu_direct').questions(str(folder), 'virology')
