"""Indexes of large files, kept between runs: a file is scanned again only when its size or modification time changes.

Indexes are stored in ~/.cache/t5flan (or $XDG_CACHE_HOME/t5flan), not beside the file. Without them every start scans
the file again.
"""

import contextlib
import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from t5flan.data.randomness import stable_hash
from t5flan.files import cache_folder, write_whole

SMALLEST = 4 * 2**20
"""Files of fewer bytes are always scanned: it takes no time."""


class FileIndex(NamedTuple):
    """Rows of numbers, and any JSON value."""

    rows: np.ndarray
    """int64 [R, n]"""
    info: Any = None


def file_index(path: str, kind: str, make: Callable[[], FileIndex]) -> FileIndex:
    """The index of a file: the stored one if the file has not changed since, else the result of `make`.

    Args:
        kind: purpose and version of the index, e.g. 'chat-1'.
    """
    status = os.stat(path)
    if status.st_size < SMALLEST:
        return make()
    place = cache_file(kind, path, '.npz')
    stamp = f'{os.path.abspath(path)} {status.st_size} {status.st_mtime_ns}'
    try:
        with np.load(place, allow_pickle=False) as stored:
            if str(stored['stamp']) == stamp:
                return FileIndex(stored['rows'], json.loads(str(stored['info'])))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):  # missing, or written by another program
        pass
    made = make()
    data = io.BytesIO()
    np.savez(data, stamp=np.array(stamp), rows=made.rows, info=np.array(json.dumps(made.info)))
    store(place, data.getvalue())
    return made


def cache_file(kind: str, path: str, suffix: str) -> Path:
    """Where the index of a file or folder is stored."""
    return cache_folder() / f'{kind}-{stable_hash(os.path.abspath(path)):016x}{suffix}'


def store(place: Path, data: bytes) -> None:
    """Writes to the cache folder if it is writable."""
    with contextlib.suppress(OSError):  # the next start makes the content again
        write_whole(place, data)
