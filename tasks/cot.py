r"""Chain of thought: files of questions, answers and rationales become tasks, and the mixture 'cot'.

    DataConfig.cot = 'flan_v2/cot_data'        a folder, files or globs (COT_DIR of runs/instruct)
    DataConfig.mixture = 'cot'

    gsm8k_train.tsv           FLAN's format: no header; question, answer, rationale; newlines as \n    -> cot_gsm8k
    CoT_collection_en.json    the CoT Collection's (arXiv:2305.14045): {"0": {"source", "target", "rationale", "task"},
                              …}, a list of such rows, or one per line (.jsonl)       -> cot_CoT_collection_en_TASK each
    CoT_collection_ko.json    the same in another language, with triggers and answer words of that language
    AddSub.json, SVAMP.json   the data sets of zero-shot chain of thought, as published (prompting/published_rows.py)
    cot_zs_opt.jsonl          FLAN 2022's export: {"inputs", "targets", "_task_name", …}; the prompts stay as they are

The target of a row is the rationale and then the answer, or the answer only (InstructionConfig.rationale), zero-shot or
with exemplars of the same task, with or without listed options (if the question ends with options), sometimes inverted.
'NAME_train', 'NAME_validation' and 'NAME_test' files are splits of one task; without a validation file, a share is held
out by a hash of the row. With --skip_broken, rows that cannot be used are skipped. `t5flan rationales` writes such
files from a model's samples.
"""

import array
import dataclasses
import functools
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t5flan.data.mixtures.mixing import ByExamples
from t5flan.data.preprocessing.examples import Context, Example, Result, example_fn
from t5flan.data.preprocessing.tokenization import append_eos, tokenize
from t5flan.data.prompting.instructions import RATIONALE, Instruct, Item, item_of
from t5flan.data.prompting.published_rows import as_question, inputs_and_targets, is_wrong_option
from t5flan.data.prompting.templates import Family, make_template
from t5flan.data.records.file_index import FileIndex, file_index
from t5flan.data.records.file_rows import FileRows, Records
from t5flan.data.records.hub import is_dataset
from t5flan.data.records.json_files import parse_json
from t5flan.data.records.paths import match_files
from t5flan.data.records.rows import (
    FORMATS,
    has_row_suffix,
    json_source,
    match_rows,
    plain_text,
    read_rows,
    stem_of,
    suffix_of,
)
from t5flan.data.records.text_files import hold_out, is_held_out
from t5flan.data.skipped import Problems, nothing_left, report, skip_on_error
from t5flan.errors import UserError
from t5flan.scoring.answers import TRIGGER, extract_answer
from t5flan.scoring.metrics import exact_match
from t5flan.tasks.families import family
from t5flan.tasks.registry import add_task, is_registered, replace_mixture, safe_name

MIXTURE, PREFIX, SETTING = 'cot', 'cot_', 'DataConfig.cot'
SPLITS = {'train': 'train', 'validation': 'validation', 'valid': 'validation', 'dev': 'validation', 'test': 'test'}
CAP = 100_000
"""The most examples of a task that count towards its rate, as in Flan 2022 (arXiv:2210.11416, appendix F)."""
HELD_OUT = 0.02
FAMILIES = {
    'aqua': 'cot_arithmetic', 'gsm8k': 'cot_arithmetic', 'ecqa': 'cot_commonsense', 'sensemaking': 'cot_commonsense',
    'creak': 'cot_commonsense', 'strategyqa': 'cot_open_domain', 'qasc': 'cot_open_domain', 'esnli': 'cot_nli',
    'addsub': 'cot_arithmetic', 'singleeq': 'cot_arithmetic', 'multiarith': 'cot_arithmetic', 'svamp': 'cot_arithmetic',
    'commonsenseqa': 'cot_commonsense',
}  # fmt: skip
"""Families of wordings of published sets; others use cot_open_domain."""
PUBLISHED = 'published'
"""The task of rows of inputs and targets that have no name of a task."""
WRONG_OPTION = 'wrong options of rank classification'

