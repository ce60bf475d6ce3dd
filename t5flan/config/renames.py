"""Old names of settings, which are understood for one release.

A dataclass lists the fields that were renamed, `RENAMED: ClassVar[Mapping[str, str]] = {'blends': 'mixtures'}`;
configurables.py lists the renamed classes. Gin files, the command line and saved checkpoints all go through here.
"""

import dataclasses
import functools
import sys
from collections.abc import Mapping
from typing import Any

from t5flan.config import annotations


def current_name(cls: Any, field: str) -> str:
    """The present name of a field of `cls`, given an old or a present one."""
    renamed: Mapping[str, str] = getattr(cls, 'RENAMED', {})
    return renamed.get(field, field)


@functools.cache  # one warning for each name
def warn(old: str, new: str) -> None:
    """Prints the new name of a setting to stderr, once for each old name."""
    print(f't5flan: the setting {old} is now {new}', file=sys.stderr)


def current_settings(cls: type, saved: Mapping[str, Any]) -> dict[str, Any]:
    """Translates settings of `cls` that an older release saved as JSON to the present names.

    Args:
        saved: field -> value; a field of nested settings may also have a name such as 'instructions.few_shot'.
    """
    kinds = {field.name: annotation for field, annotation in annotations.fields(cls)}
    translated = {}
    for old, value in saved.items():
        outer, dot, inner = old.partition('.')
        name = current_name(cls, outer)
        kind = kinds.get(name, Any)
        translated[name + dot + current_name(kind, inner)] = value if dot else _translate(kind, value)
    return translated


def _translate(annotation: Any, value: Any) -> Any:
    """A JSON value of this type, with the present names in every dataclass inside it."""
    kind = next((option for option in annotations.options(annotation) if dataclasses.is_dataclass(option)), None)
    if isinstance(value, Mapping):
        if isinstance(kind, type):
            return current_settings(kind, value)
        return {key: _translate(annotations.item_type(annotation), item) for key, item in value.items()}
    if isinstance(value, list):
        return [_translate(annotations.item_type(annotation), item) for item in value]
    return value
