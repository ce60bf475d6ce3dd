"""Local and bucket files: paths, writes that appear whole or not at all, and the cache folder."""

import contextlib
import io
import json
import os
import pathlib
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import IO, Any, Protocol, cast

from t5flan.errors import OUT_OF_SPACE, UserError
from t5flan.files.partial import partial_path
from t5flan.files.partial import remove_partial as remove_partial

PathLike = str | os.PathLike[str]
LARGEST_JSON = 2**26
"""Bytes of a JSON file that describes a model, a tokenizer or a run."""


def to_path(path: PathLike) -> pathlib.Path:
    """A local path, or for a bucket (gs://...) an `epath.Path`, which has the same methods."""
    if isinstance(path, pathlib.PurePath):
        return cast(pathlib.Path, path)  # may be an epath.Path already
    if '://' not in os.fspath(path):
        return pathlib.Path(path)
    from t5flan.files.buckets import epath  # only buckets need it

    return cast(pathlib.Path, epath.Path(path))


@contextlib.contextmanager
def open_whole(path: PathLike, mode: str = 'w') -> Iterator[IO[Any]]:
    r"""Opens a file for writing that appears under its name, complete, when the block ends without an error.

    Parent folders are created. After an error nothing is left behind and an existing file keeps its content. Text is
    written as UTF-8 with '\n' line ends.

    Args:
        path: the file; in a bucket, the content is collected locally and uploaded at the end of the block.
        mode: 'w' for text, 'wb' for bytes.

    Raises:
        UserError: the path is of a folder, a device or a pipe.
    """
    target = to_path(path)
    check_output(target)
    # Half a character (a lone surrogate), which no UTF-8 can hold, is escaped.
    encoding, newline, errors = (None, None, None) if 'b' in mode else ('utf-8', '\n', 'backslashreplace')
    target.parent.mkdir(parents=True, exist_ok=True)
    if '://' in os.fspath(target):
        with tempfile.TemporaryFile(f'{mode}+', encoding=encoding, newline=newline, errors=errors) as local:
            yield local
            local.seek(0)
            with target.open(mode, encoding=encoding) as file:
                shutil.copyfileobj(local, file, 2**24)
        return
    temporary = partial_path(target)
    try:
        with open(temporary, mode, encoding=encoding, newline=newline, errors=errors) as file:
            yield file
        os.replace(temporary, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in OUT_OF_SPACE and not error.filename:
            raise OSError(error.errno, error.strerror, os.fspath(target)) from None
        if isinstance(error, OSError) and error.filename == os.fspath(temporary):
            raise OSError(error.errno, error.strerror, os.fspath(target)) from None
        raise


def remove_folders(folder: PathLike, suffix: str, quiet: float = 0.0, patience: float = 10.0) -> None:
    """Removes the folders right in a local folder whose names end in `suffix`; those that cannot be removed stay.

    Args:
        folder: a folder in a bucket is left as it is.
        suffix: the end of the names.
        quiet: seconds without such a folder before this returns, where threads may still write into one.
        patience: seconds after which it returns in any case.
    """
    target = to_path(folder)
    if '://' in os.fspath(target) or not target.is_dir():
        return
    began = since = time.monotonic()
    while True:
        for path in target.iterdir():
            if path.name.endswith(suffix):
                shutil.rmtree(path, ignore_errors=True)
                since = time.monotonic()
        now = time.monotonic()
        if now - since >= quiet or now - began >= patience:
            return
        time.sleep(0.05)


def check_output(path: PathLike, setting: str = '') -> None:
    """Requires that a path can be a file that is written: not empty, and neither a folder nor a device or pipe.

    Args:
        path: a local path or one in a bucket, of which nothing is checked.
        setting: the flag that names it, for messages.

    Raises:
        UserError: it cannot.
    """
    text = os.fspath(path)
    given, fix = (f'{setting}={text}', f'Set {setting}.') if setting else (text, 'Name another file.')
    if not text.strip():
        raise UserError(f'{given} is empty, expected a file name; is a variable of the shell unset? {fix}')
    if '://' in text:
        return
    try:
        mode = os.stat(text).st_mode
    except OSError:  # it does not exist yet
        return
    if not stat.S_ISREG(mode):
        kind = 'a folder' if stat.S_ISDIR(mode) else 'a device or pipe'
        raise UserError(f'{given} is {kind}, expected a file. {fix}')


def check_folder(path: PathLike, setting: str) -> None:
    """Requires that a path can be a folder that a run writes: not empty, not the root of the file system, not a file.

    Raises:
        UserError: it cannot, or it has characters that Orbax cannot read back.
    """
    text = os.fspath(path)
    if not text.strip():
        raise UserError(f'{setting}= is empty, expected a folder; is a variable of the shell unset? Set {setting}.')
    if '://' in text:
        return
    if os.path.realpath(text) == os.sep:
        raise UserError(f'{setting}={text} is the root of the file system. Set {setting} to a folder of its own.')
    if os.path.lexists(text) and not os.path.isdir(text):
        raise UserError(f'{setting}={text} is not a folder. Set {setting} to a folder, or to a path that is free.')
    whole = os.path.abspath(text)
    if found := next((character for character in '[]*?' if character in whole), None):
        raise UserError(
            f'{setting}={text} has {found!r} in its path ({whole}): Orbax cannot read checkpoints back from there. '
            f'Set {setting} to a path without [ ] * ?.'
        )


def check_links(folder: PathLike, parts: Sequence[str] = ('',), plain: Sequence[str] = ()) -> None:
    """Refuses symbolic links inside a folder that lead out of it: what a stranger's folder names stays inside it.

    A snapshot in the cache of the Hugging Face hub may link to the blobs of its own model.

    Args:
        parts: the files and folders in it to look at, those in them too; '' is all. Missing ones are skipped.
        plain: files in it that must not be links at all, because they are written.

    Raises:
        UserError: there is one; the message names it.
    """
    root = os.fspath(folder)
    if '://' in root or not os.path.isdir(root):
        return
    for name in plain:
        if os.path.islink(path := os.path.join(root, name)):
            raise UserError(
                f'{path} is a link, to {os.readlink(path)}, and would be written. Put the file there itself.'
            )
    inside = os.path.realpath(root)
    if os.path.basename(os.path.dirname(inside)) == 'snapshots':
        inside = os.path.dirname(os.path.dirname(inside))
    for part in parts:
        top = os.path.join(root, part)
        below = ([here, *folders, *files] for here, folders, files in os.walk(top))
        found = (os.path.join(here, name) for here, *names in below for name in names)
        for path in (top, *found) if part else found:
            if os.path.islink(path) and not _is_inside(target := os.path.realpath(path), inside):
                raise UserError(f'{path} is a link that leads out of {root}, to {target}. Copy the content there.')


def _is_inside(path: str, folder: str) -> bool:
    return os.path.commonpath([folder, path]) == folder


class Appender(Protocol):
    """A file that grows by whole lines; see `open_append`."""

    def write(self, data: bytes) -> object:
        """Appends all of `data`, or nothing after an error."""

    def flush(self) -> None:
        """Returns once everything is in the file: in a bucket, some of it waits for a moment."""

    def close(self) -> None:
        """Flushes and closes."""


def open_append(path: PathLike, size: int | None = None) -> Appender:
    """Opens a file to append to it; a new one is created.

    Args:
        path: local, or in a bucket, whose objects cannot grow: there the whole object is sent again, at most every few
            seconds.
        size: how many bytes of the file to keep; None is all.
    """
    target = to_path(path)
    if '://' in os.fspath(target):
        from t5flan.files.gcs import GrowingObject

        return GrowingObject(os.fspath(target), size)
    return _LocalAppender(target, size)


class _LocalAppender:
    def __init__(self, path: pathlib.Path, size: int | None) -> None:
        self._file = open(path, 'ab', buffering=0)  # noqa: SIM115 (`close` closes it)
        if size is not None and size < os.fstat(self._file.fileno()).st_size:
            self._file.truncate(size)

    def write(self, data: bytes) -> None:
        append_whole(self._file, data)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self._file.close()


def size_of(path: PathLike) -> int:
    """Bytes of a file, local or in a bucket; 0 if there is none."""
    try:
        found: Any = to_path(path).stat()
    except FileNotFoundError:
        return 0
    return int(found.st_size if hasattr(found, 'st_size') else found.length)


def append_whole(file: io.FileIO, data: bytes) -> None:
    """Appends `data` to a local file that was opened unbuffered with mode 'ab': all of it, or nothing after an error.

    Raises:
        OSError: the disk is full, for example; it names the file.
    """
    size, left = os.fstat(file.fileno()).st_size, memoryview(data)
    try:
        while left:
            left = left[file.write(left) :]
    except OSError as error:
        os.ftruncate(file.fileno(), size)
        raise OSError(error.errno, error.strerror, file.name) from None


def write_whole(path: PathLike, content: str | bytes) -> None:
    """Writes `content` to `path`, whole or not at all: no reader ever sees half a file."""
    with open_whole(path, 'w' if isinstance(content, str) else 'wb') as file:
        file.write(content)


def write_json(path: PathLike, value: Any, indent: int = 1) -> None:
    """Writes `value` as UTF-8 JSON, whole or not at all; half a character (a lone surrogate) is escaped."""
    text = json.dumps(value, indent=indent, ensure_ascii=False) + '\n'
    write_whole(path, text.encode('utf-8', 'backslashreplace'))


def read_object(path: PathLike, kind: str = 'a JSON object', fix: str = 'Restore it.') -> dict[str, Any]:
    """The object in a small JSON file, which may be somebody else's.

    Args:
        path: a local file, or one in a bucket.
        kind: what it should be, for messages.
        fix: how to fix an error, for messages.

    Raises:
        UserError: the file is missing, huge, not JSON, or something other than an object.
    """
    try:
        with to_path(path).open('rb') as file:
            content = file.read(LARGEST_JSON + 1)
    except OSError as error:
        raise UserError(f'{os.fspath(path)} is not {kind} ({error.strerror or error}). {fix}') from None
    return parse_object(path, content, kind, fix)


def parse_object(
    path: PathLike, content: bytes, kind: str = 'a JSON object', fix: str = 'Restore it.'
) -> dict[str, Any]:
    """The object in the content of a JSON file; see `read_object`."""
    try:
        if len(content) > LARGEST_JSON:
            raise ValueError(f'it has more than {LARGEST_JSON:,} bytes')
        value = json.loads(content)
        if not isinstance(value, dict):
            raise ValueError(f'it holds a {type(value).__name__}, expected an object')
        return value
    except (ValueError, RecursionError) as error:
        raise UserError(f'{os.fspath(path)} is not {kind} ({" ".join(str(error).split())[:100]}). {fix}') from None


def cache_folder() -> pathlib.Path:
    """The folder for indexes and compiled programs: $XDG_CACHE_HOME/t5flan, by default ~/.cache/t5flan."""
    return pathlib.Path(os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache') / 't5flan'
