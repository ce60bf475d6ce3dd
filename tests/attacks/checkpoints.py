"""Damaged checkpoint folders, and folders of strangers, for every command that reads one.

    python -m tests.attacks.checkpoints --mutations=400 --seed=0
    python -m tests.attacks.checkpoints --strangers=300         Hugging Face folders instead

Each mutation changes a copy of a tiny run's folder: bits, files, steps, links, the description, the settings, the
vocabulary. Two commands read it, in one process. Each must end in one line, or succeed: with a note about the change,
or with the result of the untouched folder if the change is in something that the command does not read.
"""

import argparse
import contextlib
import hashlib
import io
import json
import os
import random
import shutil
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.attacks.tiny_run import losses, preload, train_arguments, write_rows

STEPS, MORE = 6, 8  # of the run; after it is resumed
COMMANDS = ('load', 'evaluate', 'infer', 'convert', 'train', 'report')
_FAST = ('load', 'evaluate', 'infer', 'convert')
_READS_ALL = ('train',)
_ABSURD = ('007', '2147483648', '99999999999', '9' * 40, '٨', '7', '1000000')
_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 10**30, 1e308, '', 'x' * 10_000, '\ud800', '\x00', [], [[]], {}, {'a': None}, [None] * 9,
)  # fmt: skip


class Mutation(NamedTuple):
    """What was changed."""

    name: str
    part: str
    """'parameters', 'optimizer', 'meta', 'step' (of the newest step), 'description', 'beside', 'metrics' or 'other'."""


class Outcome(NamedTuple):
    """What a command did."""

    code: int
    text: str
    """What it printed."""
    result: Any = None


# -- Mutations ------------------------------------------------------------------------------------------------------


def files_of(run: Path) -> list[Path]:
    """The files of the newest step, and those that belong to all steps."""
    beside = [run / 'config.gin', run / 't5flan.json', *(run / 'vocabulary').iterdir()]
    step = [path for path in (run / 'checkpoints' / str(STEPS)).rglob('*') if path.is_file()]
    return sorted(step) + sorted(beside) * 3


def part_of(run: Path, path: Path) -> str:
    """The part of the folder that a file belongs to."""
    inside = path.relative_to(run).parts
    if inside[0] == 'checkpoints':
        return inside[2] if len(inside) > 3 else 'step'
    return 'description' if inside == ('t5flan.json',) else 'beside'


def _flip(path: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes() or b'x')
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def _overwrite(path: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes() or b'x')
    first = chance.randrange(len(content))
    for place in range(first, min(len(content), first + chance.choice([1, 16, 4096]))):
        content[place] ^= 1 + chance.randrange(255)
    path.write_bytes(content)


def _cut(path: Path, chance: random.Random) -> None:
    os.truncate(path, chance.randrange(max(1, path.stat().st_size)))


def _append(path: Path, chance: random.Random) -> None:
    with path.open('ab') as file:
        file.write(chance.randbytes(chance.choice([1, 100])))


def _folder(path: Path, chance: random.Random) -> None:
    path.unlink()
    path.mkdir()


def _link(path: Path, chance: random.Random) -> None:
    target = path.with_name(f'{path.name}.moved') if chance.random() < 0.5 else path.parents[len(path.parents) - 3]
    if target.name.endswith('.moved'):
        path.rename(target)
    else:
        path.unlink()
    path.symlink_to(target if chance.random() < 0.5 else os.path.relpath(target, path.parent))


def _device(path: Path, chance: random.Random) -> None:
    path.unlink()
    path.symlink_to('/dev/null')


def _huge(path: Path, chance: random.Random) -> None:
    os.truncate(path, 2**30)  # sparse


FILE_MUTATIONS: tuple[Callable[[Path, random.Random], None], ...] = (
    _flip, _flip, _flip, _overwrite, _cut, _append, _folder, _link, _device, _huge,
    lambda path, _: os.truncate(path, 0),
    lambda path, _: path.unlink(),
)  # fmt: skip


def _replace(path: Path, other: Path) -> None:
    shutil.rmtree(path)
    shutil.copytree(other, path)


def _edit_json(path: Path, chance: random.Random) -> str:
    """Sets a random place in a JSON file to a value of a random type; returns the place."""
    value = json.loads(path.read_text())
    here, at = value, '$'
    while True:
        key = chance.choice([*here] if isinstance(here, dict) else range(len(here)))
        at += f'.{key}'
        if not (isinstance(here[key], dict | list) and here[key]) or chance.random() < 0.3:
            break
        here = here[key]
    new = chance.choice([one for one in _VALUES if one != here[key]])
    if chance.random() < 0.1:
        del here[key]
    else:
        here[key] = new
    path.write_text(json.dumps(value))
    return at


