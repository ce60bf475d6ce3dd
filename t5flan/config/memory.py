"""The memory that the host has left, and the check that what is asked for fits. Standard library only."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from t5flan.errors import UserError

GIB = 2**30


def host_memory(proc: str = '/proc', cgroup: str = '/sys/fs/cgroup') -> float:
    """Bytes that a process can still use: what is available, swap, and what the limit of a container leaves.

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
    return max(0.0, min(left, default=_physical_memory()))


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
