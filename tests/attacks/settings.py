"""Wrong settings, flags and files for every command: each must end in one line, with exit code 1 or 2, within 20 s.

    python -m tests.attacks.settings [--light] [--only=TEXT]

Everything runs in one process, through `t5flan.__main__.main`. What would start to train or to decode raises
`Started` instead: the nonsense was accepted. The table is generated with a seed, so every run tries the same cases.
"""

import argparse
import collections
import contextlib
import dataclasses
import importlib
import importlib.util
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, TextIO
from unittest import mock

from t5flan import configurables
from t5flan.commands import COMMANDS
from t5flan.config import annotations
from t5flan.config.checks import INT32, Limits

SEED, LIMIT = 19, 20  # seconds
os.environ.setdefault('LMEVAL_LOG_LEVEL', 'ERROR')  # lm-eval says what it is going to do
SHOWN: TextIO | None = None
TABLE = Path(__file__).with_suffix('.txt')

_LENGTHS = "--gin.FEATURE_LENGTHS={'inputs':32,'targets':32}"
_LINES = (
    'train --workdir=new --gin_file=runs/finetune_file --gin_file=models/tiny_encoder_decoder '
    f'--gin.INITIALIZE_FROM=None --gin.VOCABULARY=bytes --gin.TRAIN_FILE=rows.jsonl --gin.STEPS=2 {_LENGTHS}',
    'evaluate --checkpoint=run --tasks=practice --limit=2',
    'infer --checkpoint=run --input=rows.jsonl --output=out.jsonl',
    'rationales --checkpoint=run --task=practice_add --output=out.tsv',
    'self_instruct --checkpoint=decoder --output=out.jsonl',
    'evol_instruct --checkpoint=decoder --output=out.jsonl',
    'backtranslate --checkpoint=decoder --input=texts.jsonl --output=out.jsonl',
    'report run',
    'mixture practice --sample=0',
    'cache practice --output=cached --gin.DataConfig.vocabulary=bytes',
    'convert run exported --from=t5flan --to=hf',
    'decontaminate --input=rows.jsonl --output=out.jsonl --evaluation=rows.jsonl --min_words=2',
    'deduplicate --input=text.txt --output=out.jsonl',
    'memorization --checkpoint=run --input=texts.jsonl --prefix=20 --length=20',
    'vocabulary --input=text.txt --size=393 --output=out.model',
    'score --benchmark=gsm8k --predictions=completions.jsonl',
    'lm_eval --model=t5flan --model_args=checkpoint=run --tasks=arc_easy',
)
BASES = {line.partition(' ')[0]: tuple(line.split(' ')) for line in _LINES}
"""Command -> a line that is right; a case changes one thing of it."""

PACKAGES = {'cache': 'apache_beam', 'lm_eval': 'lm_eval'}
"""What their right lines need; without it, fewer of their settings are looked at."""

REFERENCED = {
    'FileTask': (),
    'TextFiles': ('TextFiles.name=books', 'TextFiles.train=text.txt', 'DataConfig.text_files=[@TextFiles()]'),
    'Control': (
        *('TextFiles.name=books', 'TextFiles.train=text.txt', 'DataConfig.text_files=[@TextFiles()]'),
        *('Control.field=x', "Control.tokens=['a']", 'Control.thresholds=[]', 'TextFiles.controls=[@Control()]'),
    ),
    'Denoiser': ('Denoiser.name=d', 'Denoiser.kind=R', "DataConfig.denoisers={'mine': [@Denoiser()]}")
    + ('Denoiser.mean_span=3.0', 'Denoiser.noise_density=0.15'),
    'Mixture': ('Mixture.name=m', "Mixture.by_examples=['file']", 'DataConfig.mixtures=[@Mixture()]'),
    'Stage': ('Stage.mixture=file', 'Stage.start_step=1', 'DataConfig.stages=[@Stage()]'),
}
"""Classes of settings that references name -> settings that make one."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A command line that is wrong. A light one must be refused before JAX or TensorFlow is needed."""

    argv: tuple[str, ...]
    light: bool = False

    @property
    def command(self) -> str:
        """The command."""
        return self.argv[0]

    def __str__(self) -> str:
        base = BASES.get(self.command, [])
        return ' '.join([self.command, *(word for word in self.argv[1:] if word not in base)])


