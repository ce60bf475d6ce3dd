"""The allocator, and environment variables that a command sets before it imports JAX and TensorFlow."""

import fnmatch
import os
import subprocess
import sys

import pytest

from t5flan.commands import COMMANDS, startup
from t5flan.commands.arguments import parse_arguments
from t5flan.commands.startup import hold_outputs, set_environment
from t5flan.errors import UserError
from tests.saved_model import byte_model, save_folder


def test_existing_environment_variables_stay(monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR')
    monkeypatch.setenv('TF_CPP_MIN_LOG_LEVEL', '0')
    set_environment()
    assert os.environ['JAX_COMPILATION_CACHE_DIR'] == str(tmp_path / 't5flan' / 'jax')
    assert os.environ['TF_CPP_MIN_LOG_LEVEL'] == '0'


@pytest.mark.parametrize(
    'argv, platforms, devices, keeps',
    [
        (['train', '--workdir=x'], '', [], True),
        (['infer'], 'cpu', ['/dev/nvidia0'], True),
        (['train'], '', ['/dev/nvidia0'], False),
        (['train'], '', ['/dev/accel0'], False),
        (['train'], 'tpu,cpu', [], False),
        (['report'], 'cpu', [], False),
        (['trian'], 'cpu', [], False),
        (['--help'], 'cpu', [], False),
        ([], 'cpu', [], False),
    ],
)
def test_commands_that_run_a_model_on_a_cpu_keep_freed_memory(monkeypatch, argv, platforms, devices, keeps):
    calls = []
    monkeypatch.setattr(startup, 'keep_freed_memory', lambda: calls.append(1))
    monkeypatch.setattr(startup.glob, 'glob', lambda pattern: fnmatch.filter(devices, pattern))
    monkeypatch.setenv('JAX_PLATFORMS', platforms)
    startup.set_allocator(argv, COMMANDS)
    assert bool(calls) == keeps


def test_a_new_folder_is_written_by_one_command_at_a_time(tmp_path):
    new = tmp_path / 'new'
    given = parse_arguments(['convert', '--from=hf', '--to=t5flan', 'a', str(new)], COMMANDS)
    refused = pytest.raises(UserError, match='new is being written by process .* set another DST')
    with hold_outputs(*given), refused, hold_outputs(*given):
        pass
    new.mkdir()
    with hold_outputs(*given):  # it is compared with, or refused
        assert [path.name for path in tmp_path.iterdir()] == ['new']


RUN = """
import sys
from t5flan.__main__ import main
code = main(sys.argv[1:])
print(code, [name for name in ('tensorflow', 'seqio') if name in sys.modules])
"""


@pytest.mark.slow  # compiles a training step
@pytest.mark.parametrize('more, heavy', [([], []), (["--gin.DataConfig.modules=['json']"], ['tensorflow', 'seqio'])])
def test_training_on_own_text_imports_no_tensorflow(tmp_path, more, heavy):
    flags = ['train', f'--workdir={tmp_path}/run', '--gin_file=examples/tiny_stdlib_pretrain', '--gin.STEPS=2']
    flags += ['--gin.EvaluationConfig.every=2', '--gin.EvaluationConfig.batches=1', *more]
    done = subprocess.run([sys.executable, '-c', RUN, *flags], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == f'0 {heavy}', done.stderr
    assert list((tmp_path / 'run' / 'tensorboard').iterdir()) and (tmp_path / 'run' / 'checkpoints' / '2').is_dir()


@pytest.mark.slow  # three processes, one of which compiles
def test_commands_on_plain_files_import_no_tensorflow(tmp_path):
    (tmp_path / 'text.txt').write_text('An example of text to train on, with words of its own and no others.\n')
    folder = save_folder(tmp_path / 'run', byte_model(), steps=(1,))
    lines = {
        ('mixture', 'practice', '--sample=2'): 0,
        ('mixture', 'ul2', '--sample=2'): 0,
        ('decontaminate', f'--input={tmp_path}/text.txt', f'--output={tmp_path}/clean.jsonl', '--task=practice_add'): 0,
        ('rationales', f'--checkpoint={folder}', '--task=practice_add', '--limit=2', f'--output={tmp_path}/r.jsonl'): 1,
    }
    for line, code in lines.items():
        done = subprocess.run([sys.executable, '-c', RUN, *line], capture_output=True, text=True)
        assert done.stdout.splitlines()[-1] == f'{code} []', f'{line}\n{done.stdout}\n{done.stderr}'