PROVENANCE = '.provenance.json'
"""Suffix of the file beside a file of sampled rationales."""
_FIELDS = (('question', 'source'), ('answer', 'target'), ('rationale',))
_OTHER_NAMES = {'question': ('input',), 'rationale': ('explanation', 'rationales')}
"""Names read if a row has none of `_FIELDS`; without 'output', so that Alpaca's rows do not lose their instruction."""
_OPTIONS = re.compile(r'\n(?:Options|OPTIONS):[ ]*\n(.+?)\s*\Z', re.DOTALL)
_LETTERED = re.compile(r'\(([A-Z])\) +(.+)')


# -- Rows --------------------------------------------------------------------------------------------------------------


def parse_row(row: Any, where: str) -> Item:
    """{'question', 'answer', 'rationale', 'task'} from a row: a line of a .tsv, or an object of JSON.

    Some published rows have 'options' too. If `is_prompt(row)`, question and answer are its inputs and targets.

    Raises:
        UserError: a column or field is missing, empty or not text; only the rationale may be empty.
    """
    if isinstance(row, str):
        cells = row.split('\t')
        if len(cells) != 3:
            raise UserError(f'{where}: {len(cells)} columns, expected 3: question, answer, rationale. Fix the line.')
        item = {names[0]: cell.replace('\\n', '\n').strip() for names, cell in zip(_FIELDS, cells, strict=True)}
    elif isinstance(row, Mapping):
        row = inputs_and_targets(row)
        if is_prompt(row):
            item = {
                name: _field(row, (field,), where) for name, field in (('question', 'inputs'), ('answer', 'targets'))
            }
            return _checked({**item, 'rationale': ''}, where) | {'task': _task_of(row) or PUBLISHED}
        item = as_question(row) or {names[0]: _field(row, names, where) for names in _FIELDS}
    else:
        kind = type(row).__name__
        raise UserError(f'{where}: is {kind}, expected an object of source, target, rationale. Fix the file.')
    return _checked(item, where) | {'task': _task_of(row) if isinstance(row, Mapping) else ''}


def is_prompt(row: Any) -> bool:
    """Whether a row is one of inputs and targets, which stay as they are."""
    names = inputs_and_targets(row) if isinstance(row, Mapping) else {}
    return 'inputs' in names and 'targets' in names and not any(name in names for one in _FIELDS for name in one)


def _checked(item: Item, where: str) -> Item:
    for name in ('question', 'answer'):
        if not item[name]:
            raise UserError(f'{where}: the {name} is empty. Fix the file.')
    return item


def _task_of(row: Mapping[str, Any]) -> str:
    return next((row[name] for name in ('task', '_task_name', 'task_name') if isinstance(row.get(name), str)), '')


def _field(row: Mapping[str, Any], names: Sequence[str], where: str) -> str:
    by_fold = {str(name).lower(): name for name in row}
    also = (by_fold[name] for name in (*names, *_OTHER_NAMES.get(names[0], ())) if name in by_fold)
    name = next((name for name in names if name in row), None) or next(also, None)
    if name is None:
        known = ', '.join(map(str, row)) or 'none'
        raise UserError(f"{where}: no field '{names[-1]}'; the fields are {known}. Fix the file or {SETTING}.")
    value = '' if row[name] is None and names[0] == 'rationale' else row[name]
    if not isinstance(value, str):
        raise UserError(f"{where}: field '{name}' is {type(value).__name__}, it must be text. Fix the file.")
    return value.strip()


def split_options(item: Item) -> Item:
    r"""Moves the options at the end of a question to 'options', and replaces a lettered answer with its option's text.

    The question stays as it is if the answer is not one of its options, or the rationale refers to their letters.

    >>> split_options({'question': 'Which?\nOptions:\n(A) red\n(B) blue', 'answer': '(B)', 'rationale': 'It is.'})
    {'question': 'Which?', 'answer': 'blue', 'rationale': 'It is.', 'options': ['red', 'blue']}
    """
    found = _OPTIONS.search(item['question'])
    if found is None:
        return item
    options = [line.strip().removeprefix('- ').strip() for line in found[1].split('\n') if line.strip()]
    question, answer = item['question'][: found.start()].strip(), item['answer']
    lettered = [match for match in map(_LETTERED.fullmatch, options) if match]
    if len(lettered) == len(options):
        by_letter = {f'({match[1]})': match[2].strip() for match in lettered}
        if any(letter in item['rationale'] for letter in by_letter):
            return item
        answer, options = by_letter.get(answer, answer), list(by_letter.values())
    if not question or answer not in options or len(set(options)) < len(options):
        return item
    return {**item, 'question': question, 'answer': answer, 'options': options}


