"""Tasks from files of inputs and targets in any format of records/rows.py, set in gin: FileTask in data/config.py."""

import array
import functools
import string
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from t5flan.data.corpus_config import FileTask
from t5flan.data.mixtures import definitions
from t5flan.data.preprocessing.tokenization import append_eos, tokenize
from t5flan.data.prompting.published_rows import as_question, inputs_and_targets, is_wrong_option
from t5flan.data.records.fields import find_field, list_options, require_text, require_texts
from t5flan.data.records.file_rows import FileRows, Records
from t5flan.data.records.rows import json_source, match_rows, parse_row, read_rows
from t5flan.data.records.text_files import hold_out, is_held_out
from t5flan.data.skipped import leave_out, skip
from t5flan.errors import UserError
from t5flan.scoring import metrics
from t5flan.tasks.registry import replace_mixture

MIXTURE = 'file_tasks'
_registered: dict[str, FileTask] = {}


def register(tasks: Sequence[FileTask], skip_broken: bool = False) -> None:
    """Registers file tasks, and the mixture 'file_tasks' of all of them; tasks with unchanged settings are kept.

    Raises:
        UserError: a name is taken or invalid, or a file is missing, empty or of the wrong kind.
    """
    if not tasks:
        return
    names = [task.name for task in tasks]
    for name in names:
        if names.count(name) > 1:
            count = names.count(name)
            raise UserError(f'FileTask.name={name!r} is set for {count} file tasks. Set a different name for each.')
    for task in tasks:
        register_task(task, skip_broken)
    replace_mixture(MIXTURE, [(task.name, task.rate) for task in tasks])


def register_task(task: FileTask, skip_broken: bool = False) -> None:
    """Registers one file task; its files are found now, and read when the task is used."""
    from t5flan.data.records.sources import IndexedSource

    if _registered.get(task.name) == task:
        return
    if task.name in {*definitions.task_names(), *definitions.mixture_names(), MIXTURE}:
        raise UserError(f'FileTask.name={task.name!r} is the name of another task or mixture. Set another one.')
    needed_fields(task)
    for split, pattern in splits(task).items():
        match_rows(pattern, f'FileTask.{split if getattr(task, split) else "train"}')
    source = IndexedSource({split: functools.partial(open_rows, task, split, skip_broken) for split in splits(task)})
    try:
        definitions.add_task(
            task.name,
            source=source,
            preprocessors=[tokenize, append_eos],
            postprocess_fn=postprocess,
            metric_fns=[getattr(metrics, name) for name in task.metrics],
        )
    except ValueError as error:
        raise UserError(f'FileTask.name={task.name!r} is not a valid name. Use letters, digits, "_", ".".') from error
    _registered[task.name] = task


def splits(task: FileTask) -> dict[str, str]:
    """Split -> path or glob; without a validation file, 'validation' is a share of train, or none for a share of 0."""
    made = {'train': task.train}
    if task.validation or task.held_out:
        made['validation'] = task.validation or task.train
    return made | ({'test': task.test} if task.test else {})


def needed_fields(task: FileTask) -> list[str]:
    """The fields that a row must have: those of the template, the options and the target.

    Raises:
        UserError: the braces of the template do not match.
    """
    given = f'FileTask.template={task.template!r}'
    try:
        parts = [name for name, _ in _template_parts(task) if name is not None]
    except ValueError as error:
        raise UserError(f'{given}: {error}. Write {{{{ and }}}} for braces that are not fields.') from None
    if '' in parts:
        raise UserError(f'{given} has a brace without a field name. Write {{input}}, {{FIELD}} or {{{{ }}}}.')
    return [*parts, *([task.options_field] if task.options_field else []), task.target_field]


def _template_parts(task: FileTask) -> list[tuple[str | None, str]]:
    """(field or None, the literal text before it) of every part of the template."""
    parsed = string.Formatter().parse(task.template)
    return [(task.input_field if name == 'input' else name, literal) for literal, name, _, _ in parsed]


