"""t5flan/commands/flags.py: the files of a run are found after the folder moved."""

import dataclasses
import json
import os

import pytest

from t5flan.commands.flags import files_of_run
from t5flan.data.config import DataConfig
from t5flan.data.corpus_config import FileTask, TextFiles
from tests.saved_model import byte_model, save_folder


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with data and a run, started in the project's folder."""
    project = tmp_path / 'before'
    (project / 'data [1]').mkdir(parents=True)
    for name in ('a.jsonl', 'b.txt', 'c.json'):
        (project / 'data [1]' / name).write_text('{}')
    run = save_folder(project / 'runs' / 'mine', byte_model(), steps=(1,))
    description = json.loads((run / 't5flan.json').read_text())
    description['started_in'] = [str(project), os.path.relpath(project, run)]
    (run / 't5flan.json').write_text(json.dumps(description))
    elsewhere = tmp_path / 'elsewhere'
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    return project


DATA = DataConfig(
    'x',
    1,
    {'inputs': 8, 'targets': 8},
    'bytes',
    file_tasks=(FileTask('n', 'data [1]/a.jsonl', validation='data [1]/*.jsonl', test='missing.csv'),),
    text_files=(TextFiles('t', 'data [1]/b.txt'),),
    chat='data [1]/c.json',
    natural_instructions='data [1]',
)


@pytest.mark.parametrize('moved', [False, True], ids=['another current folder', 'a moved project'])
def test_relative_paths_are_found_where_the_run_started(project, moved):
    root = project
    if moved:
        root = project.rename(project.parent / 'after')
    found = files_of_run(DATA, str(root / 'runs' / 'mine' / 'checkpoints' / '1'))
    paths = [found.file_tasks[0].train, found.file_tasks[0].validation, found.text_files[0].train, *found.chat]
    paths.append(found.natural_instructions)
    names = ['data [1]/a.jsonl', 'data [1]/*.jsonl', 'data [1]/b.txt', 'data [1]/c.json', 'data [1]']
    assert [os.path.realpath(path) for path in paths] == [str(root / name) for name in names]
    assert found.file_tasks[0].test == 'missing.csv' and found.cot == ()


def test_the_vocabulary_of_the_run_stands_in_for_a_lost_one(project, tmp_path):
    run = str(project / 'runs' / 'mine')
    lost = dataclasses.replace(DATA, vocabulary='gone/spm.model')
    assert files_of_run(lost, run).vocabulary == f'{run}/vocabulary' and files_of_run(DATA, run).vocabulary == 'bytes'
    (tmp_path / 'elsewhere' / 'gone').mkdir()
    (tmp_path / 'elsewhere' / 'gone' / 'spm.model').write_text('x')
    assert files_of_run(lost, run).vocabulary == 'gone/spm.model'


def test_files_of_the_current_folder_come_first(project, tmp_path):
    (tmp_path / 'elsewhere' / 'data [1]').mkdir()
    (tmp_path / 'elsewhere' / 'data [1]' / 'b.txt').write_text('x')
    assert files_of_run(DATA, str(project / 'runs' / 'mine')).text_files[0].train == 'data [1]/b.txt'
    assert files_of_run(DATA, str(tmp_path)) == DATA  # no run
