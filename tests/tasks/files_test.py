"""tasks/files.py: files of inputs and targets become tasks by settings only; one clear line for a bad line."""

import json

import pytest
import seqio

from t5flan.data.batches.pipeline import TrainPipeline, eval_examples
from t5flan.data.config import DataConfig
from t5flan.data.corpus_config import FileTask
from t5flan.data.skipped import left_out_lines, skipped_tasks
from t5flan.data.vocabulary.byte_level import ByteVocabulary
from t5flan.errors import UserError
from t5flan.tasks import files, register_all

VOCABULARY = ByteVocabulary()
ROWS = [{'inputs': f'say {i}\u2028now', 'targets': f'{i}', 'level': 'easy' if i % 2 else 'hard'} for i in range(100)]


def write(path, rows=ROWS):
    """The rows in the format of the file's name."""
    if path.suffix == '.jsonl':
        path.write_text(''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows), 'utf-8')
    else:
        mark = '\t' if path.suffix == '.tsv' else ','
        lines = [list(rows[0]), *(list(row.values()) for row in rows)]
        path.write_text('\n'.join(mark.join(cells) for cells in lines), 'utf-8')
    return str(path)


def config(task, **options):
    name = task if isinstance(task, str) else task.name
    return DataConfig(name, 4, {'inputs': 40, 'targets': 8}, 'bytes', prefetch=0, **options)


def examples(task, split):
    found = eval_examples(config(task, split=split), VOCABULARY)
    return {one['inputs_pretokenized']: one['targets_pretokenized'] for one in found}


@pytest.mark.parametrize('suffix', ['.jsonl', '.tsv', '.csv'])
def test_a_file_becomes_a_task(tmp_path, suffix):
    path = write(tmp_path / f'a{suffix}')
    task = FileTask(name=f'files_{suffix[1:]}', train=path, template='{level}: {input}', held_out=0.1)
    register_all(config(task, file_tasks=(task,)))
    train, validation = examples(task, 'train'), examples(task, 'validation')
    assert train | validation == {f'{row["level"]}: {row["inputs"]}': row['targets'] for row in ROWS}
    assert 3 <= len(validation) <= 25 and not set(train) & set(validation)
    batch, _ = next(TrainPipeline(config(task), VOCABULARY))
    assert VOCABULARY.decode(batch['encoder_input_tokens'][0]).split(': ')[0] in ('easy', 'hard')
    assert [metric.__name__ for metric in seqio.get_mixture_or_task(task.name).metric_fns] == ['exact_match']


def test_held_out_rows_do_not_depend_on_other_rows(tmp_path):
    a = FileTask(name='files_a', train=write(tmp_path / 'a.jsonl'), held_out=0.2)
    b = FileTask(name='files_b', train=write(tmp_path / 'b.jsonl', ROWS[:60]), held_out=0.2)
    files.register([a, b])
    assert set(examples(b, 'validation')) == set(examples(a, 'validation')) & {row['inputs'] for row in ROWS[:60]}


def test_given_validation_and_test_files_and_a_glob(tmp_path):
    for part in range(4):
        write(tmp_path / f'train_{part}.jsonl', ROWS[part * 10 : part * 10 + 10])
    task = FileTask(
        name='files_split',
        train=str(tmp_path / 'train_*.jsonl'),
        validation=write(tmp_path / 'v.csv', ROWS[50:52]),
        test=write(tmp_path / 't.tsv', ROWS[60:63]),
    )
    files.register([task])
    assert [len(examples(task, split)) for split in ('train', 'validation', 'test')] == [40, 2, 3]


def test_the_mixture_of_all_file_tasks(tmp_path):
    tasks = [FileTask(name=f'files_mix_{i}', train=write(tmp_path / f'{i}.jsonl'), rate=i + 1) for i in range(2)]
    register_all(config('file_tasks', file_tasks=tuple(tasks)))
    register_all(config('file_tasks', file_tasks=tuple(tasks)))
    assert TrainPipeline(config('file_tasks'), VOCABULARY).rates == {
        'files_mix_0': pytest.approx(1 / 3),
        'files_mix_1': pytest.approx(2 / 3),
    }


