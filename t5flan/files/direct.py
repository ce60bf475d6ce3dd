"""Writing files past the system's page cache, by direct I/O.

Linux copies what is written to free memory and writes it to the disk later. Gigabytes of it push out the files that a
run reads, and cost processor time that training needs: in a virtual machine, which gives free memory back to its host
and gets it again page by page, many times that of the copy. With O_DIRECT the disk takes the bytes from the process.
Where the system or the file system has no O_DIRECT, and for small files, this is ordinary I/O.
"""

import errno
import mmap
import os

import numpy as np

from t5flan.files import PathLike

_DIRECT = getattr(os, 'O_DIRECT', 0)
_BUFFER = 2**22
"""Bytes; it stays in the processor's cache."""
_LARGEST = 2**26
"""Bytes that are written at once where they need no copy: a thread that seldom wakes takes little from others."""
_ALIGNMENT = 4096
"""Bytes. Direct I/O takes addresses, offsets and sizes that are multiples of a disk's block; none is larger."""
_LEAST = 2**20
"""Bytes of a file that is worth it."""


def write(path: PathLike, content: np.ndarray) -> None:
    """Writes a file, and waits until it is on the disk.

    Args:
        content: [size], uint8. It is copied in blocks, unless its address is that of an array from `aligned`.

    Raises:
        OSError: it cannot be written (no space left, for example).
    """
    descriptor = _open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, content.size >= _LEAST)
    try:
        is_aligned = content.ctypes.data % _ALIGNMENT == 0
        whole = content.size // _ALIGNMENT * _ALIGNMENT
        buffer, size = aligned(0 if is_aligned else min(_BUFFER, whole)), _LARGEST if is_aligned else _BUFFER
        for start in range(0, whole, size):
            block = content[start : min(start + size, whole)]
            if not is_aligned:
                np.copyto(buffer[: block.size], block)
                block = buffer[: block.size]
            _write_all(descriptor, block.data)
        _leave_direct(descriptor)
        _write_all(descriptor, content[whole:].data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _open(path: PathLike, flags: int, direct: bool) -> int:
    if _DIRECT and direct:
        try:
            return os.open(path, flags | _DIRECT, 0o666)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
    return os.open(path, flags, 0o666)


def _write_all(descriptor: int, content: memoryview) -> None:
    while content:
        try:
            content = content[os.write(descriptor, content) :]
        except OSError as error:
            _leave_direct(descriptor, error)


def _leave_direct(descriptor: int, refused: OSError | None = None) -> None:
    """Makes the I/O of a file ordinary from here on.

    Args:
        refused: raised again if it is not that direct I/O was refused.
    """
    import fcntl

    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    if refused is not None and (refused.errno != errno.EINVAL or not flags & _DIRECT):
        raise refused
    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags & ~_DIRECT)


def rounded_up(size: int) -> int:
    """The least multiple of a disk's block that is not less than `size`."""
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def aligned(size: int) -> np.ndarray:
    """[size], uint8, of memory that direct I/O takes, and that is none of the allocator's."""
    return np.frombuffer(mmap.mmap(-1, max(1, size), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8, size)