def _item(data: bytes, path: str, number: int, held_out: int) -> Item:
    where = f'{path} row {number}'
    return parse_row(_line(data, where) if _is_flan(path) else parse_json(data, where), where)


def _line(data: bytes, where: str) -> str:
    try:
        return data.decode('utf-8-sig').rstrip('\r\n')
    except UnicodeDecodeError:
        raise UserError(f'{where}: not UTF-8. Save the file as UTF-8.') from None


def index_of(path: str, skip_broken: bool = False) -> FileIndex:
    """The index of a file: rows grouped by task, each of them checked; `info` is task -> [from, to] ('' for none).

    Args:
        skip_broken: skips rows that cannot be used.

    Raises:
        UserError: a row is faulty; names file and row. Or nothing is left.
    """
    index = _whole_index(path, skip_broken)
    report(path, index.info['problems'])
    if not len(index.rows):
        raise nothing_left(path, index.info['problems'], 'rows', SETTING)
    return FileIndex(index.rows, index.info['tasks'])


def _whole_index(path: str, skip_broken: bool) -> FileIndex:
    source = _source(path)
    status = os.stat(source)
    return _index(path, source, status.st_size, status.st_mtime_ns, skip_broken)


@functools.lru_cache(maxsize=16)
def _index(path: str, source: str, size: int, time: int, skip_broken: bool) -> FileIndex:
    return file_index(source, f'cot-5-{int(skip_broken)}', functools.partial(_scan, path, skip_broken))


def _scan(path: str, skip_broken: bool) -> FileIndex:
    """Rows [R, 5]: file 0, first byte, length, row number, whether held out.

    Its info is {'tasks': task -> [from, to], 'prompts': tasks whose rows are whole prompts, 'problems'}.
    """
    problems = Problems(skip_broken)
    tasks: dict[str, int] = {}
    prompts: set[str] = set()
    numbers = array.array('q')  # for 1.8 million rows: 8 bytes per number, where tuples would take hundreds
    for number, where, offset, size, value in problems.until_broken(_rows(path, problems), path):
        if isinstance(value, Mapping) and is_wrong_option(value):
            problems.on_left_out(where, WRONG_OPTION)
            continue
        try:
            item = parse_row(_line(value, where) if isinstance(value, bytes) else value, where)
        except UserError as error:
            problems.on_error(where, error)
            continue
        held_out = is_held_out(f'{item["question"]}\t{item["answer"]}', HELD_OUT)
        numbers.extend((0, offset, size, number, held_out, tasks.setdefault(item['task'], len(tasks))))
        if is_prompt(value):
            prompts.add(item['task'])
    rows = np.frombuffer(numbers, np.int64).reshape(-1, 6)
    rows = rows[np.argsort(rows[:, 5], kind='stable')]
    ends = np.cumsum(np.bincount(rows[:, 5], minlength=1)).tolist() if len(rows) else []
    places = {task: [start, end] for task, start, end in zip(tasks, [0, *ends], ends)}
    return FileIndex(rows[:, :5], {'tasks': places, 'prompts': sorted(prompts), 'problems': problems.to_json()})


def _rows(path: str, problems: Problems) -> Iterator[tuple[int, str, int, int, Any]]:
    """(number, place, first byte, length, value) of every row; the value of a line of a .tsv is its bytes."""
    if not _is_flan(path):
        for row in read_rows(path, problems.on_error):
            yield row.number, row.where, row.offset, len(row.data), row.value
        return
    offset = 0
    with open(plain_text(path), 'rb') as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, f'{path} line {number}', offset, len(line), line
            offset += len(line)