def test_csv_is_read_as_spreadsheets_write_it(tmp_path):
    path = tmp_path / 'a.csv'
    path.write_bytes('\ufeffinputs,targets\r\n"two\nlines, a comma","a ""quote"""\r\nplain,b\r\n'.encode())
    task = FileTask(name='files_csv_quotes', train=str(path), validation=str(path))
    files.register([task])
    assert examples(task, 'train') == {'two\nlines, a comma': 'a "quote"', 'plain': 'b'}


def test_double_braces_are_text(tmp_path):
    task = FileTask(
        name='files_braces',
        train=write(tmp_path / 'a.jsonl', ROWS[:2]),
        validation=write(tmp_path / 'b.jsonl', ROWS[:1]),
        template='{{x}} {input}',
    )
    files.register([task])
    assert next(iter(examples(task, 'validation'))) == '{x} say 0\u2028now'


@pytest.mark.parametrize(
    'name,content,options,pattern',
    [
        ('a.jsonl', '', {}, r'a\.jsonl is empty'),
        ('a.jsonl', '{"inputs": "a", "targets": "b"}\nnot json\n', {}, r'a\.jsonl line 2: not JSON'),
        (
            'a.jsonl',
            '{"question": "a", "targets": "b"}\n',
            {},
            r"a\.jsonl line 1: no field 'inputs'; the fields are question, targets. Set FileTask.input_field",
        ),
        (
            'a.jsonl',
            '{"inputs": "a", "answer": "b"}\n',
            {},
            r"line 1: no field 'targets'; .* Set FileTask.target_field",
        ),
        ('a.jsonl', '{"inputs": "a", "targets": 4}\n', {}, r"line 1: field 'targets' is int \(4\), it must be text"),
        ('a.jsonl', '{"inputs": "a\\ud800", "targets": "b"}\n', {}, "line 1: field 'inputs' has half a character"),
        (
            'a.jsonl',
            '{"inputs": "a", "targets": "b"}\n',
            {'template': '{inputs} {level}'},
            r"line 1: no field 'level'; .* Set FileTask.template",
        ),
        ('a.tsv', 'inputs\ttargets\na\tb\nc\n', {}, r'a\.tsv line 3: 1 columns, the first line has 2'),
        ('a.csv', 'inputs,targets\na,b,c\n', {}, r'a\.csv line 2: 3 columns'),
        ('a.csv', 'inputs,targets\n"a,b\n', {}, r'a\.csv after line \d: not CSV'),
        ('a.tsv', b'inputs\ttargets\n\xff\tb\n', {}, r'a\.tsv after line \d: not UTF-8'),
        ('a.tsv', 'inputs\ttargets\n', {}, 'no rows'),
        ('a.txt', 'x', {}, r'a\.txt: no rows are recognized in it. Set a file of \.jsonl'),
        ('a.jsonl', None, {}, r'a\.jsonl: no such file. Set FileTask.train'),
        ('*.jsonl', None, {}, 'matches no file. Fix the glob in FileTask.train'),
        ('a.jsonl', '{}', {'template': '{input'}, 'FileTask.template'),
        ('a.jsonl', '{}', {'template': '{} {input}'}, 'has a brace without a field name'),
        ('a.jsonl', '{}', {'name': 'my task'}, "FileTask.name='my task' is not a valid name"),
        ('a.jsonl', '{}', {'validation': 'missing.jsonl'}, r'missing\.jsonl: no such file. Set FileTask.validation'),
    ],
)
def test_one_line_for_a_bad_file(tmp_path, name, content, options, pattern):
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    number = sum(name.startswith('files_bad') for name in seqio.TaskRegistry.names())
    task = FileTask(**{'name': f'files_bad_{number}', 'train': str(tmp_path / name)} | options)
    with pytest.raises(UserError, match=pattern) as error:
        files.register([task])
        TrainPipeline(config(task), VOCABULARY)
    assert '\n' not in str(error.value)


