"""Rows of the files people have: one reader for every format, and for every place that takes rows.

    for row in read_rows('data.csv.gz'):
        row.where   'data.csv.gz line 2'
        row.value   {'inputs': 'a question', 'targets': 'an answer'}

JSON Lines, JSON (a list of rows, or an object keyed by id), CSV, TSV and Parquet, each also compressed with gzip or
zstd, and data sets of the Hugging Face hub ('hf:NAME', see hub.py). The content decides the format where the name
misleads. Files of JSON are read in place, all others are converted once to JSON Lines in the cache folder (tables.py),
so every row is found by its byte offset and no file has to fit in memory.
"""

import functools
import json
import os
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from t5flan.data.records import hub
from t5flan.data.records.file_rows import read_bytes
from t5flan.data.records.json_files import JsonWalker, json_error
from t5flan.data.records.paths import match_files
from t5flan.data.records.tables import BAD_ROW, converted, decompressed
from t5flan.errors import UserError

_SUFFIXES = ('.jsonl', '.json', '.csv', '.tsv', '.parquet')
FORMATS = '.jsonl, .json, .csv, .tsv or .parquet, or one of these with .gz or .zst'
_COMPRESSED = ('.gz', '.zst', '.gzip', '.zstd')
_HEAD = 2**16
_MAGIC = {
    b'\x1f\x8b': 'gzip', b'\x28\xb5\x2f\xfd': 'zstd', b'PAR1': 'parquet', b'\xff\xfe': 'utf-16', b'\xfe\xff': 'utf-16',
}  # fmt: skip
_FOREIGN = {
    b'PK\x03\x04': 'a ZIP or Excel file. Export it as CSV',
    b'BZh': 'compressed with bzip2. Decompress it, or use gzip or zstd',
    b'\xfd7zXZ': 'compressed with xz. Decompress it, or use gzip or zstd',
    b'ARROW1': 'an Arrow file. Save it as Parquet',
    b'version https://git-lfs': 'a pointer of Git LFS. Run `git lfs pull`',
    b'<!DOCTYPE': 'a web page. Download the file itself',
    b'<html': 'a web page. Download the file itself',
}
_BOM = b'\xef\xbb\xbf'

OnError = Callable[[str, UserError], None]
"""Called with the place and the error of a row that cannot be read."""


class Row(NamedTuple):
    """A row and the place it is read from."""

    where: str
    """For messages: 'FILE line 3', 'FILE row 3' (from 1) or "FILE 'KEY'"."""
    number: int
    """Number of the line or row, from 1."""
    path: str
    """The file of JSON that holds the row: the user's own, or its conversion in the cache folder."""
    offset: int
    data: bytes
    """The JSON of the row in `path`, from byte `offset` on."""
    value: dict[str, Any]
    is_cells: bool
    """Whether the row is a line of a table, whose values are all text."""

    @property
    def identity(self) -> str | bytes:
        """What decides whether the row is held out: the bytes of JSON, or the cells of a table."""
        return repr(sorted(self.value.items())) if self.is_cells else self.data


def match_rows(pattern: str, setting: str) -> list[str]:
    """The files of a path or glob that `read_rows` reads; a data set is returned as it is named.

    Raises:
        UserError: as `match_files`, or the content of a file is of no known format.
    """
    if hub.is_dataset(pattern):
        return [pattern]
    paths = match_files(pattern, setting)
    for path in paths:
        format_of(path)
    return paths


def read_rows(path: str, on_error: OnError | None = None) -> Iterator[Row]:
    """Every row of a file or data set, in order.

    Args:
        path: a file, or a data set as hub.py names it.
        on_error: called for a row that cannot be read, which is then skipped. None raises its error.

    Raises:
        UserError: the file cannot be read, or is not what it seems to be; the message names the file and row.
    """
    source, format = json_source(path)
    if format == 'json':
        return _values(source, path, on_error)
    unit = 'row' if format in ('parquet', 'dataset') else 'line'
    return _lines(source, path, unit, on_error, is_cells=format in ('csv', 'tsv'))


