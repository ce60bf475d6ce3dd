"""tasks/natural_instructions.py: a folder in the official schema becomes tasks, mixtures and splits."""

import json

import numpy as np
import pytest
import seqio

from t5flan.data.batches.pipeline import TrainPipeline, eval_examples
from t5flan.data.config import DataConfig
from t5flan.data.instruction_config import InstructionConfig, NaturalInstructionsConfig
from t5flan.data.mixtures.mixing import tasks_and_rates
from t5flan.data.preprocessing.examples import Context
from t5flan.data.randomness import stable_hash
from t5flan.data.skipped import left_out_lines, skipped_tasks
from t5flan.data.vocabulary.byte_level import ByteVocabulary
from t5flan.errors import UserError
from t5flan.tasks import natural_instructions as ni
from tests.vocabulary import vocabulary_chosen

VOCABULARY = ByteVocabulary()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


def content(name, instances=30, **more):
    return {
        'Definition': [f'Say what {name} says of the number.'],
        'Categories': ['Question Answering'],
        'Input_language': ['English'],
        'Output_language': ['English'],
        'Positive Examples': [{'input': f'{i}', 'output': f'right {i}', 'explanation': 'so it is'} for i in range(3)],
        'Negative Examples': [{'input': '7', 'output': 'wrong 7', 'explanation': 'it is not'}],
        'Instances': [
            {'id': f'{name}-{i}', 'input': f'{i} ü\u2028', 'output': [f'{name} {i}', f'{name} also {i}']}
            for i in range(instances)
        ],
    } | more


def folder_of(path, lists=None, **files):
    (path / 'tasks').mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (path / 'tasks' / f'{name}.json').write_text(
            value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False), 'utf-8'
        )
    for name, names in (lists or {}).items():
        (path / 'splits' / name).parent.mkdir(parents=True, exist_ok=True)
        (path / 'splits' / name).write_text('\n'.join(names) + '\n')
    return str(path)


def records(task, split='train'):
    return seqio.TaskRegistry.get(task).source.records(split)


def test_a_folder_becomes_tasks_splits_and_mixtures(tmp_path):
    lists = {
        'default/train_tasks.txt': ['task1_a', 'absent'],
        'default/test_tasks.txt': ['task2_a'],
        'xlingual/test_tasks.txt': ['task3_a'],
    }
    folder = folder_of(
        tmp_path,
        lists,
        task1_a=content('one'),
        task2_a=content('two', 150),
        task3_a=content('three', 30, Input_language=['Spanish'], Categories=['Translation']),
    )
    for _ in range(2):
        ni.register(folder, NaturalInstructionsConfig(cap=28))
    train, held = (records('ni_task1_a', split) for split in ('train', 'validation'))
    assert len(train) + len(held) == 30 and len(held) >= 1
    assert sorted(row['input'] for row in [*train, *held]) == sorted(f'{i} ü\u2028' for i in range(30))
    assert train[0]['outputs'] == [f'one {train[0]["input"].split()[0]}', f'one also {train[0]["input"].split()[0]}']
    tested = records('ni_task2_a', 'test')
    assert [row['id'] for row in tested] == [f'two-{i}' for i in range(100)], (
        'the first 100, which the other splits lack'
    )
    assert len(records('ni_task2_a')) + len(records('ni_task2_a', 'validation')) == 50
    rates = {task.name: rate for task, rate in tasks_and_rates(seqio.get_mixture_or_task('natural_instructions'))}
    assert list(seqio.TaskRegistry.get('ni_task3_a').splits) == ['test'], 'it has only the measured instances'
    counts = {task: min(28, len(records(task, 'test' if '3' in task else 'train'))) for task in rates}
    assert set(rates) == {'ni_task1_a', 'ni_task2_a', 'ni_task3_a'} and max(counts.values()) == 28
    assert rates == {task: pytest.approx(count / sum(counts.values())) for task, count in counts.items()}
    names = lambda mixture: [task.name for task in seqio.MixtureRegistry.get(f'natural_instructions_{mixture}').tasks]
    assert (
        names('train') == ['ni_task1_a']
        and names('test') == ['ni_task2_a']
        and names('xlingual_test') == ['ni_task3_a']
    )

    def chosen(**settings):
        ni.register(folder, NaturalInstructionsConfig(**settings))
        return sorted(task.name for task in seqio.MixtureRegistry.get('natural_instructions').tasks)

    assert chosen(languages=('English',)) == ['ni_task1_a', 'ni_task2_a'] == chosen(exclude_categories=('Translation',))
    assert (
        chosen(categories=('Translation',)) == ['ni_task3_a']
        and 'natural_instructions_train' not in seqio.MixtureRegistry.names()
    )
    with pytest.raises(UserError, match='none of its 3 tasks is selected. Set NaturalInstructionsConfig'):
        ni.register(folder, NaturalInstructionsConfig(categories=('Poetry',)))


