"""SIGKILL at random moments of training, of restarts and saves too: nothing is lost, and losses are the same bits.

    python -m tests.attacks.kills --kills=100 --seed=0

Runs of `t5flan train` are killed, a third of them within the first moments of a start, and started again until they are
complete. After each kill, the newest checkpoint is there, and metrics.jsonl has every step up to it, once. At the end,
losses and gradient norms of all steps equal those of a run that was never stopped, bit for bit.
"""

import argparse
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tests.attacks.tiny_run import losses, preload, start, train_arguments, wait, write_rows

STEPS, EVERY = 60, 4
Losses = dict[int, tuple[float, float]]
"""Step -> loss and gradient norm."""


class Run(NamedTuple):
    """A run to kill, wherever its workdir is."""

    begin: Callable[[], int]
    """Starts or resumes it; returns its process id."""
    losses: Callable[[], Losses]
    """Those of its metrics.jsonl."""
    newest_step: Callable[[], int]
    """Of its complete checkpoints; 0 if there is none."""
    clear: Callable[[], None]
    """Empties its workdir."""


def kill_often(run: Run, kills: int, chance: random.Random, expected: Losses, log: Path) -> dict[str, int]:
    """Kills it `kills` times, at moments drawn over the time of a whole run, and leaves a complete one.

    Args:
        expected: the losses of a run that was never stopped.
        log: where its processes write.

    Returns:
        Counts. An AssertionError says what was lost.
    """
    started = time.monotonic()
    assert wait(run.begin()) == 0, log.read_text()
    duration = time.monotonic() - started
    assert run.losses() == expected

    counts = dict.fromkeys(('kills', 'runs', 'in_the_first_moments', 'with_no_checkpoint'), 0)
    newest, code = 0, 0
    while counts['kills'] < kills or code:
        if code == 0:
            run.clear()
            newest = 0
        process, early = run.begin(), chance.random() < 1 / 3
        if counts['kills'] < kills:
            time.sleep(chance.uniform(0, duration * (0.3 if early else 1.0)))
            os.kill(process, signal.SIGKILL)
        code = wait(process)
        assert code in (0, -signal.SIGKILL), log.read_text()
        known, saved = run.losses(), run.newest_step()
        assert saved >= newest, f'step {newest} was there and is gone'
        missing = set(range(1, saved + 1)) - set(known)
        assert not missing, f'step {saved} is saved, and metrics.jsonl lacks {sorted(missing)}'
        assert all(known[step] == expected[step] for step in known), 'a loss differs'
        newest = saved
        if code:
            counts['kills'] += 1
            counts['in_the_first_moments'] += early
            counts['with_no_checkpoint'] += not saved
        else:
            counts['runs'] += 1
            assert known == expected
    assert kills < 10 or counts['with_no_checkpoint'] < kills, f'no kill came after a checkpoint: {counts}'
    return counts


def attack(kills: int, seed: int, folder: Path) -> dict[str, int]:
    """Kills training on this disk `kills` times; returns counts. An AssertionError says what was lost."""
    preload()
    rows, log, workdir = write_rows(folder), folder / 'log.txt', folder / 'run'

    def begin(workdir: Path) -> int:
        return start(train_arguments(workdir, rows, STEPS, EVERY), log)

    assert wait(begin(folder / 'whole')) == 0, log.read_text()
    expected = losses(folder / 'whole')
    assert list(expected) == list(range(1, STEPS + 1))
    run = Run(
        begin=lambda: begin(workdir),
        losses=lambda: losses(workdir),
        newest_step=lambda: _newest_step(workdir),
        clear=lambda: shutil.rmtree(workdir),
    )
    counts = kill_often(run, kills, random.Random(seed), expected, log)
    stray = [path for path in workdir.rglob('*') if path.name.endswith('.tmp') or 'orbax-checkpoint-tmp' in path.name]
    assert not stray and not (workdir / '.t5flan.lock').exists(), stray
    return counts


def _newest_step(workdir: Path) -> int:
    """The newest complete checkpoint, by its name alone; 0 if there is none."""
    root = workdir / 'checkpoints'
    return max((int(path.name) for path in root.iterdir() if path.name.isdigit()), default=0) if root.exists() else 0


if __name__ == '__main__':
    parser = argparse.ArgumentParser()
    parser.add_argument('--kills', type=int, default=100)
    parser.add_argument('--seed', type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as here:
        print(attack(given.kills, given.seed, Path(here)))
