"""Super-NaturalInstructions (arXiv:2204.07705): each JSON file of its folder becomes a task, with mixtures of them.

    DataConfig.natural_instructions = %NATURAL_INSTRUCTIONS_DIR  a folder with tasks/*.json and splits/, or of the files
    NaturalInstructionsConfig.languages = ('English',)
    DataConfig.mixture = 'natural_instructions'

Task ni_task023_NAME is made of task023_NAME.json: its definition, its positive examples as exemplars, its negative
examples in a share of the prompts (InstructionConfig.negative_examples), and one of an instance's outputs, drawn anew
in each epoch; metrics accept any of them. Mixtures: natural_instructions (all tasks that the settings select), and one
for each official list of names: natural_instructions_train and natural_instructions_test (splits/default),
natural_instructions_xlingual_test (from another folder).

Splits of a task: 'validation' is a share held out by a hash, 'train' the rest. A task of a test list also has 'test',
its first 100 instances, which the paper measures; the other splits do not have them.

A start does not read the files: a summary of each is kept in ~/.cache/t5flan until its size or modification time
changes.
"""

import dataclasses
import functools
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t5flan.data.instruction_config import NaturalInstructionsConfig
from t5flan.data.mixtures.mixing import ByExamples
from t5flan.data.preprocessing.examples import Context, Example, Result
from t5flan.data.preprocessing.tokenization import append_eos, tokenize
from t5flan.data.prompting.instructions import INVERTED, Instruct, Item, Prompt
from t5flan.data.randomness import stable_hash
from t5flan.data.records.file_index import cache_file, store
from t5flan.data.records.json_files import JsonWalker, parse_json, read_json
from t5flan.data.records.text_files import is_held_out
from t5flan.data.skipped import skip_on_error
from t5flan.errors import UserError
from t5flan.scoring.metrics import exact_match, squad
from t5flan.tasks.families import family
from t5flan.tasks.registry import add_task, is_registered, replace_mixture, safe_name

MIXTURE, PREFIX = 'natural_instructions', 'ni_'
SETTING = 'DataConfig.natural_instructions'
HELD_OUT = 0.02
TESTED = 100
_KIND = 'natural_instructions-2'
_EVERYTHING = NaturalInstructionsConfig()
_mixtures: list[str] = []


# -- The content of a file ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Summary:
    """What has to be known of a file at the start of a run."""

    size: int
    time: int
    first: int = 0
    """Its first row in the folder's table of instances."""
    instances: int = 0
    held_out: tuple[int, ...] = ()
    """Numbers of the validation instances."""
    categories: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    """Languages of its inputs and outputs."""
    error: str = ''
    """Why it cannot be used."""


