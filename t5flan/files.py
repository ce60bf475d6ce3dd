"""Files, local and in buckets: paths, writes that appear whole or not at all, and the cache folder."""

import contextlib
import json
import os
import pathlib
import uuid
from collections.abc import Iterator
from typing import IO, Any

PathLike = str | os.PathLike[str]


def to_path(path: PathLike) -> pathlib.Path:
    """A local path, or an `epath.Path` with the same methods for a bucket (gs://...)."""
    if isinstance(path, pathlib.PurePath):
        return path  # an epath.Path is one too
    if '://' not in os.fspath(path):
        return pathlib.Path(path)
    from etils import epath  # only buckets need it

    return epath.Path(path)


@contextlib.contextmanager
def open_whole(path: PathLike, mode: str = 'w') -> Iterator[IO[Any]]:
    """Opens a file for writing that appears under its name, whole, when the block ends without an error.

    The parent folder is created. After an error nothing is left behind and an existing file keeps its content. Text is
    UTF-8 with '\\n' line ends.

    Args:
        path: the file; in a bucket, objects appear whole by themselves.
        mode: 'w' for text, 'wb' for bytes.
    """
    target = to_path(path)
    text = {} if 'b' in mode else {'encoding': 'utf-8'}
    target.parent.mkdir(parents=True, exist_ok=True)
    if '://' in os.fspath(target):
        with target.open(mode, **text) as file:
            yield file
        return
    temporary = pathlib.Path(target.parent, f'.{target.name}.{uuid.uuid4().hex[:8]}.tmp')
    try:
        with open(temporary, mode, **text, **({'newline': '\n'} if text else {})) as file:
            yield file
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_whole(path: PathLike, content: str | bytes) -> None:
    """Writes `content` to `path`, whole or not at all: no reader ever sees half a file."""
    with open_whole(path, 'w' if isinstance(content, str) else 'wb') as file:
        file.write(content)


def write_json(path: PathLike, value: Any, indent: int = 1) -> None:
    """Writes `value` as JSON, whole or not at all."""
    write_whole(path, json.dumps(value, indent=indent, ensure_ascii=False) + '\n')


def cache_folder() -> pathlib.Path:
    """Where indexes and compiled programs are kept between runs: $XDG_CACHE_HOME/t5flan, by default ~/.cache/t5flan."""
    return pathlib.Path(os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache') / 't5flan'
