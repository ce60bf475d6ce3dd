"""gin/: every file can be read, and the header of every run file and example is complete and its command works."""

import re

import pytest

from t5flan import configurables
from t5flan.config import gin_files
from t5flan.data.config import DataConfig
from t5flan.errors import UsageError
from t5flan.mesh import MeshConfig
from t5flan.models.config import ModelConfig
from t5flan.training.config import CheckpointConfig, EvaluationConfig, LossConfig, OptimizerConfig, RunConfig

FILES = gin_files.packaged_files()
MODELS = [name for name in FILES if name.startswith('models/')]
RUNS = [name for name in FILES if name.startswith(('runs/', 'examples/'))]
HEADINGS = ('Purpose', 'Command', 'Hardware', 'Time', 'Expected', 'Required')
REQUIRED = {
    'MIXTURE': 'practice',
    'VOCABULARY': 'bytes',
    'INITIALIZE_FROM': 'runs/old',
    'TRAIN_FILE': 'train.jsonl',
    'TEXT_FILES': '*.txt',
    'NATURAL_INSTRUCTIONS_DIR': 'ni',
    'COT_DIR': 'cot',
    'CHAT_FILES': 'chat.json',
}
EVERYTHING = (
    ModelConfig,
    DataConfig,
    RunConfig,
    OptimizerConfig,
    LossConfig,
    MeshConfig,
    CheckpointConfig,
    EvaluationConfig,
)


def header(name: str) -> str:
    lines = []
    for line in (gin_files.GIN_ROOT / name).read_text(encoding='utf-8').splitlines():
        if not line.startswith('#'):
            break
        lines.append(line.removeprefix('#').removeprefix(' '))
    return '\n'.join(lines)


def required_macros(name: str) -> set[str]:
    """Macros of a file and its includes that none of them defines."""
    settings = configurables.parse([name])
    missing = set()
    for kind in (kind for kind in configurables.CONFIGURABLES.values() if settings.binds(kind)):
        try:
            settings.read(kind)
        except UsageError as error:
            missing |= set(re.findall(r'--gin\.([A-Z_]+)=', str(error)))
    return missing


def test_there_are_files_of_every_kind():
    assert 'runs/pretrain.gin' in FILES and 'runs/finetune.gin' in FILES and 'models/t5_1_1_small.gin' in FILES
    assert {name.split('/')[0] for name in FILES} == {'models', 'runs', 'examples', 'recipes'}


@pytest.mark.parametrize('name', MODELS)
def test_a_model_file_is_a_complete_model_and_nothing_else(name):
    settings = configurables.parse([name])
    settings.read(ModelConfig)
    assert [kind for kind in configurables.CONFIGURABLES.values() if settings.binds(kind)] == [ModelConfig]


@pytest.mark.parametrize('name', RUNS)
def test_a_run_file_can_be_read_with_what_it_requires(name, tmp_path):
    given = [f'{macro}={REQUIRED[macro]}' for macro in required_macros(name)]
    model = (
        [] if configurables.parse([name]).binds(ModelConfig, 'architecture') else ['models/tiny_encoder_decoder.gin']
    )
    settings = configurables.parse([*model, name], given)
    values = settings.read_all(EVERYTHING)
    (tmp_path / 'config.gin').write_text(settings.operative_config())
    assert configurables.parse([str(tmp_path / 'config.gin')]).read_all(EVERYTHING) == values


@pytest.mark.parametrize('name', RUNS)
def test_a_run_file_has_a_complete_header(name):
    text = header(name)
    found = re.findall(r'^(\w+):  +(\S.*)$', text, re.MULTILINE)
    assert [heading for heading, _ in found][:6] == list(HEADINGS), (
        f'the header of {name} must have, in this order: {", ".join(HEADINGS)}'
    )
    assert all(words.rstrip('.') not in ('TIME', 'EXPECTED', 'TODO') for _, words in found), (
        f'{name} has an unfinished heading'
    )
    command = text[text.index('Command:') : text.index('Hardware:')]
    assert 't5flan ' in command and name.removesuffix('.gin') in command or 'quickstart' in name
    required = text[text.index('Required:') :]
    macros = required_macros(name)
    if 'INITIALIZE_FROM' in macros:
        macros -= {'VOCABULARY'}  # the folder's
    for macro in macros:
        assert macro in required, f'{name} requires {macro}, which its header does not list'


@pytest.mark.parametrize('name', RUNS)
def test_the_command_of_a_run_file_sets_what_is_required(name):
    """The settings of the command in the header can be read: no name is misspelled."""
    text = header(name)
    command = ' '.join(text[text.index('Command:') : text.index('Hardware:')].split())
    files = re.findall(r'--gin_file=(\S+)', command)
    bindings = re.findall(r'--gin\.(\S+)', command)
    assert files
    settings = configurables.parse(files, [binding.replace("'", '') for binding in bindings])
    started = settings.read(CheckpointConfig).initialize_from is not None
    if started:  # the folder has model and vocabulary
        settings.set_defaults(DataConfig, {'vocabulary': 'runs/old/vocabulary'}, 'checkpoint')
    settings.read_all([kind for kind in EVERYTHING if not (started and kind is ModelConfig)])
