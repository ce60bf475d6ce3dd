"""A full disk, a read-only folder and a name that is too long, for every command that writes: one line, nothing lost.

    python -m tests.attacks.disk --tries=20 --seed=0

Needs the right to mount: the disk is a tmpfs of 20 MB with a random number of bytes left. After each try, what was
there before has the bytes it had, no temporary file is left, and the same command succeeds once there is space.
"""

import argparse
import contextlib
import hashlib
import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.attacks.tiny_run import losses, preload, start, train_arguments, wait, write_rows

COMMANDS = ('train', 'resume', 'report', 'infer', 'evaluate', 'json', 'deduplicate', 'vocabulary')


class CannotMount(Exception):
    """This machine does not let the process mount a file system."""


@contextlib.contextmanager
def disk(folder: Path, megabytes: int = 20) -> Iterator[Path]:
    """A disk of its own, mounted on `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    options = ['mount', '-t', 'tmpfs', '-o', f'size={megabytes}m', 'tmpfs', str(folder)]
    try:
        done = subprocess.run(options, capture_output=True, text=True)
    except OSError as error:
        raise CannotMount(str(error)) from None
    if done.returncode:
        raise CannotMount(done.stderr.strip())
    try:
        yield folder
    finally:
        subprocess.run(['umount', '-l', str(folder)], check=True)


def fill(folder: Path, left: int) -> Path:
    """Fills the disk but for about `left` bytes; returns the file to remove for more space."""
    path = folder / 'filler'
    with contextlib.suppress(OSError), path.open('wb', buffering=0) as file:
        while file.write(b'\0' * 2**16):
            pass
    os.truncate(path, max(0, path.stat().st_size - left))
    return path


def arguments_of(command: str, place: Path, ready: Path, rows: Path) -> list[str]:
    """A command that writes into `place`; `ready` is a complete run."""
    if command in ('train', 'resume'):
        return train_arguments(place / command, rows, 8, 2)
    checkpoint = f'--checkpoint={ready}'
    return {
        'report': ['report', str(ready), f'--output={place}/report.html'],
        'infer': ['infer', checkpoint, f'--input={rows}', f'--output={place}/out.jsonl', '--max_new_tokens=4'],
        'evaluate': [
            'evaluate', checkpoint, '--limit=4', '--max_new_tokens=4', '--tasks=file',
            f'--predictions={place}/p.jsonl', f'--json={place}/e.json',
        ],
        'json': ['infer', checkpoint, '--prompt=a', '--max_new_tokens=2', f'--json={place}/one.json'],
        'deduplicate': [
            'deduplicate', f'--input={rows}', f'--output={place}/d.jsonl', '--field=inputs', '--threshold=1',
        ],
        'vocabulary': [
            'vocabulary', f'--input={rows.parent}/text.txt', '--size=400', f'--output={place}/v.model',
            '--extra_ids=0', '--mode_tokens=',
        ],
    }[command]  # fmt: skip


def snapshot(folder: Path, ignored: Sequence[str] = ('filler',)) -> dict[str, str]:
    """Path -> hash of the content of every file."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob('*'))
        if path.is_file() and path.name not in ignored
    }


def check_refusal(code: int, log: Path, command: str) -> str:
    """Requires exit code 1 and a last line that names the disk, without a traceback; returns the line."""
    text = log.read_text(errors='replace')
    assert code == 1, f'{command}: exit code {code}\n{text}'
    assert 'Traceback' not in text and 'Error' not in text, f'{command}: {text}'
    line = text.strip().splitlines()[-1]
    assert line.startswith('t5flan: ') and 'No space left on device' in line, f'{command}: {line}'
    return line


def attack(tries: int, seed: int, folder: Path, commands: Sequence[str] = COMMANDS) -> dict[str, int]:
    """Runs commands on a disk that fills up; returns counts. An AssertionError says what went wrong."""
    preload()
    chance, rows, log = random.Random(seed), write_rows(folder), folder / 'log.txt'
    ready = folder / 'ready'
    (folder / 'text.txt').write_text(Path(__file__).read_text(encoding='utf-8'))
    assert wait(start(train_arguments(ready, rows, 4, 2), log)) == 0, log.read_text()
    counts = {'tries': 0, 'full': 0, 'enough': 0}
    with disk(folder / 'disk') as place:
        for number in range(tries):
            command = commands[number % len(commands)]
            if command == 'resume':
                shutil.copytree(ready, place / 'resume')
            given = arguments_of(command, place, ready, rows)
            before = snapshot(place)
            left = chance.choice([0, 1, chance.randrange(2**12), chance.randrange(2**16), chance.randrange(2**18)])
            filler = fill(place, left)
            code = wait(start(given, log))
            counts['tries'] += 1
            counts['enough' if code == 0 else 'full'] += 1
            if code:
                check_refusal(code, log, command)
                check_whole(command, before, snapshot(place))
            filler.unlink()
            assert wait(start(given, log)) == 0, f'{command}, with space again: {log.read_text()}'
            if command in ('train', 'resume'):
                assert list(losses(place / command)) == list(range(1, 9))
            for path in place.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    return counts


def check_whole(command: str, before: dict[str, str], after: dict[str, str]) -> None:
    """Requires that nothing of before has changed, apart from what a run appends to, and that nothing half is left."""
    appended = ('metrics.jsonl', 'tfevents', 'config.gin', 't5flan.json')
    for path, content in before.items():
        if 'checkpoints/' in path or not any(name in path for name in appended):
            assert after.get(path) == content, f'{command}: {path} is changed or gone'
    stray = [path for path in after if path.endswith(('.tmp', '.lock')) or 'orbax-checkpoint-tmp' in path]
    assert not stray, f'{command} left {stray}'


if __name__ == '__main__':
    parser = argparse.ArgumentParser()
    parser.add_argument('--tries', type=int, default=24)
    parser.add_argument('--seed', type=int, default=0)
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory() as here:
        print(attack(parsed.tries, parsed.seed, Path(here)))
