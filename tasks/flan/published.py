"""The tasks of Flan 2022 as published, matched with those that are registered here.

published_tasks.json has the names of flan_collection_info.csv: 1,945 rows, of which the inverted versions of a data set
are rows of their own. The Flan-PaLM paper counts 1,836 tasks (arXiv:2210.11416): 80 of muffin (each data set once, MNLI
twice), 193 of T0-SF, 1,554 of Natural Instructions, of which the file lists 1,556, and 9 of chain of thought.
"""

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from t5flan.data.records.json_files import load_json
from t5flan.tasks import cot, natural_instructions
from t5flan.tasks.flan.table import Submixture, load_table

PATH = Path(__file__).with_name('published_tasks.json')
_PREFIXES = {'niv2': (natural_instructions.PREFIX, ()), 'cot': (cot.PREFIX, ('cot_', 'stream_'))}
"""Submixture of files -> the prefix of the tasks here, and those of the published ones."""
_ONCE = ('cot',)
"""Submixtures whose data sets the paper counts once, however many rows they have; elsewhere two rows count as one."""


@functools.cache
def published_tasks() -> dict[str, dict[str, int]]:
    """Submixture -> published task or data set -> its rows in flan_collection_info.csv."""
    content = load_json(PATH)
    content.pop('purpose')
    return {name: tasks if isinstance(tasks, dict) else dict.fromkeys(tasks, 1) for name, tasks in content.items()}


def counted(submixture: Submixture, registered: Iterable[str]) -> dict[str, Any]:
    """How many of the published tasks of a submixture are here.

    Args:
        registered: the names of its tasks here.

    Returns:
        {'published', 'here' (numbers, as the paper counts), 'published_rows', 'here_rows' (as the file does, with
        inverted versions), 'missing': {task: why}}.
    """
    rows = {name: count for part in (submixture.name, *submixture.holds) for name, count in _of(part).items()}
    given = set(registered)
    stand_for, reasons = _from_files(submixture, given) if submixture.mixture else _from_table(submixture, given)
    here = {name: count for name, count in rows.items() if name in stand_for}
    missing = {name: reasons.get(name, '') for name in rows if name not in stand_for}
    once = submixture.name in _ONCE
    count = lambda some: sum(1 if once else -(-number // 2) for number in some.values())
    return {
        'published': count(rows),
        'here': count(here),
        'published_rows': sum(rows.values()),
        'here_rows': sum(here.values()),
        'missing': missing,
    }


def _of(submixture: str) -> Mapping[str, int]:
    return published_tasks().get(submixture, {})


def _from_table(submixture: Submixture, registered: set[str]) -> tuple[set[str], dict[str, str]]:
    table = load_table()
    here = {
        task for row in table.of(submixture.name) if row.task in registered for task in row.published or (row.name,)
    }
    left_out = [row for row in table.left_out if row.submixture in (submixture.name, *submixture.holds)]
    reasons = {task: row.reason for row in left_out for task in row.published or (row.name,)}
    skipped = {
        task: f'{row.task} is skipped' for row in table.of(submixture.name) for task in row.published or (row.name,)
    }
    return here, skipped | reasons


def _from_files(submixture: Submixture, registered: set[str]) -> tuple[set[str], dict[str, str]]:
    prefix, published_prefixes = _PREFIXES[submixture.name]
    names = {name.removeprefix(prefix) for name in registered}
    setting = submixture.setting.partition(' ')[0]
    why = f'it is not among the files of {setting}' if names else f'no files are given; set {submixture.setting}'
    here, reasons = set(), {}
    for task in _of(submixture.name):
        short = task
        for published in published_prefixes:
            short = short.removeprefix(published)
        if short in names:
            here.add(task)
        else:
            reasons[task] = why
    return here, reasons
