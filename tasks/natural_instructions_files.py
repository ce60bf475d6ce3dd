"""The files of Natural Instructions: their content, and a summary of each that is kept between runs.

A task's file is an object with 'Definition', 'Positive Examples', 'Negative Examples', 'Instances' and fields about the
task. It is scanned once; then its instances are read from their places.
"""

import dataclasses
import functools
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from t5flan.data.preprocessing.examples import Example
from t5flan.data.randomness import stable_hash
from t5flan.data.records.file_index import cache_file, store
from t5flan.data.records.json_files import JsonWalker, parse_json, read_json
from t5flan.data.records.rows import format_of
from t5flan.data.records.text_files import is_held_out
from t5flan.errors import UserError, did_you_mean

HELD_OUT = 0.02
NO_OUTPUT = 'instances whose outputs are all empty'
_KIND = 'natural_instructions-3'
_SCHEMA = ('Definition', 'Positive Examples', 'Negative Examples', 'Instances')


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
    broken: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Place of an instance that does not follow the schema -> why; the other instances can be used."""
    without_output: tuple[int, ...] = ()
    """Numbers, from 1, of the instances that are left out because all their outputs are empty."""
    stray: str = ''
    """Why it is not a task at all, and not meant to be one."""
    error: str = ''
    """Why it cannot be used."""


class NotATask(UserError):
    """A file that is not meant to be a task: neither its name nor its content is that of one."""


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
        self.broken: dict[str, str] = {}
        self.without_output: list[int] = []

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
            try:
                return parse_json(head + file.read(), self.path)  # without the instances between them it is JSON too
            except UserError:  # a first or last instance that is left out remains, with a comma too many
                return self._scan()[1]

    def _scan(self) -> tuple[np.ndarray, dict[str, Any]]:
        """Scans the whole file and checks every instance: the rows and the fields."""
        fields: dict[str, Any] = {}
        rows: list[tuple[int, int]] = []
        with JsonWalker(self.path) as walker:
            if walker.peek() != '{':
                self._raise_not_a_task(walker.peek())
            for name in walker.members():
                if name == 'Instances' and walker.peek() == '[':
                    rows = self._instances(walker)
                    fields[name] = []
                else:
                    fields[name] = walker.value(f'field {name!r}')
        _check_fields(fields, self.path, self._is_named_as_task())
        if not rows:
            nothing = f'{self.path}: all outputs of all instances are empty. Fix the file.'
            empty = f"{self.path}: field 'Instances' is an empty list. Fix the file."
            raise UserError(next(iter(self.broken.values()), nothing if self.without_output else empty))
        if len(rows) > 1 and not self.held_out:
            self.held_out.append(len(rows) - 1)
        return np.array(rows, np.int64), fields

    def _is_named_as_task(self) -> bool:
        return Path(self.path).name.lower().startswith('task')

    def _raise_not_a_task(self, first: str) -> NoReturn:
        """Raises the error of a file that does not begin with '{': names what it is."""
        if not first.strip():
            raise UserError(f'{self.path}: is empty, expected an object. Download it again.')
        kind = format_of(self.path)  # raises an error that names web pages, pointers of Git LFS, archives
        if kind in ('gzip', 'zstd', 'utf-16'):
            raise UserError(f'{self.path}: its content is {kind}, expected JSON in UTF-8. Decompress or convert it.')
        problem = f'{self.path}: begins with {first!r}, expected an object'
        raise (NotATask if first == '[' and not self._is_named_as_task() else UserError)(f'{problem}. Fix the file.')

    def _instances(self, walker: JsonWalker) -> list[tuple[int, int]]:
        rows: list[tuple[int, int]] = []
        for number, _ in enumerate(walker.members(), 1):
            where = f'{self.path} instance {number}'
            offset, size = walker.skip_value(where)
            data = walker.bytes_of(offset, size)
            try:
                instance = check_instance(parse_json(data, where), where)
            except UserError as error:
                self.broken[where] = str(error)
                continue
            if not instance['outputs']:
                self.without_output.append(number)
                continue
            if is_held_out(data, HELD_OUT):
                self.held_out.append(len(rows))
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
                if made['outputs']:
                    whole.append(
                        made | {'explanation': reason if isinstance(reason, str) and reason.strip('- ') else ''}
                    )
        return whole

    def summary(self) -> Summary:
        """The file's summary; an error becomes part of it."""
        status = Path(self.path).stat()
        size, time = status.st_size, status.st_mtime_ns
        try:
            fields = self.fields
        except NotATask as error:
            return Summary(size, time, stray=str(error))
        except UserError as error:
            return Summary(size, time, broken=self.broken, error=str(error))
        languages = {*_words(fields.get('Input_language')), *_words(fields.get('Output_language'))}
        return Summary(
            size,
            time,
            instances=len(self.rows),
            held_out=tuple(self.held_out),
            categories=_words(fields.get('Categories')),
            languages=tuple(sorted(languages)),
            broken=self.broken,
            without_output=tuple(self.without_output),
        )


