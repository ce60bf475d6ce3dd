"""Locks: one writer for each folder and file, on local disks, on network disks without `flock`, and in buckets.

    with hold('runs/mine/.t5flan.lock', 'runs/mine', '--workdir'):
        ...

A lock is a small file that names its holder: host, process and since when. It is created by a hard link, which fails if
the lock exists, on network disks too. The lock of a killed process is stale, and the next one takes it over:

- On the holder's machine, if its process is gone, or another one has its number (it started at another time).
- From elsewhere, if the lock is not renewed for `PATIENCE` seconds, during which the newcomer waits and watches. No
  clocks are compared, except that a lock not renewed for an hour is stale at once.

In Google Cloud Storage the lock is created, renewed and removed on the condition that its generation is the known one.
Other buckets have no such conditions here: a newcomer writes its lock, waits a moment and reads whose it is.
"""

import contextlib
import dataclasses
import errno
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from t5flan.errors import UserError
from t5flan.files import PathLike, to_path
from t5flan.files.partial import machine, partial_path, process_start, remove_partial

NAME = '.t5flan.lock'
"""The lock of a folder, inside it."""
BEAT = 5.0
"""Seconds between renewals of a lock."""
PATIENCE = 30.0
"""Seconds without renewal after which the lock of another machine is stale."""
SETTLE = 1.0
"""Seconds after which a lock written to a bucket is read back."""
_FORGOTTEN = 3600.0
_WITHOUT_LINKS = (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOSYS)

Stamp = tuple[str, Any]
"""Content of a lock and the time of its last renewal, as its file system counts it."""


@dataclasses.dataclass(frozen=True)
class Holder:
    """A process that holds a lock, or wants to."""

    host: str
    machine: str
    """The running kernel and its process numbers: only there does `pid` mean anything."""
    pid: int
    started: str
    """When the process started, in the kernel's ticks: a number is given out again."""
    since: str
    token: str
    """Different for each lock, also of the same process."""

    @classmethod
    def this_process(cls) -> 'Holder':
        """This process, from now on."""
        since = time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime())
        pid = os.getpid()
        return cls(socket.gethostname(), machine(), pid, process_start(pid) or '', since, os.urandom(16).hex())

    @classmethod
    def read(cls, content: str) -> 'Holder | None':
        """The holder that a lock names; None if it is damaged, or still being written."""
        try:
            fields = json.loads(content)
            return cls(**{field.name: field.type(fields[field.name]) for field in dataclasses.fields(cls)})  # type: ignore[operator]
        except (ValueError, KeyError, TypeError):
            return None

    def is_alive(self) -> bool | None:
        """Whether the process runs; None if it is of another machine."""
        if self.machine != machine():
            return None
        now = process_start(self.pid)
        return now is not None and now == self.started

    def __str__(self) -> str:
        return f'process {self.pid} on {self.host} since {self.since}'


class Lock:
    """A lock that this process holds; see `hold`."""

    def __init__(self, path: Path, subject: str, holder: Holder):
        self._path, self._subject, self._holder = path, subject, holder
        self._ended = threading.Event()
        threading.Thread(target=self._renew, name='lock', daemon=True).start()

    def require(self) -> None:
        """Requires that this process still holds the lock, e.g. before it writes.

        Raises:
            UserError: this process was suspended for so long that another took the lock, or the lock was removed.
        """
        found = _read(self._path)
        other = None if found is None else Holder.read(found[0])
        if other is None or other.token != self._holder.token:
            taken = f'{other} has it now' if other else f'{self._path.name} was removed'
            raise UserError(f'{self._subject} is no longer held by this process: {taken}. Run the command again later.')

    def release(self) -> None:
        """Removes the lock, unless it is another's."""
        self._ended.set()
        if os.getpid() != self._holder.pid:  # a fork of the holder
            return
        with contextlib.suppress(OSError, UserError):
            self.require()
            if not _is_gcs(self._path):
                self._path.unlink()
                return
            for _ in range(3):  # the other thread may just have renewed it
                found = _read(self._path)
                if found is None or not self._is_mine(found) or _objects().remove(self._path, found[1]):
                    return

    def _is_mine(self, found: Stamp) -> bool:
        other = Holder.read(found[0])
        return other is not None and other.token == self._holder.token

    def _renew(self) -> None:
        count = 0
        while not self._ended.wait(BEAT):
            with contextlib.suppress(OSError, UserError):
                if not _in_bucket(self._path):
                    os.utime(self._path)  # works on a full disk too
                    continue
                count += 1
                if _is_gcs(self._path):
                    found = _read(self._path)
                    if found is not None and self._is_mine(found):
                        _objects().replace(self._path, _content(self._holder, count), found[1])
                    continue
                self.require()
                self._path.write_text(_content(self._holder, count), encoding='utf-8')