def prompts(file, split='train', count=200, **settings):
    settings = {'inverted': 0, **settings}
    function, source = ni.FollowDefinition(file), ni.Instances(file, file.summary(), split, tested=False)
    contexts = [
        Context(None, {}, task='t', split=split, index=i, instructions=InstructionConfig(**settings))
        for i in range(count)
    ]
    return function.apply_block([source[i % len(source)] for i in range(count)], contexts)


def test_prompts_hold_the_definition_and_the_examples(tmp_path):
    folder_of(tmp_path, task4_a=content('four'))
    file = ni.TaskFile(str(tmp_path / 'tasks' / 'task4_a.json'))
    made = prompts(file, few_shot=0.5, negative_examples=0.25)
    for example in made:
        assert example['inputs'].count('Say what four says of the number.') >= 1
        number = example['targets'].split()[-1]
        assert example['targets'] in (f'four {number}', f'four also {number}') and example['answers'] == [
            f'four {number}',
            f'four also {number}',
        ]
        assert ('wrong 7' in example['inputs'] and 'it is not' in example['inputs']) == (
            'negative example' in example['variant']
        )
        assert ('right' in example['inputs']) == ('few-shot' in example['variant'])
    assert len({example['targets'].split()[1] for example in made}) > 10
    assert 0.35 < np.mean(['few-shot' in example['variant'] for example in made]) < 0.65
    assert 0.15 < np.mean(['negative' in example['variant'] for example in made]) < 0.35
    assert 0.3 < np.mean(['also' in example['targets'] for example in made]) < 0.7, 'all outputs are trained on'
    assert not any('also' in example['targets'] for example in prompts(file, 'validation')), 'the first is measured'
    assert any(example['variant'] == 'zero-shot, inverted' for example in prompts(file, few_shot=0, inverted=0.5))
    plain = prompts(file, few_shot=0, negative_examples=0)
    assert {example['variant'] for example in plain} == {'zero-shot'}


def test_an_instance_that_is_an_example_is_not_its_own_exemplar(tmp_path):
    same = content('five', Instances=[{'input': '1', 'output': ['x']}, {'input': '1', 'output': 'x'}])
    folder_of(tmp_path, task5_a=same)
    made = prompts(ni.TaskFile(str(tmp_path / 'tasks' / 'task5_a.json')), few_shot=1.0, negative_examples=0.5, count=60)
    assert not any('right 1' in example['inputs'] for example in made) and any(
        'right 2' in example['inputs'] for example in made
    )


def test_any_output_is_right_and_the_pipeline_reads_it(tmp_path):
    ni.register(folder_of(tmp_path, task6_a=content('six')))
    config = DataConfig('ni_task6_a', 4, {'inputs': 256, 'targets': 32}, 'bytes', split='validation')
    example = eval_examples(config, VOCABULARY)[0]
    assert ni.postprocess('x', True, example) == example['answers'] and ni.postprocess('x', False, example) == 'x'
    with TrainPipeline(
        DataConfig('natural_instructions', 4, {'inputs': 256, 'targets': 32}, 'bytes'), VOCABULARY
    ) as pipeline:
        batch, _ = next(pipeline)
    assert 'number' in VOCABULARY.decode(batch['encoder_input_tokens'][0])