class TaskFile:
    """A task's file. Its definition and examples are read on demand; its instances stay on the disk.

    Args:
        rows: int64 [R, 2], first byte and length of each instance, if they are known; otherwise the file is scanned.

    Raises:
        UserError: the file does not follow the schema; names the file and the field.
    """

    def __init__(self, path: str, rows: np.ndarray | None = None) -> None:
        self.path, self._rows = path, rows
        self.held_out: list[int] = []

    @property
    def rows(self) -> np.ndarray:
        """First byte and length of each instance. int64 [R, 2]."""
        if self._rows is None:
            self._rows, self.fields = self._scan()
        return self._rows

    @functools.cached_property
    def fields(self) -> dict[str, Any]:
        """The file's fields, with 'Instances' empty."""
        if self._rows is None:
            self._rows, fields = self._scan()
            return fields
        first, (last, size) = int(self._rows[0, 0]), self._rows[-1].tolist()
        with open(self.path, 'rb') as file:
            head = file.read(first)
            file.seek(last + size)
            return parse_json(head + file.read(), self.path)  # without the instances between them it is JSON too

    def _scan(self) -> tuple[np.ndarray, dict[str, Any]]:
        """Scans the whole file and checks every instance: the rows and the fields."""
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
                known = ', '.join(fields) or 'none'
                raise UserError(f"{self.path}: no field '{name}'; the fields are {known}. Fix the file.")
        if not rows:
            raise UserError(f"{self.path}: 'Instances' is empty or not a list. Fix the file.")
        if len(rows) > 1 and not self.held_out:
            self.held_out.append(len(rows) - 1)
        _definition(fields, self.path)
        return np.array(rows, np.int64), fields

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
        offset, size = self.rows[number].tolist()
        where = f'{self.path} instance {number + 1}'
        return check_instance(read_json(self.path, offset, size, where), where)

    def definition(self) -> str:
        """The task's definition as one text."""
        return _definition(self.fields, self.path)

    def examples(self, kind: str) -> list[Example]:
        """The complete 'Positive Examples' or 'Negative Examples': {'input', 'outputs', 'explanation'}."""
        found = self.fields.get(kind)
        whole = []
        for example in found if isinstance(found, list) else []:  # older files without examples have ["-"]
            if isinstance(example, Mapping) and isinstance(example.get('input'), str) and example.get('output'):
                reason = example.get('explanation')
                made = check_instance(example, self.path)
                whole.append(made | {'explanation': reason if isinstance(reason, str) and reason.strip('- ') else ''})
        return whole

    def summary(self) -> Summary:
        """The file's summary; an error becomes part of it."""
        status = Path(self.path).stat()
        size, time = status.st_size, status.st_mtime_ns
        try:
            fields = self.fields
        except UserError as error:
            return Summary(size, time, error=str(error))
        languages = {*_words(fields.get('Input_language')), *_words(fields.get('Output_language'))}
        return Summary(
            size,
            time,
            instances=len(self.rows),
            held_out=tuple(self.held_out),
            categories=_words(fields.get('Categories')),
            languages=tuple(sorted(languages)),
        )


def _definition(fields: Mapping[str, Any], path: str) -> str:
    text = fields['Definition']
    text = ' '.join(text) if isinstance(text, list) and all(isinstance(part, str) for part in text) else text
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{path}: 'Definition' is empty or not text ({str(text)[:40]}). Fix the file.")
    return text.strip()


def check_instance(instance: Any, where: str) -> Example:
    """{'id', 'input', 'outputs'} of an instance or example.

    Raises:
        UserError: a field is missing or wrong.
    """
    if not isinstance(instance, Mapping):
        kind = type(instance).__name__
        raise UserError(f'{where}: is {kind}, expected an object with input and output. Fix the file.')
    for name in ('input', 'output'):
        if name not in instance:
            known = ', '.join(instance) or 'none'
            raise UserError(f"{where}: no field '{name}'; the fields are {known}. Fix the file.")
    outputs = [instance['output']] if isinstance(instance['output'], str) else instance['output']
    are_texts = isinstance(outputs, list) and outputs and all(isinstance(output, str) for output in outputs)
    if not isinstance(instance['input'], str) or not are_texts:
        raise UserError(f"{where}: 'input' must be text, 'output' text or a list of texts, not empty. Fix the file.")
    return {'id': str(instance.get('id', '')), 'input': instance['input'], 'outputs': list(outputs)}


def _words(value: Any) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(word for word in values if isinstance(word, str) and word.strip())


