"""Chain of thought: files of questions, answers and rationales become tasks, and the mixture 'cot'.

    DataConfig.cot = 'flan_v2/cot_data'        a folder, files or globs (COT_DIR of runs/instruct)
    DataConfig.mixture = 'cot'

    gsm8k_train.tsv           FLAN's: no header, question, answer, rationale; a line break is written \\n      -> cot_gsm8k
    CoT_collection_en.json    the CoT Collection's (arXiv:2305.14045): {"0": {"source", "target", "rationale", "task"}, …},
                              a list of such rows, or one a line (.jsonl)                 -> cot_CoT_collection_en_TASK each
    CoT_collection_ko.json    the same in another language: triggers and the words before the answer are that language's

A row gives its target as rationale and then answer, or as answer alone (InstructionConfig.rationale), zero-shot or with
exemplars of its own task, with its options listed or not where they stand at the end of the question, and at times inverted.
'NAME_train', 'NAME_validation' and 'NAME_test' files are splits of one task; where there is no validation file a share is held
out by a hash of the row. `t5flan rationales` writes such files from what a model samples.
"""

import array
import dataclasses
import functools
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t5flan.data.mixtures.mixing import ByExamples
from t5flan.data.preprocessing.tokenization import append_eos, tokenize
from t5flan.data.prompting.instructions import RATIONALE, Instruct, Item, item_of
from t5flan.data.prompting.templates import Family, make_template
from t5flan.data.records.file_index import FileIndex, file_index
from t5flan.data.records.json_files import json_rows, parse_json
from t5flan.data.records.text_files import hold_out, is_held_out, json_lines, match_files
from t5flan.data.skipped import leaving_out
from t5flan.errors import UserError
from t5flan.scoring.answers import TRIGGER, extract_answer
from t5flan.scoring.metrics import exact_match
from t5flan.tasks.families import family

MIXTURE, PREFIX, SETTING = 'cot', 'cot_', 'DataConfig.cot'
SUFFIXES = ('.tsv', '.json', '.jsonl')
SPLITS = {'train': 'train', 'validation': 'validation', 'valid': 'validation', 'dev': 'validation', 'test': 'test'}
CAP = 100_000
"""Examples of a task that count at most; Flan 2022's for chain of thought (arXiv:2210.11416, appendix F)."""
HELD_OUT = 0.02
FAMILIES = {
    'aqua': 'cot_arithmetic', 'gsm8k': 'cot_arithmetic', 'ecqa': 'cot_commonsense', 'sensemaking': 'cot_commonsense',
    'creak': 'cot_commonsense', 'strategyqa': 'cot_open_domain', 'qasc': 'cot_open_domain', 'esnli': 'cot_nli',
}  # fmt: skip
"""Which wordings FLAN's sets have; others have those of cot_open_domain."""
_FIELDS = (('question', 'source'), ('answer', 'target'), ('rationale',))
_OPTIONS = re.compile(r'\n(?:Options|OPTIONS):[ ]*\n(.+?)\s*\Z', re.DOTALL)
_LETTERED = re.compile(r'\(([A-Z])\) +(.+)')
_registered: dict[str, tuple[Any, ...]] = {}


# -- Rows ------------------------------------------------------------------------------------------------------------------


def parse_row(row: Any, where: str) -> Item:
    """{'question', 'answer', 'rationale', 'task'} of a row of a .tsv (a line) or of JSON (its object).

    Raises:
        UserError: a column or field is missing, empty or not text; the rationale alone may be empty.
    """
    if isinstance(row, str):
        cells = row.split('\t')
        if len(cells) != 3:
            raise UserError(f'{where}: {len(cells)} columns, expected 3: question, answer, rationale. Fix the line.')
        item = {names[0]: cell.replace('\\n', '\n').strip() for names, cell in zip(_FIELDS, cells, strict=True)}
    elif isinstance(row, Mapping):
        item = {names[0]: _field(row, names, where) for names in _FIELDS}
    else:
        raise UserError(
            f'{where}: is {type(row).__name__}, expected an object of source, target, rationale. Fix the file.'
        )
    for name in ('question', 'answer'):
        if not item[name]:
            raise UserError(f'{where}: the {name} is empty. Fix the file.')
    task = row.get('task') if isinstance(row, Mapping) else None
    return item | {'task': task if isinstance(task, str) else ''}


def _field(row: Mapping[str, Any], names: Sequence[str], where: str) -> str:
    name = next((name for name in names if name in row), None)
    if name is None:
        there = ', '.join(map(str, row)) or 'none'
        raise UserError(f"{where}: no field '{names[-1]}'; the fields are {there}. Fix the file or {SETTING}.")
    value = '' if row[name] is None and name == 'rationale' else row[name]
    if not isinstance(value, str):
        raise UserError(f"{where}: field '{name}' is {type(value).__name__}, it must be text. Fix the file.")
    return value.strip()


