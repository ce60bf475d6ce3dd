"""Objects in Google Cloud Storage, through Google's client for Python; `buckets` makes paths of them.

A request that fails for a moment (429, 5xx, a dropped or silent connection) is tried again, with growing pauses and a
line on the terminal, until `FIRST_CONTACT` or `PATIENCE` is over. STORAGE_EMULATOR_HOST names another server.
"""

import functools
import io
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TypeVar, cast

from t5flan.errors import BucketError, UserError
from t5flan.files.partial import partial_folder

FIRST_CONTACT = 15.0
"""Seconds for which the first request of a process is tried: a wrong name or no network is told soon."""
LOGIN = 6.0
"""Seconds to find credentials; then a process goes on without, which is enough for what everybody may read."""
_GRACE = 4.0  # seconds for the last try of the first request
PATIENCE = 300.0
"""Seconds for which a request is tried once the bucket has answered: a run outlives an outage of minutes."""
FIRST_PAUSE = 0.5
"""Seconds before a request is tried again; doubled each time, up to `LONGEST_PAUSE`."""
LONGEST_PAUSE = 16.0
TIMEOUT = (8.0, 20.0)
"""Seconds to wait for a connection, and then for each piece of an answer."""
_TELL_EVERY = 10.0  # seconds between two lines about retries
PIECE = 2**23  # bytes of a request
_IN_MEMORY = 2**24  # bytes of a new object that are kept in memory, not in a temporary file

_CHECK_NETWORK = 'Check the network, and run the command again'

_T = TypeVar('_T')


def is_bucket(path: Any) -> bool:
    """Whether a path is of Google Cloud Storage."""
    return os.fspath(path).startswith('gs://')


# -- Requests --------------------------------------------------------------------------------------------------------


class _Server:
    """What this process knows of the server."""

    pid = 0
    answered = False
    told = 0.0
    local = threading.local()


def client() -> Any:
    """The client of this thread; a process that was forked makes its own."""
    if _Server.pid != os.getpid():
        _Server.pid, _Server.answered, _Server.told, _Server.local = os.getpid(), False, 0.0, threading.local()
    found = getattr(_Server.local, 'client', None)
    if found is None:
        found = _Server.local.client = _new_client()
    return found


def _new_client() -> Any:
    try:
        from google.auth.credentials import AnonymousCredentials
        from google.auth.exceptions import DefaultCredentialsError
        from google.cloud import storage
    except ImportError:
        fix = "pip install 't5flan[gcs]', or name a local path"
        raise UserError(f'paths that begin with gs:// need google-cloud-storage: {fix}.') from None
    if os.environ.get('STORAGE_EMULATOR_HOST'):
        return storage.Client(project='none', credentials=AnonymousCredentials())
    try:
        return (
            storage.Client(project=None) if _Server.answered else _within(LOGIN, lambda: storage.Client(project=None))
        )
    except (DefaultCredentialsError, TimeoutError):
        return storage.Client(project=None, credentials=AnonymousCredentials())


def _within(seconds: float, run: Callable[[], _T]) -> _T:
    """Calls `run` in a thread and waits for it: name servers and Google's login have a patience of their own.

    Raises:
        TimeoutError: it took longer; the thread is left behind.
    """
    found: list[_T] = []
    failed: list[BaseException] = []

    def call() -> None:
        try:
            found.append(run())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=call, name='first contact', daemon=True)
    thread.start()
    thread.join(seconds)
    if failed:
        raise failed[0]
    if not found:
        raise TimeoutError
    return found[0]


def request(path: str, run: Callable[..., _T], missing: bool = True) -> tuple[_T | None, int]:
    """Calls `run(retry=..., timeout=...)`.

    Args:
        path: what it is about, for messages.
        missing: whether 404 is an answer, None; else it is an error.

    Returns:
        The result, and how often it was tried again.

    Raises:
        BucketError: no rights, no such bucket, or no answer in time.
    """
    from google.api_core import exceptions, retry
    from google.auth.exceptions import GoogleAuthError
    from google.cloud.storage.retry import DEFAULT_RETRY

    limit, tries = PATIENCE if _Server.answered else FIRST_CONTACT, 0

    def tell(error: Exception) -> None:
        nonlocal tries
        tries += 1
        if time.monotonic() - _Server.told > _TELL_EVERY or not _Server.told:
            _Server.told = time.monotonic()
            print(f'{path}: {_reason(error)}; trying again, for up to {limit:.0f} s', file=sys.stderr, flush=True)

    patient = retry.Retry(
        predicate=DEFAULT_RETRY._predicate,
        initial=FIRST_PAUSE,
        maximum=LONGEST_PAUSE,
        multiplier=2.0,
        timeout=limit,
        on_error=tell,
    )
    ask = functools.partial(run, retry=patient, timeout=TIMEOUT)
    try:
        found: _T | None = ask() if _Server.answered else _within(limit + _GRACE, ask)
    except TimeoutError:
        raise BucketError(f'{path} cannot be reached (no answer in {limit:.0f} s). {_CHECK_NETWORK}.') from None
    except exceptions.NotFound as error:
        if not missing or 'bucket does not exist' in str(error).lower():
            raise BucketError(f'{_bucket_of(path)} does not exist. Check the name of the bucket in {path}.') from None
        found = None
    except (exceptions.Unauthorized, exceptions.Forbidden) as error:
        fix = 'Log in with `gcloud auth application-default login`, or ask for the role Storage Object Admin'
        raise BucketError(f'{path}: no rights ({_reason(error)}). {fix}.') from None
    except exceptions.RetryError as error:
        raise BucketError(f'{path} cannot be reached ({_reason(error.cause or error)}). {_CHECK_NETWORK}.') from None
    except exceptions.PreconditionFailed:
        raise
    except (exceptions.GoogleAPICallError, GoogleAuthError, ConnectionError) as error:
        raise BucketError(f'{path}: {_reason(error)}.') from None
    _Server.answered = True
    return found, tries


