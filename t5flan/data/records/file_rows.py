"""Records that stay in their files: each is read from its byte offset when it is asked for."""

import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from t5flan.errors import UserError


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
        named: the names of the files for `parse`, if they are not their paths.
    """

    def __init__(
        self,
        paths: Sequence[str],
        rows: np.ndarray,
        parse: Callable[..., dict[str, Any]],
        named: Sequence[str] | None = None,
    ) -> None:
        self._paths, self._rows, self._parse, self._named = list(paths), rows, parse, list(named or paths)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        file, offset, size, *numbers = self._rows[index].tolist()
        try:
            data = read_bytes(self._paths[file], offset, size)
        except OSError as error:
            raise UserError(f'{self._named[file]}: {error.strerror} while it was read. Put the file back.') from None
        return self._parse(data, self._named[file], *numbers)


def read_bytes(path: str, offset: int, size: int) -> bytes:
    """Part of a file; shorter where the file ends before."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # a third of the time of open(), which asks much about the file
    try:
        data = os.pread(file, size, offset)
        while len(data) < size and (more := os.pread(file, size - len(data), offset + len(data))):
            data += more
        return data
    finally:
        os.close(file)