def test_a_name_that_is_taken(tmp_path):
    path, other = write(tmp_path / 'a.jsonl'), write(tmp_path / 'b.jsonl')
    files.register([FileTask(name='files_taken', train=path)])
    files.register([FileTask(name='files_taken', train=path)])
    with pytest.raises(UserError, match="FileTask.name='files_taken' is the name of another task"):
        files.register([FileTask(name='files_taken', train=other)])
    with pytest.raises(UserError, match="'files_twice' is set for 2 file tasks"):
        files.register([FileTask(name='files_twice', train=path), FileTask(name='files_twice', train=other)])
    with pytest.raises(UserError, match='is the name of another task or mixture'):
        register_all(config('practice', file_tasks=(FileTask(name='practice', train=path),)))


def test_modules_register_a_users_own_tasks(tmp_path, monkeypatch):
    (tmp_path / 'files_user_module.py').write_text('REGISTERED = True\n')
    monkeypatch.syspath_prepend(tmp_path)
    register_all(config('x', modules=('files_user_module',)))
    with pytest.raises(UserError, match="DataConfig.modules: importing 'files_no_module' failed"):
        register_all(config('x', modules=('files_no_module',)))


CONVENTIONS = [
    (
        {
            'inputs': 'Q',
            'targets': 'A',
            '_template_idx': 1,
            '_task_source': 'P3',
            '_task_name': 'x',
            '_template_type': 'zs',
        },
        {},
        'Q',
        'A',
        None,
    ),
    (
        {
            'inputs': [3, 4],
            'inputs_pretokenized': 'Q',
            'targets': [5],
            'targets_pretokenized': 'A',
            'answer_choices': ['A'],
        },
        {},
        'Q',
        'A',
        None,
    ),
    ({'sQuestion': 'How many?', 'lSolutions': [4.0], 'iIndex': 1}, {}, 'How many?', '4', None),
    (
        {'input': 'Is it?', 'target_scores': {'Yes': 0, 'No': 1}},
        {},
        'Is it?\n\nOPTIONS:\n- Yes\n- No',
        'No',
        None,
    ),
    # (row, settings, inputs, targets, all right answers or None)
    (
        {'question': {'text': 'Q', 'id': 1}, 'a': 'A'},
        dict(input_field='question.text', target_field='a'),
        'Q',
        'A',
        None,
    ),
    ({'q': 'Q', 'a.b': 'A', 'a': {'b': 'B'}}, dict(input_field='q', target_field='a.b'), 'Q', 'A', None),
    (
        {'inputs': 'Q', 'targets': 'no', 'choices': ['yes', 'no']},
        dict(template='{input}\n{choices}\nAnswer:'),
        'Q\nOPTIONS:\n- yes\n- no\nAnswer:',
        'no',
        None,
    ),
    (
        {'inputs': 'Q', 'targets': 1, 'endings': ['yes', 'no']},
        dict(options_field='endings'),
        'Q\n\nOPTIONS:\n- yes\n- no',
        'no',
        None,
    ),
    (
        {'question': 'Q', 'choices': {'text': ['x', 'y', 'z'], 'label': ['A', 'B', 'C']}, 'answerKey': 'C'},
        dict(input_field='question', options_field='choices.text', target_field='answerKey'),
        'Q\n\nOPTIONS:\n- x\n- y\n- z',
        'z',
        None,
    ),
    (
        {'inputs': 'Q', 'targets': '(b)', 'o': ['x', 'y']},
        dict(options_field='o'),
        'Q\n\nOPTIONS:\n- x\n- y',
        'y',
        None,
    ),
    ({'inputs': 'Q', 'targets': 'B', 'o': ['A', 'B']}, dict(options_field='o'), 'Q\n\nOPTIONS:\n- A\n- B', 'B', None),
    (
        {'question': 'Q', 'context': 'C', 'answers': {'text': ['one', '1'], 'answer_start': [3, 4]}},
        dict(template='{context} {question}', target_field='answers.text'),
        'C Q',
        'one',
        ['one', '1'],
    ),
]