def split_options(item: Item) -> Item:
    """The item with the options at the end of its question as 'options', and a lettered answer as its option's text.

    The question stays whole where the answer is none of its options, or the rationale speaks of their letters.

    >>> split_options({'question': 'Which?\\nOptions:\\n(A) red\\n(B) blue', 'answer': '(B)', 'rationale': 'It is.'})
    {'question': 'Which?', 'answer': 'blue', 'rationale': 'It is.', 'options': ['red', 'blue']}
    """
    found = _OPTIONS.search(item['question'])
    if found is None:
        return item
    options = [line.strip().removeprefix('- ').strip() for line in found[1].split('\n') if line.strip()]
    question, answer = item['question'][: found.start()].strip(), item['answer']
    lettered = [_LETTERED.fullmatch(option) for option in options]
    if all(lettered):
        by_letter = {f'({match[1]})': match[2].strip() for match in lettered}
        if any(letter in item['rationale'] for letter in by_letter):
            return item
        answer, options = by_letter.get(answer, answer), list(by_letter.values())
    if not question or answer not in options or len(set(options)) < len(options):
        return item
    return {**item, 'question': question, 'answer': answer, 'options': options}


class Rows(Sequence):
    """Rows of a file by their offsets: items {'question', 'answer', 'rationale', …}, read when asked for."""

    def __init__(self, path: str, rows: np.ndarray) -> None:
        """`rows` [R, 4] int64: first byte, bytes, row number, whether held out."""
        self._path, self._rows = path, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Item:
        offset, size, number, _ = self._rows[index].tolist()
        with open(self._path, 'rb') as file:
            file.seek(offset)
            data = file.read(size)
        where = f'{self._path} row {number}'
        return parse_row(_line(data, where) if self._path.endswith('.tsv') else parse_json(data, where), where)


def _line(data: bytes, where: str) -> str:
    try:
        return data.decode('utf-8').rstrip('\r\n')
    except UnicodeDecodeError:
        raise UserError(f'{where}: not UTF-8. Save the file as UTF-8.') from None