def test_seqio_reads_the_task_too(tmp_path):
    ni.register(folder_of(tmp_path, task10_a=content('ten')))
    with vocabulary_chosen(VOCABULARY):
        dataset = seqio.get_mixture_or_task('ni_task10_a').get_dataset(
            {'inputs': 256, 'targets': 64}, 'train', shuffle=False
        )
        assert len(list(dataset.as_numpy_iterator())) == len(records('ni_task10_a'))


def test_files_are_scanned_again_only_when_they_change(tmp_path, monkeypatch):
    folder = folder_of(tmp_path, task7_a=content('seven'), task8_a=content('eight'), task9_b=content('nine'))
    files = ni.task_files(folder)
    first, rows = ni.read_folder(files)
    scanned = []
    monkeypatch.setattr(
        ni.TaskFile, '_scan', lambda self, whole=ni.TaskFile._scan: scanned.append(self.path) or whole(self)
    )

    def outputs(name):
        found, table = ni.read_folder(files)
        file = ni.TaskFile(files[name], table[found[name].first : found[name].first + found[name].instances])
        assert file.definition().startswith('Say what') and len(file.examples('Negative Examples')) == 1
        return [file.instance(number)['outputs'][0] for number in range(found[name].instances)]

    again, kept = ni.read_folder(files)
    assert again == first and (kept == rows).all() and isinstance(kept, np.memmap)
    assert outputs('task9_b') == [f'nine {i}' for i in range(30)] and not scanned, 'neither scanned nor read whole'
    folder_of(tmp_path, task8_a=content('changed', 12))
    assert outputs('task8_a') == [f'changed {i}' for i in range(12)] and len(scanned) == 1
    assert outputs('task9_b') == [f'nine {i}' for i in range(30)] and len(scanned) == 1
    assert len(list((tmp_path / 'cache' / 't5flan').glob('*.npy'))) == 1
    for damage in (b'[]', b'{"table": "none.npy", "tasks": {}}', b'{"table": 3}', b'\xff'):
        next((tmp_path / 'cache' / 't5flan').glob('*.json')).write_bytes(damage)
        assert outputs('task7_a') == [f'seven {i}' for i in range(30)]


def without(field):
    return {name: value for name, value in content('bad').items() if name != field}


@pytest.mark.parametrize(
    'number,value,pattern',
    [
        (1, without('Definition'), r"bad1\.json: no field 'Definition'; the fields are Categories"),
        (2, without('Instances'), "no field 'Instances'"),
        (3, content('x', Instances=[]), "field 'Instances' is an empty list. Fix"),
        (
            4,
            content('x', Instances=[{'input': 'a'}, {'input': 'a'}]),
            r"bad4\.json instance 1: no field 'output'; the fields are input",
        ),
        (
            5,
            content('x', Instances=[{'input': 'a', 'output': []}]),
            "instance 1: field 'output' is an empty list, expected text or a list of texts",
        ),
        (6, content('x', Definition=['']), "field 'Definition' is a list with empty texts, expected a text"),
        (7, content('x', Instances={'input': 'a'}), "field 'Instances' is an object, expected a list"),
        (8, '{"Definition": ["a"], "Instances": [{"input": "a", ]}', 'instance 1: not JSON'),
        (9, '"text"', "begins with '\"', expected an object"),
        (10, '', 'expected an object'),
        (11, content('x', Instances=['a']), 'instance 1: is str, expected an object'),
        (12, content('x', Instances=None), "field 'Instances' is null"),
        (13, content('x', Definition=None), "field 'Definition' is null"),
        (14, content('x', Definition=[]), "field 'Definition' is an empty list"),
        (15, {'definition': 'x', **without('Definition')}, "no field 'Definition'.* did you mean definition"),
        (16, '<!DOCTYPE html>\n<html>Not found</html>', 'bad16.json is a web page. Download the file itself'),
        (
            17,
            'version https://git-lfs.github.com/spec/v1\noid',
            'bad17.json is a pointer of Git LFS. Run `git lfs pull`',
        ),
        (18, '404: Not Found', "begins with '4', expected an object"),
        (19, content('x', Instances=[{'input': None, 'output': 'b'}]), "field 'input' is null, expected text"),
        (20, content('x', Instances=[{'input': 'a', 'output': ['b', 3]}]), "'output' is a list with a number"),
        (21, content('x', Instances=[{'input': 'a', 'output': None}]), "field 'output' is null"),
        (22, content('x', Instances=[{'input': 'a', 'output': ' '}]), 'all outputs of all instances are empty'),
        (23, json.dumps(content('x'))[:-40], 'bad23.json .*not JSON'),
        (24, content('x', **{'Positive Examples': None}), "field 'Positive Examples' is null"),
        (
            25,
            content('x', **{'Positive Examples': {'input': 'a'}}),
            "'Positive Examples' is an object, expected a list",
        ),
    ],
)
def test_one_line_for_a_bad_file_and_the_rest_continues(tmp_path, number, value, pattern):
    folder = folder_of(tmp_path, **{f'bad{number}': value, f'good{number}': content('good')})
    with pytest.raises(UserError, match=pattern) as error:
        ni.register(folder)
    assert '\n' not in str(error.value)
    ni.register(folder, skip_broken=True)
    assert [task.name for task in seqio.MixtureRegistry.get('natural_instructions').tasks] == [f'ni_good{number}']
    assert f'ni_bad{number}' in skipped_tasks()


