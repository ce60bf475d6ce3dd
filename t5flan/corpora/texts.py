"""Texts of a corpus for the corpus tools: read from files, split into parts, put back into their rows."""

import json
import os
import re
from collections.abc import Iterator, Sequence
from typing import IO, Any, NamedTuple

from t5flan.data.corpus_config import TEXT_UNITS
from t5flan.data.records.fields import replace_field, require_field
from t5flan.data.records.hub import is_dataset
from t5flan.data.records.rows import is_plain_text, plain_text, read_rows
from t5flan.data.records.text_files import match_texts, plain_texts
from t5flan.errors import UserError
from t5flan.files import open_whole

_WHOLE = 2**62  # characters: documents are not cut
SHOWN = 100
"""Entries of a list that a report shows if the list itself is written to a file."""
PARTS = ('text', 'paragraph', 'line')
_ENDS = {'paragraph': re.compile(r'\n[ \t]*\r?\n\s*'), 'line': re.compile(r'\n')}


class Text(NamedTuple):
    """A text of a corpus."""

    where: str
    """Its place, such as 'a.jsonl line 3'."""
    row: dict[str, Any]
    """The row that holds it, with its other fields."""
    text: str


def match_inputs(patterns: Sequence[str], unit: str = 'document') -> list[str]:
    """The files of paths and globs, in order.

    Raises:
        UserError: one matches no file or other files than text and rows, or there is no such unit.
    """
    if unit not in TEXT_UNITS:
        raise UserError(f'--unit={unit} is not one of {", ".join(TEXT_UNITS)}. Set --unit.')
    return [path for pattern in patterns for path in match_texts(pattern, '--input')]


def check_output(output: str, inputs: Sequence[str], report_file: str | None = None) -> None:
    """Raises a UserError if the output is not a .jsonl file, or one file would overwrite another or an input."""
    files = {os.path.realpath(path) for path in inputs if not is_dataset(path)}
    if os.path.realpath(output) in files or not output.endswith('.jsonl'):
        raise UserError(f'--output={output} must be a .jsonl file and not one of the inputs. Set --output.')
    if report_file is not None and os.path.realpath(report_file) in {*files, os.path.realpath(output)}:
        raise UserError(f'--json={report_file} must not be one of the inputs or the output. Set --json.')


def read_texts(paths: Sequence[str], field: str, unit: str) -> Iterator[Text]:
    """Every text of the files, in order.

    Raises:
        UserError: a row lacks the field, or its value is not text.
    """
    for path in paths:
        if is_plain_text(path):
            for number, (_, _, text) in enumerate(plain_texts(plain_text(path), unit, _WHOLE, named=path), 1):
                yield Text(f'{path} {unit} {number}', {field: text}, text)
            continue
        for row in read_rows(path):
            text = require_field(row.value, field, row.where, '--field')
            yield Text(row.where, row.value, text)


def split_text(text: str, part: str) -> list[str]:
    r"""The paragraphs or lines of a text, each with what separates it from the next; 'text' does not split.

    >>> split_text('one\n\ntwo', 'paragraph')
    ['one\n\n', 'two']
    """
    if part not in _ENDS:
        return [text]
    cuts = [0, *(match.end() for match in _ENDS[part].finditer(text)), len(text)]
    return [text[start:end] for start, end in zip(cuts[:-1], cuts[1:], strict=True) if start < end] or [text]


def write_row(file: IO[bytes], text: Text, field: str, changed: str) -> None:
    """Writes the row of a text as a line of JSON, with the text as it was changed."""
    if changed != text.text:
        replace_field(text.row, field, changed)
    file.write(_json(text.row) + b'\n')


class ReportFile:
    """Writes a report while its list 'removed' is found, so that the list need not fit in memory."""

    def __init__(self, path: str) -> None:
        self._file = open_whole(path, 'wb')
        self._count = 0

    def __enter__(self) -> 'ReportFile':
        self._out = self._file.__enter__()
        self._out.write(b'{"removed": [')
        return self

    def add(self, removed: dict[str, Any]) -> None:
        """Writes one entry of the list."""
        self._out.write((b',\n' if self._count else b'\n') + _json(removed))
        self._count += 1

    def finish(self, report: dict[str, Any]) -> None:
        """Writes the rest of the report."""
        rest = {name: value for name, value in report.items() if name != 'removed'}
        self._out.write(b'\n],\n' + _json(rest)[1:] + b'\n')

    def __exit__(self, *error: Any) -> None:
        self._file.__exit__(*error)


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode('utf-8', 'backslashreplace')
