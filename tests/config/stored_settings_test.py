"""The config.gin of a checkpoint folder is data: it imports no modules, and includes no files."""

import pytest

from t5flan import configurables
from t5flan.data.config import DataConfig
from t5flan.errors import UsageError

DATA = """\
DataConfig.mixture = 'practice'
DataConfig.batch_size = 4
DataConfig.feature_lengths = {'inputs': 8, 'targets': 8}
DataConfig.vocabulary = 'bytes'
"""


def parsed(tmp_path, text, given=(), files=()):
    path = tmp_path / 'config.gin'
    path.write_text(DATA + text)
    return configurables.parse(files, given, stored=str(path)).read(DataConfig)


@pytest.mark.parametrize(
    'text',
    [
        "DataConfig.modules = ['os']",
        "MODULES = ['os']\nDataConfig.modules = %MODULES",
        "INNER = 'os'\nMODULES = [%INNER]\nDataConfig.modules = %MODULES",
    ],
)
def test_modules_come_from_the_command_line_alone(tmp_path, text):
    with pytest.raises(
        UsageError, match=r'config.gin:\d+ sets DataConfig.modules.*--gin.DataConfig.modules="\['
    ) as error:
        parsed(tmp_path, text)
    assert '\n' not in str(error.value)
    assert parsed(tmp_path, text, ["DataConfig.modules=['json']"]).modules == ('json',)
    assert parsed(tmp_path, text, ['DataConfig.modules=[]']).modules == ()
    mine = tmp_path / 'mine.gin'
    mine.write_text("DataConfig.modules = ['json']\n")
    assert parsed(tmp_path, text, files=[str(mine)]).modules == ('json',)


def test_a_macro_of_the_command_line_cannot_be_filled_in_by_the_folder(tmp_path):
    with pytest.raises(UsageError, match='runs Python code'):
        parsed(tmp_path, "MINE = ['os']", ['DataConfig.modules=%MINE'])


def test_what_a_run_stores_without_modules_is_read(tmp_path):
    assert parsed(tmp_path, 'DataConfig.modules = []').modules == ()
    assert parsed(tmp_path, 'NONE = []\nDataConfig.modules = %NONE').modules == ()


@pytest.mark.parametrize(
    'text, problem',
    [
        ("include '/etc/passwd'", 'include no other files'),
        ("include 'runs/finetune.gin'", 'include no other files'),
        ('import os', 'imports are not supported'),
        ('[' * 100_000, 'not gin'),
        ("A = '\x00'", ''),
        ('x' * 2**25, 'has more than'),
    ],
)
def test_other_code_and_huge_files_are_one_line(tmp_path, text, problem):
    with pytest.raises(UsageError, match=problem) as error:
        parsed(tmp_path, text)
    assert '\n' not in str(error.value) and len(str(error.value)) < 1000
