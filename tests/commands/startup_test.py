"""The allocator, and environment variables that a command sets before it imports JAX and TensorFlow."""

import fnmatch
import os
import subprocess
import sys

import pytest

from t5flan.commands import COMMANDS, startup
from t5flan.commands.startup import set_environment


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