def test_skip_broken_skips_instances_and_empty_outputs_are_left_out(tmp_path):
    empty, broken = {'input': 'e', 'output': ['', ' ']}, {'input': 'b', 'output': 3}
    good = [{'input': str(i), 'output': ['', f'{i} is']} for i in range(12)]
    instances = [empty, broken, *good[:6], empty, broken, *good[6:], empty]
    positive = [{'input': 'p', 'output': ''}, {'input': 'q', 'output': 'right'}]
    folder = folder_of(tmp_path, task31_a=content('x', Instances=instances, **{'Positive Examples': positive}))
    where = f'{folder}/tasks/task31_a.json'
    for _ in range(2):  # scanned, then from the stored summary
        with pytest.raises(UserError, match="instance 2: field 'output' is a number.* Set --skip_broken to continue"):
            ni.register(folder)
        ni.register(folder, skip_broken=True)
        found = [row for split in ('train', 'validation') for row in records('ni_task31_a', split)]
        assert sorted(row['outputs'][0] for row in found) == sorted(f'{i} is' for i in range(12))
        assert {f'{where} instance 2', f'{where} instance 10'} <= set(skipped_tasks())
        line = f'{where}: left out instances whose outputs are all empty (3; the first: instance 1)'
        assert line in left_out_lines()
    summaries, rows = ni.read_folder(ni.task_files(folder))
    file = ni.TaskFile(where, rows)
    assert file.definition().startswith('Say what') and [
        one['input'] for one in file.examples('Positive Examples')
    ] == ['q']
    assert summaries['task31_a'].without_output == (1, 9, 17)


@pytest.mark.parametrize(
    'name,value',
    [('test', [{'input': 'a'}]), ('metadata', {'version': 2}), ('test', {'data': []}), ('dev', content('x'))],
)
def test_a_file_that_is_no_task_is_named_and_not_read(tmp_path, name, value):
    task = f'task32_{name}{stable_hash(str(value))}'
    folder = folder_of(tmp_path, **{task: content('x'), name: json.dumps(value)})
    (tmp_path / 'tasks' / f'._{task}.json').write_bytes(b'\0\5')
    ni.register(folder)
    assert [task.name for task in seqio.MixtureRegistry.get('natural_instructions').tasks] == [f'ni_{task}']
    assert any(line.startswith(f'{folder}/tasks/{name}.json: is ') and 'not read' in line for line in left_out_lines())
    (tmp_path / 'tasks' / f'{task}.json').unlink()
    if 'Definition' not in value:
        with pytest.raises(UserError, match='none of its .json files is a task'):
            ni.register(folder)


