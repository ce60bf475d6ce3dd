"""Super-NaturalInstructions (arXiv:2204.07705): a folder of its JSON files becomes a task each, and mixtures of them.

    DataConfig.natural_instructions = %NATURAL_INSTRUCTIONS_DIR       the folder with tasks/*.json and splits/, or of the files
    NaturalInstructionsConfig.languages = ('English',)
    DataConfig.mixture = 'natural_instructions'

Task ni_task023_NAME is made of task023_NAME.json: its definition, its positive examples as exemplars, its negative ones in a
share of the prompts (InstructionConfig.negative_examples), and one of an instance's outputs, another each epoch; metrics take
any of them. Mixtures: natural_instructions (all that the settings choose), and for each official list of names
natural_instructions_train, natural_instructions_test (splits/default) or natural_instructions_xlingual_test (another folder).

Splits of a task: 'validation' is a share held out by a hash, 'train' the rest. A task of a test list has also 'test', its first
100 instances, those that the paper measures; they are in neither of the others.

At the start a file is looked at, not read: what was counted in it is kept in ~/.cache/t5flan while its size and time stay.
"""

import dataclasses
import functools
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t5flan.data.config import NaturalInstructionsConfig
from t5flan.data.mixtures.mixing import ByExamples
from t5flan.data.preprocessing.examples import Context, Example, Result
from t5flan.data.preprocessing.tokenization import append_eos, tokenize
from t5flan.data.prompting.instructions import INVERTED, Instruct, Item, Prompt
from t5flan.data.randomness import stable_hash
from t5flan.data.records.file_index import cache_file, keep
from t5flan.data.records.json_files import JsonWalker, parse_json, read_json
from t5flan.data.records.text_files import is_held_out
from t5flan.data.skipped import leaving_out
from t5flan.errors import UserError
from t5flan.scoring.metrics import exact_match, squad
from t5flan.tasks.families import family

MIXTURE, PREFIX = 'natural_instructions', 'ni_'
SETTING = 'DataConfig.natural_instructions'
HELD_OUT = 0.02
TESTED = 100
_KIND = 'natural_instructions-2'
_registered: dict[str, str] = {}
_made: list[str] = []


# -- What a file holds -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Summary:
    """What the start must know of a file."""

    size: int
    time: int
    first: int = 0
    """Its first row in the folder's table of instances."""
    instances: int = 0
    held_out: tuple[int, ...] = ()
    """Numbers of the instances that validation takes."""
    categories: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    """That it reads or writes."""
    error: str = ''
    """What is wrong with it."""