def _steps_mutation(run: Path, chance: random.Random) -> Mutation:
    """Damage to whole steps."""
    steps = run / 'checkpoints'
    newest, older = steps / str(STEPS), steps / str(STEPS - 2)
    kind = chance.randrange(12)
    if kind == 0:
        _replace(newest, older)
        return Mutation('the newest step is a copy', 'step')
    if kind == 1:
        name = chance.choice(_ABSURD)
        shutil.copytree(newest, steps / name)
        return Mutation(f'step {name} is a copy', 'step')
    if kind == 2:
        item = chance.choice(['parameters', 'optimizer', 'meta'])
        _replace(newest / item, older / item)
        return Mutation(f'{item} of another step', item)
    if kind == 3:
        item = chance.choice(['parameters', 'optimizer', 'meta'])
        shutil.rmtree(newest / item)
        return Mutation(f'{item} is gone', item)
    if kind == 4:
        value = chance.choice([None, '9' * 10**6, [0] * 10**5, {}, {'stream_count': 1, 'streams': {}}, 3, True])
        fields = json.loads((newest / 'meta' / 'metadata').read_text())
        (newest / 'meta' / 'metadata').write_text(json.dumps(fields | {'position': value}))
        return Mutation(f'position {str(value)[:20]}', 'meta')
    if kind == 5:
        at = _edit_json(newest / 'meta' / 'metadata', chance)
        return Mutation(f'meta {at}', 'meta')
    if kind == 6:
        array = min(path.name for path in (newest / 'parameters').iterdir() if path.is_dir())
        name = chance.choice(['', '/parameters', f'/parameters/{array}', '/optimizer', '/meta'])
        path = Path(f'{newest}{name}/more')
        path.mkdir() if chance.random() < 0.3 else path.write_bytes(b'' if chance.random() < 0.5 else b'more')
        return Mutation(f'one more in {name or "/"}', name.split('/')[1] if name else 'step')
    if kind == 7:
        shutil.rmtree(newest)
        newest.write_text('a file')
        return Mutation('a step is a file', 'step')
    if kind == 8:
        name = chance.choice(['8', '10', str(STEPS)])
        if name == str(STEPS):
            shutil.rmtree(newest)
        (steps / name).symlink_to(older if chance.random() < 0.5 else older.name)
        return Mutation(f'step {name} is a link', 'step')
    if kind == 9:
        newest.rename(steps / '8')
        return Mutation('a renamed step', 'step')
    if kind == 10:
        at = _edit_json(newest / 'checksums.json', chance)
        return Mutation(f'checksums.json {at}', 'step')
    item = chance.choice(['parameters', 'optimizer'])
    files = sorted(path for path in (newest / item).rglob('*') if path.is_file())
    one, two = chance.sample(files, 2)
    content = one.read_bytes(), two.read_bytes()
    one.write_bytes(content[1])
    two.write_bytes(content[0])
    return Mutation(f'{one.name} and {two.name} are swapped', item if content[0] != content[1] else 'other')


def _text_mutation(run: Path, chance: random.Random) -> Mutation:
    """Other content in the files beside the steps."""
    name = chance.choice(['t5flan.json', 'vocabulary/vocabulary.json', 'metrics.jsonl', 'config.gin', 't5flan.json'])
    path = run / name
    part = {'t5flan.json': 'description', 'metrics.jsonl': 'metrics'}.get(name, 'beside')
    if name.endswith('.json') and chance.random() < 0.7:
        return Mutation(f'{name} {_edit_json(path, chance)}', part)
    texts = ['[]', 'null', '3', '"text"', '{}', '\x00\x01\xff', '[' * 10**5, '{"step": ' * 10**4, '\ud800', '']
    texts += ['{"step": null, "loss": "x"}\n', '{"step": 1e400, "loss": [1]}\n[]\n', '{"step": 3, "eval/loss": {}}\n']
    if name == 'config.gin':
        texts += [
            'import os\n',
            'include "/etc/passwd"\n',
            'include "../rows.jsonl"\n',
            'A = %A\n',
            'B = @os.system()\n',
        ]
        texts += [path.read_text() + "\nDataConfig.modules = ['tests.attacks.trap']\n", 'a b c\n']
    text = chance.choice(texts)
    path.write_bytes(text.encode('utf-8', 'surrogatepass'))
    return Mutation(f'{name}: {text[:30]!r}', part)


