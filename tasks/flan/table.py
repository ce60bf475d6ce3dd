"""The table of Flan 2022's data sets, datasets.json: where each data set is, and how its records become items.

{"name": "anli_r1", "submixture": "flan2021", "tfds": "anli/r1:0.1.0", "family": "nli", "splits": "official",
 "train_examples": 16946, "fields": {"premise": "{context}", "hypothesis": "{hypothesis}"},
 "label": "label", "of": ["yes", "it is not possible to tell", "no"]}

tfds, or hub    the data set of TFDS, or of the Hugging Face hub as records/hub.py names it, without 'hf:'
published       the tasks of the paper that the row stands for, as in published.py (default: its name). A row of several
                weighs as much as they do together.
family          wordings: templates/FAMILY.json, which names the fields that it needs
splits          train, validation and test as names of splits, or as slices such as train[:-200]; or the name of an
                entry of "splits"
train_examples  size of the train split (as TFDS or the hub state it), so that rates can be computed without reading it
fields          field of the family -> text with the record's fields in braces, e.g. {choices[text]}
answer          the answer, in the same form; or, instead of it:
label, of       the record's label (a path, "a.b"), and what it numbers: texts, a path to a list of texts, or
                {label: text}; these are the answer's options. "first" is the label of the first one (default: 0)
of with answer  the options of an answer that the record spells out
rationale       the rationale, in the same form
make            a function of records.py that prepares the record first, and its further arguments
cap, rate       overrides the submixture's cap, or the rate that follows from it and train_examples
note            for people: what TFDS needs to prepare the data set
"""

import dataclasses
import functools
import json
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from t5flan.data.preprocessing.examples import Context, Example, Result, example_fn
from t5flan.data.prompting.instructions import Item
from t5flan.data.prompting.templates import Family
from t5flan.data.records.json_files import load_json
from t5flan.errors import UserError
from t5flan.tasks.families import family
from t5flan.tasks.flan.records import RECORDS

AS_JSON = '__json__'
"""The field of a record that holds another record as JSON, because tf.data takes no lists of objects."""
_SLICE = re.compile(r'(\w+)(?:\[(-?\d*):(-?\d*)\])?')
TABLE = pathlib.Path(__file__).parent / 'datasets.json'


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A row of the table."""

    name: str
    submixture: str
    family: str
    splits: Mapping[str, str]
    train_examples: int
    fields: Mapping[str, str]
    tfds: str = ''
    hub: str = ''
    answer: str = ''
    label: str = ''
    of: Sequence[str] | Mapping[str, str] | str = ()
    first: int = 0
    rationale: str = ''
    make: tuple[str, ...] = ()
    cap: int | None = None
    rate: float | None = None
    note: str = ''
    published: tuple[str, ...] = ()

    @property
    def task(self) -> str:
        """The name of the SeqIO task."""
        return f'{self.submixture}_{self.name}'

    @property
    def times(self) -> int:
        """The number of published tasks that it stands for."""
        return max(1, len(self.published))

    @property
    def fixed_options(self) -> bool:
        """Whether every example has the same options (labels), so that their order carries no meaning."""
        if isinstance(self.of, (str, Mapping)):
            return isinstance(self.of, Mapping)
        return not any('{' in text for text in self.of)

    def __repr__(self) -> str:
        return f'Dataset({self.task})'


@dataclasses.dataclass(frozen=True)
class Submixture:
    """Data sets that share a cap, or a `mixture` that another module registers if `setting` is set."""

    name: str
    cap: int
    holds: tuple[str, ...] = ()
    """Other submixtures whose data sets it includes."""
    mixture: str = ''
    setting: str = ''


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """A data set of Flan's without a task here."""

    name: str
    submixture: str
    reason: str
    published: tuple[str, ...] = ()
    """The tasks of the paper that it stands for (default: its name)."""


