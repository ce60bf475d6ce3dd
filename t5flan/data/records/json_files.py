"""JSON files of any size: values with their byte offsets, found without holding the file in memory."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from t5flan.data.records.file_rows import read_bytes
from t5flan.errors import UserError

_WINDOW = 4 * 2**20
_LONGEST = 256 * 2**20  # bytes of one value: a longer one means that the file's brackets do not pair
_SPACE = ' \t\r\n'
_ENDS = tuple(' \t\r\n,]}:')


def parse_json(data: bytes, where: str) -> Any:
    """The value of some JSON; raises a UserError if it is not JSON, or not UTF-8."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f'{where}: not JSON ({json_error(error)}). Fix the file.') from None


def json_error(error: ValueError | RecursionError) -> str:
    """What is wrong with some JSON, in a few words."""
    if isinstance(error, RecursionError):
        return 'it is nested too deeply'
    if isinstance(error, json.JSONDecodeError):
        return error.msg
    return 'not UTF-8' if isinstance(error, UnicodeError) else str(error).partition(';')[0]


def load_json(path: str | Path) -> Any:
    """The value of a whole file; raises a UserError if it cannot be read, or is not JSON."""
    try:
        return parse_json(Path(path).read_bytes(), str(path))
    except OSError as error:
        raise UserError(f'{path}: {error.strerror}. Set the path of a readable file.') from None


def read_json(path: str, offset: int, size: int, where: str = '') -> Any:
    """The value at a place that `JsonWalker.skip_value` returned."""
    return parse_json(read_bytes(path, offset, size), where or path)


class JsonWalker:
    """Walks through a JSON file value by value with a window of it in memory; offsets are in bytes.

    Bytes are decoded as Latin-1, one character each: JSON's own characters are ASCII, and no byte of a longer UTF-8
    character is ASCII, so Python's fast decoder finds where a value ends, in bytes.
    """

    def __init__(self, path: str | Path, named: str = '') -> None:
        """Opens `path`, which messages call `named`."""
        self._path = named or str(path)
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
            except (ValueError, RecursionError) as error:
                if isinstance(error, RecursionError) or len(self._text) - self._at > _LONGEST or not self._more():
                    raise UserError(f'{where}: not JSON ({json_error(error)}). Fix the file.') from None
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