def json_source(path: str) -> tuple[str, str]:
    """The file of JSON that holds the rows of a file or data set, which is converted if necessary, and its format.

    Raises:
        UserError: as `read_rows`.
    """
    if hub.is_dataset(path):
        rows = functools.partial(hub.rows, path)
        return converted(path, 'dataset', rows, hub.stamp(path)), 'dataset'
    source = path = os.path.expanduser(path)
    format = format_of(path)
    if format in ('gzip', 'zstd', 'utf-16'):
        source = decompressed(path, format)
        format = format_of(source, named=path)
    return (source if format in ('jsonl', 'json') else converted(path, format, source=source)), format


def format_of(path: str, named: str = '') -> str:
    """What a file holds: 'jsonl', 'json', 'csv', 'tsv', 'parquet', or in what it is wrapped: 'gzip', 'zstd', 'utf-16'.

    Args:
        named: the name by which the user knows the file, if it is another.

    Raises:
        UserError: the file cannot be read, is empty, or holds none of these.
    """
    named = named or path
    head = _head(path)
    if not head.removeprefix(_BOM).strip():
        raise UserError(f'{named} is empty. Set a file with rows.')
    return _format_of_text(head, suffix_of(named), named)


def is_rows(path: str) -> bool:
    """Whether a file has rows, by its name or content; otherwise it is plain text."""
    if hub.is_dataset(path) or suffix_of(path) in _SUFFIXES:
        return True
    head = _head(path).removeprefix(_BOM)
    return head.startswith(b'PAR1') or isinstance(_json_or_none(head.partition(b'\n')[0]), dict)


def has_row_suffix(path: str) -> bool:
    """Whether the name says that a file has rows, compressed or not."""
    return suffix_of(path) in _SUFFIXES


def is_plain_text(path: str) -> bool:
    """Whether the name says that a file is plain text: .txt, or compressed .txt.gz and .txt.zst."""
    return suffix_of(path) == '.txt'


def plain_text(path: str) -> str:
    """The file itself, or its content in the cache folder if it is compressed or UTF-16."""
    format = next((kind for magic, kind in _MAGIC.items() if _head(path).startswith(magic)), '')
    return decompressed(path, format) if format in ('gzip', 'zstd', 'utf-16') else path


def stem_of(path: str) -> str:
    """The name of a file without its folder and suffixes, or of a data set.

    >>> [stem_of('data/a.b.jsonl.gz'), stem_of('hf:openai/gsm8k,config=main')]
    ['a.b', 'gsm8k,config=main']
    """
    name = os.path.basename(path.rstrip('/'))
    if hub.is_dataset(path):
        return name
    root, suffix = os.path.splitext(name)
    return os.path.splitext(root)[0] if suffix.lower() in _COMPRESSED else root


def _head(path: str) -> bytes:
    try:
        return read_bytes(path, 0, _HEAD)
    except OSError as error:
        raise UserError(f'{path}: {error.strerror}. Set the path of a readable file.') from None


def suffix_of(path: str) -> str:
    """The suffix that names a format: '.jsonl' of 'a.jsonl.gz'."""
    root, suffix = os.path.splitext(path.lower())
    return os.path.splitext(root)[1] if suffix in _COMPRESSED else suffix


def _format_of_text(head: bytes, suffix: str, path: str) -> str:
    """The format of a file by its first bytes, and by its name where these leave it open."""
    if kind := next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None):
        return kind
    text = head.removeprefix(_BOM).lstrip()
    if problem := next((problem for magic, problem in _FOREIGN.items() if text.startswith(magic)), None):
        raise UserError(f'{path} is {problem}.')
    line, _, rest = text.partition(b'\n')
    if text.startswith(b'{') and suffix not in ('.csv', '.tsv'):
        return _json_or_lines(line.strip(), rest.strip(), suffix)
    if text.startswith(b'[') and suffix not in ('.csv', '.tsv'):
        return 'json'
    if suffix in ('.jsonl', '.json'):
        if not _is_table(line):
            return suffix[1:]  # the error names what is wrong with it
    elif suffix not in ('.csv', '.tsv', '.txt', '') or (suffix not in ('.csv', '.tsv') and not _is_table(line)):
        raise UserError(f'{path}: no rows are recognized in it. Set a file of {FORMATS}.')
    if b'\t' in line and (suffix != '.csv' or b',' not in line):
        return 'tsv'
    return 'csv' if suffix != '.tsv' or b',' in line else 'tsv'


