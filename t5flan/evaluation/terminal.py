"""What `t5flan evaluate` and `infer` print: their progress and the table."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from t5flan.evaluation.measures import metrics_of


def print_table(summary: Mapping[str, Any]) -> None:
    """Prints the summary of `evaluate` as a table."""
    adapter = summary['settings'].get('adapter')
    model = summary['checkpoint'] + (f' with {adapter["checkpoint"]}' if adapter else '')
    title = f'{model}, step {summary["step"]}, {summary["split"]}'
    print_scores(title, summary['tasks'], summary['means'])
    cut = [f'{result["cut"]} of {task}' for task, result in summary['tasks'].items() if result.get('cut')]
    if cut:
        print(f'trimmed to the feature lengths: {", ".join(cut)}')


def print_scores(title: str, tasks: Mapping[str, Mapping[str, Any]], means: Mapping[str, Mapping[str, Any]]) -> None:
    """Prints a table: a line of metrics for every task, then for the mean of each group."""
    from rich.console import Console
    from rich.table import Table

    metrics = list(dict.fromkeys(name for result in tasks.values() for name in metrics_of(result)))
    table = Table(title=title, title_justify='left')
    table.add_column('task', overflow='fold')
    for column in ('examples', *metrics):
        table.add_column(column, justify='right')
    cells = lambda result: [f'{result[name]:.2f}' if name in result else '' for name in metrics]
    for task, result in tasks.items():
        table.add_row(task, str(result['examples']), *cells(result))
    if means:
        table.add_section()
    for group, result in means.items():
        table.add_row(f'mean of {group}', '', *cells(result), style='bold')
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def print_steps(found: Sequence[Mapping[str, Any]]) -> None:
    """Prints the metrics of several checkpoints, a line for each: means if there are any, else of the tasks."""
    from rich.console import Console
    from rich.table import Table

    if len(found) < 2:
        return
    scores = [
        {f'{group}: {name}': value for group, one in _groups(result).items() for name, value in metrics_of(one).items()}
        for result in found
    ]
    names = list(dict.fromkeys(name for one in scores for name in one))
    table = Table()
    for column in ('step', *names):
        table.add_column(column, justify='right', overflow='fold')
    for result, one in zip(found, scores, strict=True):
        table.add_row(str(result['step']), *(f'{one[name]:.2f}' if name in one else '' for name in names))
    print(f'{found[0]["checkpoint"]}, {len(found)} checkpoints')
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def _groups(result: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    if 'benchmarks' in result:
        return {name: {one['metric']: one['score']} for name, one in result['benchmarks'].items()}
    return result['means'] or result['tasks']


class Progress:
    """Reports `generated 128 of 960`: in place on a terminal, elsewhere as a line for every tenth."""

    def __init__(self) -> None:
        self._tenth = 0

    def __call__(self, done: int, total: int) -> None:
        """Reports that `done` of `total` examples are finished."""
        if sys.stderr.isatty():
            print(f'\rgenerated {done} of {total}', end='' if done < total else '\n', file=sys.stderr, flush=True)
        elif 10 * done // total > self._tenth:
            self._tenth = 10 * done // total
            print(f'generated {done} of {total}', file=sys.stderr, flush=True)


@contextlib.contextmanager
def row_progress(before: int, total: int) -> Iterator[Callable[[int], None]]:
    """Reports rows as they are finished: a bar on a terminal, elsewhere a line for every tenth of them.

    Args:
        before: rows that an earlier run finished; the rate does not count them.

    Yields:
        A function of the number of finished rows.
    """
    if sys.stderr.isatty():
        from rich import progress as rich
        from rich.console import Console

        columns = (rich.BarColumn(), rich.MofNCompleteColumn(), rich.TextColumn('rows'), rich.TimeRemainingColumn())
        with rich.Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task('rows', total=total, completed=before)
            yield lambda done: bar.update(task, completed=done)
        return
    started, tenth = time.monotonic(), 10 * before // total

    def report(done: int) -> None:
        nonlocal tenth
        if 10 * done // total > tenth:
            tenth = 10 * done // total
            rate = (done - before) / max(time.monotonic() - started, 1e-9)
            print(f'{done} of {total} rows, {rate:.1f} per second', file=sys.stderr, flush=True)

    yield report
