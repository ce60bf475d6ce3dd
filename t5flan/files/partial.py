"""Half-written files and folders: their names say who writes them, so that what a killed process left can be removed.

    .report.json.4711-8812331-5f0c2a1e.9d3b6f20.tmp

is what process 4711 of machine 5f0c2a1e, which started at tick 8812331, has written of report.json. The next process
that writes anything into the folder finds that there is no such process any more, and removes the file.
"""

import contextlib
import functools
import os
import pathlib
import re
import shutil
import time
import zlib
from collections.abc import Iterator

_NAME = re.compile(r'\..*?\.(?:(?P<pid>\d+)-(?P<started>\d*)-(?P<machine>[0-9a-f]{8})\.)?[0-9a-f]{8}\.tmp', re.DOTALL)
"""Names without a process are of earlier versions."""
_DAY = 86400.0
_looked: set[tuple[int, str]] = set()  # process and folder: `partial_path` looks once for what others left


@functools.cache
def machine() -> str:
    """Names the running kernel and the process numbers of this container."""
    try:
        boot = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
        return f'{boot} {os.readlink("/proc/self/ns/pid")}'
    except OSError:
        return os.uname().nodename


def process_start(pid: int) -> str | None:
    """When a process started, in the kernel's ticks, '' if the system does not say; None if there is no such process.

    A process is known by its number and its start: numbers are given out again.
    """
    try:
        text = pathlib.Path(f'/proc/{pid}/stat').read_text()
        state, *fields = text.rpartition(')')[2].split()
        return None if state in 'ZX' else fields[18]
    except (FileNotFoundError, ProcessLookupError):
        if os.path.exists('/proc/self/stat'):
            return None
    except OSError:
        return ''
    try:  # a system without /proc
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return ''


def partial_path(target: pathlib.Path) -> pathlib.Path:
    """A free name beside a local `target`, for what is to get its name.

    The first one in a folder removes what killed processes left in it.
    """
    pid, folder = os.getpid(), target.parent
    if (pid, os.fspath(folder)) not in _looked:
        _looked.add((pid, os.fspath(folder)))
        _remove(folder, None)
    owner = f'{pid}-{process_start(pid) or ""}-{_machine_digits()}'
    return folder / f'{_start(target)}{owner}.{os.urandom(4).hex()}.tmp'


@contextlib.contextmanager
def partial_folder(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """A new folder beside a local `target`, to be renamed to it or to help make it; else removed after the block."""
    target.absolute().parent.mkdir(parents=True, exist_ok=True)
    folder = partial_path(target)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_partial(path: str | os.PathLike[str]) -> None:
    """Removes what killed processes left right in the folder of a file, or in a folder; does nothing in a bucket.

    The caller holds the lock of the file or folder. What is half-written of the very file is removed also if a process
    of another machine, or an earlier version, wrote it.
    """
    if '://' not in os.fspath(path):
        target = pathlib.Path(path)
        is_folder = target.is_dir()
        _remove(target if is_folder else target.parent, '.' if is_folder else _start(target))


def _start(target: pathlib.Path) -> str:
    """How the name of half of a file begins; a name may have 255 bytes."""
    return f'.{target.name[:40]}.'


def _machine_digits() -> str:
    return f'{zlib.crc32(machine().encode()):08x}'


def _remove(folder: pathlib.Path, held: str | None) -> None:
    """Removes what is left in a folder; names that begin with `held` are of files whose lock the caller holds."""
    with contextlib.suppress(OSError):  # the folder does not exist, or may not be read
        for entry in os.scandir(folder):
            found = entry.name.endswith('.tmp') and _NAME.fullmatch(entry.name)
            if not found or not _is_left(entry, found, held is not None and entry.name.startswith(held)):
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            elif entry.is_file(follow_symlinks=False):
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)


def _is_left(entry: os.DirEntry[str], found: re.Match[str], is_held: bool) -> bool:
    """Whether nobody writes a half-written file any more."""
    if found['machine'] == _machine_digits():
        return process_start(int(found['pid'])) not in (found['started'], '')
    if found['machine'] is None or is_held:
        return is_held
    with contextlib.suppress(OSError):
        return time.time() - entry.stat(follow_symlinks=False).st_mtime > _DAY  # it runs on another machine, or ran
    return False