def _reason(error: Any) -> str:
    """What a server or the network says, in few words."""
    response = getattr(error, 'response', None)
    code = getattr(error, 'code', None) or getattr(response, 'status_code', None)
    inner = getattr(error.args[0], 'reason', None) if error.args else None  # of urllib3's MaxRetryError
    words = ' '.join(str(inner or getattr(error, 'message', '') or error).split())
    if code and not hasattr(error, 'message'):
        words = str(getattr(response, 'reason', ''))
    for start in ('GET ', 'POST ', 'DELETE ', 'PUT ', 'HTTP'):  # 'GET https://...: what happened'
        if words.startswith(start):
            words = words.partition(': ')[2] or words
    return (f'{int(code)} ' if code else f'{type(error).__name__}: ') + words[:120].rstrip('. ')


def _bucket_of(path: str) -> str:
    return '/'.join(path.split('/')[:3])


def split(path: str) -> tuple[Any, str]:
    """The bucket and the name of an object."""
    bucket, _, name = path.removeprefix('gs://').partition('/')
    if not bucket:
        raise UserError(f'{path} names no bucket, expected gs://BUCKET/NAME.')
    return client().bucket(bucket), name.strip('/')


def find(path: str) -> Any:
    """The object, with size and generation, or None."""
    bucket, name = split(path)
    if not name:
        return None
    blob = bucket.blob(name)
    return blob if request(path, lambda **given: blob.reload(**given) or True)[0] else None


def list_folder(path: str, deep: bool = False) -> tuple[list[Any], list[str]]:
    """The objects in a folder, and the names of its folders; `deep`: all objects below it."""
    bucket, name = split(path)
    prefix = f'{name}/' if name else ''
    given = {} if deep else {'delimiter': '/'}

    def pages(retry: Any, timeout: Any) -> tuple[list[Any], list[str]]:
        found = bucket.client.list_blobs(bucket, prefix=prefix, retry=retry, timeout=timeout, **given)
        objects = [one for one in found if deep or one.name != prefix]
        return objects, sorted(one.removeprefix(prefix).rstrip('/') for one in found.prefixes)

    return cast(tuple[list[Any], list[str]], request(path, pages, missing=False)[0])


def has_folder(path: str) -> bool:
    """Whether a name begins with `path` and a slash; a bucket that exists is a folder."""
    bucket, name = split(path)

    def first(retry: Any, timeout: Any) -> bool:
        prefix = f'{name}/' if name else ''
        return any(bucket.client.list_blobs(bucket, prefix=prefix, max_results=1, retry=retry, timeout=timeout))

    return bool(request(path, first, missing=False)[0]) or not name


# -- Objects ---------------------------------------------------------------------------------------------------------


def open_object(path: str, mode: str = 'r', encoding: str | None = None, newline: str | None = None) -> IO[Any]:
    """Opens an object to read, write or append; what is written appears when it is closed, but not after an error."""
    kind = mode.replace('b', '').replace('t', '')
    if kind == 'r':
        raw: Any = io.BufferedReader(_Reader(path), PIECE)
    elif kind in ('w', 'a'):
        raw = _Writer(path, append=kind == 'a')
    else:
        raise ValueError(f'mode={mode!r} is not one of r, w, a')
    return raw if 'b' in mode else _Text(raw, encoding or 'utf-8', newline=newline)


class _Text(io.TextIOWrapper):
    """Text of an object, which is not written after an error."""

    def __exit__(self, kind: Any, *rest: Any) -> None:
        if kind is not None and isinstance(self.buffer, _Writer):
            self.buffer.discard()
        super().__exit__(kind, *rest)


