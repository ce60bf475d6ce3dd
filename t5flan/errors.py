"""The errors a user can mend. The command line prints them as one line, never as a traceback."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something given from outside is wrong: one line saying what was given, what was expected, which setting mends it."""


class UsageError(UserError):
    """The command line itself is wrong (unknown command, flag or setting): exit code 2."""


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name that a wrong one most likely meant, case aside; None where nothing is near.

    `nearest('BATCHSIZE', ['BATCH_SIZE', 'STEPS'])` is 'BATCH_SIZE'; a last part alone is found too:
    `nearest('emb_dim', ['ModelConfig.emb_dim'])`. `cutoff` is difflib's: 1 takes only the same word.
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