@pytest.mark.parametrize('row,settings,inputs,targets,answers', CONVENTIONS)
def test_nested_fields_options_and_several_answers(row, settings, inputs, targets, answers):
    expected = {'inputs': inputs, 'targets': targets} | ({'answers': answers} if answers else {})
    assert files.make_example(FileTask(name='n', train='t', **settings), row, 'f line 1') == expected


@pytest.mark.parametrize(
    'row,settings,message',
    [
        (
            {'q': {'text': 'Q'}},
            dict(input_field='q.txt'),
            "no field 'q.txt'; the fields are q, q.text; did you mean q.text",
        ),
        ({'inputs': 'Q', 'targets': 2, 'o': ['x', 'y']}, dict(options_field='o'), 'is 2, but there are 2 options'),
        ({'inputs': 'Q', 'targets': 0, 'o': 'xy'}, dict(options_field='o'), "field 'o' is str .xy., it must be a list"),
        (
            {'inputs': 'Q', 'targets': 'x', 'o': []},
            dict(options_field='o'),
            "field 'o' is list .*, it must be a list of texts",
        ),
        ({'inputs': None, 'targets': 'x'}, {}, "field 'inputs' is NoneType"),
        ({'inputs': 'Q', 'targets': []}, {}, "field 'targets' is list"),
        ({'inputs': 'Q', 'targets': True, 'o': ['x', 'y']}, dict(options_field='o'), "field 'targets' is bool"),
    ],
)
def test_one_line_for_a_bad_row(row, settings, message):
    with pytest.raises(UserError, match=message) as error:
        files.make_example(FileTask(name='n', train='t', **settings), row, 'f line 1')
    assert '\n' not in str(error.value) and str(error.value).startswith('f line 1: ')


def test_all_right_answers_count_in_evaluation(tmp_path):
    rows = [{'inputs': f'q{i}', 'targets': ['one', '1']} for i in range(4)]
    task = FileTask(name='files_answers', train=write(tmp_path / 'a.jsonl', rows), validation=str(tmp_path / 'a.jsonl'))
    files.register([task])
    [first, *_] = eval_examples(config(task, split='validation'), VOCABULARY)
    registered = seqio.get_mixture_or_task(task.name)
    targets = [registered.postprocess_fn(first['targets_pretokenized'], example=first, is_target=True)]
    [metric] = registered.predict_metric_fns
    assert metric(targets, ['1'])['exact_match'] == 100 and metric(targets, ['2'])['exact_match'] == 0


def test_wrong_options_of_t0s_export_are_left_out(tmp_path):
    rows = [
        {'inputs_pretokenized': f'q{i}', 'targets_pretokenized': answer, 'is_correct': answer == 'yes'}
        for i in range(5)
        for answer in ('no', 'yes')
    ]
    path = write(tmp_path / 't0.jsonl', rows)
    task = FileTask(name='files_t0', train=path, validation=path)
    found = files.open_rows(task, 'train')
    assert [found[i]['targets'] for i in range(len(found))] == ['yes'] * 5
    assert f'{path}: left out 5 wrong options of rank classification' in left_out_lines()


def test_broken_rows_are_skipped_and_listed(tmp_path):
    path = tmp_path / 'skipping.jsonl'
    path.write_text(
        '{"inputs": "a", "targets": "b"}\nnot json\n{"inputs": 3, "targets": "b"}\n[1]\n'
        + '{"inputs": "c", "targets": "d"}\n' * 9
    )
    task = FileTask(name='files_skipping', train=str(path), validation=str(path))
    with pytest.raises(UserError, match='skipping.jsonl line 2: not JSON'):
        files.open_rows(task, 'train')
    assert len(files.open_rows(task, 'train', skip_broken=True)) == 10
    found = {where.rpartition('/')[2]: why for where, why in skipped_tasks().items() if 'skipping.jsonl' in where}
    assert list(found) == ['skipping.jsonl line 2', 'skipping.jsonl line 3', 'skipping.jsonl line 4']
