"""Programs of a model: right ones pass, and nothing that goes wrong hangs, crashes or leaves a trace."""

import doctest
import itertools
import sys
import time

import pytest

from t5flan.scoring import code_execution
from t5flan.scoring.code_execution import pass_at_k, run_program, run_programs

RIGHT = {
    'assertion': 'assert 1 + 1 == 2',
    'imports': 'import collections, heapq, itertools, json, math, random, re, string, typing\nassert math.pi > 3',
    'unicode': 'assert len("é日本") == 3',
    'thread': 'import threading\nt = threading.Thread(target=int)\nt.start()\nt.join()',
    'main': 'if __name__ == "__main__":\n    input()',
    'dataclass': 'from __future__ import annotations\nimport dataclasses\n@dataclasses.dataclass\nclass A:\n    x: int',
    'output': 'print("x" * 10**6)',
    'exception': 'try:\n    1 / 0\nexcept ZeroDivisionError:\n    pass',
}
WRONG = {
    'assertion': 'assert 1 + 1 == 3',
    'syntax': 'def f(:',
    'empty raise': 'raise',
    'exit': 'import sys\nsys.exit(0)',
    'hard exit': 'import os\nos._exit(0)',
    'recursion': 'def f(): f()\nf()',
    'crash': 'import ctypes\nctypes.string_at(0)',
    'memory': 'x = bytearray(8 * 2**30)',
    'input': 'input()',
    'closed files': 'import os\nos.closerange(0, 100)',
    'a file': 'open("x", "w").write("a")',
    'a file elsewhere': 'open("ELSEWHERE", "w").write("a")',
    'a removed file': 'import os\nos.remove("VICTIM")',
    'a socket': 'import socket\nsocket.socket()',
    'a web page': 'import urllib.request\nurllib.request.urlopen("http://127.0.0.1:9")',
    'a fork': 'import os\nos.fork()',
    'a program': 'import subprocess\nsubprocess.run(["true"])',
    'a command': 'import os\nos.system("true")',
    'a signal': 'import os\nos.kill(os.getppid(), 9)',
}
BELOW_PYTHON = {  # what replaced functions of Python do not stop
    'a fork': 'import ctypes\nassert ctypes.CDLL(None).fork() >= 0',
    'a socket': 'import _socket\n_socket.socket()',
    'a new file': 'import ctypes\nassert ctypes.CDLL(None).creat(b"x", 0o600) >= 0',
    'a folder': 'import ctypes\nassert ctypes.CDLL(None).mkdir(b"x", 0o700) == 0',
    'a signal': 'import posix\nposix.kill(posix.getppid(), 9)',
}


@pytest.mark.parametrize('program', RIGHT.values(), ids=RIGHT)
def test_a_right_program_passes(program):
    assert run_program(program)


@pytest.mark.parametrize('program', WRONG.values(), ids=WRONG)
def test_a_wrong_program_fails(program, tmp_path):
    victim = tmp_path / 'victim'
    victim.touch()
    program = program.replace('ELSEWHERE', str(tmp_path / 'new')).replace('VICTIM', str(victim))
    assert not run_program(program)
    assert [path.name for path in tmp_path.iterdir()] == ['victim'] and not victim.read_text()


@pytest.mark.skipif(sys.platform != 'linux', reason='filters of system calls are those of Linux')
@pytest.mark.parametrize('program', BELOW_PYTHON.values(), ids=BELOW_PYTHON)
def test_the_system_refuses_what_goes_past_python(program):
    assert not run_program(program)


@pytest.mark.parametrize(
    'program',
    [
        'while True: pass',
        'import time\ntime.sleep(100)',
        'import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass',
        'while True:\n    try:\n        while True: pass\n    except BaseException: pass',
        'import ctypes\nwhile True: ctypes.CDLL(None).fork()',
    ],
    ids=['loop', 'sleep', 'ignored signal', 'caught exception', 'fork bomb'],
)
def test_a_program_without_end_is_stopped(program):
    started = time.monotonic()
    assert not run_program(program, seconds=1)
    assert time.monotonic() - started < 10


def test_memory_is_limited():
    program = 'x = bytearray(300 * 2**20)'
    assert run_program(program) and not run_program(program, memory=200 * 2**20)


def test_results_come_in_the_order_of_the_programs():
    programs = [f'assert {number} % 3' for number in range(7)]
    assert run_programs(programs) == [bool(number % 3) for number in range(7)]


def test_pass_at_k_is_the_share_of_draws_with_a_right_sample():
    doctest.testmod(code_execution, raise_on_error=True)
    for samples, passed, k in [(5, 2, 1), (5, 2, 3), (6, 1, 4), (4, 4, 2), (4, 0, 4)]:
        draws = list(itertools.combinations([True] * passed + [False] * (samples - passed), k))
        assert pass_at_k(samples, passed, k) == pytest.approx(sum(map(any, draws)) / len(draws))