def read_folder(files: Mapping[str, str]) -> tuple[dict[str, Summary], np.ndarray]:
    """Task -> its summary, and the table of all their instances, int64 [R, 2]: first byte and length.

    For unchanged files both come from the cache folder, where the table stays on the disk; other files are scanned.
    """
    place = cache_file(_KIND, str(Path(next(iter(files.values()))).parent), '.json')
    stored, stored_rows = _stored(place)
    found: dict[str, Summary] = {}
    parts, first = [], 0
    for name, path in files.items():
        status, old = Path(path).stat(), stored.get(name)
        if old is not None and (old.size, old.time) == (status.st_size, status.st_mtime_ns) and not old.error:
            part, summary = stored_rows[old.first : old.first + old.instances], old
        else:
            file = TaskFile(path)
            summary = file.summary()
            part = np.zeros((0, 2), np.int64) if summary.error else file.rows
        found[name] = dataclasses.replace(summary, first=first)
        parts.append(part)
        first += len(part)
    if found == stored:
        return found, stored_rows
    rows = np.concatenate(parts)
    data = io.BytesIO()
    np.save(data, rows)
    # The name is a hash of the content, so that summaries and table match even if several processes write them.
    table = place.with_name(f'{place.stem}-{stable_hash(data.getvalue()):016x}.npy')
    store(table, data.getvalue())
    content = {'table': table.name, 'tasks': {name: dataclasses.asdict(summary) for name, summary in found.items()}}
    store(place, json.dumps(content).encode())
    for other in place.parent.glob(f'{place.stem}-*.npy'):
        if other != table:
            other.unlink(missing_ok=True)
    return found, rows


def _summary(row: Mapping[str, Any]) -> Summary:
    fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
    return Summary(**fields)


def _stored(place: Path) -> tuple[dict[str, Summary], np.ndarray]:
    try:
        content = json.loads(place.read_bytes())
        rows = np.load(place.with_name(content['table']), mmap_mode='r')
        found = {name: _summary(row) for name, row in content['tasks'].items()}
        if rows.shape == (sum(summary.instances for summary in found.values()), 2):
            return found, rows
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # missing, or written by another program
        pass
    return {}, np.zeros((0, 2), np.int64)


# -- A file as a task --------------------------------------------------------------------------------------------------


class Instances:
    """The instances of a split: records {'id', 'input', 'outputs'}. Their number is known without opening the file."""

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
    """Words an instance with its task's definition, after positive examples and in some prompts a negative one."""

    def __init__(self, file: TaskFile) -> None:
        self._file = file
        super().__init__(family('natural_instructions'), exemplars=functools.partial(positive_items, file))

    def prompt(self, example: Example, context: Context) -> Prompt | None:
        """The prompt of an instance."""
        draw, other, wrong = context.rng.random(3).tolist()
        outputs = example['outputs']
        is_train = context.key[2].partition('/')[0] == 'train'
        answer = outputs[int(draw * len(outputs))] if is_train else outputs[0]
        item = {'input': example['input'], 'definition': self._file.definition(), 'answer': answer}
        made = super().prompt(item, context)
        if made is None or wrong >= context.instructions.negative_examples or made.variant == INVERTED:
            return made
        if negative := self._file.examples('Negative Examples'):
            made.head += f'{_wrong(negative[int(other * len(negative))])}\n\n'
            made.variant = [*made.variant, 'negative example']
        return made

    def apply_block(self, examples: Sequence[Example], contexts: Sequence[Context]) -> list[Result]:
        """Words many instances; 'answers' has all right outputs of each."""
        made = super().apply_block(examples, contexts)
        answers = ({'answers': example['outputs']} for example in examples)
        return [result | answer if isinstance(result, dict) else result for result, answer in zip(made, answers)]


def positive_items(file: TaskFile) -> list[Item]:
    """The positive examples as exemplars."""
    definition, examples = file.definition(), file.examples('Positive Examples')
    return [{'input': one['input'], 'definition': definition, 'answer': one['outputs'][0]} for one in examples]


def _wrong(example: Example) -> str:
    reason = f'\nWhy it is wrong: {example["explanation"].strip()}' if example['explanation'] else ''
    given, answer = example['input'].strip(), example['outputs'][0].strip()
    return f'An answer that is not wanted\nInput: {given}\nOutput: {answer}{reason}'


def postprocess(text: str, is_target: bool = False, example: Mapping[str, Any] | None = None, **_: object) -> Any:
    """The right answers, or a model's output."""
    return list(example['answers']) if is_target and example is not None and 'answers' in example else text


