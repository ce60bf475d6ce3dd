"""The held-out tasks of Natural Instructions: Tk-Instruct's prompts and metrics."""

import json

import pytest

from t5flan.errors import UserError
from t5flan.scoring.benchmark import Answer, score
from t5flan.tasks.benchmarks import find

TASK = {
    'Categories': ['Title Generation'],
    'Definition': ['Write a title'],
    'Positive Examples': [
        {'input': 'one', 'output': 'One', 'explanation': ''},
        {'input': 'two', 'output': 'Two', 'explanation': ''},
        {'input': 'three', 'output': 'Three', 'explanation': ''},
    ],
    'Negative Examples': [{'input': 'bad', 'output': 'Bad', 'explanation': ''}],
    'Instances': [{'input': f'text {i}', 'output': [f'Title {i}', 'A title']} for i in range(120)],
}
NAME = 'task001_title'


@pytest.fixture
def folder(tmp_path):
    (tmp_path / 'tasks').mkdir()
    (tmp_path / 'splits' / 'default').mkdir(parents=True)
    (tmp_path / 'tasks' / f'{NAME}.json').write_text(json.dumps(TASK))
    (tmp_path / 'tasks' / 'task002_train.json').write_text(json.dumps(TASK))
    (tmp_path / 'splits' / 'default' / 'test_tasks.txt').write_text(f'{NAME}\ntask003_absent\n')
    return tmp_path


def test_prompts_are_those_of_tk_instruct(folder):
    benchmark = find('natural_instructions')
    assert benchmark.tasks(str(folder)) == [NAME]
    questions = benchmark.questions(str(folder), NAME)
    assert len(questions) == 100 and len(benchmark.questions(str(folder), NAME, 3)) == 3
    head = 'Definition: Write a title.\n\n Positive Example 1 -\nInput: one.\n Output: One.\n\n'
    tail = 'Now complete the following example -\nInput: text 0.\nOutput: '
    assert questions[0].prompt() == f'{head} Positive Example 2 -\nInput: two.\n Output: Two.\n\n{tail}'
    assert questions[0].prompt(1) == head + tail, 'the last example is left out first'
    assert questions[0].target == {'answers': ['Title 0', 'A title'], 'category': 'Title Generation'}


@pytest.mark.parametrize(
    ('text', 'exact', 'rouge'),
    [
        ('a TITLE.', 1, 1),
        ('Title 0', 1, 1),
        ('title\n\n Positive Example 3 -\nInput: x', 0, 2 / 3),
        ('the title', 0, 0.5),  # articles count, unlike SQuAD's
        ('', 0, 0),
        ('Now complete the following example', 0, 0),
    ],
)
def test_metrics(text, exact, rouge):
    target = {'answers': ['Title 0', 'A title'], 'category': 'x'}
    found = find('natural_instructions').judge(Answer(NAME, 0, (text,), target))
    assert found['exact_match'] == exact and found['rouge_l'] == pytest.approx(rouge)


def test_categories_are_those_of_the_files():
    answers = [
        Answer(name, 0, ('a b',), {'answers': [right], 'category': category})
        for name, right, category in [('t1', 'a b', 'X'), ('t2', 'c', 'X'), ('t3', 'a b', 'Y')]
    ]
    found = score(find('natural_instructions'), answers).averages
    assert {name: one['rouge_l'] for name, one in found.items()} == {'all': pytest.approx(200 / 3), 'X': 50, 'Y': 100}


def test_a_folder_without_lists_is_reported(folder):
    (folder / 'splits' / 'default' / 'test_tasks.txt').unlink()
    with pytest.raises(UserError, match='has no splits/default/test_tasks.txt'):
        find('natural_instructions').tasks(str(folder))
    with pytest.raises(UserError, match='has no tasks/task9.json'):
        find('natural_instructions').questions(str(folder), 'task9')
    (folder / 'tasks' / f'{NAME}.json').write_text('{"Definition": ["x"]}')
    with pytest.raises(UserError, match="'Instances'|Positive"):
        find('natural_instructions').questions(str(folder), NAME)
