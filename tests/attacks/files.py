"""SIGKILL while files are written and locked: every file is whole, and the next writer goes on where the last one was.

    python -m tests.attacks.files --kills=300 --seed=0

Writers that take no time to start are killed at random moments: of whole files (reports, results, settings), of lines
of metrics that a restart rewrites, and of answers that resume. After each kill, a whole file has one of its contents,
rows are complete up to the last one, and the lock of the dead process is taken over.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from t5flan.errors import UserError
from t5flan.evaluation.row_files import Prompt, RowWriter
from t5flan.files import append_whole, locks, remove_partial, write_json, write_whole
from t5flan.files.locks import hold, hold_file

ROWS = 400


def write_files(folder: Path) -> None:
    """Writes a file again and again, alternately small and large."""
    with hold_file(folder / 'whole.json', '--json'):
        remove_partial(folder / 'whole.json')
        for number in range(10**6):
            write_json(folder / 'whole.json', {'number': number, 'padding': 'x' * (number % 7 * 30_000)})


def write_metrics(folder: Path) -> None:
    """Appends rows, and starts with rewriting those that are kept, as a run does that resumes."""
    with hold(folder / '.t5flan.lock', folder, '--workdir') as lock:
        path = folder / 'metrics.jsonl'
        remove_partial(path)
        kept = metrics(folder)
        write_whole(path, ''.join(json.dumps(row) + '\n' for row in kept))
        with open(path, 'ab', buffering=0) as file:
            for step in range(len(kept) + 1, 10**6):
                lock.require()
                append_whole(file, (json.dumps({'step': step, 'padding': 'x' * (step % 5 * 99)}) + '\n').encode())
                (folder / 'saved').write_text('')  # what a checkpoint would be
                os.rename(folder / 'saved', folder / f'step_{step % 3}')


def metrics(folder: Path) -> list[dict]:
    """The complete rows."""
    path = folder / 'metrics.jsonl'
    lines = path.read_text().split('\n') if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith('}')]


def write_answers(folder: Path) -> None:
    """Answers rows and resumes, as `t5flan infer` does."""
    prompts = [Prompt(i, f'row {i}', {'inputs': f'row {i} \u2028', 'index': i}) for i in range(ROWS)]
    with RowWriter(folder / 'out.jsonl', prompts, record={'checkpoint': 'run', 'step': 3}) as writer:
        while writer.remaining:
            writer.write([f'answer {prompt.number}' for prompt in writer.remaining[:3]])


def check_files(folder: Path) -> None:
    """Requires the file to be absent or whole."""
    path = folder / 'whole.json'
    if path.exists():
        value = json.loads(path.read_text())
        assert len(value['padding']) == value['number'] % 7 * 30_000


def check_metrics(folder: Path) -> None:
    """Requires every step once, in order, with none missing."""
    rows = metrics(folder)
    assert [row['step'] for row in rows] == list(range(1, len(rows) + 1))
    seen = folder / 'seen'
    before = int(seen.read_text()) if seen.exists() else 0
    assert len(rows) >= before, f'{before} rows were there, {len(rows)} are left'
    seen.write_text(str(len(rows)))


def check_answers(folder: Path) -> None:
    """Requires the answers to be those of the first rows; removes them once they are complete."""
    path = folder / 'out.jsonl'
    lines = path.read_bytes().split(b'\n') if path.exists() else [b'']
    for number, line in enumerate(lines[:-1]):
        assert json.loads(line)['prediction'] == f'answer {number}'
    if len(lines) > ROWS:
        path.unlink()


ATTACKS: dict[str, tuple[Callable[[Path], None], Callable[[Path], None]]] = {
    'files': (write_files, check_files),
    'metrics': (write_metrics, check_metrics),
    'answers': (write_answers, check_answers),
}


def attack(kills: int, seed: int, folder: Path) -> dict[str, int]:
    """Kills writers `kills` times; returns counts. An AssertionError says what was not whole."""
    chance = random.Random(seed)
    counts = dict.fromkeys(('kills', 'refused', *ATTACKS), 0)
    for name in ATTACKS:
        (folder / name).mkdir()
    while counts['kills'] < kills:
        name = list(ATTACKS)[counts['kills'] % len(ATTACKS)]
        write, check = ATTACKS[name]
        process = _start(write, folder / name)
        locked = chance.random() < 0.8  # the others are killed while they start
        while locked and not _holds(process, folder / name) and not _has_ended(process):
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.05))
        if chance.random() < 0.1 and locked:  # a second writer, which must not win the lock from one that starts
            counts['refused'] += _wait(_start(write, folder / name, seconds=5)) == 1
        os.kill(process, signal.SIGKILL)
        assert _wait(process) in (0, -signal.SIGKILL)
        check(folder / name)
        counts['kills'] += 1
        counts[name] += 1
    for name in ATTACKS:  # one more start of each removes what the killed ones left
        assert _wait(_start(ATTACKS[name][0], folder / name, seconds=3)) in (0, 2)
        ATTACKS[name][1](folder / name)
        stray = [path.name for path in (folder / name).iterdir() if path.name.endswith('.tmp')]
        assert not [path for path in stray if path.count('.') > 2], stray
    return counts


class _Over(Exception):
    pass


def _start(write: Callable[[Path], None], folder: Path, seconds: float | None = None) -> int:
    """Starts a writer in a fork, which ends by itself after `seconds`: exit code 0 done, 1 refused, 2 time is over."""
    process = os.fork()
    if process:
        return process
    code = 70

    def over(*_: object) -> None:
        raise _Over

    try:
        if seconds is not None:
            signal.signal(signal.SIGALRM, over)
            signal.setitimer(signal.ITIMER_REAL, seconds)
        write(folder)
        code = 0
    except UserError as error:
        code = 1 if 'is being written by process' in str(error) else 71
    except _Over:
        code = 2
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _holds(process: int, folder: Path) -> bool:
    """Whether a lock in the folder is that of the process, and not one that a killed process left."""
    for path in folder.iterdir():
        with contextlib.suppress(OSError):  # it is taken over
            holder = locks.Holder.read(path.read_text()) if path.name.endswith('.lock') else None
            if holder is not None and holder.pid == process:
                return True
    return False


def _has_ended(process: int) -> bool:
    return os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _wait(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


if __name__ == '__main__':
    parser = argparse.ArgumentParser()
    parser.add_argument('--kills', type=int, default=300)
    parser.add_argument('--seed', type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as here:
        print(attack(given.kills, given.seed, Path(here)))