# -- A folder as tasks and mixtures ------------------------------------------------------------------------------------


def register(folder: str | None, config: NaturalInstructionsConfig = _EVERYTHING, skip_broken: bool = False) -> None:
    """Registers the tasks of a folder, and mixtures of those that `config` selects; again replaces the mixtures only.

    Raises:
        UserError: there is no such folder or no task in it, a file does not follow the schema, two tasks have one name,
            or nothing is selected.
    """
    if folder is None:
        return
    files = task_files(folder)
    lists = official_lists(folder)
    tested = {name for key, names in lists.items() if key.endswith('test') for name in names}
    known, rows = read_folder(files)
    selected = []
    for name, path in files.items():
        with skip_on_error(PREFIX + name, skip_broken):
            summary = known[name]
            if summary.error:
                raise UserError(summary.error)
            file = TaskFile(path, rows[summary.first : summary.first + summary.instances])
            register_task(name, file, summary, name in tested)
            if is_selected(summary, config):
                selected.append(name)
    if not selected:
        raise UserError(
            f'{folder}: none of its {len(files)} tasks is selected. Set NaturalInstructionsConfig.categories.'
        )
    mixtures = {MIXTURE: selected, **{f'{MIXTURE}_{key}': names for key, names in lists.items()}}
    for mixture in dict.fromkeys([*mixtures, *_mixtures]):
        members = sorted(PREFIX + name for name in set(selected) & set(mixtures.get(mixture, ())))
        replace_mixture(mixture, members, ByExamples(config.cap))
    _mixtures[:] = mixtures


def register_task(name: str, file: TaskFile, summary: Summary, tested: bool) -> None:
    """Registers the task ni_NAME.

    Args:
        tested: whether an official test list has it.
    """
    from t5flan.data.records.sources import IndexedSource

    if is_registered(PREFIX + name, file.path):
        return
    splits = ('train', 'validation', *['test'] * tested)
    makers = {split: functools.partial(Instances, file, summary, split, tested) for split in splits}
    add_task(
        PREFIX + name,
        file.path,
        source=IndexedSource({split: make for split, make in makers.items() if len(make())}),
        preprocessors=[FollowDefinition(file), tokenize, append_eos],
        postprocess_fn=postprocess,
        metric_fns=[exact_match, squad],
    )


def task_files(folder: str) -> dict[str, str]:
    """Task -> path of every .json file in the folder, or in its subfolder tasks.

    Raises:
        UserError: there is no such folder, or no file in it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f'{folder}: no such folder. Set {SETTING} to the folder of Natural Instructions.')
    inside = root / 'tasks' if (root / 'tasks').is_dir() else root
    files = {safe_name(path.stem): str(path) for path in sorted(inside.glob('*.json'))}
    if not files:
        raise UserError(f'{inside}: no .json file. Set {SETTING} to the folder of Natural Instructions.')
    return files


def official_lists(folder: str) -> dict[str, list[str]]:
    """'train', 'test', 'xlingual_test' … -> the task names in splits/default/train_tasks.txt and so on."""
    root = Path(folder)
    splits = next((path for path in (root / 'splits', root.parent / 'splits') if path.is_dir()), None)
    lists = {}
    for path in sorted(splits.glob('*/*_tasks.txt')) if splits else []:
        group = '' if path.parent.name == 'default' else f'{path.parent.name}_'
        lists[group + path.name.removesuffix('_tasks.txt')] = path.read_text('utf-8').split()
    return lists


def is_selected(summary: Summary, config: NaturalInstructionsConfig) -> bool:
    """Whether the settings select a task for the mixtures."""
    categories, languages = {*summary.categories}, {*summary.languages}
    if categories & {*config.exclude_categories} or (config.categories and not categories & {*config.categories}):
        return False
    return not config.languages or languages <= {*config.languages}
