"""Checks of settings: each raises a one-line `UserError` that names the setting. Standard library only."""

import math
import os
import re
from collections.abc import Sequence

from t5flan.errors import UserError


def require(holds: bool, setting: str, given: object, expected: str, of: str = '') -> None:
    """Raises a `UserError` with the setting, its value (`of` which object) and what was expected, unless `holds`."""
    if not holds:
        raise UserError(f'{setting}={given!r}{of}, expected {expected}. Set {setting} in your .gin.')


def is_number(value: object) -> bool:
    """Whether `value` is a finite int or float; a bool does not count as one."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_count(value: object, least: int) -> bool:
    """Whether `value` is an int of at least `least`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def require_one_of(setting: str, value: object, allowed: Sequence[str]) -> None:
    """Requires one of the `allowed` names."""
    require(value in allowed, setting, value, f'one of {", ".join(allowed)}')


def require_count(setting: str, value: object, least: int = 1) -> None:
    """Requires an int of at least `least`."""
    require(is_count(value, least), setting, value, f'an integer of {least} or more')


def require_share(setting: str, value: object) -> None:
    """Requires a number in [0, 1]."""
    require(is_number(value) and 0.0 <= float(str(value)) <= 1.0, setting, value, 'a number from 0 to 1')


def require_positive(setting: str, value: object, below: float = math.inf, of: str = '') -> None:
    """Requires a number above 0 (and below a limit)."""
    limit = '' if below == math.inf else f' and below {below:g}'
    require(is_number(value) and 0 < float(str(value)) < below, setting, value, f'a number above 0{limit}', of)


def require_text(setting: str, value: object) -> None:
    """Requires a non-empty string."""
    require(isinstance(value, str) and value != '', setting, value, 'a non-empty string')


def require_patterns(setting: str, patterns: object) -> None:
    """Requires a list of regular expressions."""
    listed = isinstance(patterns, (tuple, list)) and all(isinstance(pattern, str) for pattern in patterns)
    require(listed, setting, patterns, "a list of regular expressions on parameter paths, such as ['encoder/.*']")
    for pattern in patterns if isinstance(patterns, (tuple, list)) else ():
        try:
            re.compile(pattern)
        except re.error as error:
            wrong = f'{setting} contains {pattern!r}, which is not a regular expression: {error}'
            raise UserError(f'{wrong}. Set {setting} in your .gin.') from None


def as_paths(setting: str, value: str | Sequence[str] | None) -> tuple[str, ...]:
    """Returns one path, several or None as a tuple of paths; `~` is the home folder."""
    paths = (value,) if isinstance(value, str) else tuple(value or ())
    for path in paths:
        require_text(setting, path)
    return tuple(os.path.expanduser(path) for path in paths)