@dataclasses.dataclass(frozen=True)
class Table:
    """The whole table."""

    submixtures: Mapping[str, Submixture]
    mixtures: Mapping[str, Mapping[str, float]]
    """Mixture -> submixture -> share, as published."""
    datasets: tuple[Dataset, ...]
    left_out: tuple[LeftOut, ...]

    def of(self, submixture: str) -> list[Dataset]:
        """The data sets of a submixture and of those that it includes."""
        names = {submixture, *self.submixtures[submixture].holds}
        return [dataset for dataset in self.datasets if dataset.submixture in names]

    def rates(self, submixture: str) -> list[tuple[Dataset, float]]:
        """Examples-proportional rates (arXiv:1910.10683, section 3.5.2): a data set's examples, at most the cap."""
        cap = self.submixtures[submixture].cap
        by_examples = lambda row: float(row.times * min(row.train_examples, row.cap or cap))
        return [(row, by_examples(row) if row.rate is None else row.rate) for row in self.of(submixture)]


@functools.cache
def load_table(path: pathlib.Path = TABLE) -> Table:
    """Reads and checks the table.

    Raises:
        UserError: the table is faulty; names the file, the row and the field.
    """
    content = load_json(path)
    for name in ('submixtures', 'mixtures', 'splits', 'datasets', 'left_out'):
        if name not in content:
            raise UserError(f'{path} has no {name!r}. Add it to the table.')
    submixtures = {
        name: _made(f'{path}: submixtures.{name}', Submixture, {'name': name, **row})
        for name, row in content['submixtures'].items()
    }
    for name, submixture in submixtures.items():
        _positive(f'{path}: submixtures.{name}.cap', submixture.cap)
    for mixture, shares in content['mixtures'].items():
        if unknown := [name for name in shares if name not in submixtures]:
            raise UserError(f'{path}: mixtures.{mixture}: {unknown[0]!r} is not one of the submixtures. Fix the table.')
    rows = enumerate(content['datasets'])
    datasets = tuple(_dataset(path, i, row, content['splits'], submixtures) for i, row in rows)
    names = [dataset.name for dataset in datasets]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f'{path}: {names.count(name)} data sets are named {name!r}. Give each another name.')
    left_out = tuple(_made(f'{path}: left_out[{i}]', LeftOut, row) for i, row in enumerate(content['left_out']))
    return Table(submixtures, content['mixtures'], datasets, left_out)


