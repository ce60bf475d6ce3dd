"""A trace of a small program: its parts are found by their named scopes, and the files are in the workdir."""

import json

import jax
import jax.numpy as jnp
import pytest

from t5flan.training.profiling.parts import DATA, WAITING
from t5flan.training.profiling.profiler import Profiler


@pytest.fixture
def step():
    """A jitted function of [256, 256] with a projection and an optimizer; its argument; its compiled text."""

    def train_step(x):
        with jax.named_scope('projection'):
            x = x @ x
        with jax.named_scope('optimizer'):
            return jnp.sin(x) / 3

    x = jax.device_put(jnp.ones((256, 256)), jax.devices()[0])
    compiled = jax.jit(train_step).lower(x).compile()
    return compiled, x, compiled.as_text


def run(workdir, step, batches, profile):
    lines = []
    function, x, text = step
    taken = 0
    with Profiler(workdir, profile, lines.append) as profiler:
        for _ in profiler.waiting(batches):
            profiler.after(function(x), text)
            taken += 1
    return taken, lines


def test_a_profile_has_the_parts_of_the_step_and_the_trace(tmp_path, step):
    taken, lines = run(tmp_path, step, range(1, 9), 3)
    assert taken == 8
    assert lines[0].startswith('profile of 3 steps, ') and str(tmp_path / 'profile') in lines[-1]
    parts = json.loads((tmp_path / 'profile' / 'parts.json').read_text())
    found = parts['seconds_per_step']
    assert parts['steps'] == 3 and {'projections', 'optimizer', WAITING} <= set(found) and found['projections'] > 0
    assert {DATA} >= set(found) - {'projections', 'optimizer', WAITING}
    assert list((tmp_path / 'profile').glob('plugins/profile/*/*.xplane.pb'))


@pytest.mark.parametrize('steps, expected', [(4, 'profile of 2 steps'), (2, 'nothing to profile: this start took 2 ')])
def test_a_run_that_ends_before_its_profile_says_what_there_is(tmp_path, step, steps, expected):
    assert run(tmp_path, step, range(1, steps + 1), 3)[1][0].startswith(expected)


def test_a_run_that_fails_leaves_no_trace_running(tmp_path, step):
    function, x, text = step
    for _ in range(2):  # a second trace could not begin if the first went on
        with pytest.raises(ZeroDivisionError), Profiler(tmp_path, 3, print) as profiler:
            for _ in range(3):
                assert not profiler.after(function(x), text)
            raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    assert not jax.config.jax_compilation_cache_include_metadata_in_key


def test_no_profile_writes_nothing(tmp_path, step):
    assert run(tmp_path, step, range(1, 9), 0) == (8, []) and list(tmp_path.iterdir()) == []
