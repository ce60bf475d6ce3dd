"""SIGKILL while files are written and locked: every file is whole, and the next writer goes on where the last one was.

    python -m tests.attacks.files --kills=300 --seed=0

Writers that take no time to start are killed at random moments: of whole files (results, settings), of lines of metrics
that a restart rewrites, of answers that resume, of an output with the report that a command writes beside it, of the
journal and provenance of a synthesis, and of whole folders. After each kill, a whole file or folder has one of its
contents, rows are complete up to the last one, and the lock of the dead process is taken over. At the end, one more
start of each leaves nothing half-written.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from t5flan.corpora.deduplication import deduplicate
from t5flan.errors import UserError
from t5flan.evaluation.row_files import Prompt, RowWriter
from t5flan.files import append_whole, locks, remove_partial, write_json, write_whole
from t5flan.files.locks import hold, hold_file
from t5flan.files.partial import partial_folder
from t5flan.synthesis.journal import finished, journal_path, open_run, provenance_path

ROWS = 400


def write_files(folder: Path) -> None:
    """Writes a file again and again, alternately small and large."""
    with hold_file(folder / 'whole.json', '--json'):
        for number in range(10**6):
            write_json(folder / 'whole.json', {'number': number, 'padding': 'x' * (number % 7 * 30_000)})


def write_metrics(folder: Path) -> None:
    """Appends rows, and starts with rewriting those that are kept, as a run does that resumes."""
    with hold(folder / '.t5flan.lock', folder, '--workdir') as lock:
        path = folder / 'metrics.jsonl'
        remove_partial(folder)
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


def write_reports(folder: Path) -> None:
    """Deduplicates again and again, as `t5flan deduplicate` does: an output, its report, and a folder to sort in."""
    with hold_file(folder / 'once.jsonl', '--output'):
        texts, report = folder / 'texts.jsonl', str(folder / 'once.report.json')
        write_whole(texts, ''.join(json.dumps({'text': f'{i % 50} {"x" * 5000}'}) + '\n' for i in range(ROWS)))
        while True:
            deduplicate([str(texts)], str(folder / 'once.jsonl'), report_file=report)


def write_synthesis(folder: Path) -> None:
    """Asks a model, remembers its answers, and writes them with their provenance, as `t5flan self_instruct` does."""
    output, settings = folder / 'new.jsonl', {'seed': 0}
    if finished(output, settings) is None:
        with open_run(output, settings) as journal:
            rows = [journal.recall(f'round {i}', lambda i=i: f'row {i} \u2028') for i in range(ROWS)]  # type: ignore[misc]
            journal.finish([json.dumps(row) for row in rows], {**settings, 'padding': 'x' * 10**6})


def write_folders(folder: Path) -> None:
    """Writes a folder that appears whole, as `t5flan convert` does."""
    with hold_file(folder / 'model', 'DST'):
        while True:
            with partial_folder(folder / 'model') as partial:
                for number in range(9):
                    (partial / str(number)).write_text('x' * number * 30_000)
                shutil.rmtree(folder / 'model', ignore_errors=True)
                os.rename(partial, folder / 'model')


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


def check_reports(folder: Path) -> None:
    """Requires output and report to be absent or whole."""
    output, report = folder / 'once.jsonl', folder / 'once.report.json'
    assert not output.exists() or output.read_text().count('\n') == 50
    assert not report.exists() or len(json.loads(report.read_text())['removed']) == ROWS - 50


def check_synthesis(folder: Path) -> None:
    """Requires the rows to be absent or whole; removes them once they are finished."""
    output = folder / 'new.jsonl'
    if output.exists():
        rows = output.read_text('utf-8').split('\n')
        assert [json.loads(row) for row in rows[:-1]] == [f'row {i} \u2028' for i in range(ROWS)]
    if finished(output, {'seed': 0}) is not None:
        assert provenance_path(output).exists() and not journal_path(output).exists()
        output.unlink()


def check_folders(folder: Path) -> None:
    """Requires the folder to be absent or whole, or to be the older one that is being removed."""
    found = {path.name: path.stat().st_size for path in (folder / 'model').glob('*')}
    assert all(size == int(name) * 30_000 for name, size in found.items())


ATTACKS: dict[str, tuple[Callable[[Path], None], Callable[[Path], None]]] = {
    'files': (write_files, check_files),
    'metrics': (write_metrics, check_metrics),
    'answers': (write_answers, check_answers),
    'reports': (write_reports, check_reports),
    'synthesis': (write_synthesis, check_synthesis),
    'folders': (write_folders, check_folders),
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
        _start_and_end(ATTACKS[name][0], folder / name)
        ATTACKS[name][1](folder / name)
        stray = [path.name for path in (folder / name).iterdir() if path.name.endswith(('.tmp', '.lock'))]
        assert not stray, stray
    return counts


def _start_and_end(write: Callable[[Path], None], folder: Path) -> None:
    """Starts a writer and ends it, by an exception, which may come before a file is known to need removal: twice."""
    for _ in range(2):
        assert _wait(_start(write, folder, seconds=2)) in (0, 2)


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
