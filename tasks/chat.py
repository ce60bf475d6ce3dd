"""Conversations to learn from: each file of DataConfig.chat becomes the task chat_NAME, all of them the mixture 'chat'.

    DataConfig.chat = ['sharegpt.json', 'trees.jsonl', 'alpaca.json', 'seed_tasks.jsonl']   (CHAT_FILES of runs/instruct)
    DataConfig.mixture = 'chat'

Rows may be ShareGPT's ('conversations' of from and value, with tool calls and 'tools'), 'messages' of role and content, trees
of OpenAssistant (their best-ranked replies), Alpaca's (instruction, input, output) or Self-Instruct's seed tasks; which, is
seen row by row. How they become tokens, and which of these carry loss: t5flan/data/prompting/conversations.py.
"""

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t5flan.data.preprocessing.examples import Example
from t5flan.data.prompting.conversations import converse, parse_row
from t5flan.data.records.file_index import FileIndex, file_index
from t5flan.data.records.json_files import json_rows, read_json
from t5flan.data.records.text_files import hold_out, is_held_out, match_files
from t5flan.data.skipped import leave_out, leaving_out
from t5flan.errors import UserError

MIXTURE, PREFIX = 'chat', 'chat_'
SUFFIXES = ('.json', '.jsonl')
HELD_OUT = 0.02
"""Share of the rows held out for validation (one at least), by a hash of the row."""
_registered: dict[str, str] = {}


def register(files: Sequence[str], skip_broken: bool = False) -> None:
    """Registers a task for each file and the mixture 'chat', in proportion to their examples; again changes nothing.

    Args:
        files: paths or globs; they are read when a task is used.
        skip_broken: leaves out a file that cannot be read and the rows that are no conversations.

    Raises:
        UserError: a file is missing or of the wrong kind, or two have one name.
    """
    if not files:
        return
    import seqio

    paths: list[str] = []
    for pattern in files:
        with leaving_out(pattern, skip_broken):
            paths += match_files(pattern, SUFFIXES, 'DataConfig.chat')
    names: list[str] = []
    for path in paths:
        with leaving_out(path, skip_broken):
            names.append(register_file(path, skip_broken))
    if MIXTURE in seqio.MixtureRegistry.names():
        seqio.MixtureRegistry.remove(MIXTURE)
    if names:
        seqio.MixtureRegistry.add(MIXTURE, sorted(set(names)), default_rate=_count)


def _count(task: Any) -> float:
    """A task's rate: its examples."""
    return float(task.num_input_examples('train'))


def task_name(path: str) -> str:
    """'data/my chats.jsonl' -> 'chat_my_chats'."""
    return PREFIX + re.sub(r'[^A-Za-z0-9_.]', '_', Path(path).stem)


def register_file(path: str, skip_broken: bool = False) -> str:
    """Registers the task of one file; returns its name."""
    import seqio

    from t5flan.data.records.sources import IndexedSource
    from t5flan.data.vocabulary.seqio_vocabulary import text_features

    name = task_name(path)
    if name in _registered and _registered[name] != path:
        raise UserError(f'{path}: task {name} is made of {_registered[name]} already. Rename one of them.')
    if name in _registered:
        return name
    if name in {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}:
        raise UserError(f'{path}: {name} is the name of another task or mixture. Rename the file.')
    source = IndexedSource(
        {split: functools.partial(open_file, path, split, skip_broken) for split in ('train', 'validation')}
    )
    seqio.TaskRegistry.add(
        name, source=source, preprocessors=[converse], output_features=text_features(), metric_fns=[]
    )
    _registered[name] = path
    return name


class Conversations(Sequence):
    """The conversations of a split, read from the file when asked for: records {'roles', 'texts'}."""

    def __init__(self, path: str, rows: np.ndarray) -> None:
        """`rows` [R, 5] int64: first byte, bytes, which conversation of its row, row number, whether held out."""
        self._path, self._rows = path, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        offset, size, number, row, _ = self._rows[index].tolist()
        where = f'{self._path} row {row}'
        return parse_row(read_json(self._path, offset, size, where), where)[number]


def open_file(path: str, split: str, skip_broken: bool = False) -> Conversations:
    """The conversations of a split; every row is checked now, so that a bad one is named before the first step.

    Raises:
        UserError: naming file and row; or nothing is left for the split.
    """
    index = file_index(path, f'chat-1-{int(skip_broken)}', functools.partial(_walk, path, skip_broken))
    for where, why in index.info.items():
        leave_out(where, why)
    if not len(index.rows):
        raise UserError(f'{path}: no conversations. Give a file that has some in DataConfig.chat.')
    rows = index.rows[hold_out(index.rows[:, 4].astype(bool), split)]
    if not len(rows):
        raise UserError(f"{path}: one conversation, none is left for split '{split}'. Add rows.")
    return Conversations(path, rows)


def _walk(path: str, skip_broken: bool) -> FileIndex:
    rows: list[tuple[int, int, int, int, bool]] = []
    broken: dict[str, str] = {}
    for number, row in enumerate(json_rows(path), 1):
        try:
            found = len(parse_row(row.value, row.where))
        except UserError as error:
            if not skip_broken:
                raise UserError(f'{error} --skip_broken goes on without that row.') from None
            broken[row.where] = str(error)
            continue
        held_out = is_held_out(repr(row.value), HELD_OUT)  # a tree's paths together: they share turns
        rows += [(row.offset, row.size, i, number, held_out) for i in range(found)]
    return FileIndex(np.array(rows, np.int64).reshape(-1, 5), broken)
