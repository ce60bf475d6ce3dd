"""Environment variables that a command sets before it imports JAX and TensorFlow."""

import os

from t5flan.commands.startup import set_environment


def test_existing_environment_variables_stay(monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR')
    monkeypatch.setenv('TF_CPP_MIN_LOG_LEVEL', '0')
    set_environment()
    assert os.environ['JAX_COMPILATION_CACHE_DIR'] == str(tmp_path / 't5flan' / 'jax')
    assert os.environ['TF_CPP_MIN_LOG_LEVEL'] == '0'