class Started(BaseException):
    """The command has accepted its settings and starts to compute."""


# -- The table ------------------------------------------------------------------------------------------------------


def _changed(command: str, *words: str, without: Sequence[str] = ()) -> tuple[str, ...]:
    """The right line of a command with words added; a flag that is there already is replaced."""
    names = {word.partition('=')[0] for word in words} | set(without)
    return (*(word for word in BASES[command] if word.partition('=')[0] not in names), *words)


def fields() -> Iterator[Case]:
    """Every setting of a number, out of its limits, and every other setting of the wrong type."""
    kinds = [*configurables.TRAINING.values(), configurables.CONFIGURABLES['InstructionConfig']]
    kinds += [configurables.CONFIGURABLES[name] for name in REFERENCED]
    for kind in kinds:
        given = [f'--gin.{setting}' for setting in REFERENCED.get(kind.__name__, ())]
        limited = annotations.limited(kind)
        for field, annotation in annotations.fields(kind):
            setting = f'--gin.{kind.__name__}.{field.name}'
            values = _wrong_numbers(limited[field.name]) if field.name in limited else _wrong_types(annotation)
            for value in values:
                yield Case(_changed('train', *given, f'{setting}={value}'), light=True)


def _wrong_numbers(annotation: Any) -> list[str]:
    found = [limits for limits, _ in _limits(annotation)]
    inner = 'targets' if found and any(is_item for _, is_item in _limits(annotation)) else ''
    values = ['nan', 'many']
    for limits in found:
        values += [str(limits.low - 1)] if limits.low > -float('inf') else []
        values += [str(limits.low)] if limits.above else []
        values += [str(int(limits.high) + 1)] if limits.high < float('inf') else []
        values += [str(limits.high)] if limits.below else []
        values += ['1.5', 'True'] if limits.whole else ['-1e999']
    return [f"{{'inputs': 8, '{inner}': {value}}}" if inner else value for value in values]


def _limits(annotation: Any, is_item: bool = False) -> Iterator[tuple[Limits, bool]]:
    for option in annotations.options(annotation):
        for one in getattr(option, '__metadata__', ()):
            yield one, is_item
        if not hasattr(option, '__metadata__'):
            for inner in getattr(option, '__args__', ()):
                yield from _limits(inner, is_item=True)


def _wrong_types(annotation: Any) -> list[str]:
    described = annotations.describe(annotation)
    if 'True or False' in described:
        return ['2', 'yes']
    if described.startswith(('list', 'dict')):
        return ['3', '[[[1]]]'] if 'list' in described else ['3', '[1]']
    return ['@MeshConfig()', '%NO'] if 'str' in described or 'one of' in described else ["'words'"]


def flags() -> Iterator[Case]:
    """Flags of every command: unknown, twice, without a value, out of their limits."""
    for name, base in BASES.items():
        if (command := COMMANDS[name]).foreign:
            continue
        yield Case((*base, '--no_such_flag=3'), light=True)
        yield Case((*base, 'one_too_many', 'another'), light=True)
        if not command.gin:
            yield Case((*base, '--gin.STEPS=3'), light=True)
        for flag in command.flags:
            given = [word for word in base if word.startswith(f'{flag.name}=')]
            if given and not flag.many:
                yield Case((*base, *given), light=True)
            if isinstance(flag.type, Limits):
                low, high = flag.type.low - 1, flag.type.high + 1
                wrong = ['x', '', str(int(low)), *([str(int(high))] if high < INT32 + 2 else []), 'nan']
                for value in wrong:
                    yield Case(_changed(name, f'{flag.name}={value}'), light=True)


