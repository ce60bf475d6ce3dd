"""Local and bucket files: paths, writes that appear whole or not at all, and the cache folder."""

import contextlib
import json
import os
import pathlib
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from typing import IO, Any, cast

PathLike = str | os.PathLike[str]


def to_path(path: PathLike) -> pathlib.Path:
    """A local path, or for a bucket (gs://...) an `epath.Path`, which has the same methods."""
    if isinstance(path, pathlib.PurePath):
        return cast(pathlib.Path, path)  # may be an epath.Path already
    if '://' not in os.fspath(path):
        return pathlib.Path(path)
    from etils import epath  # only buckets need it

    return cast(pathlib.Path, epath.Path(path))


@contextlib.contextmanager
def open_whole(path: PathLike, mode: str = 'w') -> Iterator[IO[Any]]:
    r"""Opens a file for writing that appears under its name, complete, when the block ends without an error.

    Parent folders are created. After an error nothing is left behind and an existing file keeps its content. Text is
    written as UTF-8 with '\n' line ends.

    Args:
        path: the file; in a bucket, the content is collected locally and uploaded at the end of the block.
        mode: 'w' for text, 'wb' for bytes.
    """
    target = to_path(path)
    encoding, newline = (None, None) if 'b' in mode else ('utf-8', '\n')
    target.parent.mkdir(parents=True, exist_ok=True)
    if '://' in os.fspath(target):
        with tempfile.TemporaryFile(f'{mode}+', encoding=encoding, newline=newline) as local:
            yield local
            local.seek(0)
            with target.open(mode, encoding=encoding) as file:
                shutil.copyfileobj(local, file, 2**24)
        return
    temporary = pathlib.Path(target.parent, f'.{target.name}.{uuid.uuid4().hex[:8]}.tmp')
    try:
        with open(temporary, mode, encoding=encoding, newline=newline) as file:
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
    """Writes `value` as UTF-8 JSON, whole or not at all; half a character (a lone surrogate) is escaped."""
    text = json.dumps(value, indent=indent, ensure_ascii=False) + '\n'
    write_whole(path, text.encode('utf-8', 'backslashreplace'))


def cache_folder() -> pathlib.Path:
    """The folder for indexes and compiled programs: $XDG_CACHE_HOME/t5flan, by default ~/.cache/t5flan."""
    return pathlib.Path(os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache') / 't5flan'
