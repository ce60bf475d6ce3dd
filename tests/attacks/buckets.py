"""Runs in a bucket whose server fails, and kills: nothing is lost, and losses are the same bits.

    python -m tests.attacks.buckets --kills=20 --rate=0.1 --seed=0
    python -m tests.attacks.buckets --files=300 --rate=0.3 --seed=0

A server on loopback answers like Google Cloud Storage, and answers a share of the requests with 429, 500 or 503, late,
by half, or not at all, before or after it has done the work. `--kills` trains with the workdir there: runs are killed
at random moments and started again; the losses are those of a run on a local disk, bit for bit, and metrics.jsonl has
every step up to the newest checkpoint. Then the other commands read and write there, `quickstart` with a few steps
(`self_instruct` and the like do so in tests/synthesis/loop_test.py). `--files` writes, appends to, renames, lists and
removes files and takes locks there, beside the same on a local disk, and compares.
"""

import argparse
import json
import os
import random
import re
import tempfile
from pathlib import Path

from tests.attacks.kills import Run, kill_often
from tests.attacks.tiny_run import losses, preload, start, train_arguments, wait, write_rows
from tests.files.gcs_server import Faults, GcsServer

STEPS, EVERY = 12, 4
RUN = 'gs://bucket/run'
TASK = ('--tasks=file', '--split=train', '--limit=4', '--max_new_tokens=2')


def point_at(server: GcsServer) -> None:
    """Makes this process, and those it starts, use the server, with short pauses."""
    os.environ['STORAGE_EMULATOR_HOST'] = os.environ['TENSORSTORE_GCS_HTTP_URL'] = server.url
    os.environ['GOOGLE_AUTH_TOKEN_FOR_TESTING'] = 'none'  # TensorStore looks for no credentials
    from t5flan.files import gcs

    gcs.FIRST_PAUSE, gcs.LONGEST_PAUSE, gcs.GrowingObject.EVERY = 0.02, 0.2, 0.5
    gcs._GRACE = 60.0  # a busy machine stalls


def attack_runs(kills: int, rate: float, seed: int, folder: Path) -> dict[str, int]:
    """Kills training `kills` times; returns counts. An AssertionError says what was lost."""
    rows, log = write_rows(folder), folder / 'log.txt'
    with GcsServer(Faults(rate, seed)) as server:
        point_at(server)
        preload()
        assert wait(start(train_arguments(folder / 'whole', rows, STEPS, EVERY), log)) == 0, log.read_text()
        arguments = train_arguments(RUN, rows, STEPS, EVERY)
        run = Run(
            begin=lambda: start(arguments, log),
            losses=lambda: run_losses(server, folder),
            newest_step=lambda: newest_step(server),
            clear=lambda: _clear(server),
        )
        counts = kill_often(run, kills, random.Random(seed), losses(folder / 'whole'), log)
        assert not any(name.endswith('.lock') for name in server.names())
        _others(server, rows, log)
        assert not os.path.lexists('gs:'), 'something was written to a local folder gs:'
        return {**counts, 'requests': server.requests, **server.faults.counts}


def _others(server: GcsServer, rows: Path, log: Path) -> None:
    """The other commands on the run that is in the bucket."""
    given = [f'--checkpoint={RUN}', f'--input={rows}', f'--output={RUN}/answers.jsonl', '--batch_size=8']
    texts = f'--input={RUN}/answers.jsonl'
    _shorten_quickstart()
    from t5flan.files import to_path, write_whole

    write_whole(to_path('gs://bucket/source.txt'), Path(__file__).read_text())
    for arguments in (
        ['infer', *given, '--max_new_tokens=3'],
        ['evaluate', *given[:1], *TASK, f'--json={RUN}/evaluation.json', f'--predictions={RUN}/predictions.jsonl'],
        ['report', RUN],
        ['convert', '--from=t5flan', '--to=hf', '--check', RUN, 'gs://bucket/hf'],
        ['convert', '--from=hf', '--to=t5flan', '--check', 'gs://bucket/hf', 'gs://bucket/back'],
        ['deduplicate', texts, '--field=inputs', '--output=gs://bucket/once.jsonl'],
        ['decontaminate', texts, '--fields=inputs', texts.replace('--input', '--evaluation'), '--min_words=2']
        + ['--output=gs://bucket/clean.jsonl'],
        ['vocabulary', '--input=gs://bucket/source.txt', '--size=500', '--output=gs://bucket/words.model'],
        ['memorization', '--make_canaries=gs://bucket/canaries.jsonl'],
        ['plan', '--models=t5_1_1_small', '--tokens=1B', '--json=gs://bucket/plan.json'],
        ['quickstart', '--workdir=gs://bucket/quick', '--examples=1'],
    ):
        assert wait(start(arguments, log)) == 0, log.read_text()
    answers = server.read('run/answers.jsonl').decode().splitlines()
    assert [json.loads(line)['index'] for line in answers] == list(range(len(rows.read_text().splitlines())))
    assert json.loads(server.read('run/evaluation.json'))['step'] == STEPS
    assert b'</html>' in server.read('run/report.html')
    written = {'hf/model.safetensors', 'back/t5flan.json', 'once.jsonl', 'clean.jsonl', 'words.model', 'canaries.jsonl'}
    written |= {'plan.json', 'quick/vocabulary.model', 'quick/report.html', 'quick/report.png'}
    assert written <= set(server.names()), written - set(server.names())