@contextlib.contextmanager
def hold(path: PathLike, subject: PathLike, setting: str) -> Iterator[Lock]:
    """Holds a lock while the block runs.

    Args:
        path: the lock file, local or in a bucket; its folder is created.
        subject: what it protects, for messages.
        setting: the flag that names the subject, for messages.

    Raises:
        UserError: another process holds it; the message names host, process and since when.
    """
    lock = acquire(path, subject, setting)
    try:
        yield lock
    finally:
        lock.release()


@contextlib.contextmanager
def hold_file(path: PathLike, setting: str) -> Iterator[Lock]:
    """Holds the lock of a file that the block writes, `.NAME.lock` beside it.

    Removes what killed processes left of it, and in its folder.
    """
    target = to_path(path)
    with hold(target.parent / f'.{target.name[:80]}.lock', path, setting) as lock:
        remove_partial(path)
        yield lock


def acquire(path: PathLike, subject: PathLike, setting: str) -> Lock:
    """Takes a lock; for arguments and errors see `hold`."""
    target = to_path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    holder = Holder.this_process()
    while not _create(target, holder):
        found = _read(target)
        if found is None:
            continue
        other = Holder.read(found[0])
        if not _is_stale(target, found, other, subject):
            named = f'{other}' if other else 'another process'
            raise UserError(
                f'{os.fspath(subject)} is being written by {named}. Wait for it or stop it, or set another {setting} '
                f'(its lock is {os.fspath(target)}).'
            )
        _remove_stale(target, found)
    return Lock(target, os.fspath(subject), holder)


def _create(path: Path, holder: Holder) -> bool:
    """Creates the lock, with its content, unless it exists."""
    content = _content(holder)
    if _is_gcs(path):
        return _objects().create(path, content)
    if _in_bucket(path):
        if path.exists():
            return False
        path.write_text(content, encoding='utf-8')
        time.sleep(SETTLE)
        found = _read(path)
        return found is not None and (Holder.read(found[0]) or holder).token == holder.token
    whole = partial_path(path)
    try:
        whole.write_text(content, encoding='utf-8')
        os.link(whole, path)
        return True
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _WITHOUT_LINKS or not whole.exists():
            raise OSError(error.errno, error.strerror, os.fspath(path)) from None
    finally:
        with contextlib.suppress(OSError):
            whole.unlink()
    try:  # a file system without hard links
        with open(path, 'x', encoding='utf-8') as file:
            file.write(content)
        return True
    except FileExistsError:
        return False


def _content(holder: Holder, count: int = 0) -> str:
    return json.dumps(dataclasses.asdict(holder) | ({'renewed': count} if count else {})) + '\n'


def _read(path: Path) -> Stamp | None:
    """Content and last renewal of a lock; None if there is none."""
    try:
        if _is_gcs(path):
            return _objects().read_generation(path)
        if _in_bucket(path):
            return path.read_text(encoding='utf-8'), None
        with open(path, encoding='utf-8', errors='replace') as file:  # opening it refreshes what a network disk cached
            return file.read(10**4), os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None
    except OSError:
        if path.exists():
            raise
        return None


def _is_stale(path: Path, found: Stamp, other: Holder | None, subject: PathLike) -> bool:
    """Whether the holder of a lock is gone; watches the lock of another machine for `PATIENCE` seconds."""
    alive = None if other is None else other.is_alive()
    if alive is not None:
        return not alive
    if found[1] is not None and not _in_bucket(path) and time.time() - found[1] / 1e9 > _FORGOTTEN:
        return True
    named = f'{other}' if other else 'an unknown process'
    print(f'{os.fspath(subject)} is locked by {named}: watching for {PATIENCE:.0f} s if it runs', file=sys.stderr)
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        time.sleep(min(0.5, PATIENCE / 4))
        now = _read(path)
        if now != found:
            return now is None
    return True


def _remove_stale(path: Path, found: Stamp) -> None:
    """Removes a stale lock, but not the new one of a process that was faster."""
    if _is_gcs(path):
        _objects().remove(path, found[1])
        return
    if _in_bucket(path):
        if _read(path) == found:
            path.unlink()
        return
    aside = partial_path(path)
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return
    moved = _read(aside)
    if moved is not None and moved[0] != found[0]:
        with contextlib.suppress(OSError):  # give it back
            os.link(aside, path)
    aside.unlink(missing_ok=True)


def _is_gcs(path: Path) -> bool:
    return os.fspath(path).startswith('gs://')


def _objects() -> Any:
    from t5flan.files import gcs as found

    return found


def _in_bucket(path: Path) -> bool:
    return '://' in os.fspath(path)
