"""Checks of settings: each raises a one-line `UserError` that names the setting. Standard library only.

A number that has limits declares them in its annotation, and `check_limits(self)` in `__post_init__` checks them all:

    steps: Count
    seed: Seed = 0
    feature_lengths: Mapping[str, Count]
    share: Annotated[float, Limits(0, 1)] | None = None

Flags of commands take the same limits as their type.
"""

import dataclasses
import math
import os
import re
import types
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, get_args

from t5flan.config import annotations
from t5flan.errors import UserError

INT32 = 2**31 - 1
"""The largest step, seed and size: arrays of JAX hold them as int32."""


def require(holds: bool, setting: str, given: object, expected: str, of: str = '') -> None:
    """Raises a `UserError` with the setting, its value (`of` which object) and what was expected, unless `holds`."""
    if not holds:
        raise UserError(f'{setting}={given!r}{of}, expected {expected}. Set {setting} in your .gin.')


def is_number(value: object) -> bool:
    """Whether `value` is a finite int or float; a bool does not count as one."""
    return (isinstance(value, int) and not isinstance(value, bool)) or (
        isinstance(value, float) and math.isfinite(value)
    )


def is_count(value: object, least: int) -> bool:
    """Whether `value` is an int of at least `least`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


@dataclasses.dataclass(frozen=True)
class Limits:
    """The numbers that a setting or a flag may have.

    Attributes:
        low, high: the smallest and the largest.
        whole: only integers.
        above: more than `low`.
        below: less than `high`.
    """

    low: float = -math.inf
    high: float = math.inf
    whole: bool = False
    above: bool = False
    below: bool = False

    def holds(self, value: object) -> bool:
        """Whether `value` is such a number: finite, and not a bool."""
        if not isinstance(value, int if self.whole else (int, float)) or not is_number(value):
            return False
        low = value > self.low if self.above else value >= self.low
        return low and (value < self.high if self.below else value <= self.high)

    def expected(self, value: object) -> str:
        """What is expected, for the message about a `value` that is not: 'an integer of 1 or more'."""
        kind = 'an integer' if self.whole else 'a number'
        if self.high == INT32:
            return f'{kind} of at most {INT32}' if is_count(value, INT32) else f'{kind} of {self.low} or more'
        if self.low > -math.inf and self.high < math.inf and not (self.above or self.below):
            return f'{kind} from {self.low:.10g} to {self.high:.10g}'
        low = f'above {self.low:g}' if self.above else f'of {self.low:g} or more' if self.low > -math.inf else ''
        high = f'below {self.high:g}' if self.below else f'at most {self.high:g}' if self.high < math.inf else ''
        return f'{kind} {" and ".join(part for part in (low, high) if part)}'.rstrip()


Count = Annotated[int, Limits(1, INT32, whole=True)]
CountFrom0 = Annotated[int, Limits(0, INT32, whole=True)]
ExtraIds = Annotated[int, Limits(0, 1_000_000, whole=True)]
Seed = Annotated[int, Limits(0, INT32, whole=True)]
Share = Annotated[float, Limits(0, 1)]
BelowOne = Annotated[float, Limits(0, 1, below=True)]
BetweenZeroAndOne = Annotated[float, Limits(0, 1, above=True, below=True)]
Positive = Annotated[float, Limits(0, above=True)]
NonNegative = Annotated[float, Limits(0)]


def limits_of(annotation: Any) -> Limits:
    """The limits of `Count`, `Share` and so on."""
    return next(one for one in annotation.__metadata__ if isinstance(one, Limits))


def check_limits(settings: Any, of: str = '') -> None:
    """Requires every number of a dataclass to be within the limits that its annotation declares.

    Args:
        settings: the dataclass.
        of: the object it belongs to, for messages.

    Raises:
        UserError: one is not.
    """
    cls: Any = type(settings)
    for name, annotation in annotations.limited(cls).items():
        _check_limits(f'{cls.__name__}.{name}', getattr(settings, name), annotation, of)


def _check_limits(setting: str, value: Any, annotation: Any, of: str) -> None:
    members = annotations.options(annotation)
    optional = types.NoneType in members
    if optional and value is None:
        return
    for member in members:
        for limits in getattr(member, '__metadata__', ()):
            expected = limits.expected(value)
            require(limits.holds(value), setting, value, f'{expected}, or None' if optional else expected, of)
        if isinstance(value, Mapping) and len(get_args(member)) == 2:
            for key, item in value.items():
                _check_limits(f"{setting}['{key}']", item, get_args(member)[1], of)


def require_one_of(setting: str, value: object, allowed: Sequence[str]) -> None:
    """Requires one of the `allowed` names."""
    require(value in allowed, setting, value, f'one of {", ".join(allowed)}')


def require_count(setting: str, value: object, least: int = 1) -> None:
    """Requires an int of at least `least`."""
    limits = Limits(least, INT32, whole=True)
    require(limits.holds(value), setting, value, limits.expected(value))


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


def require_bools(settings: Any, *fields: str) -> None:
    """Requires fields of a dataclass to be True or False."""
    for field in fields:
        value = getattr(settings, field)
        require(isinstance(value, bool), f'{type(settings).__name__}.{field}', value, 'True or False')


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
