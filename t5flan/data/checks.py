"""Whether a setting of data holds what it may; if not, one line that names it. Standard library only."""

from collections.abc import Sequence

from t5flan.errors import UserError


def require_one_of(setting: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f'{setting}={value!r} is none of {", ".join(allowed)}. Set {setting} in your .gin.')


def require_positive(setting: str, value: object, allow_zero: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < (0 if allow_zero else 1):
        least = '0 or more' if allow_zero else '1 or more'
        raise UserError(f'{setting}={value!r} must be a whole number, {least}. Set {setting} in your .gin.')


def require_share(setting: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value <= 1.0:
        raise UserError(f'{setting}={value!r} must be a share from 0 to 1. Set {setting} in your .gin.')


def as_paths(setting: str, value: str | Sequence[str] | None) -> tuple[str, ...]:
    """One path, several or none, as a tuple."""
    paths = (value,) if isinstance(value, str) else tuple(value or ())
    for path in paths:
        require_text(setting, path)
    return paths


def require_text(setting: str, value: object) -> None:
    if not isinstance(value, str) or not value:
        raise UserError(f'{setting}={value!r} must be a word or path, not empty. Set {setting} in your .gin.')
