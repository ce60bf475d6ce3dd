"""Registers tasks that are made of files, and mixtures that can be registered again."""

import re
from collections.abc import Sequence
from typing import Any

from t5flan.data.mixtures import definitions
from t5flan.errors import UserError

_made: dict[str, tuple[str, Any]] = {}


def safe_name(text: str) -> str:
    """A text as part of a task's name.

    >>> safe_name('my chats')
    'my_chats'
    """
    return re.sub(r'[^A-Za-z0-9_.]', '_', text)


def is_registered(name: str, path: str, part: Any = None) -> bool:
    """Whether `add_task` registered this task before.

    Args:
        part: the part of the file, if the task is not the whole of it.

    Raises:
        UserError: the task of that name is made of another file.
    """
    if name not in _made:
        return False
    if _made[name] != (path, part):
        raise UserError(f'{path}: task {name} is made of {_made[name][0]} already. Rename one of them.')
    return True


def add_task(name: str, path: str, part: Any = None, **task: Any) -> None:
    """Registers a task of inputs and targets that is made of a file.

    Args:
        part: the part of the file, if the task is not the whole of it.
        **task: source, preprocessors and the other arguments of `definitions.add_task`.

    Raises:
        UserError: the name belongs to another task or mixture, or is not a valid name.
    """
    if name in definitions.mixture_names():
        raise UserError(f'{path}: {name} is the name of a mixture. Rename the file.')
    try:
        definitions.add_task(name, **task)
    except ValueError as error:
        why = 'the name of another task' if name in definitions.task_names() else 'not a valid name for a task'
        raise UserError(f'{path}: {name} is {why}. Rename the file.') from error
    _made[name] = (path, part)


def replace_mixture(name: str, parts: Sequence[Any], default_rate: Any = None) -> None:
    """Registers a mixture in place of an earlier one of that name; no parts, no mixture."""
    definitions.remove_mixture(name)
    if parts:
        definitions.add_mixture(name, [(part, default_rate) if isinstance(part, str) else part for part in parts])