class TaskFile:
    """A task's file. Its definition and examples are read when first asked for; its instances stay on the disk.

    Args:
        rows: where its instances lie, [R, 2] int64 (first byte, bytes), if the folder's table knows; else it is walked.

    Raises:
        UserError: the file is not in the schema; names the file and the field.
    """

    def __init__(self, path: str, rows: np.ndarray | None = None) -> None:
        self.path, self.rows = path, rows
        self._fields: dict[str, Any] | None = None
        self.held_out: list[int] = []

    def fields(self) -> dict[str, Any]:
        """The file's fields, 'Instances' empty."""
        if self._fields is None:
            self._fields = self._walk() if self.rows is None else self._around()
        return self._fields

    def _around(self) -> dict[str, Any]:
        """What stands before the first instance and after the last, which is JSON without them."""
        first, (last, size) = int(self.rows[0, 0]), self.rows[-1].tolist()
        with open(self.path, 'rb') as file:
            head = file.read(first)
            file.seek(last + size)
            return parse_json(head + file.read(), self.path)

    def _walk(self) -> dict[str, Any]:
        """Goes through the whole file, every instance checked."""
        fields: dict[str, Any] = {}
        rows: list[tuple[int, int]] = []
        with JsonWalker(self.path) as walker:
            if walker.peek() != '{':
                raise UserError(f'{self.path}: begins with {walker.peek()!r}, expected an object. Fix the file.')
            for name in walker.members():
                if name == 'Instances' and walker.peek() == '[':
                    rows = self._instances(walker)
                    fields[name] = []
                else:
                    fields[name] = walker.value(f'field {name!r}')
        for name in ('Definition', 'Positive Examples', 'Instances'):
            if name not in fields:
                raise UserError(
                    f"{self.path}: no field '{name}'; the fields are {', '.join(fields) or 'none'}. Fix the file."
                )
        if not rows:
            raise UserError(f"{self.path}: 'Instances' is empty or no list, the task has no examples. Fix the file.")
        if len(rows) > 1 and not self.held_out:
            self.held_out.append(len(rows) - 1)
        self.rows, self._fields = np.array(rows, np.int64), fields
        self.definition()
        return fields

    def _instances(self, walker: JsonWalker) -> list[tuple[int, int]]:
        rows = []
        for number, _ in enumerate(walker.members()):
            where = f'{self.path} instance {number + 1}'
            offset, size = walker.skip_value(where)
            data = walker.bytes_of(offset, size)
            check_instance(parse_json(data, where), where)
            if is_held_out(data, HELD_OUT):
                self.held_out.append(number)
            rows.append((offset, size))
        return rows

    def instance(self, number: int) -> Example:
        """Instance `number`: {'id', 'input', 'outputs'}."""
        if self.rows is None:
            self.fields()
        offset, size = self.rows[number].tolist()
        where = f'{self.path} instance {number + 1}'
        return check_instance(read_json(self.path, offset, size, where), where)

    def definition(self) -> str:
        text = self.fields()['Definition']
        text = ' '.join(text) if isinstance(text, list) and all(isinstance(part, str) for part in text) else text
        if not isinstance(text, str) or not text.strip():
            raise UserError(f"{self.path}: 'Definition' is empty or no text ({str(text)[:40]}). Fix the file.")
        return text.strip()

    def examples(self, kind: str) -> list[Example]:
        """The 'Positive Examples' or 'Negative Examples' that are whole: {'input', 'outputs', 'explanation'}."""
        found = self.fields().get(kind)
        whole = []
        for example in found if isinstance(found, list) else []:  # older files have ["-"] where there are none
            if isinstance(example, Mapping) and isinstance(example.get('input'), str) and example.get('output'):
                reason = example.get('explanation')
                made = check_instance(example, self.path)
                whole.append(made | {'explanation': reason if isinstance(reason, str) and reason.strip('- ') else ''})
        return whole

    def summary(self) -> Summary:
        """What the start must know, an error included."""
        status = Path(self.path).stat()
        stamp = {'size': status.st_size, 'time': status.st_mtime_ns}
        try:
            fields = self.fields()
        except UserError as error:
            return Summary(**stamp, error=str(error))
        languages = {*_words(fields.get('Input_language')), *_words(fields.get('Output_language'))}
        categories = _words(fields.get('Categories'))
        return Summary(
            **stamp,
            instances=len(self.rows),
            held_out=tuple(self.held_out),
            categories=categories,
            languages=tuple(sorted(languages)),
        )


def check_instance(instance: Any, where: str) -> Example:
    """{'id', 'input', 'outputs'} of an instance or example.

    Raises:
        UserError: a field is missing or wrong.
    """
    if not isinstance(instance, Mapping):
        raise UserError(
            f'{where}: is {type(instance).__name__}, expected an object with input and output. Fix the file.'
        )
    for name in ('input', 'output'):
        if name not in instance:
            raise UserError(
                f"{where}: no field '{name}'; the fields are {', '.join(instance) or 'none'}. Fix the file."
            )
    outputs = [instance['output']] if isinstance(instance['output'], str) else instance['output']
    if (
        not isinstance(instance['input'], str)
        or not isinstance(outputs, list)
        or not outputs
        or not all(isinstance(output, str) for output in outputs)
    ):
        raise UserError(
            f"{where}: 'input' must be a text and 'output' a text or a list of them, not empty. Fix the file."
        )
    return {'id': str(instance.get('id', '')), 'input': instance['input'], 'outputs': list(outputs)}


def _words(value: Any) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(word for word in values if isinstance(word, str) and word.strip())