@pytest.mark.parametrize(
    'settings,message',
    [
        (
            {'categories': ('Question Answerin',)},
            "categories has 'Question Answerin', .*did you mean 'Question Answering'",
        ),
        ({'categories': ('question answering', 'Translation')}, "did you mean 'Question Answering'"),
        ({'exclude_categories': ('Translations',)}, "exclude_categories has 'Translations', .* 'Translation'"),
        ({'languages': ('english',)}, "NaturalInstructionsConfig.languages has 'english', .* 'English'"),
        ({'categories': ('Poetry',)}, 'is selected. Set NaturalInstructionsConfig.categories; there are Question Ans'),
        ({'languages': ('Urdu',)}, 'is selected. Set NaturalInstructionsConfig.languages; there are English, Spanish'),
    ],
)
def test_the_nearest_category_is_suggested(tmp_path, settings, message):
    spanish = content('y', Categories=['Translation'], Input_language=['Spanish'])
    unique = stable_hash(message)
    folder = folder_of(tmp_path, **{f'task33_{unique}': content('x'), f'task34_{unique}': spanish})
    with pytest.raises(UserError, match=message) as error:
        ni.register(folder, NaturalInstructionsConfig(**settings))
    assert '\n' not in str(error.value)
    ni.register(folder, NaturalInstructionsConfig(exclude_categories=('Question Rewriting', 'Poetry')))
    notes = [line for line in left_out_lines() if line.startswith(folder)]
    assert len(notes) == 2 and "exclude_categories has 'Poetry', which no task has" in notes[1]
    ni.register(folder, NaturalInstructionsConfig(exclude_categories=('Translation',)))


def test_the_definition_comes_once_before_the_exemplars(tmp_path):
    folder_of(tmp_path, task35_a=content('thirty'))
    made = prompts(ni.TaskFile(str(tmp_path / 'tasks' / 'task35_a.json')), few_shot=1.0, negative_examples=0.3)
    for example in made:
        before, *after = example['inputs'].split('Say what thirty says of the number.')
        assert len(after) == 1 and 'right' not in before and 'right' in after[0]


def test_one_line_for_a_taken_name_and_for_a_bad_folder(tmp_path):
    ni.register(folder_of(tmp_path / 'a', task9_a=content('nine')))
    with pytest.raises(UserError, match='task ni_task9_a is made of .* already. Rename one of them'):
        ni.register(folder_of(tmp_path / 'b', task9_a=content('nine')))
    with pytest.raises(UserError, match='no such folder. Set DataConfig.natural_instructions'):
        ni.register(str(tmp_path / 'none'))
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UserError, match='no .json file'):
        ni.register(str(tmp_path / 'empty'))


def test_the_real_tasks(shared):
    folder = shared / 'data' / 'natural_instructions_v2'
    if not folder.is_dir():
        pytest.skip(f'no data at {folder}')
    found, rows = ni.read_folder(ni.task_files(str(folder)))
    assert len(rows) == 16_601
    assert len(found) == 91 and not any(summary.error for summary in found.values())
    assert sum(summary.instances for summary in found.values()) == 16_601
    lists = ni.official_lists(str(folder))
    assert (len(lists['train']), len(lists['test'])) == (756, 119)


@pytest.mark.parametrize(
    'content,expected',
    [
        ('\ufefftask1_a\r\ntask2_b\r\n'.encode(), ['task1_a', 'task2_b']),
        ('\ufefftask1_a'.encode(), ['task1_a']),
        (b'task\xff\n', None),
        ('task1_a'.encode('utf-16'), None),
    ],
)
def test_official_lists_of_other_encodings(tmp_path, content, expected):
    path = tmp_path / 'splits' / 'default' / 'train_tasks.txt'
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    if expected is not None:
        assert ni.official_lists(str(tmp_path)) == {'train': expected}
        return
    with pytest.raises(UserError, match=r'train_tasks\.txt: not UTF-8') as error:
        ni.official_lists(str(tmp_path))
    assert '\n' not in str(error.value)
