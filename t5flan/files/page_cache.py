"""Writing large files past the page cache, as far as another library's files can be.

Linux copies what is written to free memory, and writes it to the disk later. Gigabytes of it push out the files that a
run reads. They are also slow to write where free memory has been given back, as virtual machines do: it returns page by
page, which takes longer than the copy. Files that are written to the disk and forgotten as they grow reuse few pages.
"""

import os
import threading
import time
from collections.abc import Callable, Iterable

_INTERVAL = 0.05
"""Seconds. A disk that writes 2 GB/s leaves 100 MB in memory."""
_LEAST = 2**20
"""Bytes of a file that is worth it."""


def forget_while(writing: Callable[[], bool], files: Callable[[], Iterable[str]]) -> threading.Thread:
    """Starts a thread that writes files to the disk and drops them from the page cache, as long as `writing()`.

    Args:
        files: the paths of the files now; some may be gone when they are opened.
    """

    def run() -> None:
        while writing():
            for path in files():
                _forget(path)
            time.sleep(_INTERVAL)

    thread = threading.Thread(target=run, name='forget_while', daemon=True)
    thread.start()
    return thread


def _forget(path: str) -> None:
    try:
        if os.stat(path).st_size < _LEAST:
            return
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return  # complete, and renamed
    try:
        os.fdatasync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError:
        pass  # who writes the file learns what is wrong with the disk
    finally:
        os.close(descriptor)