@functools.lru_cache(maxsize=256)
def _is_flan(path: str) -> bool:
    """Whether a file has FLAN's format: .tsv, also compressed, without a header line."""
    if suffix_of(path) != '.tsv':
        return False
    with open(plain_text(path), 'rb') as file:
        cells = file.readline().decode('utf-8-sig', 'replace').strip().lower().split('\t')
    return not {*cells} & {name for names in (*_FIELDS, *_OTHER_NAMES.values()) for name in names}


def _source(path: str) -> str:
    """The file that the rows are read from: the user's own, or its conversion."""
    return plain_text(path) if _is_flan(path) else json_source(path)[0]


def open_rows(paths: Mapping[str, str], split: str, task: str | None, skip_broken: bool = False) -> FileRows:
    """The rows of a split.

    Args:
        paths: split -> file; without a validation file, rows of train are held out.
        task: selects the rows of this task; None selects all.
        skip_broken: skips rows that cannot be used.

    Raises:
        UserError: the split has no rows.
    """
    path = paths.get(split) or paths['train']
    index = index_of(path, skip_broken)
    rows = index.rows
    if task is not None:
        start, end = index.info.get(task, (0, 0))
        rows = rows[start:end]
    if len(rows) and 'validation' not in paths and split != 'test':
        rows = rows[hold_out(rows[:, 4].astype(bool), split)]
    if not len(rows):
        raise UserError(f'{path}: no rows for split {split!r}. Add rows.')
    return FileRows([_source(path)], rows, _item, [path])


# -- Tasks -------------------------------------------------------------------------------------------------------------


@functools.cache
def languages() -> dict[str, dict[str, Any]]:
    """Language -> its 'rationale', 'triggers' and 'templates'."""
    return json.loads(Path(__file__).with_name('cot_languages.json').read_text('utf-8'))['languages']


@functools.cache
def answer_words() -> tuple[str, ...]:
    """The words that announce an answer, in every language."""
    starts = (row['rationale'].partition('{answer}')[0] for row in languages().values())
    return (TRIGGER, *(start.removeprefix('{rationale}').strip() for start in starts))


def postprocess(text: str, is_target: bool = False, example: Mapping[str, Any] | None = None, **_: object) -> str:
    """The expected answer, or the answer in a model's output."""
    if is_target and example is not None and 'answer' in example:
        return extract_answer(example['answer'], answer_words())
    return extract_answer(text, answer_words())


def register(paths: Sequence[str], skip_broken: bool = False) -> None:
    """Registers the tasks of folders and files, and the mixture 'cot' of all; calling it again changes nothing.

    Raises:
        UserError: a file is missing or not as described above, or two tasks have one name.
    """
    if not paths:
        return
    found: list[str] = []
    for path in paths:
        with skip_on_error(path, skip_broken):
            found += _files(path)
    names: list[str] = []
    for stem, files in _grouped(found, skip_broken).items():
        with skip_on_error(PREFIX + stem, skip_broken):
            names += register_files(stem, files, skip_broken)
    replace_mixture(MIXTURE, sorted(set(names)), ByExamples(CAP))


def _files(path: str) -> list[str]:
    if not Path(path).is_dir() or is_dataset(path):
        return _matched(path)
    files = sorted(str(file) for file in Path(path).iterdir() if not file.name.startswith('.'))
    found = [file for file in files if has_row_suffix(file) and not file.endswith(PROVENANCE)]
    if not found:
        raise UserError(f'{path}: no file of rows ({FORMATS}) in that folder. Set {SETTING}.')
    return found


def _matched(path: str) -> list[str]:
    """The files of a path or glob; raises a UserError if one is missing or of no known format."""
    if suffix_of(path) == '.tsv':
        return match_files(path, SETTING)
    return match_rows(path, SETTING)


def _grouped(files: Sequence[str], skip_broken: bool) -> dict[str, dict[str, str]]:
    """Stem without its split -> split -> file."""
    groups: dict[str, dict[str, str]] = {}
    for path in dict.fromkeys(files):
        stem, _, split = stem_of(path).rpartition('_')
        stem, split = (stem, SPLITS[split]) if stem and split in SPLITS else (stem_of(path), 'train')
        group = groups.setdefault(stem, {})
        with skip_on_error(path, skip_broken):
            if split in group:
                raise UserError(f'{path}: task {PREFIX}{stem} is made of {group[split]} already. Rename one of them.')
            group[split] = path
    return groups


