"""Runs programs that a model wrote, one process each, and the estimator of pass@k.

    run_programs(['assert 1 + 1 == 2', 'while True: pass'])        [True, False]
    pass_at_k(samples=20, passed=3, k=1)                           0.15

A program fails if it raises, exits, does not end in time, or uses what it must not: more memory than the limit, other
processes, files to write, or the network. See code_child.py for how. This protects against programs that go wrong, as
those of models do; use a virtual machine for programs that somebody wrote to break out.
"""

import concurrent.futures
import contextlib
import json
import math
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

SECONDS = 5
MEMORY = 2**30
_CHILD = Path(__file__).with_name('code_child.py')


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """Unbiased estimate of the chance that one of k samples passes (Chen et al. 2021, arXiv:2107.03374, equation 1).

    Args:
        samples: how many there are, at least k.
        passed: how many of them pass.

    >>> pass_at_k(10, 3, 1), pass_at_k(10, 3, 10), pass_at_k(10, 0, 5)
    (0.3, 1.0, 0.0)
    """
    draws = math.comb(samples, k)
    return (draws - math.comb(samples - passed, k)) / draws


def run_programs(programs: Sequence[str], *, seconds: int = SECONDS, memory: int = MEMORY) -> list[bool]:
    """Whether each program runs to its end, as many at a time as there are processors.

    Args:
        seconds: limit on its time.
        memory: limit on its address space, in bytes.
    """
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return list(pool.map(lambda program: run_program(program, seconds=seconds, memory=memory), programs))


def run_program(program: str, *, seconds: int = SECONDS, memory: int = MEMORY) -> bool:
    """Whether a program runs to its end; as `run_programs`."""
    token = secrets.token_hex(16)
    reader, writer = os.pipe()
    given = {'program': program, 'token': token, 'result': writer, 'seconds': seconds, 'memory': memory}
    with tempfile.TemporaryDirectory() as folder, open(reader, 'rb') as result:
        try:
            process = subprocess.Popen(
                [sys.executable, '-I', str(_CHILD)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(writer,),
                cwd=folder,
                env={'PATH': os.environ.get('PATH', ''), 'HOME': folder, 'TMPDIR': folder, 'PYTHONHASHSEED': '0'},
                start_new_session=True,
            )
        finally:
            os.close(writer)
        try:
            with contextlib.suppress(subprocess.TimeoutExpired, BrokenPipeError):
                process.communicate(json.dumps(given).encode(), timeout=seconds + 1)
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        os.set_blocking(result.fileno(), False)  # a process that outlived the group would keep it open
        return (result.read(len(token) + 1) or b'') == token.encode()
