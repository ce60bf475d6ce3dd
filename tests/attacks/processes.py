"""Several processes of one job, over gloo on this CPU: the numbers of one, and an end of all when one ends.

    python -m tests.attacks.processes numbers --count=2

| scenario | what is required |
|---|---|
| numbers | losses, evaluations and generated metrics of `train` as of one process |
| restore | a run of `--count` processes goes on with half of them, and then with one: the losses of one process |
| evaluate | the results of `evaluate` as of one process, with every row once, and no more after a restart |
| infer | every row is answered once, in order; a signal to one process stops all, and the same command completes |
| killed | SIGKILL to the first process, and to the last one: all others end, with a line that names it |
| fails | a process that fails, and one that is late: all end, with a line that names it |
| bucket | workdir and rows in a bucket whose server fails: killed and stopped, the losses of one process on a disk |
"""

import argparse
import contextlib
import dataclasses
import json
import os
import re
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.attacks.buckets import newest_step, point_at, run_losses
from tests.attacks.tiny_run import ENVIRONMENT, losses, preload, start, train_arguments, wait, write_rows
from tests.files.gcs_server import Faults, GcsServer

LIMIT = 60.0
"""Seconds after which all processes have ended when one of them has."""
STREAMS = '--gin.DataConfig.streams=4'


@dataclasses.dataclass
class Job:
    """The processes of a job and their logs; `codes` has those that have ended."""

    coordinator: str
    pids: list[int]
    logs: list[Path]
    codes: dict[int, int] = dataclasses.field(default_factory=dict)

    def texts(self) -> list[str]:
        """What each has printed."""
        return [log.read_text(errors='replace') for log in self.logs]

    def poll(self) -> bool:
        """Whether all have ended."""
        for index, pid in enumerate(self.pids):
            if index not in self.codes:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    self.codes[index] = os.waitstatus_to_exitcode(status)
        return len(self.codes) == len(self.pids)

    def wait(self, limit: float) -> float:
        """Waits for all of them; returns the seconds."""
        started = time.monotonic()
        while not self.poll():
            assert time.monotonic() - started < limit, ('some have not ended', self.codes, self.texts())
            time.sleep(0.1)
        return time.monotonic() - started

    def wait_for(self, words: str, index: int = 0, limit: float = 600.0) -> None:
        """Waits until a process has printed something."""
        end = time.monotonic() + limit
        while words not in self.texts()[index]:
            assert time.monotonic() < end and not self.poll(), (words, self.codes, self.texts())
            time.sleep(0.1)


def _leave_job() -> None:
    import jax

    jax.distributed.shutdown()


def _be_impatient() -> None:
    from t5flan.processes import meeting

    meeting.STRANGE = 2.0


@contextlib.contextmanager
def job(folder: Path, arguments: Sequence[str], count: int, last: Sequence[str] = ()) -> Iterator[Job]:
    """Starts `count` processes of a command, the last with more arguments; kills what is left of them at the end."""
    with socket.socket() as free:
        free.bind(('localhost', 0))
        where = f'localhost:{free.getsockname()[1]}'
    found = Job(where, [], [])
    for index in range(count):
        flags = [f'--coordinator={where}', f'--process_count={count}', f'--process_id={index}'] if count > 1 else []
        log = folder / f'process{index}.log'
        log.write_text('')
        given = [*arguments, *flags, *(last if index == count - 1 else ())]
        found.pids.append(start(given, log, after=_leave_job))
        found.logs.append(log)
    try:
        yield found
    finally:
        for index, pid in enumerate(found.pids):
            if index not in found.codes:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def run(folder: Path, arguments: Sequence[str], count: int) -> Job:
    """A job that succeeds."""
    with job(folder, arguments, count) as found:
        found.wait(600)
    assert set(found.codes.values()) == {0}, (found.codes, found.texts())
    return found


def close(one: dict, other: dict, tolerance: float = 2e-4) -> None:
    """Requires the same names and nearly the same numbers."""
    assert one.keys() == other.keys(), (one, other)
    for name, value in one.items():
        both = [value, other[name]]
        first, second = both if isinstance(value, tuple) else [(each,) for each in both]
        for a, b in zip(first, second, strict=True):
            assert abs(a - b) <= tolerance * max(1.0, abs(a)), (name, value, other[name])


def evaluations(workdir: Path) -> dict[str, float]:
    """The rows of evaluations in metrics.jsonl, by step and name."""
    rows = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    names = lambda row: [name for name in row if name.startswith('eval/')]
    return {f'{row["step"]} {name}': row[name] for row in rows for name in names(row)}


def training_losses(workdir: Path) -> dict[int, tuple[float, float]]:
    """`losses`, without the rows of evaluations, which are of the same steps."""
    found = {}
    for line in (workdir / 'metrics.jsonl').read_text().splitlines():
        row = json.loads(line)
        if 'loss' in row:
            found[row['step']] = row['loss'], row['grad_norm']
    return found


