"""What cannot be read: an error that stops the run or, with skip_broken, a task or row that is skipped and reported.

with skip_on_error('task001', config.skip_broken):
    register_task(path)  # with skip_broken, a UserError in here is kept in `skipped_tasks()` instead of raised
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from t5flan.errors import UserError

_skipped: dict[str, str] = {}
_rows: set[str] = set()
_notes: dict[str, list[str]] = {}
_left_out: dict[str, list[str]] = {}
_T = TypeVar('_T')


def skipped_tasks() -> dict[str, str]:
    """Task, or place of a row -> why it was skipped, since the program started."""
    return dict(_skipped)


def skip(place: str, why: str, is_row: bool = False) -> None:
    """Records that a task, or a row of a file, is skipped."""
    why = ' '.join(why.split())
    _skipped[place] = why.removeprefix(place).removeprefix(':').strip() if why.startswith(place) else why
    if is_row:
        _rows.add(place)


def note(mixture: str, lines: Sequence[str]) -> None:
    """Replaces the notes of a mixture: what it lacks compared to the published one, and why."""
    _notes[mixture] = list(lines)


def notes(mixture: str) -> list[str]:
    """The notes of a mixture."""
    return list(_notes.get(mixture, ()))


def note_lines(mixtures: Iterable[str]) -> list[str]:
    """The notes of several mixtures, as lines to print."""
    lacks = {name: notes(name) for name in mixtures}
    return [line for name, what in lacks.items() if what for line in (f'{name} lacks:', *(f'  {one}' for one in what))]


def leave_out(path: str, lines: Sequence[str]) -> None:
    """Replaces the record of what is not learned from a file, because it is not meant to be."""
    _left_out[path] = [f'{path}: {line}' for line in lines]


def left_out_lines() -> list[str]:
    """What is not learned from the files that were read, as lines to print."""
    return [line for lines in _left_out.values() for line in lines]


class Problems:
    """Collects what cannot be used of a file while it is scanned; `to_json` is stored with the file's index.

    Args:
        skip_broken: skips what cannot be read, instead of raising its error.
    """

    def __init__(self, skip_broken: bool = False) -> None:
        self.skip_broken = skip_broken
        self.broken: dict[str, str] = {}
        """Place -> why it is skipped."""
        self.left_out: dict[str, list[Any]] = {}
        """What is left out -> how often, and the first place of it."""

    def on_error(self, where: str, error: UserError) -> None:
        """Records that a row is skipped; without skip_broken, raises its error and names the flag."""
        if not self.skip_broken:
            raise UserError(f'{error} Set --skip_broken to continue without it.') from None
        self.broken[where] = str(error)

    def on_left_out(self, where: str, what: str) -> None:
        """Counts what is left out of a row."""
        self.left_out.setdefault(what, [0, where])[0] += 1

    def until_broken(self, rows: Iterator[_T], path: str) -> Iterator[_T]:
        """The rows of a file up to a place where it cannot be read any further."""
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except UserError as error:
                if not self.skip_broken:
                    raise
                self.broken[f'{path} from there on'] = str(error)
                return
            yield row

    def to_json(self) -> dict[str, Any]:
        """The problems as JSON."""
        return {'broken': self.broken, 'left_out': self.left_out}


def report(path: str, problems: Mapping[str, Any]) -> None:
    """Records the problems of a file (`Problems.to_json`) for `summary` and `left_out_lines`."""
    for where, why in problems['broken'].items():
        skip(where, why, is_row=True)
    found = problems['left_out'].items()
    leave_out(
        path, [f'left out {what} ({count:,}; the first: {_inside(where, path)})' for what, (count, where) in found]
    )


def nothing_left(path: str, problems: Mapping[str, Any], what: str, setting: str) -> UserError:
    """The error of a file of which nothing can be used: names the first problem, if there is one."""
    if why := next(iter(problems['broken'].values()), ''):
        return UserError(f'{path}: no {what} can be used; the first problem: {why}')
    left_out = ' and '.join(problems['left_out'])
    return UserError(
        f'{path}: no {what}{f" but {left_out}" if left_out else ""}. Set {setting} to a file that has some.'
    )


def _inside(where: str, path: str) -> str:
    return where.removeprefix(path).strip() or where


@contextlib.contextmanager
def skip_on_error(task: str, skip_broken: bool) -> Iterator[None]:
    """Records a UserError of the block in `skipped_tasks()`; without skip_broken, raises it and names the flag."""
    try:
        yield
    except UserError as error:
        if not skip_broken:
            raise UserError(f'{error} Set --skip_broken to continue without {task}.') from error
        skip(task, str(error))


def summary(reasons: Mapping[str, str], shown: int = 5) -> list[str]:
    """Lines to print: the number of skipped tasks and rows, and the reasons of the first few."""
    if not reasons:
        return []
    rows = sum(place in _rows for place in reasons)
    counts = [(len(reasons) - rows, 'task'), (rows, 'row')]
    given = ' and '.join(f'{count:,} {kind}{"s" * (count > 1)}' for count, kind in counts if count)
    lines = [f'{given} skipped (skip_broken):']
    lines += [f'  {place}: {why}' for place, why in list(reasons.items())[:shown]]
    return lines + ([f'  and {len(reasons) - shown:,} more'] if len(reasons) > shown else [])