def mutate(run: Path, chance: random.Random) -> Mutation:
    """Changes something in a run's folder."""
    kind = chance.random()
    if kind < 0.3:
        return _steps_mutation(run, chance)
    if kind < 0.5:
        return _text_mutation(run, chance)
    path, change = chance.choice(files_of(run)), chance.choice(FILE_MUTATIONS)
    part, name = part_of(run, path), f'{change.__name__} {path.relative_to(run)}'
    change(path, chance)
    return Mutation(name, part)


# -- Commands -------------------------------------------------------------------------------------------------------


def run_command(command: str, run: Path, rows: Path) -> Outcome:
    """Runs a command on a folder in this process."""
    from t5flan.training.checkpoints import whole

    whole.tell.cache_clear()
    out = run.parent / 'out'
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    printed = io.StringIO()
    given = {
        'evaluate': [
            'evaluate', f'--checkpoint={run}', '--tasks=file', '--split=train', '--limit=4', '--max_new_tokens=2',
            f'--json={out}/e.json',
        ],
        'infer': [
            'infer', f'--checkpoint={run}', '--prompt=question 3', '--max_new_tokens=2', f'--json={out}/e.json',
        ],
        'convert': ['convert', '--from=t5flan', '--to=hf', str(run), f'{out}/huggingface'],
        'train': ['train', f'--workdir={run}', f'--gin.STEPS={MORE}'],
        'report': ['report', str(run), f'--output={out}/report.html'],
    }  # fmt: skip
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            if command == 'load':
                return Outcome(*_load(run, printed))
            from t5flan.__main__ import main

            code = main(given[command])
        except BaseException:
            traceback.print_exc(file=printed)
            code = 70
    return Outcome(code, printed.getvalue(), _result(command, run, out) if code == 0 else None)


def _load(run: Path, printed: io.StringIO) -> tuple[int, str, Any]:
    import jax
    import numpy as np

    import t5flan
    from t5flan.errors import UserError

    try:
        model = t5flan.load(run)
    except UserError as error:
        return 1, f'{printed.getvalue()}t5flan: {error}\n', None
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(model.model):
        digest.update(np.asarray(leaf).tobytes())
    return 0, printed.getvalue(), (digest.hexdigest(), model.step, model.generate(['question'], max_new_tokens=2))


def _result(command: str, run: Path, out: Path) -> Any:
    """What a command computed, without times and paths."""
    if command == 'convert':
        return {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted((out / 'huggingface').iterdir())
            if path.name != 'README.md'
        }
    if command == 'train':
        return {step: found for step, found in losses(run).items() if step > STEPS}
    if command == 'report':
        return None
    fields = json.loads((out / 'e.json').read_text())
    return json.dumps({name: value for name, value in fields.items() if name not in ('checkpoint', 'seconds', 'speed')})


def is_read(command: str, mutation: Mutation) -> bool:
    """Whether a command reads the part that was changed, and must notice."""
    if command == 'report' or mutation.part in ('metrics', 'other'):
        return False
    return mutation.part != 'optimizer' or command in _READS_ALL


def judge(command: str, mutation: Mutation, outcome: Outcome, untouched: Outcome) -> str:
    """'refused', 'told' or 'unread'; an AssertionError says what is wrong."""
    what = f'{command} after {mutation}: {outcome.text[-3000:]}'
    assert outcome.code in (0, 1, 2) and 'Traceback' not in outcome.text, what
    if outcome.code:
        last = outcome.text.strip().splitlines()[-1]
        assert last.startswith('t5flan: ') and len(last) < 1200, what
        return 'refused'
    told = [
        line
        for line in outcome.text.splitlines()
        if any(
            word in line for word in ('has changed', 'damaged', 'not verified', 'ignored', 'it was', 'changed since')
        )
    ]
    if told:
        return 'told'
    assert command == 'report' or outcome.result == untouched.result, f'{what}\n{outcome.result}\n{untouched.result}'
    # The description may have changed in white space, or in what a command does not use.
    assert not is_read(command, mutation) or mutation.part == 'description', f'unnoticed: {what}'
    return 'unread'


