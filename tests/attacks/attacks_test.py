"""Samples of the attacks in the quick suite, and their full counts in the slow one; see docs/reliability.md."""

import os
import signal
import subprocess
import sys

import pytest

from tests.attacks import checkpoints, files, signals


def run(module, *arguments):
    """Runs an attack in a process of its own: it forks, which a process that uses JAX must not."""
    given = [sys.executable, '-m', f'tests.attacks.{module}', *arguments]
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join([os.getcwd(), os.environ.get('PYTHONPATH', '')])}
    environment.pop('XLA_FLAGS', None)  # one device: the batches of the attacks do not divide over eight
    done = subprocess.run(given, capture_output=True, text=True, env=environment)
    if 'CannotMount' in done.stderr:
        pytest.skip(f'this machine does not let tests mount a disk: {done.stderr.strip().splitlines()[-1]}')
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_files_are_whole_after_kills():
    assert "'kills': 24" in run('files', '--kills=24')


def test_files_in_a_bucket_are_those_on_a_disk_though_a_third_of_the_requests_fail():
    pytest.importorskip('google.cloud.storage', reason="pip install 't5flan[gcs]'")
    assert "'files': 15" in run('buckets', '--files=15', '--rate=0.3')


def test_a_third_of_the_wrong_settings_are_one_line_each():
    assert "'faults': 0" in run('settings', '--light')


@pytest.mark.slow
@pytest.mark.parametrize(
    'attack, flags, shown',
    [
        ('settings', (), "'faults': 0"),
        ('files', ('--kills=300',), "'kills': 300"),
        ('checkpoints', ('--mutations=400',), "'mutations': 400"),
        ('checkpoints', ('--strangers=300',), "'mutations': 300"),
        ('kills', ('--kills=100',), "'kills': 100"),
        ('disk', ('--tries=24',), "'tries': 24"),
        ('signals', ('--tries=20',), "'tries': 20"),
        ('buckets', ('--files=300', '--rate=0.3'), "'files': 300"),
        ('buckets', ('--kills=20', '--rate=0.05'), "'kills': 20"),
    ],
)
def test_a_whole_attack(attack, flags, shown):
    assert shown in run(attack, *flags)


@pytest.mark.slow
@pytest.mark.parametrize('count', [2, 4])
@pytest.mark.parametrize('scenario', ['numbers', 'restore', 'evaluate', 'infer', 'killed', 'fails', 'bucket'])
def test_several_processes(scenario, count):
    assert f"'{scenario}': passed" in run('processes', scenario, f'--count={count}')


@pytest.mark.slow
@pytest.mark.parametrize('number, to', [(signal.SIGINT, 1), (signal.SIGTERM, 0)], ids=['SIGINT', 'SIGTERM'])
def test_two_processes_stop_at_the_same_step(tmp_path, number, to):
    lines, took = signals.stop_two(number, to, tmp_path)
    assert lines[0] == lines[1] and f'stopped by {number.name} at step' in lines[0] and took < signals.LIMIT


def test_the_attack_on_files_notices_a_fault(tmp_path):
    (tmp_path / 'whole.json').write_text('{"number": 1, "padd')
    with pytest.raises(ValueError, match='Unterminated|Expecting'):
        files.check_files(tmp_path)
    (tmp_path / 'metrics.jsonl').write_text('{"step": 1}\n{"step": 3}\n')
    with pytest.raises(AssertionError):
        files.check_metrics(tmp_path)


def test_the_attack_on_checkpoints_notices_a_fault():
    mutation, good = checkpoints.Mutation('a flipped bit', 'parameters'), checkpoints.Outcome(0, '', 'result')
    with pytest.raises(AssertionError, match='unnoticed'):
        checkpoints.judge('load', mutation, good, good)
    with pytest.raises(AssertionError):
        checkpoints.judge('load', mutation, checkpoints.Outcome(70, 'Traceback (most recent call last)'), good)
    assert checkpoints.judge('load', mutation, checkpoints.Outcome(1, 't5flan: damaged\n'), good) == 'refused'
    assert checkpoints.judge('load', mutation._replace(part='optimizer'), good, good) == 'unread'
