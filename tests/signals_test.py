"""SIGINT and SIGTERM: one line and an end, also of a process that computes or waits; the second ends it at once."""

import signal
import subprocess
import sys
import time

import pytest

RUN = """
import sys, time, threading
from t5flan import signals
from t5flan.__main__ import COMMANDS, console
from t5flan.commands.arguments import Command
signals.DEADLINE, signals.LINGER = 2.0, 1.0

def run(_):
    print('started', flush=True)
    {body}

COMMANDS['x'] = Command('x', '', run, ())
sys.argv = ['t5flan', 'x']
console()
"""
WAITS = 'time.sleep(60)'
DEAF = """
    while True:  # a library that swallows what is raised
        try:
            time.sleep(60)
        except BaseException:
            pass"""
SAVES = """
    try:
        time.sleep(60)
    finally:
        with signals.saving():
            time.sleep(4)
            print('saved', flush=True)"""
HANGS_AT_THE_END = 'threading.Thread(target=time.sleep, args=(60,)).start(); time.sleep(60)'
CHANGES_THE_ERROR = """
    try:
        time.sleep(60)
    except BaseException as error:
        raise RuntimeError('a traceback') from error"""


def start(body):
    code = RUN.format(body=body)
    started = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert started.stdout.readline() == 'started\n'
    time.sleep(0.5)  # until it is in its `try`
    return started


@pytest.mark.parametrize(
    'body, number, words',
    [
        (WAITS, signal.SIGINT, 'stopped by {}; run the same command again to go on'),
        (WAITS, signal.SIGTERM, 'stopped by {}; run the same command again to go on'),
        (DEAF, signal.SIGINT, 'stopped by {}, 2 s ago; what was saved before is whole'),
        (SAVES, signal.SIGTERM, 'stopped by {}; run the same command again to go on'),
        (HANGS_AT_THE_END, signal.SIGTERM, 'stopped by {}; run the same command again to go on'),
        (CHANGES_THE_ERROR, signal.SIGINT, 'stopped by {}; run the same command again to go on'),
    ],
    ids=['waits, SIGINT', 'waits, SIGTERM', 'deaf', 'saves', 'hangs at the end', 'changes the error'],
)
def test_a_signal_ends_the_process_with_one_line(body, number, words):
    process = start(body)
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 1 and out == ('saved\n' if body == SAVES else '')
    lines = [line for line in err.splitlines() if line]
    assert lines[0] == 't5flan: ' + words.format(number.name) and 'Traceback' not in err
    assert len(lines) == 1


@pytest.mark.parametrize('number', [signal.SIGINT])
def test_a_second_signal_ends_the_process_at_once(number):
    process = start(SAVES.replace('sleep(4)', 'sleep(60)'))
    process.send_signal(number)
    time.sleep(0.5)
    process.send_signal(number)
    started = time.monotonic()
    assert process.communicate(timeout=20)[1].strip() == f't5flan: ended at once by a second {number.name}'
    assert process.returncode == 1 and time.monotonic() - started < 10