def _is_table(line: bytes) -> bool:
    """Whether a first line names columns: 'id,text' or 'id<TAB>text'."""
    return re.fullmatch(rb'\s*"?[\w.\- ]+"?(?:[,\t;]"?[\w.\- ]+"?)+\s*', line) is not None


def _json_or_lines(line: bytes, rest: bytes, suffix: str) -> str:
    """Whether text that begins with '{' is a JSON object or JSON Lines."""
    if len(line) <= 1:
        return 'json'  # '{' alone: an object over several lines
    if isinstance(_json_or_none(line), dict):
        return 'json' if suffix == '.json' and not rest else 'jsonl'
    return 'json' if suffix == '.json' else 'jsonl'  # the line is broken, or longer than what was read


def _json_or_none(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _lines(path: str, named: str, unit: str, on_error: OnError | None, is_cells: bool = False) -> Iterator[Row]:
    """The rows of a file of JSON Lines; `named` is the file that the user knows."""
    offset = 0
    with open(path, 'rb') as file:
        for number, line in enumerate(file, 1):
            if line.removeprefix(_BOM).strip():
                where = f'{named} {unit} {number}'
                try:
                    value = parse_row(line, where, f'One JSON object per {unit} is expected.')
                    yield Row(where, number, path, offset, line, value, is_cells)
                except UserError as error:
                    _report(where, error, on_error)
            offset += len(line)


def parse_row(data: bytes, where: str, fix: str = 'Fix the file.') -> dict[str, Any]:
    """The value of a row from its JSON.

    Raises:
        UserError: it is not a JSON object; names `where`.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f'{where}: not JSON ({json_error(error)}). {fix}') from None
    if not isinstance(value, dict):
        raise UserError(f'{where}: is {type(value).__name__}, not a JSON object with fields. {fix}')
    if BAD_ROW in value:
        raise UserError(f'{where}: {value[BAD_ROW]}')
    return value


def _values(path: str, named: str, on_error: OnError | None) -> Iterator[Row]:
    """The rows of a file of JSON: a list of rows, an object keyed by id, or an object with one list of rows."""
    with JsonWalker(path, named) as walker:
        if walker.peek() not in '[{':
            raise UserError(f'{named}: begins with {walker.peek()!r}, expected a list or object of rows. Fix the file.')
        found = 0
        scalars: list[str] = []
        for where, offset, size in _places(walker, named, walker.peek() == '[', scalars):
            found += 1
            try:
                data = walker.bytes_of(offset, size)
                value = parse_row(data, where, 'A list or object of rows is expected.')
                yield Row(where, found, path, offset, data, value, False)
            except UserError as error:
                _report(where, error, on_error)
        if scalars and not found:
            raise UserError(f'{scalars[0]}: is not a row. Write a list of rows, or an object of rows keyed by id.')
        if walker.peek() != ' ':
            raise UserError(f'{named}: more text after the end of the JSON value. Fix the file.')


def _places(walker: JsonWalker, named: str, is_list: bool, scalars: list[str]) -> Iterator[tuple[str, int, int]]:
    """(where, offset, size) of every row. `scalars` gets the members of an object that are neither rows nor lists."""
    keyed = False
    for number, key in enumerate(walker.members(), 1):
        where = f'{named} row {number}' if is_list else f'{named} {key!r}'
        if is_list or walker.peek() == '{':
            keyed = keyed or not is_list
            yield where, *walker.skip_value(where)
        elif walker.peek() == '[':
            is_rows = True  # otherwise a list of texts or numbers about the data, such as BIG-bench's 'keywords'
            for inner, _ in enumerate(walker.members(), 1):
                place = f'{where} row {inner}'
                is_rows = is_rows if inner > 1 else walker.peek() == '{'
                span = walker.skip_value(place)
                if is_rows:
                    yield place, *span
            if not is_rows:
                scalars.append(where)
        else:
            walker.skip_value(where)
            scalars.append(where)
        if keyed and scalars:
            raise UserError(f'{scalars[0]}: is not a row, as the others are. Fix the file.')


def _report(where: str, error: UserError, on_error: OnError | None) -> None:
    if on_error is None:
        raise error
    on_error(where, error)
