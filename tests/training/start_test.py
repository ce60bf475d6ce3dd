"""t5flan/training/start.py: JAX and garbage collection at the start of a run; trainer_test.py has the rest."""

import contextlib
import gc
import subprocess
import sys
from types import SimpleNamespace

import pytest

from t5flan.training.start import compiling, few_collections


@pytest.mark.parametrize('before, during', [((700, 10, 10), 20_000), ((0, 10, 10), 0), ((50_000, 10, 10), 50_000)])
@pytest.mark.parametrize('ends', [True, False])
def test_garbage_is_collected_as_before_once_a_run_has_started(before, during, ends):
    given = gc.get_threshold()
    gc.set_threshold(*before)
    try:
        with few_collections() as end_start:
            assert gc.get_threshold()[0] == during
            if ends:
                end_start()
                assert gc.get_threshold() == before
        assert gc.get_threshold() == before
    finally:
        gc.set_threshold(*given)


def test_a_program_on_a_cpu_has_ended_when_it_returns():
    code = """
import jax, jax.numpy as jnp
from t5flan.training.start import wait_for_each_program_on_a_cpu
wait_for_each_program_on_a_cpu()
multiply = jax.jit(lambda x: jax.lax.fori_loop(0, 100, lambda _, y: x @ y, x))
print(multiply(jnp.eye(400)).is_ready())
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout == 'True\n'


@pytest.mark.parametrize('latest, expected', [(None, ['the batch']), (9, ['the batch']), (10, []), (12, [])])
def test_the_step_of_a_complete_run_is_not_compiled(latest, expected):
    compiled = []
    trainer = SimpleNamespace(steps=10, compiling=lambda batch: contextlib.nullcontext(compiled.append(batch)))
    with compiling(trainer, 'the batch', SimpleNamespace(latest_step=latest)):
        pass
    assert compiled == expected
