"""t5flan/data/records/hub.py: data sets on disk, and on a stand-in for the Hugging Face hub."""

import datetime
import json
import os
import subprocess
import sys

import pytest

from t5flan.data.records import hub
from t5flan.data.records.rows import read_rows
from t5flan.data.records.text_files import open_text
from t5flan.errors import UserError
from tests.data.records import hub_server
from tests.docs.markdown import ROOT

datasets = pytest.importorskip('datasets', reason='the extra hub is not installed')

ROWS = [{'inputs': f'q{i}', 'targets': f'a{i}'} for i in range(5)]
README = """---
configs:
- config_name: one
  data_files: [{split: train, path: train.jsonl}, {split: test, path: test.jsonl}]
- config_name: two
  data_files: [{split: train, path: train.jsonl}]
---
"""


@pytest.fixture(scope='module', autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp('cache')
        patch.setenv('XDG_CACHE_HOME', str(folder))
        patch.setattr(datasets.config, 'HF_DATASETS_CACHE', str(folder / 'datasets'))
        yield


def repository(folder):
    """Data files in the layout of a repository of the hub."""
    folder.mkdir(parents=True)
    (folder / 'README.md').write_text(README)
    (folder / 'train.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in ROWS))
    (folder / 'test.jsonl').write_text('{"inputs": "t", "targets": "b"}\n')
    return folder


def values(path):
    return [row.value for row in read_rows(path)]


def test_saved_data_sets(tmp_path):
    features = datasets.Features(
        {
            'text': datasets.Value('string'),
            'label': datasets.ClassLabel(names=['bad', 'good']),
            'at': {'x': datasets.Value('int32')},
        }
    )
    made = datasets.Dataset.from_dict({'text': ['u', 'v'], 'label': [1, -1], 'at': [{'x': 1}, {'x': 2}]}, features)
    made.save_to_disk(tmp_path / 'one')
    datasets.DatasetDict({'train': made, 'test': made.select([0])}).save_to_disk(tmp_path / 'both')
    expected = [{'text': 'u', 'label': 'good', 'at': {'x': 1}}, {'text': 'v', 'label': -1, 'at': {'x': 2}}]
    assert values(f'{tmp_path}/one') == values(f'hf:{tmp_path}/one') == values(f'{tmp_path}/both') == expected
    assert values(f'{tmp_path}/both,split=test') == expected[:1]
    assert values(f'{tmp_path}/both,rows=1') == expected[:1]
    [where] = [row.where for row in read_rows(f'{tmp_path}/both,split=test')]
    assert where == f'{tmp_path}/both,split=test row 1'
    made.select([1]).save_to_disk(tmp_path / 'one')
    assert values(f'{tmp_path}/one') == expected[1:], 'a changed data set is read again'


def test_labels_and_media_at_any_depth(tmp_path):
    label, text = datasets.ClassLabel(names=['no', 'yes']), datasets.Value('string')
    columns = {
        'list': (datasets.List(label), [[0, 1], None], [['no', 'yes'], None]),
        'part': ({'l': label, 't': text}, [{'l': 1, 't': 'u'}, {'l': 0, 't': 'v'}], None),
        'parts': (datasets.List({'l': label}), [[{'l': 1}], []], [[{'l': 'yes'}], []]),
        'number': (datasets.Value('int64'), [0, 1], [0, 1]),
        'image': (datasets.Image(decode=True), [None, None], None),
        'clips': (datasets.List(datasets.Audio()), [None, []], None),
    }
    features = datasets.Features({name: feature for name, (feature, _, _) in columns.items()})
    made = datasets.Dataset.from_dict({name: given for name, (_, given, _) in columns.items()}, features)
    made.save_to_disk(tmp_path / 'made')
    expected = {name: read for name, (_, _, read) in columns.items() if read}
    expected['part'] = [{'l': 'yes', 't': 'u'}, {'l': 'no', 't': 'v'}]
    assert {
        name: [row[name] for row in values(f'{tmp_path}/made')] for name in values(f'{tmp_path}/made')[0]
    } == expected
    made.select_columns(['image']).save_to_disk(tmp_path / 'images')
    with pytest.raises(UserError, match='all columns .image. hold images or other media'):
        values(f'{tmp_path}/images')


def test_dates_are_text_and_bytes_that_are_none_are_one_row(tmp_path):
    made = {'day': [datetime.date(2020, 1, 2), None], 'raw': [{'b': b'ok'}, {'b': b'\xff'}]}
    datasets.Dataset.from_dict(made).save_to_disk(tmp_path / 'made')
    problems = []
    read = [row.value for row in read_rows(f'{tmp_path}/made', lambda where, error: problems.append(str(error)))]
    assert read == [{'day': '2020-01-02', 'raw': {'b': 'ok'}}]
    assert problems == [f"{tmp_path}/made row 2: column 'raw' holds bytes that are not UTF-8 text. Remove the column."]


def test_a_saved_data_set_has_one_split(tmp_path):
    datasets.Dataset.from_list(ROWS, split='test').save_to_disk(tmp_path / 'made')
    assert values(f'{tmp_path}/made') == values(f'{tmp_path}/made,split=test') == ROWS
    for option, problem in {
        'split=train': "no split 'train'; the splits are test",
        'config=a': 'config is for',
    }.items():
        with pytest.raises(UserError, match=problem):
            values(f'{tmp_path}/made,{option}')


def test_damage_in_the_middle_of_a_stream(tmp_path):
    folder = repository(tmp_path / 'mine')
    with open(folder / 'train.jsonl', 'a') as file:
        file.write('{"inputs": \n')
    with pytest.raises(UserError, match='two,streaming.* cannot be read: ') as error:
        values(f'hf:{folder},config=two,streaming')
    assert '\n' not in str(error.value)


def test_rationales_prompts_and_a_vocabulary_of_data_sets(tmp_path):
    from t5flan.data.vocabulary import training
    from t5flan.evaluation.row_files import read_prompts
    from t5flan.tasks import cot

    words = 'the fox ran over a hill and saw an owl in the old tree by the river'
    rows = [{'source': f'{words} {i}', 'target': 'b', 'rationale': 'c', 'inputs': words} for i in range(40)]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / 'saved_why')
    folder = repository(tmp_path / 'mine')
    cot.register([str(tmp_path / 'saved_why')])
    assert len(cot.open_rows({'train': str(tmp_path / 'saved_why')}, 'train', None)) > 30
    prompts = read_prompts(f'hf:{folder},config=one,split=test', 'inputs')
    assert [(prompt.number, prompt.text) for prompt in prompts] == [(0, 't')]
    assert training._size(f'hf:{folder},config=one') > 0


def test_a_folder_in_the_layout_of_the_hub(tmp_path, monkeypatch):
    repository(tmp_path / 'mine')
    monkeypatch.chdir(tmp_path)
    assert values('hf:./mine,config=one') == ROWS and values('hf:./mine,config=one,split=test')[0]['inputs'] == 't'
    assert values('hf:./mine,config=two,streaming,rows=2') == ROWS[:2]


def test_tasks_and_texts_of_data_sets(tmp_path):
    from t5flan.data.corpus_config import FileTask, TextFiles
    from t5flan.tasks import chat, files

    folder = repository(tmp_path / 'mine')
    task = FileTask('n', f'hf:{folder},config=one', validation=f'hf:{folder},config=one,split=test')
    assert [len(files.open_rows(task, split)) for split in ('train', 'validation')] == [5, 1]
    assert len(files.open_rows(FileTask('n', f'hf:{folder},config=two', held_out=0.4), 'validation')) in (1, 2, 3)
    texts = open_text(
        TextFiles('n', f'hf:{folder},config=two', validation=f'hf:{folder},config=two', field='inputs'), 'train'
    )
    assert [texts[i]['text'] for i in range(5)] == ['q0', 'q1', 'q2', 'q3', 'q4']
    rows = [
        {'messages': [{'role': 'user', 'content': 'Q'}, {'role': 'assistant', 'content': f'A{i}'}]} for i in range(3)
    ]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / 'talk')
    assert len(chat.open_file(str(tmp_path / 'talk'), 'train')) == 2
    assert chat.task_name('hf:openai/gsm8k,config=main') == 'chat_gsm8k_config_main'


