"""Errors that a user can fix. The command line prints them as one line, without a traceback."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """An input is wrong; the message is one line: what was given, what was expected, how to fix it."""


class UsageError(UserError):
    """The command line is wrong, e.g. an unknown command, flag or setting: exit code 2."""


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """The end of an error message about an unknown name: '; did you mean NAME?', or '' if no known name is close."""
    found = nearest(name, known, cutoff)
    return f'; did you mean {found}?' if found else ''


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Returns the known name closest to `name`, ignoring case, or None if no name is close.

    `nearest('BATCHSIZE', ['BATCH_SIZE', 'STEPS'])` is 'BATCH_SIZE'. Names also match by their last part:
    `nearest('emb_dim', ['ModelConfig.emb_dim'])` is 'ModelConfig.emb_dim'.

    Args:
        name: the unknown name.
        known: the names to choose from.
        cutoff: the minimum similarity of whole names, as in `difflib.get_close_matches`.
    """
    by_fold: dict[str, str] = {}
    for word in known:
        by_fold.setdefault(word.lower(), word)
    found = difflib.get_close_matches(name.lower(), by_fold, n=1, cutoff=cutoff)
    if found:
        return by_fold[found[0]]
    by_end = {word.rpartition('.')[2]: word for word in reversed(by_fold)}
    found = difflib.get_close_matches(name.lower().rpartition('.')[2], by_end, n=1, cutoff=0.75)
    return by_fold[by_end[found[0]]] if found else None
