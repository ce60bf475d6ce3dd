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
from pathlib import Path

from tests.attacks.tiny_run import losses, preload, start, train_arguments, wait, write_rows

STEPS, EVERY = 60, 4


def attack(kills: int, seed: int, folder: Path) -> dict[str, int]:
    """Kills training `kills` times; returns counts. An AssertionError says what was lost."""
    preload()
    rows, chance = write_rows(folder), random.Random(seed)
    log = folder / 'log.txt'

    def begin(workdir: Path) -> int:
        return start(train_arguments(workdir, rows, STEPS, EVERY), log)

    for name in ('warm', 'whole'):  # the first fills the compilation cache
        started = time.monotonic()
        assert wait(begin(folder / name)) == 0, log.read_text()
    duration, expected = time.monotonic() - started, losses(folder / 'whole')
    assert list(expected) == list(range(1, STEPS + 1))

    counts = dict.fromkeys(('kills', 'runs', 'in_the_first_moments', 'with_no_checkpoint'), 0)
    workdir, newest = folder / 'run', 0
    while counts['kills'] < kills:
        process = begin(workdir)
        early = chance.random() < 1 / 3
        time.sleep(chance.uniform(0, duration * (0.3 if early else 1.0)))
        os.kill(process, signal.SIGKILL)
        code = wait(process)
        assert code in (0, -signal.SIGKILL), log.read_text()
        known, saved = losses(workdir), _newest_step(workdir)
        assert saved >= newest, f'step {newest} was there and is gone'
        missing = set(range(1, saved + 1)) - set(known)
        assert not missing, f'step {saved} is saved, and metrics.jsonl lacks {sorted(missing)}'
        assert all(known[step] == expected[step] for step in known), 'a loss differs'
        counts['kills'] += code != 0
        counts['in_the_first_moments'] += code != 0 and early
        counts['with_no_checkpoint'] += not saved
        newest = saved
        if code == 0:
            counts['runs'] += 1
            assert known == expected
            shutil.rmtree(workdir)
            newest = 0
    if workdir.exists():
        assert wait(begin(workdir)) == 0, log.read_text()
        assert losses(workdir) == expected
        stray = [
            path for path in workdir.rglob('*') if path.name.endswith('.tmp') or 'orbax-checkpoint-tmp' in path.name
        ]
        assert not stray and not (workdir / '.t5flan.lock').exists(), stray
        counts['runs'] += 1
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