@pytest.mark.parametrize(
    'path, pattern',
    [
        ('hf:{0}/mine', 'no config is given; the configs are one, two. Write config=NAME'),
        ('hf:{0}/mine,config=tow', "no config 'tow'; the configs are one, two; did you mean two"),
        ('hf:{0}/mine,config=one,split=tset', "no split 'tset'; the splits are train, test; did you mean test"),
        ('hf:{0}/mine,config=one,streaming,split=tset', "no split 'tset'; .* did you mean test"),
        ('{0}/both,split=valid', "no split 'valid'; the splits are train"),
        ('hf:{0}/mine,confg=one', "'confg' is not one of config, .*; did you mean config"),
        ('hf:{0}/mine,rows=0', "rows='0', expected a whole number of 1 or more"),
        ('hf:{0}/mine,split=', 'split has no value. Write split=VALUE'),
        ('hf:{0}/mine,streaming=yes', "streaming='yes', expected true or false"),
        ('hf:{0}/mine,config=one,revision=a', 'revision is for data sets of the hub'),
        ('hf:,split=test', 'names no data set. Write hf:NAME'),
        ('hf:{0}/nothing', 'nothing is not a folder'),
        ('hf:{0}/empty', 'cannot be read: '),
        ('hf:{0}/script', 'cannot be read: '),
    ],
)
def test_one_line_for_what_is_wrong(tmp_path, path, pattern):
    repository(tmp_path / 'mine')
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'script').mkdir()
    (tmp_path / 'script' / 'script.py').write_text('raise SystemExit("code of a data set ran")')
    datasets.DatasetDict({'train': datasets.Dataset.from_list(ROWS)}).save_to_disk(tmp_path / 'both')
    with pytest.raises(UserError, match=pattern) as error:
        values(path.format(tmp_path))
    assert '\n' not in str(error.value)