def _shorten_quickstart() -> None:
    """Makes it take two steps, with few questions and texts."""
    from t5flan import quickstart

    run, few = quickstart.run, {'STEPS': '2', 'OptimizerConfig.warmup_steps': '1'}
    quickstart.run = lambda gin_file, workdir, **macros: run(gin_file, workdir, **few, **macros)
    quickstart.QUESTIONS = quickstart.QUESTIONS[:1]
    quickstart.VOCABULARY_TEXTS = {'practice': 5000, 'stdlib_docs_causal_lm': 200}


def run_losses(server: GcsServer, folder: Path) -> dict[int, tuple[float, float]]:
    """The losses of RUN, by way of a copy in `folder`."""
    if 'run/metrics.jsonl' not in server.names():
        return {}
    copy = folder / 'copy'
    copy.mkdir(exist_ok=True)
    (copy / 'metrics.jsonl').write_bytes(server.read('run/metrics.jsonl'))
    return losses(copy)


def _clear(server: GcsServer) -> None:
    for name in server.names():
        del server.objects['bucket', name]


def newest_step(server: GcsServer) -> int:
    """The newest complete checkpoint of RUN; 0 if there is none."""
    found = (re.fullmatch(r'run/checkpoints/(\d+)/commit_success.txt', name) for name in server.names())
    return max((int(one[1]) for one in found if one), default=0)


def attack_files(count: int, rate: float, seed: int, folder: Path) -> dict[str, int]:
    """Does `count` things to files in the bucket and on a disk; an AssertionError says where they differ."""
    chance = random.Random(seed)
    with GcsServer(Faults(rate, seed, pause=0.02)) as server:
        point_at(server)
        from t5flan.errors import UserError
        from t5flan.files import checksums, locks, open_append, to_path, write_whole

        roots = [to_path('gs://bucket/files'), folder / 'files']
        for root in roots:
            root.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            name, other = chance.choice('abc') + '/' + chance.choice('xyz'), chance.choice('defg')
            content, kind = chance.randbytes(chance.choice([0, 10, 10**5])), chance.randrange(6)
            for root in roots:
                path = root / name
                if kind <= 1:
                    write_whole(path, content)
                elif kind == 2:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    file = open_append(path)
                    for line in (b'one\n', b'two\n', content):
                        file.write(line)
                    file.close()
                elif kind == 3 and path.parent.is_dir() and not (root / other).exists():
                    path.parent.rename(root / other)
                elif kind == 4:
                    path.unlink(missing_ok=True)
                else:
                    lock = root / 'lock'
                    with locks.hold(lock, root, '--workdir'):
                        try:
                            locks.acquire(lock, root, '--workdir')
                            raise AssertionError(f'{number}: two hold the lock {lock}')
                        except UserError:
                            pass
            found = [{name: size for name, (size, _) in checksums.scan(root).items() if size} for root in roots]
            assert found[0] == found[1], f'{number}: {found}'
            if (roots[1] / name).is_file():
                assert (roots[0] / name).read_bytes() == (roots[1] / name).read_bytes(), f'{number}: {name}'
        return {'files': count, 'requests': server.requests, **server.faults.counts}


if __name__ == '__main__':
    parser = argparse.ArgumentParser()
    parser.add_argument('--kills', type=int, default=0)
    parser.add_argument('--files', type=int, default=0)
    parser.add_argument('--rate', type=float, default=0.1)
    parser.add_argument('--seed', type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as here:
        if given.files:
            print(attack_files(given.files, given.rate, given.seed, Path(here)))
        else:
            print(attack_runs(given.kills, given.rate, given.seed, Path(here)))