def attack(mutations: int, seed: int, folder: Path, commands: Sequence[str] = COMMANDS) -> dict[str, int]:
    """Changes and reads copies of a run's folder; returns counts. An AssertionError says what went wrong."""
    preload()
    from t5flan.__main__ import main

    chance, rows, made = random.Random(seed), write_rows(folder), folder / 'made'
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        assert main(train_arguments(made, rows, STEPS, 2)) == 0
    run = folder / 'run'
    untouched = {}
    for command in commands:
        shutil.copytree(made, run)
        untouched[command] = run_command(command, run, rows)
        assert untouched[command].code == 0, untouched[command].text
        shutil.rmtree(run)
    counts = {'mutations': 0, 'commands': 0, 'refused': 0, 'told': 0, 'unread': 0}
    for number in range(mutations):
        one = random.Random(f'{seed}/{number}')
        chosen = [commands[number % len(commands)], chance.choice([one for one in commands if one in _FAST])]
        for command in dict.fromkeys(chosen):
            shutil.copytree(made, run)
            one.seed(f'{seed}/{number}')
            mutation = mutate(run, one)
            if command == 'report' and mutation.part not in ('metrics', 'description', 'beside'):
                shutil.rmtree(run)  # it does not read the steps
                continue
            counts[judge(command, mutation, run_command(command, run, rows), untouched[command])] += 1
            counts['commands'] += 1
            shutil.rmtree(run)
        counts['mutations'] += 1
    return counts


def _strange_weights(path: Path, chance: random.Random) -> str:
    """Changes the header of a safetensors file."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], 'little')
    header = path.with_suffix('.header')
    header.write_bytes(content[8 : 8 + size])
    at = _edit_json(header, chance)
    text = header.read_bytes()
    header.unlink()
    length = chance.choice([len(text), len(text), len(text), 2**63, 0, len(text) - 1])
    path.write_bytes(length.to_bytes(8, 'little') + text + content[8 + size :])
    return at


def attack_strangers(mutations: int, seed: int, folder: Path) -> dict[str, int]:
    """Converts changed copies of a Hugging Face folder: one line, or a folder; returns counts."""
    preload()
    from t5flan.__main__ import main

    rows, made, given = write_rows(folder), folder / 'made', folder / 'given'
    run = folder / 'run'
    counts = {'mutations': 0, 'refused': 0, 'accepted': 0}
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        assert main(train_arguments(run, rows, 1, 1)) == 0
        assert main(['convert', '--from=t5flan', '--to=hf', str(run), str(made)]) == 0
    arrays = made / 'model.safetensors'
    header = json.loads(arrays.read_bytes()[8 : 8 + int.from_bytes(arrays.read_bytes()[:8], 'little')])
    index = {'weight_map': {name: arrays.name for name in header if name != '__metadata__'}}
    for number in range(mutations):
        chance = random.Random(f'{seed}/{number}')
        shutil.copytree(made, given)
        if chance.random() < 0.3:
            (given / f'{arrays.name}.index.json').write_text(json.dumps(index))
        path = chance.choice(sorted(given.iterdir()))
        kind = chance.random()
        if kind < 0.3:
            change = chance.choice(FILE_MUTATIONS)
            change(path, chance)
            name = f'{change.__name__} {path.name}'
        elif path == given / arrays.name:
            name = f'header {_strange_weights(path, chance)}'
        elif kind < 0.85:
            name = f'{path.name} {_edit_json(path, chance)}'
        else:
            text = chance.choice(
                ['[]', 'null', '"x"', '\x00\xff', '[' * 10**5, '{"a": ' * 10**4, '{}', '{"x": "\ud800"}']
            )
            path.write_bytes(text.encode('utf-8', 'surrogatepass'))
            name = f'{path.name}: {text[:20]!r}'
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            try:
                code = main(['convert', '--from=hf', '--to=t5flan', str(given), str(folder / 'out')])
            except BaseException:
                traceback.print_exc(file=printed)
                code = 70
        text = printed.getvalue()
        assert code in (0, 1, 2) and 'Traceback' not in text, f'{name}: {text[-3000:]}'
        assert code == 0 or text.strip().splitlines()[-1].startswith('t5flan: '), f'{name}: {text[-3000:]}'
        counts['accepted' if code == 0 else 'refused'] += 1
        counts['mutations'] += 1
        shutil.rmtree(given)
        shutil.rmtree(folder / 'out', ignore_errors=True)
    return counts


if __name__ == '__main__':
    parser = argparse.ArgumentParser()
    parser.add_argument('--mutations', type=int, default=400)
    parser.add_argument('--strangers', type=int, default=0)
    parser.add_argument('--seed', type=int, default=0)
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory() as here:
        if parsed.strangers:
            print(attack_strangers(parsed.strangers, parsed.seed, Path(here)))
        else:
            print(attack(parsed.mutations, parsed.seed, Path(here)))
