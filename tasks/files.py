"""Tasks from files of inputs and targets (.jsonl, .tsv, .csv), set in gin: FileTask in t5flan/data/config.py."""

import csv
import functools
import string
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from t5flan.data.corpus_config import FileTask
from t5flan.data.preprocessing.tokenization import append_eos, tokenize
from t5flan.data.records.file_rows import FileRows, Records
from t5flan.data.records.text_files import hold_out, is_held_out, json_lines, json_object, match_files, require_field
from t5flan.errors import UserError
from t5flan.scoring.metrics import exact_match
from t5flan.tasks.registry import replace_mixture

MIXTURE = 'file_tasks'
SUFFIXES = ('.jsonl', '.tsv', '.csv')
_registered: dict[str, FileTask] = {}


def register(tasks: Sequence[FileTask]) -> None:
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
        register_task(task)
    replace_mixture(MIXTURE, [(task.name, task.rate) for task in tasks])


def register_task(task: FileTask) -> None:
    """Registers one file task; its files are found now, and read when the task is used."""
    import seqio

    from t5flan.data.records.sources import IndexedSource
    from t5flan.data.vocabulary.seqio_vocabulary import text_features

    if _registered.get(task.name) == task:
        return
    if task.name in {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names(), MIXTURE}:
        raise UserError(f'FileTask.name={task.name!r} is the name of another task or mixture. Set another one.')
    needed_fields(task)
    for split, pattern in splits(task).items():
        match_files(pattern, SUFFIXES, f'FileTask.{split if getattr(task, split) else "train"}')
    source = IndexedSource({split: functools.partial(open_rows, task, split) for split in splits(task)})
    try:
        seqio.TaskRegistry.add(
            task.name,
            source=source,
            preprocessors=[tokenize, append_eos],
            output_features=text_features(),
            metric_fns=[exact_match],
        )
    except ValueError as error:
        raise UserError(f'FileTask.name={task.name!r} is not a valid name. Use letters, digits, "_", ".".') from error
    _registered[task.name] = task


def splits(task: FileTask) -> dict[str, str]:
    """Split -> path or glob; without a validation file, 'validation' is a share of train."""
    made = {'train': task.train, 'validation': task.validation or task.train}
    return made | ({'test': task.test} if task.test else {})


def needed_fields(task: FileTask) -> list[str]:
    """The fields that a row must have: those of the template, and the target.

    Raises:
        UserError: the braces of the template do not match.
    """
    given = f'FileTask.template={task.template!r}'
    try:
        parts = [name for _, name, _, _ in string.Formatter().parse(task.template) if name is not None]
    except ValueError as error:
        raise UserError(f'{given}: {error}. Write {{{{ and }}}} for braces that are not fields.') from None
    if '' in parts:
        raise UserError(f'{given} has a brace without a field name. Write {{input}}, {{FIELD}} or {{{{ }}}}.')
    return [task.input_field if name == 'input' else name for name in parts] + [task.target_field]


def make_example(task: FileTask, row: Mapping[str, object], where: str) -> dict[str, str]:
    """Inputs and targets of a row.

    Raises:
        UserError: a field is missing or not text.
    """
    fields = {name: require_field(row, name, where, _setting(task, name)) for name in needed_fields(task)}
    pieces = []
    for literal, name, _, _ in string.Formatter().parse(task.template):
        pieces.append(literal + ('' if name is None else fields[task.input_field if name == 'input' else name]))
    return {'inputs': ''.join(pieces), 'targets': fields[task.target_field]}


def _setting(task: FileTask, field: str) -> str:
    settings = {task.input_field: 'FileTask.input_field', task.target_field: 'FileTask.target_field'}
    return settings.get(field, 'FileTask.template')


def _json_example(task: FileTask, data: bytes, path: str, line: int) -> dict[str, str]:
    where = f'{path} line {line}'
    return make_example(task, json_object(data, where), where)


def open_rows(task: FileTask, split: str) -> Records:
    """The examples of a split; every line is checked now, so that a bad one is reported before the first step.

    Raises:
        UserError: a line is faulty; names file and line.
    """
    given = getattr(task, split)
    setting = f'FileTask.{split if given else "train"}'
    paths = match_files(given or task.train, SUFFIXES, setting)
    json_rows = all(path.endswith('.jsonl') for path in paths)
    by_hash = task.validation is None and split != 'test'
    rows: list[Any] = []
    held_out: list[bool] = []
    for number, path in enumerate(paths):
        for row, data, line, offset in _lines(path):
            example = make_example(task, row, f'{path} line {line}')
            rows.append((number, offset, len(data), line) if json_rows else example)
            held_out.append(by_hash and is_held_out(data, task.held_out))
    kept = hold_out(np.array(held_out, bool), split).tolist() if by_hash else range(len(rows))
    if not len(kept):
        raise UserError(f'{paths[0]}: no rows for {split!r} of {task.name!r}. Add rows, or set FileTask.validation.')
    kept_rows = [rows[i] for i in kept]
    if json_rows:
        return FileRows(paths, np.array(kept_rows, np.int64), functools.partial(_json_example, task))
    return kept_rows


def _lines(path: str) -> Iterator[tuple[dict[str, Any], bytes | str, int, int]]:
    """(row, the data that decides whether it is held out, line number, first byte) of every line."""
    if path.endswith('.jsonl'):
        for line, offset, data in json_lines(path):
            yield json_object(data, f'{path} line {line}'), data, line, offset
    else:
        for row, line in table_rows(path):
            yield row, repr(sorted(row.items())), line, 0


def table_rows(path: str) -> Iterator[tuple[dict[str, str], int]]:
    r"""(row, line number) of a .tsv or .csv file whose first line names the columns.

    In a .tsv file only '\n' ends a line, and quotes are ordinary characters; a .csv file is read as spreadsheets write
    it.
    """
    with open(path, encoding='utf-8-sig', newline='' if path.endswith('.csv') else '\n') as file:
        if path.endswith('.csv'):
            csv.field_size_limit(2**31 - 1)
            reader = csv.reader(file, strict=True)
            lines = ((cells, reader.line_num) for cells in reader)
        else:
            cells_of = lambda line: line.rstrip('\r\n').split('\t') if line.strip('\r\n') else []
            lines = ((cells_of(line), number) for number, line in enumerate(file, 1))
        number, header = 0, None
        try:
            for cells, number in lines:
                if not cells:
                    continue
                if header is None:
                    header = cells
                elif len(cells) != len(header):
                    counts = f'{len(cells)} columns, the first line has {len(header)}'
                    raise UserError(f'{path} line {number}: {counts}. Fix the line (quotes, tabs or commas in a cell).')
                else:
                    yield dict(zip(header, cells, strict=True)), number
        except UnicodeDecodeError:
            raise UserError(f'{path} after line {number}: not UTF-8. Save the file as UTF-8.') from None
        except csv.Error as error:
            raise UserError(f'{path} after line {number}: not CSV ({error}). Fix the quotes in that line.') from None
