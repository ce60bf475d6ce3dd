"""Files of `t5flan infer`: the prompts of rows in any format, and answers that grow line by line and resume.

Several jobs, or the processes of one, share a file of rows. Part i of n answers rows i, i + n, i + 2n, ... and writes
`out-0000i-of-0000n.jsonl`. Beside it, `out-0000i-of-0000n.run.json` says which rows, checkpoint and settings these
are. `merge` puts complete parts together, in the order of the input.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import re
import weakref
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from t5flan.data.records import rows as rows_lib
from t5flan.data.records.fields import require_field
from t5flan.data.records.hub import is_dataset
from t5flan.data.records.paths import match_files
from t5flan.data.records.rows import is_rows, plain_text
from t5flan.errors import UsageError, UserError
from t5flan.files import check_output, locks, open_append, open_whole, remove_partial, size_of, write_json

INDEX, PREDICTION, PREDICTIONS = 'index', 'prediction', 'predictions'
"""The fields that are added to a row, unless the row has fields of that name."""

Row = dict[str, Any]


class Prompt(NamedTuple):
    """A text to continue and the row it comes from."""

    number: int
    """Number of the row, from 0, which with the seed determines its samples."""
    text: str
    row: Row
    ids: Sequence[int] | None = None
    """The ids that the model reads, if they are not those of the text."""


@dataclasses.dataclass(frozen=True)
class Part:
    """Part `number` of `count` parts of a file of rows: rows number, number + count, number + 2 count, ...

    >>> Part(1, 4).path(Path('out.jsonl')).name
    'out-00001-of-00004.jsonl'
    """

    number: int = 0
    count: int = 1

    def path(self, output: Path) -> Path:
        """The file of the part: `output` itself if it is the only one."""
        if self.count == 1:
            return output
        return output.with_name(f'{output.stem}-{self.number:05}-of-{self.count:05}{output.suffix}')

    def size(self, rows: int) -> int:
        """Number of its rows, of `rows` in all."""
        return len(range(self.number, rows, self.count))

    def within(self, process: int, processes: int) -> 'Part':
        """The part of one of the processes that share this part."""
        return Part(self.number + self.count * process, self.count * processes)


def read_part(text: str) -> Part:
    """'0/4', the first of four parts.

    Raises:
        UsageError: the text is something else, or there is no such part.
    """
    found = re.fullmatch(r'(\d+)/(\d+)', text)
    if found is None:
        raise UsageError(f'--shard={text}, expected I/N, such as 0/4 for the first of four jobs. Set --shard.')
    part = Part(int(found[1]), int(found[2]))
    if not part.number < part.count:
        expected = f'0/{part.count} to {part.count - 1}/{part.count}' if part.count else 'N of 1 or more'
        raise UsageError(f'--shard={text} is out of range, expected {expected}. Set --shard.')
    return part


def named_part(output: Path, part: Part) -> tuple[Path, Part]:
    """The merged file and the part that a job writes: `--output` may be the name of all, or of the job's own part.

    Raises:
        UsageError: it is the name of another part.
    """
    found = re.fullmatch(r'(.*)-(\d{5})-of-(\d{5})', output.stem)
    if found is None:
        return output, part
    named = Part(int(found[2]), int(found[3]))
    if part.count > 1 and part != named:
        raise UsageError(
            f'--output={output} is the file of part {named.number} of {named.count}, and --shard={part.number}/'
            f'{part.count} is another. Set --output={output.with_name(found[1] + output.suffix)}.'
        )
    return (output.with_name(found[1] + output.suffix) if part.count > 1 else output), part


def read_prompts(pattern: str, field: str) -> list[Prompt]:
    """The prompts of a file or glob: `field` of every row of any format, or the lines of plain text.

    A prompt's row gets 'index', the number of its line or row, from 0; blank lines are counted but are no prompts.

    Raises:
        UserError: a file is missing, empty or damaged, or `field` is missing or not text; names file and row.
    """
    prompts: list[Prompt] = []
    start = 0
    for path in [pattern] if is_dataset(pattern) else match_files(pattern, '--input'):
        last = start
        for number, where, row in _rows(path, field):
            last = start + number
            text = require_field(row, field, where, '--field')
            prompts.append(Prompt(last - 1, text, row))
        start = last
    if not prompts:
        raise UserError(f'{pattern} has no rows. Set --input.')
    names = {name for prompt in prompts for name in prompt.row}
    index = free_name(INDEX, names)
    return [prompt._replace(row={**prompt.row, index: prompt.number}) for prompt in prompts]


def _rows(path: str, field: str) -> Iterator[tuple[int, str, Row]]:
    """(number from 1, place, row) of every row of a file, or of every line that is not blank."""
    if is_rows(path):
        for row in rows_lib.read_rows(path):
            yield row.number, row.where, _with_target(row.value, field) if row.is_cells else row.value
        return
    with open(plain_text(path), 'rb') as file:  # only '\n' ends a line, not U+2028
        for number, line in enumerate(file, 1):
            try:
                text = line.decode('utf-8-sig' if number == 1 else 'utf-8').rstrip('\r\n')
            except UnicodeDecodeError:
                raise UserError(f'{path} line {number}: not UTF-8 text. Save the file as UTF-8.') from None
            if text.strip():
                yield number, f'{path} line {number}', {field: text}


def _with_target(cells: Row, field: str) -> Row:
    """A line of a table with its column 'targets' as 'target', the name in files of predictions."""
    if field == 'targets' or 'targets' not in cells or 'target' in cells:
        return cells
    return {'target' if name == 'targets' else name: value for name, value in cells.items()}


def free_name(name: str, taken: Collection[str]) -> str:
    """`name`, or a name like it that is not taken, so that no column of the user is overwritten.

    >>> free_name('prediction', {'inputs', 'prediction'})
    't5flan_prediction'
    """
    names = itertools.chain([name, f't5flan_{name}'], (f't5flan_{name}_{number}' for number in itertools.count(2)))
    return next(one for one in names if one not in taken)


class RowWriter:
    """Appends answers to a .jsonl file in the order of `prompts`, and finds out which of them an earlier run wrote.

    An answer is a text, or anything else that JSON can hold; of `several`, it is a list of {'text', 'score'}, of which
    the first text is the prediction and all are the predictions. Only one process at a time may write a file.

    Attributes:
        done: indices of the answered prompts -> their answers.
        remaining: the other prompts.
        prediction: the field of the answers.
        setting: the flag that messages name.

    Args:
        record: what decides the answers; kept in a file beside `path`. Without it, only the rows are compared.

    Raises:
        UserError: the file was not begun by the same command: it holds something other than answers to these prompts,
            or its record is missing or differs. Or another process writes it, or it cannot be a file.
    """

    def __init__(
        self,
        path: Path,
        prompts: Sequence[Prompt],
        setting: str = '--output',
        *,
        several: bool = False,
        record: Row | None = None,
    ) -> None:
        self._path, self._setting = path, setting
        taken = {name for prompt in prompts for name in prompt.row}
        self.prediction = free_name(PREDICTION, taken)
        self._predictions = free_name(PREDICTIONS, taken) if several else None
        check_output(path, setting)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._held = contextlib.ExitStack()
        self._lock = self._held.enter_context(locks.hold_file(path, setting))
        self._close = weakref.finalize(self, self._held.close)
        try:
            remove_partial(record_path(path))
            if record is not None:
                _check_begun(path, record, setting)
            self.done, whole = self._read(prompts)
            self._file = open_append(path, whole)
            self._held.callback(self._file.close)
        except BaseException:
            self._close()
            raise
        self.remaining = [prompt for prompt in prompts if prompt.number not in self.done]

    def _read(self, prompts: Sequence[Prompt]) -> tuple[dict[int, Any], int]:
        """The answers in the file, and the bytes of its complete lines."""
        data = self._path.read_bytes() if self._path.exists() else b''
        whole = data.rfind(b'\n') + 1
        by_line = iter(prompts)
        done: dict[int, Any] = {}
        for number, line in enumerate(data[:whole].split(b'\n')[:-1], 1):
            prompt = next(by_line, None)
            row, answer = self._answer(line)
            if prompt is None or answer is None or json.dumps(row) != json.dumps(prompt.row):
                changed = prompt is not None and isinstance(row, dict) and difference(row, prompt.row)
                what = f' (here {changed[0]}={changed[1]!r}, and now {changed[2]!r})'[:200] if changed else ''
                where = f'{self._path}:{number}'
                raise UserError(
                    f'{where} does not answer a row of this input. Set another {self._setting}, '
                    f'or remove the file{what}.'
                )
            done[prompt.number] = answer
        is_cut = whole < len(data)  # an incomplete line of a killed run
        if is_cut and not done and not data.startswith(b'{"'):
            raise UserError(f'{self._path} holds no answers. Set another {self._setting}, or remove the file.')
        return done, whole

    def _answer(self, line: bytes) -> tuple[Any, Any]:
        """The row of a line and its answer; the answer is None if the line has none."""
        try:
            row = json.loads(line)
            answer = row.pop(self.prediction)
            return row, row.pop(self._predictions) if self._predictions else answer
        except (ValueError, KeyError, TypeError, AttributeError):
            return None, None

    def write(self, answers: Sequence[Any]) -> None:
        """Appends the answers to the next of the remaining prompts, all of them or none.

        Raises:
            UserError: another process has taken the file over.
            OSError: the disk is full, for example.
        """
        answered = list(zip(self.remaining[: len(answers)], answers, strict=True))
        rows = [prompt.row | self._fields(answer) for prompt, answer in answered]
        lines = ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows)
        self._lock.require()
        self._file.write(lines.encode('utf-8', 'surrogatepass'))
        self.done |= {prompt.number: answer for prompt, answer in answered}
        self.remaining = self.remaining[len(answers) :]

    def _fields(self, answer: Any) -> Row:
        if self._predictions is None:
            return {self.prediction: answer}
        return {self.prediction: answer[0]['text'], self._predictions: answer}

    def __enter__(self) -> 'RowWriter':
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        is_refused = kind is not None and issubclass(kind, UserError)
        if is_refused and not self.done and not size_of(self._path):  # a wrong setting: nothing to resume
            self._file.close()
            for path in (self._path, record_path(self._path)):
                path.unlink(missing_ok=True)
        self._close()


# -- Records and merging ---------------------------------------------------------------------------------------------


def fingerprint(prompts: Sequence[Prompt]) -> str:
    """Hash of the rows of an input: equal for equal rows in the same order."""
    found = hashlib.sha256()
    for prompt in prompts:
        found.update(json.dumps(prompt.row).encode() + b'\n')
    return found.hexdigest()[:16]


def record_path(path: Path) -> Path:
    """The record beside a file of answers: out.run.json of out.jsonl."""
    return path.with_name(f'{path.stem}.run.json')


def _check_begun(path: Path, record: Row, setting: str) -> None:
    """Requires that a file, if it has content, was begun with this record; else writes the record.

    Raises:
        UserError: it has another record, or none: then something else wrote the file.
    """
    if size_of(path) and read_record(path) is None:
        problem = f'{path} exists, and {record_path(path).name} beside it does not, which says what its answers are of'
        raise UserError(f'{problem}. Set another {setting}, or remove the file.')
    check_record(path, record, setting)


def check_record(path: Path, record: Row, setting: str = '--output') -> None:
    """Writes what decides the answers in `path`, or compares it with what an earlier run wrote.

    Raises:
        UserError: the earlier run had another input, checkpoint or setting.
    """
    beside = record_path(path)
    known = read_record(path) if size_of(path) else None
    if known is None:
        write_json(beside, record)
        return
    record = json.loads(json.dumps(record))
    is_moved = known.get('saved') is not None and known['saved'] == record.get('saved')
    if differing := difference(known, record, ignored=['checkpoint'] if is_moved else ()):
        name, before, now = differing
        raise UserError(
            f'{path} was begun with {name}={before}, and now {name}={now}. Set the former, or another {setting}.'
        )


def read_record(path: Path) -> Row | None:
    """The record of a file of answers, or None if there is none."""
    try:
        found = json.loads(record_path(path).read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def difference(one: Row, other: Row, ignored: Collection[str] = ()) -> tuple[str, Any, Any] | None:
    """The first field in which two records differ and its two values, or None."""
    names = (name for name in {**one, **other} if name not in ignored and one.get(name) != other.get(name))
    name = next(names, None)
    return None if name is None else (name, one.get(name), other.get(name))


def parts_of(output: Path) -> list[tuple[Part, Path]]:
    """The parts of a merged file that exist, in order.

    Raises:
        UserError: there are none, or they are of different numbers of parts.
    """
    pattern = re.compile(rf'{re.escape(output.stem)}-(\d{{5}})-of-(\d{{5}}){re.escape(output.suffix)}')
    names = [path.name for path in output.parent.iterdir()] if output.parent.is_dir() else []
    found = sorted((match for name in names if (match := pattern.fullmatch(name))), key=lambda match: match[0])
    parts = [(Part(int(match[1]), int(match[2])), output.with_name(match[0])) for match in found]
    if not parts:
        first = Part(0, 2).path(output)
        raise UserError(f'{output} has no parts, such as {first}. Set --merge to the --output of the jobs.')
    if len(counts := sorted({part.count for part, _ in parts})) > 1:
        both = ' and of '.join(str(count) for count in counts)
        raise UserError(f'{output} has parts of {both} jobs. Remove those of one of them.')
    return parts


def merge(output: Path, target: Path) -> int:
    """Writes the answers of all parts of `output` to `target`, in the order of the input.

    Returns:
        The number of rows.

    Raises:
        UserError: a part or a row is missing, or the parts have different inputs, checkpoints or settings.
    """
    found = parts_of(output)
    records: list[Row] = []
    for part, path in found:
        record = read_record(path)
        if record is None:
            raise UserError(f'{path} has no {record_path(path).name} beside it, which its job wrote. Copy both.')
        if records and (differing := difference(records[0], record, ignored=['part'])):
            name, first, other = differing
            raise UserError(
                f'{found[0][1]} and {path} do not belong together: {name}={first} and {name}={other}. '
                'Run the jobs with one input, checkpoint and settings.'
            )
        if record.get('part') != [part.number, part.count]:
            raise UserError(f'{path} is part {record.get("part")}, not the one it is named. Give it back its name.')
        records.append(record)
    rows, count = int(records[0]['rows']), found[0][0].count
    paths = {part.number: path for part, path in found}
    if missing := missing_rows(paths, rows, count):
        jobs = sorted({row % count for row in missing})
        first_rows = ', '.join(map(str, missing[:10])) + (', ...' if len(missing) > 10 else '')
        raise UserError(
            f'{len(missing)} of {rows} rows of {output} are missing: {first_rows}. Run the jobs of part '
            f'{", ".join(map(str, jobs))} of {count} again.'
        )
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(paths[number].open('rb')) for number in range(count) if number in paths]
        lines = (files[row % count].readline() for row in range(rows))
        if target.exists():
            _require_same(target, lines)
        else:
            stack.enter_context(open_whole(target, 'wb')).writelines(lines)
    return rows


def missing_rows(paths: Mapping[int, Path], rows: int, count: int) -> list[int]:
    """The positions in the input, from 0, of rows that no part has answered, ascending."""
    missing: list[int] = []
    for number in range(count):
        have = _whole_lines(paths[number]) if number in paths else 0
        missing += range(number + have * count, rows, count)
    return sorted(missing)


def _whole_lines(path: Path) -> int:
    with path.open('rb') as file:
        return sum(line.endswith(b'\n') for line in file)


def _require_same(target: Path, lines: Iterator[bytes]) -> None:
    """Raises a UserError if a file that is there already has other lines."""
    with target.open('rb') as file:
        if any(line != file.readline() for line in lines) or file.readline():
            raise UserError(f'{target} exists and has other rows. Remove it, or set another --output.')
