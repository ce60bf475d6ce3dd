"""Records that stay in their files: each is read from its byte offset when it is asked for."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np


class Records(Protocol):
    """Records by number: a list of dicts, or a class that reads them on demand."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, Any]: ...


class FileRows:
    """Records of files as a sequence; only their byte offsets are in memory.

    Args:
        paths: the files.
        rows: [R, 3 + n] int64: number of the file, first byte, length in bytes, and n numbers for `parse`.
        parse: makes a record of (bytes, path, *numbers).
    """

    def __init__(self, paths: Sequence[str], rows: np.ndarray, parse: Callable[..., dict[str, Any]]) -> None:
        self._paths, self._rows, self._parse = list(paths), rows, parse

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        file, offset, size, *numbers = self._rows[index].tolist()
        path = self._paths[file]
        return self._parse(read_bytes(path, offset, size), path, *numbers)


def read_bytes(path: str, offset: int, size: int) -> bytes:
    """Part of a file."""
    with open(path, 'rb') as file:
        file.seek(offset)
        return file.read(size)
