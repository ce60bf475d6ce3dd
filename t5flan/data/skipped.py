"""Tasks that cannot be loaded: an error that stops the run or, with skip_broken, a task that is skipped and reported.

with skip_on_error('task001', config.skip_broken):
    register_task(path)  # with skip_broken, a UserError in here is kept in `skipped_tasks()` instead of raised
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

from t5flan.errors import UserError

_skipped: dict[str, str] = {}
_notes: dict[str, list[str]] = {}


def skipped_tasks() -> dict[str, str]:
    """Task -> why it was skipped, since the program started."""
    return dict(_skipped)


def skip(task: str, why: str) -> None:
    """Records that a task is skipped."""
    _skipped[task] = ' '.join(why.split())


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
    """Lines to print: the number of skipped tasks, and the reasons of the first few."""
    if not reasons:
        return []
    lines = [f'{len(reasons):,} {"task" if len(reasons) == 1 else "tasks"} skipped (skip_broken):']
    lines += [f'  {task}: {why}' for task, why in list(reasons.items())[:shown]]
    return lines + ([f'  and {len(reasons) - shown:,} more'] if len(reasons) > shown else [])