def make_example(task: FileTask, row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Inputs and targets of a row, and 'answers' if its target is a list of right answers.

    Raises:
        UserError: a field is missing or not text.
    """
    row = inputs_and_targets(row)
    if 'inputs' not in row and (found := as_question(row)):
        listed = f'\n\n{list_options(found["options"])}' if 'options' in found else ''
        row = {**row, 'inputs': f'{found["question"]}{listed}', 'targets': found['answer']}
    pieces = []
    for name, literal in _template_parts(task):
        pieces.append(literal)
        if name is not None:
            setting = 'FileTask.input_field' if name == task.input_field else 'FileTask.template'
            value = find_field(row, name, where, setting)
            is_list = isinstance(value, (list, tuple))
            texts = require_texts(value, name, where, setting) if is_list else []
            pieces.append(list_options(texts) if is_list else require_text(value, name, where, setting))
    options: list[str] = []
    if task.options_field:
        listed = find_field(row, task.options_field, where, 'FileTask.options_field')
        options = require_texts(listed, task.options_field, where, 'FileTask.options_field')
        pieces.append(f'\n\n{list_options(options)}')
    answers = _answers(task, row, options, where)
    example: dict[str, Any] = {'inputs': ''.join(pieces), 'targets': answers[0]}
    return example if len(answers) == 1 else {**example, 'answers': answers}


def _answers(task: FileTask, row: Mapping[str, Any], options: Sequence[str], where: str) -> list[str]:
    """The right answers of a row; with options, a number (from 0) or a letter stands for one of them."""
    setting = 'FileTask.target_field'
    value = find_field(row, task.target_field, where, setting)
    if options and not isinstance(value, bool):
        number = value if isinstance(value, int) else -1
        if isinstance(value, str) and value not in options and len(letter := value.strip(' ().').upper()) == 1:
            number = ord(letter) - ord('1' if letter.isdecimal() else 'A')
        if 0 <= number < len(options):
            return [options[number]]
        if isinstance(value, int):
            raise UserError(
                f"{where}: field '{task.target_field}' is {value}, but there are {len(options)} options, counted from "
                f'0. Fix the file or set {setting}.'
            )
    if isinstance(value, (list, tuple)):
        return require_texts(value, task.target_field, where, setting)
    return [require_text(value, task.target_field, where, setting)]


def postprocess(text: str, is_target: bool = False, example: Mapping[str, Any] | None = None, **_: object) -> Any:
    """The right answers, or a model's output."""
    return list(example['answers']) if is_target and example is not None and 'answers' in example else text


def _example(task: FileTask, data: bytes, path: str, number: int) -> dict[str, Any]:
    where = f'{path} row {number}'
    return make_example(task, parse_row(data, where), where)


def open_rows(task: FileTask, split: str, skip_broken: bool = False) -> Records:
    """The examples of a split; every row is checked now, so that a bad one is reported before the first step.

    Args:
        skip_broken: skips rows that are faulty and records them in `skipped_tasks()`.

    Raises:
        UserError: a row is faulty; names file and row.
    """
    given = getattr(task, split)
    setting = f'FileTask.{split if given else "train"}'
    named = match_rows(given or task.train, setting)
    by_hash = task.validation is None and split != 'test' and task.held_out > 0
    rows, held_out = array.array('q'), array.array('b')

    def report(where: str, error: UserError) -> None:
        if not skip_broken:
            raise error
        skip(where, str(error), is_row=True)

    for number, path in enumerate(named):
        left_out = 0
        for row in read_rows(path, report):
            if is_wrong_option(row.value):
                left_out += 1
                continue
            try:
                make_example(task, row.value, row.where)
            except UserError as error:
                report(row.where, error)
                continue
            rows.extend((number, row.offset, len(row.data), row.number))
            held_out.append(by_hash and is_held_out(row.identity, task.held_out))
        leave_out(path, [f'left out {left_out:,} wrong options of rank classification'] if left_out else ())
    rows_R4 = np.frombuffer(rows, np.int64).reshape(-1, 4)
    if by_hash:
        rows_R4 = rows_R4[hold_out(np.array(held_out, bool), split)]
    if not len(rows_R4):
        raise UserError(f'{named[0]}: no rows for {split!r} of {task.name!r}. Add rows, or set FileTask.validation.')
    paths = [json_source(path)[0] for path in named]
    return FileRows(paths, rows_R4, functools.partial(_example, task), named)
