"""What was found by walking a large file, kept for the next start: it is walked again only when its size or time changes.

The index lies in ~/.cache/t5flan (or $XDG_CACHE_HOME/t5flan), never beside the file; without it the walk takes its time again.
"""

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
"""Bytes of a file whose index is worth keeping: smaller ones are walked in no time."""


class FileIndex(NamedTuple):
    """Rows of numbers, and whatever else JSON can hold."""

    rows: np.ndarray
    """int64 [R, n]"""
    info: Any = None


def file_index(path: str, kind: str, make: Callable[[], FileIndex]) -> FileIndex:
    """The index of a file as `make` makes it, or as it was kept.

    Args:
        kind: what the index is for and its version, e.g. 'chat-1'.
    """
    status = os.stat(path)
    if status.st_size < SMALLEST:
        return make()
    place = cache_file(kind, path, '.npz')
    stamp = f'{os.path.abspath(path)} {status.st_size} {status.st_mtime_ns}'
    try:
        with np.load(place, allow_pickle=False) as kept:
            if str(kept['stamp']) == stamp:
                return FileIndex(kept['rows'], json.loads(str(kept['info'])))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):  # not there, or another program's
        pass
    made = make()
    data = io.BytesIO()
    np.savez(data, stamp=np.array(stamp), rows=made.rows, info=np.array(json.dumps(made.info)))
    keep(place, data.getvalue())
    return made


def cache_file(kind: str, path: str, suffix: str) -> Path:
    """Where the index of a file or folder is kept."""
    return cache_folder() / f'{kind}-{stable_hash(os.path.abspath(path)):016x}{suffix}'


def keep(place: Path, data: bytes) -> None:
    """Writes an index, where the home can be written."""
    try:
        write_whole(place, data)
    except OSError:  # the next start walks the file again
        pass