def test_without_the_library_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'datasets', None)
    with pytest.raises(UserError, match=r"hf:a/b needs the datasets library: pip install 't5flan\[hub\]'"):
        values('hf:a/b')


def test_names_and_options():
    assert hub.parse_name('hf:a/b,split=test,streaming') == ('a/b', {'split': 'test', 'streaming': ''})
    assert hub.parse_name('hf:a/b,streaming=false,rows=2') == ('a/b', {'rows': '2'})
    assert hub.is_dataset('hf:a/b') and not hub.is_dataset('a/b.jsonl')


PATHS = [
    'hf:me/words,config=one', 'hf:me/words,config=one,split=test', 'hf:me/words,config=two,streaming,rows=2',
    'hf:me/nothing', 'hf:me/gated', 'hf:me/locked', 'hf:me/words,config=one,revision=v9', 'hf:me/words',
    'hf:me/words/more', 'hf:me/script', 'hf:me/broken',
]  # fmt: skip
READ = f"""
import json, sys
sys.path.insert(0, {str(ROOT)!r})
from t5flan.data.records.rows import read_rows
from t5flan.errors import UserError
for path in json.loads(sys.argv[1]):
    try:
        print(json.dumps([row.value for row in read_rows(path)]))
    except UserError as error:
        print(json.dumps(str(error)))
"""


def read_elsewhere(tmp_path, endpoint, paths, settings=()):
    """The rows or the error of each path, read by a process that knows another hub."""
    environment = os.environ | {'HF_ENDPOINT': endpoint, 'HF_HOME': str(tmp_path / 'home')}
    environment |= {'XDG_CACHE_HOME': str(tmp_path / 'cache'), 'HF_HUB_DISABLE_PROGRESS_BARS': '1'}
    environment |= dict(settings)
    command = [sys.executable, '-c', READ, json.dumps(paths)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_stand_in_for_the_hub(tmp_path):
    for name in ('words', 'locked', 'broken', 'script'):
        repository(tmp_path / 'root' / 'me' / name)
    (tmp_path / 'root' / 'me' / 'script' / 'script.py').write_text('raise SystemExit("code of a data set ran")')
    with hub_server.hub(tmp_path / 'root') as endpoint:
        train, test, streamed, *errors = read_elsewhere(tmp_path, endpoint, PATHS)
    assert (train, test, streamed) == (ROWS, [{'inputs': 't', 'targets': 'b'}], ROWS[:2])
    patterns = [
        'has no data set',
        'needs permission',
        'needs permission',
        "no revision 'v9'",
        'no config is given',
        'is not a name of a data set',
        'scripts are no longer supported',
        'the hub cannot be reached',
    ]
    assert [pattern in error for pattern, error in zip(patterns, errors, strict=True)] == [True] * 8, errors
    # The hub is gone: what was read is still there, anything else is one line at once.
    again, error = read_elsewhere(tmp_path, endpoint, [PATHS[0], 'hf:me/other'])
    # Offline, another path to the same config is read from what the library downloaded.
    [offline] = read_elsewhere(tmp_path, endpoint, ['hf:me/words,config=one,rows=2'], {'HF_HUB_OFFLINE': '1'})
    assert offline == ROWS[:2]
    assert again == ROWS and 'the hub cannot be reached' in error and 'HF_HUB_OFFLINE=1' in error
