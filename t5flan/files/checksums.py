"""Checksums of the files in a folder: written once it is complete, compared before it is read.

They find damage (a disk that flips bits, a copy that stopped, a file from elsewhere), not an attacker, who can write
new ones.
"""

import concurrent.futures
import json
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, cast

from t5flan.errors import UserError
from t5flan.files import PathLike, to_path, write_json

NAME = 'checksums.json'
_BUFFER = 2**20  # bytes; it stays in the processor's cache
_LARGEST = 2**26  # bytes of a checksums.json
_SIZE_ONLY = ''
"""The digest of a file in a bucket: object stores check their bytes themselves, and reading them back costs money."""

Files = dict[str, tuple[int, str]]
"""Path in the folder, with '/' -> size in bytes and digest."""


class Damaged(UserError):
    """A file is not what it was when its folder was completed."""


def scan(
    folder: PathLike,
    parts: Collection[str] | None = None,
    ignored: Collection[str] = (),
    known: Mapping[str, Any] | None = None,
    digests: Mapping[str, str] | None = None,
) -> Files:
    """Sizes and digests (XXH3, 128 bits) of the files in a folder.

    Args:
        folder: local, or in a bucket, where digests are empty.
        parts: the files and folders right in it to look at; None is all.
        ignored: files right in it to leave out.
        known: an earlier result: files whose sizes have changed are not read, and get no digest.
        digests: of files whose writers computed them, which are not read.
    """
    sizes = {name: size for name, size in _sizes(folder, parts).items() if name not in ignored}
    if '://' in os.fspath(folder):
        return {name: (size, _SIZE_ONLY) for name, size in sizes.items()}
    with concurrent.futures.ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        is_new = lambda name: known is not None and known.get(name, (None,))[0] != sizes[name]
        is_read = lambda name: not name.endswith('/') and not is_new(name)  # an empty folder has no content
        given = digests or {}
        find = lambda name: given.get(name) or digest(os.path.join(folder, name))
        found = pool.map(lambda name: find(name) if is_read(name) else '', sizes)
        return {name: (size, one) for (name, size), one in zip(sizes.items(), found, strict=True)}


def digest(path: PathLike) -> str:
    """The XXH3 digest of a local file, 32 hexadecimal digits."""
    import xxhash  # the command line's --help needs none

    state, buffer = xxhash.xxh3_128(), memoryview(bytearray(_BUFFER))
    with open(path, 'rb', buffering=0) as file:
        while count := file.readinto(buffer):
            state.update(buffer[:count])
    return state.hexdigest()


def write(
    folder: PathLike,
    record: Mapping[str, Any],
    ignored: Collection[str] = (),
    digests: Mapping[str, str] | None = None,
) -> None:
    """Writes checksums.json into a complete folder: the checksums of all its files, and `record`.

    Args:
        record: what else the reader wants to know; JSON-able.
        ignored: files right in the folder that still change.
        digests: see `scan`.
    """
    content = {**record, 'files': scan(folder, ignored=(NAME, *ignored), digests=digests), 'ignored': list(ignored)}
    write_json(to_path(folder) / NAME, {'checksum': _digest_of(content), 'content': content})


def read(folder: PathLike) -> dict[str, Any] | None:
    """What `write` wrote, or None if there is no checksums.json.

    Raises:
        Damaged: the file is damaged itself.
    """
    path = to_path(folder) / NAME
    if not path.exists() and not os.path.islink(path):
        return None
    try:
        with path.open('rb') as file:
            text = file.read(_LARGEST + 1)
        if len(text) > _LARGEST:
            raise ValueError
        fields = json.loads(text)
        if fields['checksum'] != _digest_of(fields['content']):
            raise ValueError
        return dict(fields['content'])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise Damaged(f'{path} is damaged') from None


def compare(folder: PathLike, content: Mapping[str, Any], parts: Collection[str], sizes_only: bool = False) -> None:
    """Requires files to be those that `content` lists: none missing, none more, none changed.

    Args:
        content: from `read`.
        parts: the folders in the folder to look at; files right in it, and folders that are not listed, always are.
        sizes_only: whether to look at names and sizes alone, which reads nothing.

    Raises:
        Damaged: the first file that differs.
    """
    ignored = (NAME, *content['ignored'])
    others = {name.partition('/')[0] for name in content['files'] if '/' in name} - {*parts}
    is_checked = lambda name: name.partition('/')[0] not in others and name not in ignored
    listed = {name: entry for name, entry in content['files'].items() if is_checked(name)}
    found = {name: size for name, size in _sizes(folder, None).items() if is_checked(name)}
    for name in sorted(listed.keys() | found.keys()):
        path = f'{os.fspath(folder)}/{name}'
        if name not in found:
            raise Damaged(f'{path} is missing')
        if found[name] is None:
            raise Damaged(f'{path} is a link or a device, expected a file')
        if name not in listed:
            raise Damaged(f'{path} was not saved with the others')
        if found[name] != listed[name][0]:
            raise Damaged(f'{path} has {found[name]:,} bytes, expected {listed[name][0]:,}')
    checked = [] if sizes_only or '://' in os.fspath(folder) else [name for name in listed if listed[name][1]]
    with concurrent.futures.ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        digests = pool.map(lambda name: digest(os.path.join(folder, name)), checked)
        for name, now in zip(checked, digests, strict=True):
            if now != listed[name][1]:
                raise Damaged(f'{os.fspath(folder)}/{name} has changed since it was saved')


def _digest_of(content: Mapping[str, Any]) -> str:
    import xxhash

    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())


def _sizes(folder: PathLike, parts: Collection[str] | None) -> dict[str, Any]:
    """Path in the folder -> size; None for what is neither a file nor a folder. Empty folders end in '/'."""
    found = _bucket_sizes(folder) if '://' in os.fspath(folder) else _local_sizes(os.fspath(folder))
    return {name: size for name, size in sorted(found) if parts is None or name.partition('/')[0] in parts}


def _local_sizes(folder: str) -> Iterator[tuple[str, int | None]]:
    # A snapshot in the cache of the Hugging Face hub links to the blobs of its model.
    of_hub = 'snapshots' in PurePosixPath(os.path.abspath(folder)).parts
    waiting = ['']
    while waiting:
        below = waiting.pop()
        entries = list(os.scandir(os.path.join(folder, below)))
        if below and not entries:
            yield f'{below}/', 0
        for entry in entries:
            name = f'{below}/{entry.name}' if below else entry.name
            if entry.is_dir(follow_symlinks=False):
                waiting.append(name)
            elif entry.is_file(follow_symlinks=of_hub):
                yield name, entry.stat(follow_symlinks=of_hub).st_size
            else:
                yield name, None


def _bucket_sizes(folder: PathLike) -> Iterator[tuple[str, int | None]]:
    from t5flan.files import buckets, gcs

    where = os.fspath(folder)
    if gcs.is_bucket(where):
        yield from buckets.sizes(where).items()
        return
    top = cast(Any, to_path(folder))
    waiting = [(top, '')]
    while waiting:
        here, below = waiting.pop()
        for path in here.iterdir():
            name = f'{below}{path.name}'
            if path.is_dir():
                waiting.append((path, f'{name}/'))
            else:
                yield name, path.stat().length
