"""Conversations: each file of DataConfig.chat becomes the task chat_NAME, all of them the mixture 'chat'.

    DataConfig.chat = ['sharegpt.json', 'trees.jsonl', 'alpaca.json', 'seed_tasks.jsonl']  (CHAT_FILES of runs/instruct)
    DataConfig.mixture = 'chat'

The format is recognized row by row: ShareGPT ('conversations' of from and value, with tool calls and 'tools'), OpenAI's
'messages' of role and content, OpenAssistant trees (their best-ranked replies), Alpaca (instruction, input, output,
history), prompts with completions, preference rows (the chosen reply) or Self-Instruct seed tasks.
t5flan/data/prompting/conversations.py turns them into tokens and sets which of these carry loss.

What is not meant to be learned is left out and reported: the assistant's turns before the first of the user, the turns
from an empty one on, OpenAssistant messages that were deleted or failed review. With --skip_broken, rows and
conversations that cannot be used are skipped and reported too.
"""

import functools
from collections.abc import Sequence

import numpy as np

from t5flan.data.mixtures.mixing import ByExamples
from t5flan.data.preprocessing.examples import Example
from t5flan.data.prompting.conversation_formats import parse_row
from t5flan.data.prompting.conversations import converse
from t5flan.data.records.file_index import FileIndex, file_index
from t5flan.data.records.file_rows import FileRows
from t5flan.data.records.json_files import parse_json
from t5flan.data.records.rows import json_source, match_rows, read_rows, stem_of
from t5flan.data.records.text_files import hold_out, is_held_out
from t5flan.data.skipped import Problems, nothing_left, report, skip_on_error
from t5flan.errors import UserError
from t5flan.tasks.registry import add_task, is_registered, replace_mixture, safe_name

MIXTURE, PREFIX = 'chat', 'chat_'
HELD_OUT = 0.02
"""Share of the rows held out for validation (at least one), by a hash of the row."""


def register(files: Sequence[str], skip_broken: bool = False) -> None:
    """Registers a task for each file, and the mixture 'chat' with rates in proportion to their examples.

    Calling it again changes nothing.

    Args:
        files: paths or globs; they are read when a task is used.
        skip_broken: skips files that cannot be read, and rows and conversations that cannot be used.

    Raises:
        UserError: a file is missing or of the wrong kind, or two files have one name.
    """
    if not files:
        return
    paths: list[str] = []
    for pattern in files:
        with skip_on_error(pattern, skip_broken):
            paths += match_rows(pattern, 'DataConfig.chat')
    names: list[str] = []
    for path in paths:
        with skip_on_error(path, skip_broken):
            names.append(register_file(path, skip_broken))
    replace_mixture(MIXTURE, sorted(set(names)), ByExamples())


def task_name(path: str) -> str:
    """'data/my chats.jsonl' -> 'chat_my_chats'."""
    return PREFIX + safe_name(stem_of(path))


def register_file(path: str, skip_broken: bool = False) -> str:
    """Registers the task of one file; returns its name."""
    from t5flan.data.records.sources import IndexedSource

    name = task_name(path)
    if not is_registered(name, path):
        splits = ('train', 'validation')
        source = IndexedSource({split: functools.partial(open_file, path, split, skip_broken) for split in splits})
        add_task(name, path, source=source, preprocessors=[converse], metric_fns=[])
    return name


def open_file(path: str, split: str, skip_broken: bool = False) -> FileRows:
    """The conversations of a split; every row is checked now, so that a bad one is reported before the first step.

    Raises:
        UserError: a row is not a conversation (names file and row), or nothing is left for the split.
    """
    source = json_source(path)[0]
    index = file_index(source, f'chat-4-{int(skip_broken)}', functools.partial(_scan, path, skip_broken))
    report(path, index.info)
    if not len(index.rows):
        raise nothing_left(path, index.info, 'conversations', 'DataConfig.chat')
    rows = index.rows[hold_out(index.rows[:, 5].astype(bool), split)]
    if not len(rows):
        raise UserError(f"{path}: one conversation, none is left for split '{split}'. Add rows.")
    return FileRows([source], rows, _conversation, [path])


def _conversation(data: bytes, path: str, number: int, row: int, held_out: int) -> Example:
    where = f'{path} row {row}'
    return parse_row(parse_json(data, where), where, on_error=lambda *_: None)[number]  # numbered as in `_scan`


def _scan(path: str, skip_broken: bool) -> FileIndex:
    """Rows [R, 6]: file 0, first byte, length, number of the conversation in its row, row number, whether held out."""
    rows: list[tuple[int, int, int, int, int, bool]] = []
    problems = Problems(skip_broken)
    for row in problems.until_broken(read_rows(path, problems.on_error), path):
        found = len(parse_row(row.value, row.where, problems.on_error, problems.on_left_out))
        held_out = is_held_out(repr(row.value), HELD_OUT)  # a tree's paths together: they share turns
        rows += [(0, row.offset, len(row.data), i, row.number, held_out) for i in range(found)]
    return FileIndex(np.array(rows, np.int64).reshape(-1, 6), problems.to_json())
