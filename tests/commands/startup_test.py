"""The allocator, and environment variables that a command sets before it imports JAX and TensorFlow."""

import fnmatch
import os

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