class _Reader(io.RawIOBase):
    """Reads one generation of an object: it stays the same if the object is replaced meanwhile."""

    def __init__(self, path: str) -> None:
        found = find(path)
        if found is None:
            raise FileNotFoundError(2, os.strerror(2), path)
        self._path, self._object, self._at = path, found, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = max(0, (0, self._at, self._object.size)[whence] + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = min(len(buffer), self._object.size - self._at)
        if count <= 0:
            return 0
        read = functools.partial(
            self._object.download_as_bytes, start=self._at, end=self._at + count - 1, checksum=None, raw_download=True
        )
        data = request(self._path, read)[0]
        if data is None or len(data) != count:
            raise BucketError(f'{self._path} was replaced while it was read. Run the command again.')
        buffer[:count] = data
        self._at += count
        return count


class _Writer(tempfile.SpooledTemporaryFile):
    """Collects an object and uploads it, whole, when it is flushed or closed, but not after an error."""

    def __init__(self, path: str, append: bool = False) -> None:
        super().__init__(_IN_MEMORY)
        self._path, self._changed = path, not append
        if append and (old := find(path)) is not None:
            with io.BufferedReader(_Reader(path), PIECE) as file:
                shutil.copyfileobj(file, self, PIECE)
            assert self.tell() == old.size
        split(path)

    def write(self, data: Any) -> int:
        self._changed = True
        return super().write(data)

    def cut(self, size: int) -> None:
        """Keeps the first `size` bytes."""
        self.seek(size)
        self.truncate()
        self._changed = True

    def upload(self) -> None:
        """Sends the object, if it has changed."""
        if not self._changed:
            return
        bucket, name = split(self._path)
        end = self.seek(0, 2) or self.tell()

        def send(retry: Any, timeout: Any) -> None:
            self.seek(0)
            # The checksum makes the server refuse what was damaged on its way.
            blob = bucket.blob(name, chunk_size=PIECE if end > PIECE else None)
            blob.upload_from_file(self, size=end, checksum='crc32c', retry=retry, timeout=timeout)

        request(self._path, send, missing=False)
        self.seek(0, 2)
        self._changed = False

    def close(self) -> None:
        if not self.closed:
            try:
                self.upload()
            finally:
                super().close()

    def discard(self) -> None:
        """Closes without an upload."""
        self._changed = False
        super().close()

    def __exit__(self, kind: Any, *_: Any) -> None:
        self.discard() if kind is not None else self.close()


class GrowingObject:
    """An object that is sent again when it has grown; see `t5flan.files.open_append`.

    A killed process loses what it appended since the last time: `EVERY` seconds, or more if sending takes long.
    """

    EVERY = 10.0
    """Seconds between two times."""

    def __init__(self, path: str, size: int | None) -> None:
        self._file = _Writer(path, append=True)
        if size is not None and size < self._file.tell():
            self._file.cut(size)
        self._next = 0.0

    def write(self, data: bytes) -> None:
        """Appends `data`."""
        self._file.write(data)
        if time.monotonic() >= self._next:
            self.flush()

    def flush(self) -> None:
        """Sends the object now."""
        started = time.monotonic()
        self._file.upload()
        now = time.monotonic()
        self._next = now + max(self.EVERY, 10 * (now - started))

    def close(self) -> None:
        """Sends the object and ends."""
        self._file.close()


def create(path: Any, content: str) -> bool:
    """Creates an object unless it exists: of several processes, one succeeds."""
    from google.api_core.exceptions import PreconditionFailed

    bucket, name = split(os.fspath(path))
    send = functools.partial(bucket.blob(name).upload_from_string, content, if_generation_match=0)
    try:
        request(os.fspath(path), send, missing=False)
        return True
    except PreconditionFailed:  # by another process, or by this one, whose answer was lost
        found = read_generation(path)
        return found is not None and found[0] == content


def read_generation(path: Any) -> tuple[str, int] | None:
    """The content of a small object and the number of its generation, or None."""
    while (found := find(os.fspath(path))) is not None:
        data = request(os.fspath(path), found.download_as_bytes)[0]
        if data is not None:  # else it was replaced meanwhile
            return data.decode('utf-8', 'replace'), int(found.generation)
    return None


def replace(path: Any, content: str, generation: int) -> int | None:
    """Replaces an object if it is of this generation; returns the new one, or None if it is not."""
    from google.api_core.exceptions import PreconditionFailed

    bucket, name = split(os.fspath(path))
    blob = bucket.blob(name)
    try:
        sent = functools.partial(blob.upload_from_string, content, if_generation_match=generation)
        request(os.fspath(path), sent, missing=False)
        return int(blob.generation)
    except PreconditionFailed:
        found = read_generation(path)
        return found[1] if found is not None and found[0] == content else None


def remove(path: Any, generation: int) -> bool:
    """Removes an object if it is of this generation; returns whether it is gone."""
    from google.api_core.exceptions import PreconditionFailed

    bucket, name = split(os.fspath(path))
    try:
        request(os.fspath(path), functools.partial(bucket.blob(name).delete, if_generation_match=generation))
        return True
    except PreconditionFailed:
        return find(os.fspath(path)) is None


def local_copy(path: str, folder: Path) -> str:
    """Copies an object into a local folder, for libraries that read files; a copy that is there is not made again.

    Raises:
        FileNotFoundError: there is no such object.
    """
    found = find(path)
    if found is None:
        raise FileNotFoundError(2, os.strerror(2), path)
    target = folder / found.bucket.name / str(found.generation) / found.name
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with partial_folder(target) as partial:
            with open(partial / 'object', 'wb') as write, open_object(path, 'rb') as read:
                shutil.copyfileobj(read, write, PIECE)
            os.replace(partial / 'object', target)
    return str(target)
