"""The files that a setting names: one path, or a glob."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from t5flan.errors import UserError
from t5flan.files import cache_folder


def match_files(pattern: str, setting: str, suffixes: Sequence[str] = ()) -> list[str]:
    """The files of a path or glob, sorted; `~` is the home folder, and objects of gs:// are copied to the cache first.

    What exists under the very name is taken literally, so that names may contain `[`, `]`, `*`, `?`, `{`, `}` and `#`.

    Args:
        setting: the setting that gave the pattern, for messages.
        suffixes: the suffixes that a name must end in; () allows any.

    Raises:
        UserError: there is no file, one is empty or not a file, or a name has another suffix.
    """
    paths = _fetch(pattern, setting) if pattern.startswith('gs://') else _expand(os.path.expanduser(pattern))
    if not paths:
        raise UserError(f'{setting}={pattern!r} matches no file. Fix the glob in {setting}.')
    for path in paths:
        _check(path, setting, suffixes)
    return paths


def _fetch(pattern: str, setting: str) -> list[str]:
    """Copies of objects in a bucket, in the cache folder: libraries read local files."""
    from t5flan.files.buckets import match_objects
    from t5flan.files.gcs import local_copy

    names = match_objects(pattern) if glob.has_magic(pattern) else [pattern]
    try:
        return [local_copy(name, cache_folder() / 'buckets') for name in names]
    except FileNotFoundError as error:
        raise UserError(f'{error.filename}: no such file. Set {setting} to a file that exists.') from None


def find_under(pattern: str, folders: Sequence[str]) -> str:
    """A relative path or glob, under the first of `folders` that has it if the current folder has not."""
    expanded = os.path.expanduser(pattern)
    places = [] if os.path.isabs(expanded) else [os.path.join(folder, expanded) for folder in folders]
    found = (place for place in (expanded, *places) if any(os.path.exists(path) for path in _expand(place)))
    return next(found, pattern)


def _expand(pattern: str) -> list[str]:
    if os.path.lexists(pattern) or not glob.has_magic(pattern):
        return [pattern]
    # Folders that exist under the very name are literal, e.g. 'data [v2]' in 'data [v2]/*.jsonl'.
    literal, parts = '', pattern.split(os.sep)
    while parts and os.path.isdir(os.path.join(literal, parts[0]) if literal else parts[0] or os.sep):
        literal += parts.pop(0) + os.sep
    matched = glob.glob(glob.escape(literal) + os.sep.join(parts), recursive=True)
    return sorted(path for path in matched if os.path.isfile(path))


def _check(path: str, setting: str, suffixes: Sequence[str]) -> None:
    if os.path.isdir(path):
        example = os.path.join(path, f'*{suffixes[0] if suffixes else ".jsonl"}')
        raise UserError(f'{path} is a folder, {setting} must be a file or a glob such as {example!r}.')
    if not os.path.isfile(path):
        problem = 'not a regular file' if os.path.exists(path) else 'no such file'
        raise UserError(f'{path}: {problem}. Set {setting} to a file that exists.')
    suffix = Path(path).suffix
    if suffixes and suffix not in suffixes:
        expected = ' or '.join(suffixes)
        raise UserError(f'{path}: ends in {suffix!r}, not in {expected}. Rename it or fix {setting}.')
    if os.path.getsize(path) == 0:
        raise UserError(f'{path} is empty. Set {setting} to a file with content.')
