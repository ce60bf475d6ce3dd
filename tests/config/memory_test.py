"""What memory is left, and what does not fit."""

import pytest

from t5flan.config.memory import GIB, host_memory, require_memory
from t5flan.errors import UserError


def write(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return str(folder)


MEMINFO = {'meminfo': 'MemTotal:  9 kB\nMemAvailable:   4194304 kB\nSwapFree:   1048576 kB\n'}


@pytest.mark.parametrize(
    'cgroup, expected',
    [
        ({}, 5),
        ({'memory.max': 'max', 'memory.current': '1', 'memory.stat': ''}, 5),
        ({'memory.max': str(3 * GIB), 'memory.current': str(2 * GIB), 'memory.stat': f'inactive_file {GIB}'}, 2),
        (
            {
                'memory/memory.limit_in_bytes': str(3 * GIB),
                'memory/memory.usage_in_bytes': str(2 * GIB),
                'memory/memory.stat': 'cache 1\n',
            },
            1,
        ),
    ],
    ids=['no container', 'no limit', 'cgroup 2', 'cgroup 1'],
)
def test_the_memory_that_is_left(tmp_path, cgroup, expected):
    proc, groups = write(tmp_path / 'proc', MEMINFO), write(tmp_path / 'cgroup', cgroup)
    assert host_memory(proc, groups) == expected * GIB


def test_without_proc_it_is_all_there_is(tmp_path):
    assert host_memory(str(tmp_path), str(tmp_path)) > 0 and host_memory() > 0


def test_what_does_not_fit_is_named_with_the_estimate():
    parts = {'parameters': 3.0 * GIB, 'hidden states': 5.0 * GIB, 'crumbs': 1.0}
    require_memory('this run', parts, 9.0 * GIB, 'this host', '')
    with pytest.raises(UserError) as raised:
        require_memory('this run', parts, 7.0 * GIB, 'this host', 'Set less.')
    assert str(raised.value) == (
        'this run needs at least 8.0 GiB of memory (5.0 GiB of hidden states, 3.0 GiB of parameters), '
        'but this host has 7.0 GiB left. Set less.'
    )