def written() -> Iterator[Case]:
    """The cases of settings.txt."""
    for line in TABLE.read_text().splitlines():
        if not line or line.startswith('#'):
            continue
        kind, *words = line.split(' ')
        needed = {'decodes': '--temperature', 'reads': '--checkpoint'}.get(kind)
        named = [name for name in BASES if needed in [flag.name for flag in COMMANDS[name].flags]]
        for name in named if needed else [kind]:
            positional = not words[0].startswith('--')
            yield Case((name, *words) if positional else _changed(name, *words))


def cases() -> list[Case]:
    """The table: the same in every run."""
    found = list(dict.fromkeys([*fields(), *flags(), *written()]))
    random.Random(SEED).shuffle(found)
    return found


# -- The world of the cases, and how they run ------------------------------------------------------------------------


def make_world(folder: Path, light: bool) -> None:
    """Files and checkpoints for the cases."""
    rows = [{'inputs': f'What is {i}?', 'targets': f'It is {i}.'} for i in range(12)]
    (folder / 'rows.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    texts = [f'The number {i} follows {i - 1} and is odd or even.' for i in range(60)]
    (folder / 'text.txt').write_text('\n\n'.join(texts))
    (folder / 'texts.jsonl').write_text(''.join(json.dumps({'text': text}) + '\n' for text in texts))
    completion = {'task': 'gsm8k', 'prediction': 'The answer is 4.', 'target': '4'}
    (folder / 'completions.jsonl').write_text(json.dumps(completion) + '\n')
    (folder / 'binary.bin').write_bytes(random.Random(SEED).randbytes(999))
    (folder / 'empty.jsonl').write_text('')
    (folder / 'empty').mkdir()
    (folder / 'broken.jsonl').write_text('{"inputs": "a", "targ')
    gin = "include 'runs/finetune_file.gin'\n"
    for name, text in {
        'unread': f'{gin}LERNING_RATE = 0.5\n',
        'cycle': f'{gin}A = %B\nB = [%A]\nDataConfig.modules = %A\n',
        'scope': f'{gin}c/FileTask.rate = 2.0\n',
        'deep': f'{gin}DataConfig.modules = {"[" * 150}{"]" * 150}\n',
        'import': 'import os\n',
        'itself': "include 'itself.gin'\n",
        'key': f'{gin}DataConfig.mixed_in = {{[1]: 2}}\n',
    }.items():
        (folder / f'{name}.gin').write_text(text)
    if light:
        for name in ('run', 'decoder'):
            (folder / name).mkdir()
            (folder / name / 't5flan.json').write_text('{}')
        return
    from tests.saved_model import byte_model, save_folder

    save_folder(folder / 'run', byte_model())
    save_folder(folder / 'decoder', byte_model('palm'), format='causal_lm')


@contextlib.contextmanager
def nothing_starts(light: bool) -> Iterator[None]:
    """Within, training and decoding raise `Started`; if `light`, registering tasks does."""

    def start(*_: Any, **__: Any) -> Any:
        raise Started

    with contextlib.ExitStack() as patches:
        if light:
            for name in COMMANDS:
                module = importlib.import_module(f't5flan.commands.{name}')
                for heavy in ('import_tensorflow', 'register_tasks'):
                    if hasattr(module, heavy):
                        patches.enter_context(mock.patch.object(module, heavy, start))
        else:
            from t5flan import language_model
            from t5flan.decoding import generate
            from t5flan.training import trainer

            for owner, name in ((trainer, 'restore_or_initialize'), (language_model, 'likelihoods')):
                patches.enter_context(mock.patch.object(owner, name, start))
            for name in ('run_sampled', 'run_beams'):
                patches.enter_context(mock.patch.object(generate._Program, name, start))
        yield


class _TooLong(BaseException):
    """A case has taken longer than LIMIT."""


def _too_long(number: int, frame: FrameType | None) -> None:
    raise _TooLong


def attempt(case: Case) -> str:
    """Runs a case; returns '' if it is refused as it should be, or what is wrong."""
    from t5flan.__main__ import main

    out, err = io.StringIO(), io.StringIO()
    before = set(os.listdir())
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(LIMIT)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code: Any = main(case.argv)
    except Started:
        return 'accepted: it starts'
    except _TooLong:
        return f'took more than {LIMIT} s'
    except SystemExit as exit:
        code = exit.code
    except BaseException:
        return 'traceback: ' + ' | '.join(traceback.format_exc().strip().splitlines()[-3:])
    finally:
        signal.alarm(0)
    lines = err.getvalue().strip().splitlines()
    if code not in (1, 2):
        return f'accepted: exit code {code}'
    if len(lines) != 1 or not lines[0].startswith('t5flan: '):
        return f'{len(lines)} lines: {" | ".join(lines[-4:])[:600]}'
    if left := set(os.listdir()) - before:
        return f'wrote {", ".join(sorted(left))}: {lines[0]}'
    if SHOWN is not None:
        print(f'{case}\n    {lines[0]}', file=SHOWN)
    return ''


def _remove(names: set[str]) -> None:
    for name in names:
        shutil.rmtree(name) if os.path.isdir(name) else os.unlink(name)


def attack(chosen: Sequence[Case], light: bool, verbose: bool = False) -> dict[str, Any]:
    """Runs cases in a folder of their own; returns how many there were, and what went wrong."""
    faults, counts, slowest = {}, collections.Counter[str](), (0.0, '')
    home, random_state = os.getcwd(), random.getstate()
    with tempfile.TemporaryDirectory() as folder, nothing_starts(light):
        try:
            make_world(Path(folder), light)
            os.chdir(folder)
            for case in chosen:
                started = time.process_time()
                if verbose:
                    print(case, file=sys.stderr, flush=True)
                before = set(os.listdir())
                wrong = attempt(case)
                _remove(set(os.listdir()) - before)
                if wrong:
                    faults[str(case)] = wrong
                if verbose and wrong:
                    print(f'{case}\n    {wrong}', flush=True)
                slowest = max(slowest, (time.process_time() - started, str(case)))
                counts[case.command] += 1
        finally:
            os.chdir(home)
            random.setstate(random_state)
    return {'cases': len(chosen), 'faults': faults, 'by command': dict(counts), 'slowest': slowest}


def right_lines() -> dict[str, str]:
    """Command -> how its right line ends: a refusal means that its cases test nothing."""
    with tempfile.TemporaryDirectory() as folder, nothing_starts(light=False):
        home = os.getcwd()
        try:
            make_world(Path(folder), light=False)
            os.chdir(folder)
            found = {}
            for name, line in BASES.items():
                before = set(os.listdir())
                found[name] = attempt(Case(line))
                _remove(set(os.listdir()) - before)
            return found
        finally:
            os.chdir(home)


def light_third() -> list[Case]:
    """At least a third of the table: cases that need neither JAX nor TensorFlow."""
    found = cases()
    light = [case for case in found if case.light]
    return light[: -(-len(found) // 3)]


def main() -> None:
    """Runs the attack."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--light', action='store_true', help='the third of the quick tests')
    parser.add_argument('--only', default='', help='only cases that contain this text')
    parser.add_argument('--messages', help='write the message of each case to this file')
    arguments = parser.parse_args()
    if arguments.messages:
        globals()['SHOWN'] = open(arguments.messages, 'w')  # noqa: SIM115
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')
    chosen = [case for case in (light_third() if arguments.light else cases()) if arguments.only in str(case)]
    found = attack(chosen, arguments.light, verbose=True)
    if not arguments.light:
        missing = {name for name, package in PACKAGES.items() if importlib.util.find_spec(package) is None}
        refused = [name for name, end in right_lines().items() if not end and name not in missing]
        found['faults'] |= dict.fromkeys(refused, 'its right line is refused, so its cases test nothing')
    print({**found, 'faults': len(found['faults'])}, f'CPU seconds: {time.process_time():.1f}')
    sys.exit(1 if found['faults'] else 0)


if __name__ == '__main__':
    main()