def register_files(stem: str, files: Mapping[str, str], skip_broken: bool = False) -> list[str]:
    """Registers the task of a file, or one task for each name in its rows; returns the tasks' names."""
    if 'train' not in files:
        path = next(iter(files.values()))
        raise UserError(f'{path}: there is no {stem}_train beside it to learn from. Add it to {SETTING}.')
    for path in files.values():
        _matched(path)
    inner, prompts = [''], []
    if not _is_flan(files['train']):
        inner = list(index_of(files['train'], skip_broken).info)
        prompts = _whole_index(files['train'], skip_broken).info['prompts']
    names = []
    for task in inner:
        name = safe_name(f'{PREFIX}{stem}{"_" * bool(task)}{task}')
        part = (dict(files), None if inner == [''] else task)
        if not is_registered(name, files['train'], part):
            _add_task(name, stem, *part, is_verbatim=task in prompts, skip_broken=skip_broken)
        names.append(name)
    return names


def _add_task(
    name: str, stem: str, files: dict[str, str], task: str | None, is_verbatim: bool, skip_broken: bool
) -> None:
    from t5flan.data.records.sources import IndexedSource

    splits = ['train', 'validation', *['test'] * ('test' in files)]
    readers = {split: functools.partial(open_rows, files, split, task, skip_broken) for split in splits}
    source = IndexedSource(readers)
    words: Any = as_published
    if not is_verbatim:
        words = instruct_for(stem, task is not None, provenance(files), functools.partial(source.records, 'train'))
    add_task(
        name,
        files['train'],
        (files, task),
        source=source,
        preprocessors=[words, tokenize, append_eos],
        postprocess_fn=postprocess,
        metric_fns=[exact_match],
    )


@example_fn
def as_published(example: Example, context: Context) -> Result:
    """Inputs and targets of a row that has them."""
    inputs, targets = example['question'], example['answer']
    return {'inputs': inputs, 'targets': targets, 'answer': targets, 'variant': 'as published'}


def instruct_for(stem: str, whole: bool, made_by: Mapping[str, Any], records: Callable[[], Records]) -> Instruct:
    """The preprocessor that words the rows of a file, by the set and language in its name.

    Args:
        stem: the file's name without split and suffix.
        whole: whether the questions are complete prompts, as in the CoT Collection.
        made_by: the provenance of sampled rationales.
        records: returns the training split.
    """
    whole = whole or bool(made_by.get('whole_prompts'))
    wordings, settings = family(FAMILIES.get(stem.lower(), 'cot_open_domain')), {}
    language = next((part for part in reversed(re.split(r'[_.-]', stem.lower())) if part in languages()), None)
    if language is not None:
        own = languages()[language]
        wordings = _plain(wordings, ['{question}'] if whole else own['templates'])
        settings = {'triggers': own['triggers'], 'rationale': own['rationale']}
    elif whole:
        wordings = _plain(wordings, ['{question}'])
    to_item = _solved if made_by.get('prompts_ask') else item_of if whole else split_options
    return Instruct(wordings, to_item, records, **settings)


def _plain(wordings: Family, templates: Sequence[str]) -> Family:
    return dataclasses.replace(wordings, templates=tuple(make_template(text) for text in templates), inverted=())


def _solved(item: Item) -> Item:
    """The item of a prompt that asks for a rationale itself, so that the answer always includes it."""
    return {'question': item['question'], 'answer': RATIONALE.format_map(item)}


def provenance(files: Mapping[str, str]) -> dict[str, Any]:
    """What `t5flan rationales` recorded about a file that it wrote; {} for other files."""
    try:
        found = json.loads(Path(files['train'] + PROVENANCE).read_text('utf-8'))
    except (OSError, ValueError):  # not written by t5flan
        return {}
    return found if isinstance(found, dict) else {}