def read_folder(files: Mapping[str, str]) -> tuple[dict[str, Summary], np.ndarray]:
    """Task -> its summary, and the table of all their instances [R, 2] int64 (first byte, bytes).

    Of unchanged files both are as they were kept, the table on the disk; the others are walked.

    Args:
        files: task -> path, of one folder.
    """
    place = cache_file(_KIND, str(Path(next(iter(files.values()))).parent), '.json')
    kept, kept_rows = _kept(place)
    found: dict[str, Summary] = {}
    parts, first = [], 0
    for name, path in files.items():
        status, old = Path(path).stat(), kept.get(name)
        if old is not None and (old.size, old.time) == (status.st_size, status.st_mtime_ns) and not old.error:
            part, summary = kept_rows[old.first : old.first + old.instances], old
        else:
            file = TaskFile(path)
            summary = file.summary()
            part = np.zeros((0, 2), np.int64) if summary.error else file.rows
        found[name] = dataclasses.replace(summary, first=first)
        parts.append(part)
        first += len(part)
    if found == kept:
        return found, kept_rows
    rows = np.concatenate(parts)
    data = io.BytesIO()
    np.save(data, rows)
    # Named after what it holds, so that the two files belong together whoever else writes them.
    table = place.with_name(f'{place.stem}-{stable_hash(data.getvalue()):016x}.npy')
    keep(table, data.getvalue())
    content = {'table': table.name, 'tasks': {name: dataclasses.asdict(summary) for name, summary in found.items()}}
    keep(place, json.dumps(content).encode())
    for old in place.parent.glob(f'{place.stem}-*.npy'):
        if old != table:
            old.unlink(missing_ok=True)
    return found, rows