def numbers(folder: Path, count: int) -> None:
    """Training with evaluations, as of one process."""
    rows = write_rows(folder)
    evaluating = ['EvaluationConfig.every=3', 'EvaluationConfig.batches=2', 'EvaluationConfig.generate=6']
    given = [STREAMS, '--gin.VALIDATION_SHARE=0.3', '--gin.MeshConfig.data=1', '--gin.MeshConfig.fsdp=-1']
    given += [f'--gin.{one}' for one in evaluating]
    for name, processes in (('one', 1), ('several', count)):
        run(folder, [*train_arguments(folder / name, rows, 3, 3), *given], processes)
    one, several = folder / 'one', folder / 'several'
    close(training_losses(one), training_losses(several))
    assert len(evaluations(one)) == 3
    texts = [[json.loads(line)['prediction'] for line in (each / 'samples.jsonl').open()] for each in (one, several)]
    assert texts[0] == texts[1] and len(texts[0]) == 3, texts
    close(evaluations(one), evaluations(several))


def restore(folder: Path, count: int) -> None:
    """Fewer processes go on with the same data."""
    rows = write_rows(folder)
    command = lambda name, steps: [*train_arguments(folder / name, rows, steps, 2), STREAMS]
    run(folder, command('one', 6), 1)
    for steps, processes in ((2, count), (4, max(1, count // 2)), (6, 1)):
        run(folder, command('several', steps), processes)
    close(losses(folder / 'one'), losses(folder / 'several'))


def ready(folder: Path, rows: Path) -> Path:
    """The folder of a trained model."""
    run(folder, [*train_arguments(folder / 'ready', rows, 2, 2), '--gin.VALIDATION_SHARE=0.3'], 1)
    return folder / 'ready'


def evaluate(folder: Path, count: int) -> None:
    """Examples divided among processes."""
    checkpoint = ready(folder, write_rows(folder))

    def command(name: str) -> list[str]:
        files = [f'--json={folder}/{name}.json', f'--predictions={folder}/{name}.jsonl']
        return ['evaluate', f'--checkpoint={checkpoint}', '--tasks=file', '--batch_size=4', *files]

    run(folder, command('one'), 1)
    several = run(folder, command('several'), count)
    assert [text.count('exact_match') for text in several.texts()] == [1] + [0] * (count - 1), several.texts()
    results = [json.loads((folder / f'{name}.json').read_text()) for name in ('one', 'several')]
    assert results[0]['tasks'] == results[1]['tasks'] and results[0]['tasks']['file']['examples'] > count
    rows = [(folder / f'{name}.jsonl').read_text().splitlines() for name in ('one', 'several')]
    shown = [[(row['index'], row['prediction']) for row in map(json.loads, lines)] for lines in rows]
    assert shown[0] == shown[1] and len(shown[0]) == results[0]['tasks']['file']['examples']
    again = run(folder, command('several'), count)
    assert 'are there already' in again.texts()[0], again.texts()


def infer(folder: Path, count: int) -> None:
    """Rows divided among processes, of which one is told to stop."""
    rows = write_rows(folder, 400)
    checkpoint = ready(folder, rows)
    output = folder / 'answers.jsonl'
    command = ['infer', f'--checkpoint={checkpoint}', f'--input={rows}', f'--output={output}', '--batch_size=1']
    with job(folder, command, count) as found:
        part = lambda index: folder / f'answers-{index:05d}-of-{count:05d}.jsonl'
        while not all(part(index).exists() and part(index).stat().st_size for index in range(count)):
            assert not found.poll(), (found.codes, found.texts())
            time.sleep(0.05)
        os.kill(found.pids[-1], signal.SIGTERM)
        took = found.wait(LIMIT)
    for text in found.texts():
        assert last_line(text) == 't5flan: stopped by SIGTERM; run the same command again to go on', found.texts()
    run(folder, command, count)
    answered = [json.loads(line) for line in output.read_text().splitlines()]
    asked = [json.loads(line) for line in rows.read_text().splitlines()]
    assert [row['inputs'] for row in answered] == [row['inputs'] for row in asked]
    print(f'infer: all stopped {took:.1f} s after the signal')


def last_line(text: str) -> str:
    """The last line of a log."""
    return text.strip().splitlines()[-1]


def killed(folder: Path, count: int) -> None:
    """SIGKILL to one process while all train."""
    rows = write_rows(folder)
    for which in (count - 1, 0):
        workdir = folder / f'run{which}'
        with job(folder, [*train_arguments(workdir, rows, 10**6, 10**5), STREAMS], count) as found:
            found.wait_for('step 5/')
            os.kill(found.pids[which], signal.SIGKILL)
            took = found.wait(LIMIT)
        for index, text in enumerate(found.texts()):
            if index != which:
                assert found.codes[index] == 1, (found.codes, found.texts())
                named = rf't5flan: process {which} of {count} on \S+ was killed, or its host or network failed, so all'
                assert re.match(named, last_line(text)), found.texts()
                assert 'Traceback' not in text and 'Terminating process' not in text, found.texts()
        print(f'killed: process {which}, all others ended {took:.1f} s after it')


def fails(folder: Path, count: int) -> None:
    """A process whose disk lacks a file, and one that is started when the others run already."""
    rows = write_rows(folder)
    command = [*train_arguments(folder / 'run', rows, 10**6, 10**5), STREAMS]
    with job(folder, command, count, [f'--gin.TRAIN_FILE={folder}/missing.jsonl']) as found:
        took = found.wait(LIMIT + 60)  # since their start
    *others, last = found.texts()
    assert set(found.codes.values()) <= {1, 2} and 'missing.jsonl' in last_line(last), found.texts()
    for text in others:
        assert f'process {count - 1} of {count} on ' in last_line(text) and 'missing.jsonl' in text, found.texts()
    print(f'fails: all ended {took:.1f} s after their start')

    with job(folder, command, count) as found:
        found.wait_for('step 5/')
        late, own = folder / 'late.log', [f'--process_count={count}', f'--process_id={count - 1}']
        given = [*command, f'--coordinator={found.coordinator}', *own]
        code = wait(start(given, late, _be_impatient, _leave_job))
        assert code == 1, late.read_text()
        assert f'process {count - 1} of {count} is late' in last_line(late.read_text()), late.read_text()
        assert not found.poll(), ('the run was disturbed', found.texts())
        os.kill(found.pids[0], signal.SIGINT)
        found.wait(LIMIT)
        assert all('stopped by SIGINT at step' in last_line(text) for text in found.texts()), found.texts()


def bucket(folder: Path, count: int) -> None:
    """Training, inference and evaluation in a bucket that answers a share of the requests with faults."""
    rows, forever = write_rows(folder), 10**6
    with GcsServer(Faults(0.05, seed=count)) as server:
        point_at(server)
        from t5flan.files import to_path, write_whole

        write_whole(to_path('gs://bucket/rows.jsonl'), rows.read_bytes())
        command = lambda steps: [*train_arguments('gs://bucket/run', 'gs://bucket/rows.jsonl', steps, 5), STREAMS]
        for sent, which in ((signal.SIGKILL, count - 1), (signal.SIGTERM, count - 1), (signal.SIGKILL, 0)):
            before = newest_step(server)
            with job(folder, command(forever), count) as found:
                while newest_step(server) == before:
                    assert not found.poll(), (found.codes, found.texts())
                    time.sleep(0.1)
                os.kill(found.pids[which], sent)
                found.wait(LIMIT)
            saved = newest_step(server)
            if sent == signal.SIGTERM:
                assert all(f'stopped by SIGTERM at step {saved} ' in last_line(text) for text in found.texts())
        steps = saved + 3
        run(folder, command(steps), count)
        run(folder, [*train_arguments(folder / 'one', rows, steps, steps), STREAMS], 1)
        close(losses(folder / 'one'), run_losses(server, folder))

        answers, results = 'gs://bucket/answers.jsonl', 'gs://bucket/results.json'
        asked = ['--input=gs://bucket/rows.jsonl', f'--output={answers}', '--batch_size=4', '--max_new_tokens=2']
        run(folder, ['infer', '--checkpoint=gs://bucket/run', *asked], count)
        shown = [json.loads(line)['inputs'] for line in server.read('answers.jsonl').decode().splitlines()]
        assert shown == [json.loads(line)['inputs'] for line in rows.read_text().splitlines()]
        of_task = ['--tasks=file', '--split=train', '--limit=4', '--max_new_tokens=2', f'--json={results}']
        run(folder, ['evaluate', '--checkpoint=gs://bucket/run', *of_task], count)
        assert json.loads(server.read('results.json'))['step'] == steps
        assert not [name for name in server.names() if name.endswith('.lock')]
        print(f'bucket: {steps} steps, {server.requests} requests, {server.faults.counts}')


SCENARIOS: dict[str, Callable[[Path, int], None]] = {
    'numbers': numbers,
    'restore': restore,
    'evaluate': evaluate,
    'infer': infer,
    'killed': killed,
    'fails': fails,
    'bucket': bucket,
}


if __name__ == '__main__':
    parser = argparse.ArgumentParser()
    parser.add_argument('scenarios', nargs='+', choices=SCENARIOS)
    parser.add_argument('--count', type=int, default=2)
    parsed = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    preload()
    for scenario in parsed.scenarios:
        with tempfile.TemporaryDirectory() as here:
            SCENARIOS[scenario](Path(here), parsed.count)
        print(f"'{scenario}': passed with {parsed.count} processes")
