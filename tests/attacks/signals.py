"""SIGINT and SIGTERM at random moments, one process and two: an end within 30 s, one line, a saved state.

    python -m tests.attacks.signals --tries=20 --seed=0

`--two` stops runs of two processes over gloo, of which one gets the signal.
"""

import argparse
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.attacks.tiny_run import ENVIRONMENT, losses, preload, start, train_arguments, wait, write_rows

TWO = """
import sys, jax
jax.config.update('jax_cpu_collectives_implementation', 'gloo')
jax.distributed.initialize(f'localhost:{sys.argv[1]}', 2, int(sys.argv[2]))
from t5flan.__main__ import main
sys.exit(main(sys.argv[3:]))
"""
LIMIT = 30.0


def attack(tries: int, seed: int, folder: Path) -> dict[str, float]:
    """Stops `train` and `infer` at random moments; returns counts and the longest time to an end, in seconds."""
    preload()
    rows, log, chance = write_rows(folder), folder / 'log.txt', random.Random(seed)
    ready = folder / 'ready'
    assert wait(start(train_arguments(ready, rows, 4, 2), log)) == 0, log.read_text()
    commands = {
        'train': train_arguments(folder / 'run', rows, 10**6, 10**5),
        'infer': [
            'infer',
            f'--checkpoint={ready}',
            f'--input={rows}',
            f'--output={folder}/out.jsonl',
            '--batch_size=1',
        ],
    }
    counts: dict[str, float] = {'tries': 0, 'stopped': 0, 'seconds': 0.0}
    for number in range(tries):
        command = list(commands)[number % len(commands)]
        which = chance.choice([signal.SIGINT, signal.SIGTERM])
        process = start(commands[command], log)
        time.sleep(chance.uniform(0, 8))
        before = time.monotonic()
        os.kill(process, which)
        code = wait(process)
        took = time.monotonic() - before
        text = log.read_text(errors='replace')
        assert took < LIMIT and 'Traceback' not in text, f'{command}, {took:.1f} s: {text}'
        assert code in (0, 1, -which), text  # -which: before `main` had begun
        if code == 1:
            assert text.strip().splitlines()[-1].startswith('t5flan: stopped'), text
            if 'the state is saved' in text:
                saved = max(int(path.name) for path in (folder / 'run' / 'checkpoints').iterdir())
                assert list(losses(folder / 'run')) == list(range(1, saved + 1)), 'a row is missing'
        counts['tries'] += 1
        counts['stopped'] += code == 1
        counts['seconds'] = max(counts['seconds'], round(took, 1))
    return counts


def stop_two(number: int, to: int, folder: Path, wait_for: str = 'step 9/') -> tuple[list[str], float]:
    """Sends a signal to one of two processes of a run; returns the last line of each, and seconds until both ended."""
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = free.getsockname()[1]
    given = [sys.executable, '-c', TWO, str(port)]
    arguments = train_arguments(folder / 'run', write_rows(folder), 10**6, 10**5)
    logs = [folder / f'log{rank}.txt' for rank in range(2)]
    environment = {**os.environ, **ENVIRONMENT}
    processes = []
    for rank, log in enumerate(logs):
        with log.open('w') as file:
            run = [*given, str(rank), *arguments]
            processes.append(subprocess.Popen(run, stdout=file, stderr=subprocess.STDOUT, env=environment))
    try:
        end = time.monotonic() + 600
        while wait_for not in logs[0].read_text():
            assert time.monotonic() < end and all(process.poll() is None for process in processes), logs[0].read_text()
            time.sleep(0.2)
        before = time.monotonic()
        processes[to].send_signal(number)
        for process in processes:
            assert process.wait(60) == 1
        took = time.monotonic() - before
    finally:
        for process in processes:
            process.kill()
    assert not any('Traceback' in log.read_text() for log in logs)
    return [log.read_text().strip().splitlines()[-1] for log in logs], took


if __name__ == '__main__':
    parser = argparse.ArgumentParser()
    parser.add_argument('--tries', type=int, default=20)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--two', action='store_true')
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory() as here:
        if parsed.two:
            for attempt, sent in enumerate((signal.SIGINT, signal.SIGTERM)):
                Path(here, str(attempt)).mkdir()
                print(sent.name, *stop_two(sent, attempt, Path(here, str(attempt))))
        else:
            print(attack(parsed.tries, parsed.seed, Path(here)))