def index_of(path: str) -> FileIndex:
    """Where the rows of a file lie, every one checked, those of a task together; `info` is task -> [from, to] ('' for none).

    Raises:
        UserError: naming file and row.
    """
    status = os.stat(path)
    return _index(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _index(path: str, size: int, time: int) -> FileIndex:
    return file_index(path, 'cot-2', functools.partial(_walk, path))


def _walk(path: str) -> FileIndex:
    tasks: dict[str, int] = {}
    numbers = array.array('q')  # of 1.8 million rows: eight bytes each, where tuples take hundreds
    for number, (where, offset, size, value) in enumerate(_rows(path), 1):
        item = parse_row(value, where)
        held_out = is_held_out(f'{item["question"]}\t{item["answer"]}', HELD_OUT)
        numbers.extend((offset, size, number, held_out, tasks.setdefault(item['task'], len(tasks))))
    if not numbers:
        raise UserError(f'{path}: no rows. Give {SETTING} a file that has some.')
    rows = np.frombuffer(numbers, np.int64).reshape(-1, 5)
    rows = rows[np.argsort(rows[:, 4], kind='stable')]
    ends = np.cumsum(np.bincount(rows[:, 4])).tolist()
    return FileIndex(rows[:, :4], {task: [start, end] for task, start, end in zip(tasks, [0, *ends], ends)})


def _rows(path: str) -> Iterator[tuple[str, int, int, Any]]:
    if not path.endswith('.tsv'):
        yield from json_rows(path)
        return
    for number, offset, line in json_lines(path):
        where = f'{path} line {number}'
        yield where, offset, len(line), _line(line, where)


def open_rows(paths: Mapping[str, str], split: str, task: str | None) -> Rows:
    """The rows of a split.

    Args:
        paths: split -> file; without a validation file, rows of train are held out.
        task: only the rows of this task; None takes all.
    """
    path = paths.get(split) or paths['train']
    index = index_of(path)
    rows = index.rows
    if task is not None:
        start, end = index.info.get(task, (0, 0))
        rows = rows[start:end]
    if len(rows) and 'validation' not in paths and split != 'test':
        rows = rows[hold_out(rows[:, 3].astype(bool), split)]
    if not len(rows):
        raise UserError(f'{path}: no rows for split {split!r}. Add rows.')
    return Rows(path, rows)


# -- Tasks -----------------------------------------------------------------------------------------------------------------


@functools.cache
def languages() -> dict[str, dict[str, Any]]:
    """Language -> its 'rationale', 'triggers' and 'templates'."""
    return json.loads(Path(__file__).with_name('cot_languages.json').read_text('utf-8'))['languages']


@functools.cache
def answer_words() -> tuple[str, ...]:
    """The words that announce an answer, in every language."""
    others = (
        row['rationale'].partition('{answer}')[0].removeprefix('{rationale}').strip() for row in languages().values()
    )
    return (TRIGGER, *others)


def postprocess(text: str, is_target: bool = False, example: Mapping[str, Any] | None = None, **_: object) -> str:
    """The answer that was asked for, or the one in what the model wrote."""
    if is_target and example is not None and 'answer' in example:
        return extract_answer(example['answer'], answer_words())
    return extract_answer(text, answer_words())


def register(paths: Sequence[str], skip_broken: bool = False) -> None:
    """Registers the tasks of folders and files, and the mixture 'cot' of all; again changes nothing.

    Raises:
        UserError: a file is missing or not as described above, or two tasks have one name.
    """
    if not paths:
        return
    import seqio

    found: list[str] = []
    for path in paths:
        with leaving_out(path, skip_broken):
            found += _files(path)
    names: list[str] = []
    for stem, files in _grouped(found, skip_broken).items():
        with leaving_out(PREFIX + stem, skip_broken):
            names += register_files(stem, files)
    if MIXTURE in seqio.MixtureRegistry.names():
        seqio.MixtureRegistry.remove(MIXTURE)
    if names:
        seqio.MixtureRegistry.add(MIXTURE, sorted(set(names)), default_rate=ByExamples(CAP))


def _files(path: str) -> list[str]:
    if not Path(path).is_dir():
        return match_files(path, SUFFIXES, SETTING)
    found = sorted(
        str(file)
        for file in Path(path).iterdir()
        if file.suffix in SUFFIXES and not file.name.startswith('.') and not file.name.endswith(PROVENANCE)
    )
    if not found:
        raise UserError(f'{path}: no {" or ".join(SUFFIXES)} file in that folder. Set {SETTING}.')
    return found


PROVENANCE = '.provenance.json'
"""What a file of sampled rationales has beside it."""


def _grouped(files: Sequence[str], skip_broken: bool) -> dict[str, dict[str, str]]:
    """Stem without its split -> split -> file."""
    groups: dict[str, dict[str, str]] = {}
    for path in dict.fromkeys(files):
        stem, _, split = Path(path).stem.rpartition('_')
        stem, split = (stem, SPLITS[split]) if stem and split in SPLITS else (Path(path).stem, 'train')
        group = groups.setdefault(stem, {})
        with leaving_out(path, skip_broken):
            if split in group:
                raise UserError(f'{path}: task {PREFIX}{stem} is made of {group[split]} already. Rename one of them.')
            group[split] = path
    return groups


def register_files(stem: str, files: Mapping[str, str]) -> list[str]:
    """Registers the task of a file, or those that its rows name; returns their names."""
    if 'train' not in files:
        raise UserError(
            f'{next(iter(files.values()))}: there is no {stem}_train beside it to learn from. Add it to {SETTING}.'
        )
    for path in files.values():
        match_files(path, SUFFIXES, SETTING)
    inner = [''] if files['train'].endswith('.tsv') else list(index_of(files['train']).info)
    names = []
    for task in inner:
        name = re.sub(r'[^A-Za-z0-9_.]', '_', f'{PREFIX}{stem}{"_" * bool(task)}{task}')
        _register_task(name, stem, dict(files), None if inner == [''] else task)
        names.append(name)
    return names


def _register_task(name: str, stem: str, files: dict[str, str], task: str | None) -> None:
    import seqio

    from t5flan.data.records.sources import IndexedSource
    from t5flan.data.vocabulary.seqio_vocabulary import text_features

    made_of = (tuple(sorted(files.items())), task)
    if name in _registered:
        if _registered[name] != made_of:
            other = _registered[name][0][-1][1]
            raise UserError(f'{files["train"]}: task {name} is made of {other} already. Rename one of them.')
        return
    splits = ['train', 'validation', *['test'] * ('test' in files)]
    source = IndexedSource({split: functools.partial(open_rows, files, split, task) for split in splits})
    instruct = instruct_for(stem, task is not None, provenance(files), functools.partial(source.records, 'train'))
    try:
        seqio.TaskRegistry.add(
            name,
            source=source,
            preprocessors=[instruct, tokenize, append_eos],
            output_features=text_features(),
            postprocess_fn=postprocess,
            metric_fns=[exact_match],
        )
    except ValueError as error:
        raise UserError(f'{files["train"]}: {name} is the name of another task. Rename the file.') from error
    _registered[name] = made_of


def instruct_for(stem: str, whole: bool, made_by: Mapping[str, Any], records: Any) -> Instruct:
    """What words the rows of a file: by its name's language and set.

    Args:
        whole: whether the questions are prompts already, as the CoT Collection's are.
        made_by: the provenance of sampled rationales.
    """
    whole = whole or bool(made_by.get('whole_prompts'))
    wordings, settings = family(FAMILIES.get(stem, 'cot_open_domain')), {}
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
    """The item of a prompt that asks for a rationale itself: its answer has one, always, and nothing else asks."""
    return {'question': item['question'], 'answer': RATIONALE.format_map(item)}


def provenance(files: Mapping[str, str]) -> dict[str, Any]:
    """What `t5flan rationales` says of a file of its making; {} of others."""
    try:
        found = json.loads(Path(files['train'] + PROVENANCE).read_text('utf-8'))
    except (OSError, ValueError):  # nothing of ours beside it
        return {}
    return found if isinstance(found, dict) else {}