def _kept(place: Path) -> tuple[dict[str, Summary], np.ndarray]:
    try:
        content = json.loads(place.read_bytes())
        rows = np.load(place.with_name(content['table']), mmap_mode='r')
        tuples = lambda row: {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
        found = {name: Summary(**tuples(row)) for name, row in content['tasks'].items()}
        if rows.shape == (sum(summary.instances for summary in found.values()), 2):
            return found, rows
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # not there, or another program's
        pass
    return {}, np.zeros((0, 2), np.int64)


# -- A file as a task ------------------------------------------------------------------------------------------------------


class Instances(Sequence):
    """The instances of one split: records {'id', 'input', 'outputs'}. Their number is known without opening the file."""

    def __init__(self, file: TaskFile, summary: Summary, split: str, tested: bool) -> None:
        first = min(TESTED, summary.instances) if tested else 0
        is_held_out = np.zeros(summary.instances, bool)
        is_held_out[list(summary.held_out)] = True
        chosen = is_held_out if split == 'validation' else ~is_held_out
        numbers = np.arange(first) if split == 'test' else first + np.flatnonzero(chosen[first:])
        self._file, self._numbers = file, numbers.astype(np.int32)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Example:
        return self._file.instance(int(self._numbers[index]))


class FollowDefinition(Instruct):
    """An instance in the words of its task's definition, with positive examples before it and, at times, a negative one."""

    def __init__(self, file: TaskFile) -> None:
        self._file = file
        super().__init__(family('natural_instructions'), exemplars=functools.partial(positive_items, file))

    def prompt(self, example: Example, context: Context) -> Prompt | None:
        draw, other, wrong = context.rng.random(3).tolist()
        outputs = example['outputs']
        is_train = context.key[2].partition('/')[0] == 'train'
        answer = outputs[int(draw * len(outputs))] if is_train else outputs[0]
        item = {'input': example['input'], 'definition': self._file.definition(), 'answer': answer}
        made = super().prompt(item, context)
        if wrong < context.instructions.negative_examples and made.variant != INVERTED:
            if negative := self._file.examples('Negative Examples'):
                made.head += f'{_wrong(negative[int(other * len(negative))])}\n\n'
                made.variant = [*made.variant, 'negative example']
        return made

    def apply_block(self, examples: Sequence[Example], contexts: Sequence[Context]) -> list[Result]:
        made = super().apply_block(examples, contexts)
        return [result | {'answers': example['outputs']} for result, example in zip(made, examples, strict=True)]


def positive_items(file: TaskFile) -> list[Item]:
    """The positive examples as exemplars."""
    definition = file.definition()
    return [
        {'input': example['input'], 'definition': definition, 'answer': example['outputs'][0]}
        for example in file.examples('Positive Examples')
    ]


def _wrong(example: Example) -> str:
    reason = f'\nWhy it is wrong: {example["explanation"].strip()}' if example['explanation'] else ''
    return f'An answer that is not wanted\nInput: {example["input"].strip()}\nOutput: {example["outputs"][0].strip()}{reason}'


def postprocess(text: str, is_target: bool = False, example: Mapping[str, Any] | None = None, **_: object) -> Any:
    """The answers that are right, or what the model wrote."""
    return list(example['answers']) if is_target and example is not None and 'answers' in example else text


# -- A folder as tasks and mixtures ------------------------------------------------------------------------------------------


def register(
    folder: str | None, config: NaturalInstructionsConfig = NaturalInstructionsConfig(), skip_broken: bool = False
) -> None:
    """Registers the tasks of a folder and their mixtures, which `config` chooses from; again changes the mixtures alone.

    Raises:
        UserError: no such folder, no task in it, a file that is not in the schema, two of one name, or nothing is chosen.
    """
    if folder is None:
        return
    import seqio

    files = task_files(folder)
    lists = official_lists(folder)
    tested = {name for key, names in lists.items() if key.endswith('test') for name in names}
    known, rows = read_folder(files)
    chosen = []
    for name, path in files.items():
        with leaving_out(PREFIX + name, skip_broken):
            if known[name].error:
                raise UserError(known[name].error)
            of = known[name]
            register_task(name, TaskFile(path, rows[of.first : of.first + of.instances]), of, name in tested)
            if is_chosen(of, config):
                chosen.append(name)
    if not chosen:
        raise UserError(
            f'{folder}: no task is left of {len(files)}. Set NaturalInstructionsConfig.categories or .languages.'
        )
    for mixture in _made:
        seqio.MixtureRegistry.remove(mixture)
    _made.clear()
    for mixture, names in {MIXTURE: chosen, **{f'{MIXTURE}_{key}': names for key, names in lists.items()}}.items():
        if members := sorted(PREFIX + name for name in set(chosen) & set(names)):
            seqio.MixtureRegistry.add(mixture, members, default_rate=ByExamples(config.cap))
            _made.append(mixture)


def register_task(name: str, file: TaskFile, summary: Summary, tested: bool) -> None:
    """Registers one task."""
    import seqio

    from t5flan.data.records.sources import IndexedSource
    from t5flan.data.vocabulary.seqio_vocabulary import text_features

    task, path = PREFIX + name, file.path
    if task in _registered:
        if _registered[task] != path:
            raise UserError(f'{path}: task {task} is made of {_registered[task]} already. Rename one of them.')
        return
    splits = [
        split for split in ('train', 'validation', *['test'] * tested) if len(Instances(file, summary, split, tested))
    ]
    source = IndexedSource({split: functools.partial(Instances, file, summary, split, tested) for split in splits})
    try:
        seqio.TaskRegistry.add(
            task,
            source=source,
            preprocessors=[FollowDefinition(file), tokenize, append_eos],
            output_features=text_features(),
            postprocess_fn=postprocess,
            metric_fns=[exact_match, squad],
        )
    except ValueError as error:
        raise UserError(f'{path}: {task} is the name of another task, or no name for one. Rename the file.') from error
    _registered[task] = path


def task_files(folder: str) -> dict[str, str]:
    """Task -> path of every .json file of the folder, or of its folder tasks.

    Raises:
        UserError: no folder, or no file.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f'{folder}: no such folder. Set {SETTING} to the folder of Natural Instructions.')
    inside = root / 'tasks' if (root / 'tasks').is_dir() else root
    files = {re.sub(r'[^A-Za-z0-9_.]', '_', path.stem): str(path) for path in sorted(inside.glob('*.json'))}
    if not files:
        raise UserError(f'{inside}: no .json file. Set {SETTING} to the folder of Natural Instructions.')
    return files


def official_lists(folder: str) -> dict[str, list[str]]:
    """'train', 'test', 'xlingual_test' … -> the task names of splits/default/train_tasks.txt and so on."""
    root = Path(folder)
    splits = next((path for path in (root / 'splits', root.parent / 'splits') if path.is_dir()), None)
    lists = {}
    for path in sorted(splits.glob('*/*_tasks.txt')) if splits else []:
        group = '' if path.parent.name == 'default' else f'{path.parent.name}_'
        lists[group + path.name.removesuffix('_tasks.txt')] = path.read_text('utf-8').split()
    return lists


def is_chosen(summary: Summary, config: NaturalInstructionsConfig) -> bool:
    """Whether the mixtures hold a task."""
    return (
        (not config.categories or bool({*config.categories} & {*summary.categories}))
        and not {*config.without_categories} & {*summary.categories}
        and (not config.languages or {*summary.languages} <= {*config.languages})
    )
