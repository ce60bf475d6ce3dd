"""Errors that a user can fix. The command line prints them as one line, without a traceback."""

import contextlib
import difflib
import errno
import os
import re
from collections.abc import Iterable, Iterator

OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a write that later succeeds, once there is space."""
_OF_DISKS = (*OUT_OF_SPACE, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.EIO, errno.ESTALE)
_SAID = re.compile('|'.join(os.strerror(number) for number in _OF_DISKS if number not in (errno.EPERM, errno.EIO)))


_OF_BUCKETS = re.compile(r'All \d+ retry attempts failed|CURL error|HTTP response code: 40|PERMISSION_DENIED')


class UserError(ValueError):
    """An input is wrong; the message is one line: what was given, what was expected, how to fix it."""


class BucketError(OSError):
    """A bucket cannot be read or written: no rights, no such bucket, or no answer in time; one line."""


class UsageError(UserError):
    """The command line is wrong, e.g. an unknown command, flag or setting: exit code 2."""


def disk_problem(error: BaseException) -> str | None:
    """What is wrong with a disk or bucket, if it is the cause of an error: 'No space left on device: FILE'; else None.

    Libraries wrap what the system says: in an error of their own, in a group of errors, or in a text.
    """
    errors = list(_causes(error))
    for one in errors:
        if isinstance(one, BucketError):
            return str(one)
    for one in errors:
        if isinstance(one, OSError) and one.errno in _OF_DISKS:
            where = f': {os.fsdecode(one.filename)}' if isinstance(one.filename, str | bytes) else ''
            return f'{os.strerror(one.errno)}{where}'
    for one in errors:
        text = ' '.join(str(one).split())
        if _OF_BUCKETS.search(text):
            return f'a bucket does not answer: {text.partition("[tensorstore_spec")[0][:240].rstrip(" .[")}'
        if found := _SAID.search(text):
            path = re.search(r'"(/[^"]*)"|(?<=[\s:\'])(/[^\s\'":,\]]+)', text)
            return found[0] + (f': {path[1] or path[2]}' if path else '')
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error, those in its group, and those that it comes from."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop(0)
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting += [*getattr(one, 'exceptions', ()), one.__cause__, one.__context__]


MALFORMED = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""What reading the fields of a damaged or strange file raises."""


@contextlib.contextmanager
def reading(what: str, fix: str) -> Iterator[None]:
    """Turns what a damaged or strange file raises in the block into one line.

    Args:
        what: the file or folder that is read.
        fix: how to fix it, a sentence.

    Raises:
        UserError: the block raised one of `MALFORMED`.
    """
    try:
        yield
    except UserError:
        raise
    except MALFORMED as error:
        raise UserError(f'{what} cannot be read ({type(error).__name__}: {_start_of(error)}). {fix}') from None


def _start_of(error: BaseException) -> str:
    return ' '.join(str(error).split())[:160]


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
