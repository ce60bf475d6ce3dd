"""Rows of JSON files with their byte offsets: a file of any size is scanned once, and its rows are read on demand.

A .jsonl file has one row per line; a .json file is a list of rows, or an object whose values are the rows.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from t5flan.data.records.file_rows import read_bytes
from t5flan.data.records.text_files import json_lines
from t5flan.errors import UserError

_WINDOW = 4 * 2**20
_LONGEST = 256 * 2**20  # bytes of one value: a longer one means that the file's brackets do not pair
_SPACE = ' \t\r\n'
_ENDS = tuple(' \t\r\n,]}:')


class Row(NamedTuple):
    """One value of a file and its place."""

    where: str
    """'FILE line 3', 'FILE row 3' (from 1) or "FILE 'KEY'"."""
    offset: int
    size: int
    value: Any


def json_rows(path: str) -> Iterator[Row]:
    """Every row of a .jsonl or .json file.

    Raises:
        UserError: the file is not JSON; the message names the line or row.
    """
    if path.endswith('.jsonl'):
        for number, offset, line in json_lines(path):
            where = f'{path} line {number}'
            yield Row(where, offset, len(line), parse_json(line, where))
        return
    with JsonWalker(path) as walker:
        if walker.peek() not in '[{':
            raise UserError(f'{path}: begins with {walker.peek()!r}, expected a list or object of rows. Fix the file.')
        is_list = walker.peek() == '['
        for number, key in enumerate(walker.members(), 1):
            where = f'{path} row {number}' if is_list else f'{path} {key!r}'
            offset, size = walker.skip_value(where)
            yield Row(where, offset, size, parse_json(walker.bytes_of(offset, size), where))


def parse_json(data: bytes, where: str) -> Any:
    """The value of some JSON; raises a UserError if it is not JSON, or not UTF-8."""
    try:
        return json.loads(data)
    except ValueError as error:
        raise UserError(f'{where}: not JSON ({getattr(error, "msg", "not UTF-8")}). Fix the file.') from None


def load_json(path: str | Path) -> Any:
    """The value of a whole file; raises a UserError if it cannot be read, or is not JSON."""
    try:
        return parse_json(Path(path).read_bytes(), str(path))
    except OSError as error:
        raise UserError(f'{path}: {error.strerror}. Set the path of a readable file.') from None


def read_json(path: str, offset: int, size: int, where: str = '') -> Any:
    """The value at a place that `json_rows` returned."""
    return parse_json(read_bytes(path, offset, size), where or path)


class JsonWalker:
    """Walks through a JSON file value by value with a window of it in memory; offsets are in bytes.

    Bytes are decoded as Latin-1, one character each: JSON's own characters are ASCII, and no byte of a longer UTF-8
    character is ASCII, so Python's fast decoder finds where a value ends, in bytes.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = str(path)
        try:
            self._file = open(path, 'rb')  # noqa: SIM115  # closed by __exit__
        except OSError as error:
            raise UserError(f'{path}: {error.strerror}. Set the path of a readable file.') from None
        self._first = 0  # offset of the window
        self._text = self._file.read(_WINDOW).decode('latin-1')
        self._at = 3 if self._text.startswith('\xef\xbb\xbf') else 0  # a byte order mark
        self._decoder = json.JSONDecoder(strict=False)

    def __enter__(self) -> 'JsonWalker':
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()

    def peek(self) -> str:
        """The next character that is not white space; ' ' at the end of the file."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1] or ' '

    def members(self) -> Iterator[str]:
        """Iterates over the list or object that starts here: yields each key ('' in a list) before its value.

        The caller must consume the value (`skip_value`, `value`, `members`) before the next key.
        """
        close = ']' if self.peek() == '[' else '}'
        self._take('[{')
        if self.peek() == close:
            self._take(close)
            return
        while True:
            key = self.value('a key') if close == '}' else ''
            if close == '}':
                self._take(':')
            yield key
            if self._take(',' + close) == close:
                return

    def skip_value(self, where: str) -> tuple[int, int]:
        """Moves past the value here; returns its (offset, size). Raises a UserError if it is not JSON."""
        self.peek()
        while True:
            try:
                _, end = self._decoder.raw_decode(self._text, self._at)
                if self._text[end : end + 1] in _ENDS or not self._more():  # a number may continue beyond the window
                    break
            except ValueError as error:
                if len(self._text) - self._at > _LONGEST or not self._more():
                    message = getattr(error, 'msg', str(error))
                    raise UserError(f'{where}: not JSON ({message}). Fix the file.') from None
        start, self._at = self._at, end
        return self._first + start, end - start

    def value(self, where: str) -> Any:
        """Moves past the value here and returns it."""
        return parse_json(self.bytes_of(*self.skip_value(f'{self._path} {where}')), f'{self._path} {where}')

    def bytes_of(self, offset: int, size: int) -> bytes:
        """The bytes of the last skipped value."""
        start = offset - self._first
        return self._text[start : start + size].encode('latin-1')

    def _take(self, expected: str) -> str:
        found = self.peek()
        if found not in expected:
            problem = f'found {found.strip() or "the end"!r}, expected one of {" ".join(expected)}'
            raise UserError(f'{self._path} byte {self._first + self._at}: not JSON ({problem}). Fix the file.')
        self._at += 1
        return found

    def _more(self) -> bool:
        """Reads on and drops the text before the current position; False at the end of the file."""
        data = self._file.read(max(_WINDOW, len(self._text) - self._at))
        if not data:
            return False
        self._first += self._at
        self._text, self._at = self._text[self._at :] + data.decode('latin-1'), 0
        return True