def _check_fields(fields: Mapping[str, Any], path: str, is_named_as_task: bool) -> None:
    """Raises a UserError if a file's fields are not those of a task; names what is wrong."""
    known = ', '.join(fields) or 'none'
    if not is_named_as_task and not set(_SCHEMA) & set(fields):
        raise NotATask(f"{path}: no field '{_SCHEMA[0]}'; the fields are {known}. Fix the file.")
    for name in ('Definition', 'Positive Examples', 'Instances'):
        if name not in fields:
            near = did_you_mean(name, fields) or '.'
            raise UserError(f"{path}: no field '{name}'; the fields are {known}{near} Fix the file.")
        if fields[name] is None:
            raise UserError(f"{path}: field '{name}' is null. Fix the file.")
    for name in ('Positive Examples', 'Instances'):
        if not isinstance(fields[name], list):
            found = _described(fields[name])
            raise UserError(f"{path}: field '{name}' is {found}, expected a list. Fix the file.")
    _definition(fields, path)


def _definition(fields: Mapping[str, Any], path: str) -> str:
    given = fields['Definition']
    text = ' '.join(given) if isinstance(given, list) and all(isinstance(part, str) for part in given) else given
    if not isinstance(text, str) or not text.strip():
        found = _described(given)
        raise UserError(f"{path}: field 'Definition' is {found}, expected a text or a list of texts. Fix the file.")
    return text.strip()


def check_instance(instance: Any, where: str) -> Example:
    """{'id', 'input', 'outputs'} of an instance or example; 'outputs' is without the empty ones.

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
    if not isinstance(instance['input'], str):
        raise UserError(f"{where}: field 'input' is {_described(instance['input'])}, expected text. Fix the file.")
    outputs = [instance['output']] if isinstance(instance['output'], str) else instance['output']
    if not isinstance(outputs, list) or not outputs or not all(isinstance(output, str) for output in outputs):
        found = _described(instance['output'])
        raise UserError(f"{where}: field 'output' is {found}, expected text or a list of texts. Fix the file.")
    outputs = [output for output in outputs if output.strip()]
    return {'id': str(instance.get('id', '')), 'input': instance['input'], 'outputs': outputs}


def _described(value: Any) -> str:
    """What a value is, for messages: 'null', 'an empty list', 'a list with a number'."""
    kinds = {str: 'text', bool: 'true or false', int: 'a number', float: 'a number', dict: 'an object', list: 'a list'}
    if value is None or value in ('', [], {}):
        return 'null' if value is None else f'an empty {"text" if value == "" else "list" if value == [] else "object"}'
    if isinstance(value, str):
        return f'text ({value[:40]!r})' if value.strip() else 'blank text'
    if isinstance(value, list):
        other = next((one for one in value if not isinstance(one, str)), '')
        return f'a list with {"empty texts" if other == "" else _described(other)}'
    return kinds.get(type(value), type(value).__name__)


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
            part = np.zeros((0, 2), np.int64) if summary.error or summary.stray else file.rows
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
