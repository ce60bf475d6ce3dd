"""What memory is left, and what does not fit."""

import os
import platform
import subprocess
import sys

import pytest

from t5flan.config.memory import GIB, host_memory, peak_resident_memory, require_memory
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


# -- Keeping freed memory ----------------------------------------------------------------------------------------------

FAULTS = """
import ctypes, resource, sys
from t5flan.config.memory import keep_freed_memory, kept_memory

ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: a fault for each page of 4 KiB
kept = sys.argv[1] == 'keep' and keep_freed_memory()
fill = lambda: len(b'x' * 2**25)
fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    fill()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, kept_memory())
"""
PAGES = 4 * 2**25 // 4096


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='the allocator is not glibc')
@pytest.mark.parametrize(
    'how, environment, keeps',
    [
        ('keep', {}, True),
        ('leave', {}, False),
        ('keep', {'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1'}, True),  # as in the Makefile
        ('keep', {'MALLOC_MMAP_MAX_': '9', 'MALLOC_MMAP_THRESHOLD_': '1000000'}, False),
        ('keep', {'GLIBC_TUNABLES': 'glibc.malloc.mmap_max=9:glibc.malloc.mmap_threshold=1000000'}, False),
    ],
)
def test_kept_memory_is_not_faulted_in_again(how, environment, keeps):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(('MALLOC_', 'GLIBC_'))}
    command = [sys.executable, '-c', FAULTS, how]
    done = subprocess.run(command, env=clean | environment, capture_output=True, text=True, check=True)
    kept, faults, size = done.stdout.split()
    assert kept == str(how == 'keep')
    assert int(faults) < 100 if keeps else int(faults) >= PAGES
    assert 2**25 <= int(size) < 2**26 if keeps else int(size) < 2**23


def test_memory_that_is_kept_is_left(monkeypatch, tmp_path):
    monkeypatch.setattr('t5flan.config.memory.kept_memory', lambda: GIB)
    assert host_memory(write(tmp_path, MEMINFO), str(tmp_path)) == 6 * GIB


@pytest.mark.skipif(sys.platform != 'linux', reason='getrusage counts the memory of the starting process only on Linux')
def test_the_peak_of_a_program_is_its_own():
    filled = bytearray(os.urandom(64 * 2**20))
    code = 'from t5flan.config.memory import peak_resident_memory; print(peak_resident_memory())'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) < len(filled) < peak_resident_memory()


def test_without_proc_the_peak_is_that_of_getrusage(tmp_path):
    assert peak_resident_memory(str(tmp_path)) >= 0.9 * peak_resident_memory()
