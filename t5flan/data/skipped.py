"""Tasks that cannot be loaded: one line that stops the run, or, where the user says so, a task less and a line that says why.

with leaving_out('task001', config.skip_broken):
    register_task(path)              # a UserError in here is kept in `left_out()` instead of raised
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence

from t5flan.errors import UserError

_left_out: dict[str, str] = {}
_notes: dict[str, list[str]] = {}


def left_out() -> dict[str, str]:
    """Task -> why it was left out, since the program began."""
    return dict(_left_out)


def leave_out(task: str, why: str) -> None:
    """Notes that a task is left out."""
    _left_out[task] = ' '.join(why.split())


def note(mixture: str, lines: Sequence[str]) -> None:
    """Keeps what people should know of a mixture (what it has not, and why); in place of what was kept before."""
    _notes[mixture] = list(lines)


def notes(mixture: str) -> list[str]:
    """What was kept of a mixture."""
    return list(_notes.get(mixture, ()))


def lacking(mixtures: Iterable[str]) -> list[str]:
    """Lines for people on what mixtures have not."""
    return [
        line
        for name in mixtures
        if notes(name)
        for line in (f'{name} is without:', *(f'  {what}' for what in notes(name)))
    ]


@contextlib.contextmanager
def leaving_out(task: str, skip_broken: bool) -> Iterator[None]:
    """Notes a UserError of what is done inside for `left_out()`; without skip_broken it is raised.

    Raises:
        UserError: what was raised inside, with the flag that goes on without the task.
    """
    try:
        yield
    except UserError as error:
        if not skip_broken:
            raise UserError(f'{error} --skip_broken goes on without {task}.') from error
        leave_out(task, str(error))


def summary(reasons: dict[str, str], shown: int = 5) -> list[str]:
    """Lines for people: how many tasks were left out, and why the first few were."""
    if not reasons:
        return []
    lines = [f'{len(reasons):,} {"task" if len(reasons) == 1 else "tasks"} left out (skip_broken):']
    lines += [f'  {task}: {why}' for task, why in list(reasons.items())[:shown]]
    return lines + ([f'  and {len(reasons) - shown:,} more'] if len(reasons) > shown else [])