def _made(where: str, kind: Any, row: Mapping[str, Any]) -> Any:
    row = {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
    known = {field.name: field for field in dataclasses.fields(kind)}
    for name in row:
        if name not in known:
            raise UserError(f'{where} has the key {name!r}; it may have {", ".join(known)}. Fix the table.')
    for name, field in known.items():
        if name not in row and field.default is dataclasses.MISSING:
            raise UserError(f'{where} has no {name!r}. Add it to the table.')
    return kind(**row)


def _positive(where: str, number: Any) -> None:
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise UserError(f'{where} is {number!r}, it must be a whole number, 1 or more. Fix the table.')


def _dataset(
    path: pathlib.Path, number: int, row: Mapping[str, Any], splits: Mapping[str, Any], submixtures: Any
) -> Dataset:
    where = f'{path}: datasets[{number}] ({row.get("name")})'
    given = row.get('splits')
    if isinstance(given, str):
        if given not in splits:
            raise UserError(f'{where}: splits {given!r} is not one of {", ".join(splits)}. Fix the table.')
        row = {**row, 'splits': splits[given]}
    dataset = _made(where, Dataset, row)
    if 'train' not in dataset.splits:
        raise UserError(f'{where}: splits has no "train". Fix the table.')
    if not isinstance(dataset.published, tuple):
        raise UserError(f'{where}: published is {dataset.published!r}, expected a list of names. Fix the table.')
    if dataset.submixture not in submixtures:
        known = ', '.join(submixtures)
        raise UserError(f'{where}: submixture {dataset.submixture!r} is not one of {known}. Fix the table.')
    _positive(f'{where}: train_examples', dataset.train_examples)
    if dataset.cap is not None:
        _positive(f'{where}: cap', dataset.cap)
    if dataset.rate is not None and not dataset.rate > 0:
        raise UserError(f'{where}: rate is {dataset.rate}, it must be above 0. Fix the table, or remove the row.')
    if bool(dataset.tfds) == bool(dataset.hub):
        raise UserError(
            f"{where} has {'both' if dataset.tfds else 'no'} 'tfds' {'and' if dataset.tfds else 'or'} 'hub'. Set one."
        )
    if wrong := [split for split in dataset.splits.values() if dataset.hub and not split_slice(split)]:
        raise UserError(f'{where}: split {wrong[0]!r} is not like train or train[:-200]. Fix the table.')
    if dataset.make and dataset.make[0] not in RECORDS:
        raise UserError(f'{where}: make {dataset.make[0]!r} is not one of {", ".join(RECORDS)}. Fix the table.')
    if bool(dataset.answer) == bool(dataset.label) or (dataset.label and not dataset.of):
        raise UserError(f'{where} needs either "answer", or "label" and "of". Fix the table.')
    return dataset


def split_slice(split: str) -> tuple[str, int | None, int | None] | None:
    """'train[:-200]' -> ('train', None, -200); None for a text that is neither a name nor a name with a slice."""
    found = _SLICE.fullmatch(split)
    if found is None:
        return None
    name, start, end = found.groups()
    return name, int(start) if start else None, int(end) if end else None


def wordings_of(dataset: Dataset) -> Family:
    """Loads the family of wordings of a row.

    Raises:
        UserError: there is no such family, its file is faulty, or the row's fields are not the family's.
    """
    where = f'{TABLE.name}: {dataset.name}'
    try:
        wordings = family(dataset.family)
    except UserError as error:
        raise UserError(f'{where}: {error}') from None
    known = (*wordings.fields, *wordings.optional)
    for name in wordings.fields:
        if name not in dataset.fields:
            raise UserError(f'{where}: fields has no {name!r}, which family {dataset.family!r} needs. Fix the table.')
    for name in dataset.fields:
        if name not in known:
            names = ', '.join(known)
            raise UserError(f'{where}: fields has {name!r}; family {dataset.family!r} has {names}. Fix the table.')
    return wordings


# -- Records to items ------------------------------------------------------------------------------------------------


@example_fn
def to_items(example: Example, context: Context, *, dataset: Dataset) -> Result:
    """Preprocessor that turns a record, or the JSON of one (`AS_JSON`), into the items of its row."""
    return list(items(dataset, json.loads(example[AS_JSON]) if AS_JSON in example else example))


def items(dataset: Dataset, record: Example) -> Iterator[Item]:
    """The items of a record; none if it has no label or answer (SNLI's -1, a question without answers).

    Raises:
        UserError: the record lacks a field that the row names.
    """
    function, *words = dataset.make or ('',)
    try:
        for made in RECORDS[function](record, *words) if function else (record,):
            item = _item(dataset, made)
            if item is not None:
                yield item
    except (KeyError, TypeError) as error:
        where, known = f'{TABLE.name}: {dataset.name}', ', '.join(map(str, record))
        raise UserError(f'{where}: {error} is not in its records, which have {known}. Fix the row.') from error


def _item(dataset: Dataset, record: Example) -> Item | None:
    options = _options(dataset, record)
    try:
        if dataset.label:
            answer = _labelled(dataset, record, options)
        else:
            answer = dataset.answer.format_map(record)
        item: Item = {name: text.format_map(record) for name, text in dataset.fields.items()}
    except IndexError:  # {answers[0]} of a question without answers
        return None
    if answer is None or not answer.strip():
        return None
    item['answer'] = answer
    if dataset.of:
        item['options'] = options if answer in options else []  # tf.data wants the same keys of every item
    if dataset.rationale:
        item['rationale'] = dataset.rationale.format_map(record)
    return item


def _options(dataset: Dataset, record: Example) -> list[str]:
    if isinstance(dataset.of, str):
        return list(_look_up(record, dataset.of))
    if isinstance(dataset.of, Mapping):
        return list(dict.fromkeys(dataset.of.values()))
    return [text.format_map(record) for text in dataset.of]


def _labelled(dataset: Dataset, record: Example, options: Sequence[str]) -> str | None:
    label = _look_up(record, dataset.label)
    if isinstance(dataset.of, Mapping):
        return dataset.of.get(str(label))
    number = int(label) - dataset.first
    return options[number] if 0 <= number < len(options) else None


def _look_up(record: Any, path: str) -> Any:
    for name in path.split('.'):
        record = record[name]
    return record
