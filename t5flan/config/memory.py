"""The memory that the host has left, the check that what is asked for fits, and how the process keeps what it frees.

Standard library only.
"""

import ctypes
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from t5flan.errors import UserError

GIB = 2**30

_MALLOPT = {
    'MALLOC_TRIM_THRESHOLD_': (-1, -1),  # M_TRIM_THRESHOLD: never give back the top of the heap
    'MALLOC_MMAP_MAX_': (-4, 0),  # M_MMAP_MAX: no block has a mapping of its own, which goes when the block is freed
    'MALLOC_ARENA_MAX': (-8, 1),  # M_ARENA_MAX: what one thread frees, another can have
}
"""Environment variable of glibc -> the parameter of mallopt(3), from malloc.h, and its value."""
_keeps = False


def keep_freed_memory() -> bool:
    """Makes glibc keep freed memory for later allocations; call it before threads start.

    A training step on a CPU allocates and frees the same gigabytes every time. By default glibc returns large blocks to
    the kernel, which hands them out again one zeroed page at a time; on some machines that takes as long as the step.
    Kept memory costs nothing again, but the resident memory of the process stays at its peak.

    Settings in the environment (`MALLOC_MMAP_MAX_` and so on, or `GLIBC_TUNABLES`) take precedence.

    Returns:
        Whether the allocator is glibc's. Others are left as they are.
    """
    global _keeps
    libc = _glibc()
    if libc is None:
        return False
    tunables = os.environ.get('GLIBC_TUNABLES', '')
    for name, (parameter, value) in _MALLOPT.items():
        tunable = f'glibc.malloc.{name.removeprefix("MALLOC_").rstrip("_").lower()}='
        if name not in os.environ and tunable not in tunables:
            libc.mallopt(parameter, value)
    _keeps = True
    return True


def _glibc() -> ctypes.CDLL | None:
    if sys.platform != 'linux':
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, 'gnu_get_libc_version') else None


class _Mallinfo(ctypes.Structure):
    """The result of mallinfo2(3), in bytes; free blocks, `fordblks`, are number 8."""

    _fields_ = [('values', ctypes.c_size_t * 10)]


def kept_memory() -> int:
    """Bytes that the process has freed and keeps since `keep_freed_memory`, of which new allocations are made."""
    libc = _glibc() if _keeps else None
    if libc is None or not hasattr(libc, 'mallinfo2'):
        return 0
    libc.mallinfo2.restype = _Mallinfo
    resident = int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')
    return min(libc.mallinfo2().values[8], resident)  # freed blocks that were never written are not resident


def peak_resident_memory(proc: str = '/proc') -> int:
    """The most bytes that this program has had in memory.

    On Linux it is that of the program alone: getrusage's peak begins with that of the process that started it.
    """
    try:
        found = re.search(r'^VmHWM:\s+(\d+) kB', Path(proc, 'self', 'status').read_text(), re.MULTILINE)
    except OSError:
        found = None
    if found is not None:
        return 1024 * int(found[1])
    import resource  # Windows has none

    unit = 1 if sys.platform == 'darwin' else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def host_memory(proc: str = '/proc', cgroup: str = '/sys/fs/cgroup') -> float:
    """Bytes that this process can still use: what is available, swap, and what the limit of a container leaves.

    What the process keeps of its freed memory counts as available.

    Infinite where the system does not tell.

    Args:
        proc, cgroup: where Linux shows them.
    """
    try:
        found = dict(re.findall(r'^(\w+):\s+(\d+) kB', Path(proc, 'meminfo').read_text(), re.MULTILINE))
    except OSError:
        return _physical_memory()
    left = [1024.0 * (int(found['MemAvailable']) + int(found.get('SwapFree', 0)))] if 'MemAvailable' in found else []
    for limit, used, cache in (
        ('memory.max', 'memory.current', 'inactive_file'),
        ('memory/memory.limit_in_bytes', 'memory/memory.usage_in_bytes', 'total_inactive_file'),
    ):
        try:
            most, now = (int(Path(cgroup, name).read_text()) for name in (limit, used))
            statistics = Path(cgroup, limit).with_name('memory.stat').read_text()
        except (OSError, ValueError):  # no such version of cgroups, or 'max': no limit
            continue
        reclaimed = re.search(rf'^{cache} (\d+)$', statistics, re.MULTILINE)
        left.append(float(most - now + (int(reclaimed[1]) if reclaimed else 0)))
    return max(0.0, min(left, default=_physical_memory())) + kept_memory()


def _physical_memory() -> float:
    try:
        return float(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES'))
    except (ValueError, OSError, AttributeError):
        return float('inf')


def require_memory(what: str, parts: Mapping[str, float], left: float, where: str, fix: str) -> None:
    """Requires the memory that something needs at least to be there.

    Args:
        what: what needs it: 'this run'.
        parts: what it consists of -> bytes.
        left: bytes.
        where: what has them: 'the host', 'each device'.
        fix: how to need less.

    Raises:
        UserError: it is not.
    """
    needed = sum(parts.values())
    if needed > left:
        largest = sorted(parts.items(), key=lambda part: -part[1])
        listed = ', '.join(f'{size / GIB:,.1f} GiB of {name}' for name, size in largest if size > 0.01 * needed)
        raise UserError(
            f'{what} needs at least {needed / GIB:,.1f} GiB of memory ({listed}), but {where} has '
            f'{left / GIB:,.1f} GiB left. {fix}'
        )
