"""experiments/instruction_data.py: what is held out is never trained on, and prompts are made of other rows."""

import json
import sys

import pytest

from t5flan.errors import UserError
from tests.docs.markdown import ROOT

sys.path.insert(0, str(ROOT / 'experiments'))

import instruction_data as data

SIZES = {'tasks': 3, 'rows': 2, 'reasoning_rows': 2, 'cot_rows': 3, 'prompt_tokens': 40}
CATEGORIES = {'task1': 'Titles', 'task2': 'Titles', 'task3': 'Answers', 'task4': 'Tags', 'task5': 'Tags'}


def task(name, category):
    instances = [{'input': f'{name} input {i}', 'output': [f'{name} output {i}', '']} for i in range(9)]
    return {'Definition': ['Do', 'it.'], 'Categories': [category], 'Positive Examples': [], 'Instances': instances}


@pytest.fixture
def sources(tmp_path):
    """The layout of the public releases, in small."""
    for name, category in CATEGORIES.items():
        path = tmp_path / 'ni' / 'tasks' / f'{name}.json'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(task(name, category)))
    (tmp_path / 'ni' / 'splits' / 'default').mkdir(parents=True)
    (tmp_path / 'ni' / 'splits' / 'default' / 'test_tasks.txt').write_text('task1\ntask4\ntask5\ntask99\n')
    (tmp_path / 'cot').mkdir()
    for name in ('strategyqa', 'qasc', 'creak'):
        rows = [f'{name} {i}?\\nOptions:\\n- (A) x\t(A)\tbecause {i}' for i in range(5)]
        (tmp_path / 'cot' / f'{name}_train.tsv').write_text('\n'.join(rows) + '\n')
    (tmp_path / 'chat').mkdir()
    for name in ('alpaca.json', 'c4_demo.jsonl'):
        (tmp_path / 'chat' / name).write_text('[]')
    (tmp_path / 'gsm8k.jsonl').write_text(json.dumps({'question': 'How many?', 'answer': '1 + 1\n#### 2'}) + '\n')
    names = {'natural_instructions': 'ni', 'cot': 'cot', 'chat': 'chat', 'gsm8k': 'gsm8k.jsonl'}
    return {name: str(tmp_path / path) for name, path in names.items()}


def test_prepare_holds_out_whole_categories_and_sets(sources, tmp_path):
    folder = tmp_path / 'data'
    made = data.prepare(folder, sources, SIZES, lambda text: len(text.split()))
    assert made['held_out'] == {'Tags': ['task4', 'task5'], 'Titles': ['task1']}
    assert made['trained'] == ['task3', 'creak_train.tsv', 'alpaca.json']  # task2 is of a held-out category
    tasks = sorted(path.stem for path in (folder / 'natural_instructions' / 'tasks').iterdir())
    assert tasks == ['task3'] and [path.name for path in (folder / 'cot').iterdir()] == ['creak_train.tsv']
    assert len((folder / 'cot' / 'creak_train.tsv').read_text().splitlines()) == 3
    kinds = {name: one['rows'] for name, one in made['evaluations'].items()}
    assert kinds == {
        **{f'{kind}.{name}': 2 for kind in ('zero_shot', 'two_shot') for name in ('task1', 'task4', 'task5')},
        **{f'{kind}.{name}': 2 for kind in ('direct', 'rationale') for name in ('strategyqa', 'qasc')},
        'direct.gsm8k': 1,
        'rationale.gsm8k': 1,
    }
    [row] = data.read_rows(folder / 'evaluation' / 'rationale.gsm8k.jsonl')
    assert row == {'inputs': f'How many?\n{data.TRIGGER}', 'targets': ['2'], 'bare': 'How many?'}


def test_prepare_again_reads_what_is_there_and_needs_no_sources(sources, tmp_path):
    count = lambda text: len(text.split())
    made = data.prepare(tmp_path / 'data', sources, SIZES, count)
    assert data.prepare(tmp_path / 'data', dict.fromkeys(sources), SIZES, count) == made
    with pytest.raises(UserError, match='other sizes than rows=3. Set another --workdir'):
        data.prepare(tmp_path / 'data', sources, SIZES | {'rows': 3}, count)
    with pytest.raises(UserError, match='not prepared. Set --cot'):
        data.prepare(tmp_path / 'other', sources | {'cot': None}, SIZES, count)


def test_few_tasks_are_of_many_categories():
    held_out, trained = data.split_by_category(CATEGORIES, ['task1', 'task2', 'task4', 'task5'], 2)
    assert held_out == {'Tags': ['task4'], 'Titles': ['task1']} and trained == ['task3']


def test_exemplars_are_other_rows_of_the_task():
    content = task('t', 'x')
    content['Instances'] += content['Instances'][:2]  # the same input again
    made, left_out = data.instruction_prompts(content, 4, lambda text: True, 'seed')
    assert len(made['zero_shot']) == len(made['two_shot']) == 4 and not left_out
    asked = [row['bare'] for row in made['zero_shot']]
    assert len(set(asked)) == 4 and asked == [row['bare'] for row in made['two_shot']]
    for zero, two in zip(made['zero_shot'], made['two_shot'], strict=True):
        assert zero['inputs'] == f'Do it.\n\nInput: {zero["bare"]}\nOutput:'
        shown = two['inputs'].removesuffix(f'Input: {two["bare"]}\nOutput:')
        assert shown.count('Output:') == 2 and not any(text in shown for text in asked)
        assert zero['targets'] == two['targets'] == [zero['bare'].replace('input', 'output')]
    again, _ = data.instruction_prompts(content, 4, lambda text: True, 'seed')
    assert again == made


def test_instances_that_are_too_long_are_counted_and_replaced():
    content = task('t', 'x')
    content['Instances'][0]['input'] += ' and so on' * 50
    results = [data.instruction_prompts(content, 3, lambda text: len(text) < 300, f'{i}') for i in range(9)]
    assert all(len(made[kind]) == 3 for made, _ in results for kind in made)
    assert any(left_out for _, left_out in results)
    with pytest.raises(UserError, match='fewer than 4 different instances'):
        data.instruction_prompts({**content, 'Instances': content['Instances'][:3]}, 3, len, 'seed')


def test_sets_with_rationales_may_be_left_out(sources, tmp_path):
    folder = tmp_path / 'data'
    given = {name: path for name, path in sources.items() if name != 'cot'} | {'gsm8k': None}
    made = data.prepare(folder, given, SIZES, lambda text: len(text.split()))
    assert made['trained'] == ['task3', 'alpaca.json'] and not (folder / 'cot').exists()
    assert {one['kind'] for one in made['evaluations'].values()} == {'zero_shot', 'two_shot'}
