"""Where the records of the table's data sets are: TFDS, or the Hugging Face hub."""

import functools
import itertools
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import seqio

from t5flan.data.prompting.instructions import POOL, Item
from t5flan.data.records.file_index import FileIndex, file_index
from t5flan.data.records.file_rows import FileRows, Records
from t5flan.data.records.rows import json_source, parse_row, read_rows
from t5flan.data.records.sources import IndexedSource
from t5flan.data.records.tf_values import plain_value
from t5flan.tasks.flan.table import AS_JSON, Dataset, items, split_slice


class TfdsTableSource(seqio.TfdsDataSource):
    """A TfdsDataSource that takes its number of training examples from the table instead of the files."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        super().__init__(tfds_name=dataset.tfds, splits=dict(dataset.splits), read_only=True)

    def num_input_examples(self, split: str) -> int | None:
        """As the table states it for 'train'; None for other splits."""
        return self._dataset.train_examples if split == 'train' else None

    def __repr__(self) -> str:
        return f'TFDS {self._dataset.tfds} ("tfds build {self._dataset.tfds.partition(":")[0]}" prepares it)'


class HubSource(IndexedSource):
    """Rows of a data set on the Hugging Face hub, which is downloaded when a split is first used (records/hub.py)."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        super().__init__({name: functools.partial(_rows, dataset.hub, split) for name, split in dataset.splits.items()})

    def flat_records(self, split: str) -> Records:
        """The records as JSON: rows of the hub hold objects, and lists of them."""
        return _AsJson(self.records(split))

    def num_input_examples(self, split: str) -> int | None:  # type: ignore[override]
        """As the table states it for 'train', so that rates need no download; None for other splits."""
        return self._dataset.train_examples if split == 'train' else None

    def __repr__(self) -> str:
        return f'hf:{self._dataset.hub}'


class _AsJson:
    """Records as texts of JSON, one in each."""

    def __init__(self, records: Records) -> None:
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {AS_JSON: json.dumps(self._records[index], ensure_ascii=False)}


def source_of(dataset: Dataset) -> TfdsTableSource | HubSource:
    """The source of a row's records; nothing is read yet."""
    return HubSource(dataset) if dataset.hub else TfdsTableSource(dataset)


def _rows(hub: str, split: str) -> Records:
    """The rows of a split, or of a slice of it such as train[:-200]."""
    name, start, end = split_slice(split) or (split, None, None)
    path = f'hf:{hub},split={name}'
    source, _ = json_source(path)
    make = lambda: FileIndex(
        np.array([(0, row.offset, len(row.data), row.number) for row in read_rows(path)], np.int64)
    )
    rows = file_index(source, 'flan-1', make).rows.reshape(-1, 4)[start:end]
    return FileRows([source], rows, _parsed, [path])


def _parsed(data: bytes, path: str, number: int) -> dict[str, Any]:
    return parse_row(data, f'{path} row {number}')


def read_items(dataset: Dataset, source: Any, split: str = 'train', count: int = POOL) -> list[Item]:
    """`count` items of a split (all of a smaller one), in order: TFDS's first ones, the hub's evenly spread."""
    if isinstance(source, IndexedSource):
        records = source.records(split)
        most = min(count, len(records))
        some: Iterable[Mapping[str, Any]] = (records[i * len(records) // most] for i in range(most))
    else:
        some = map(_plain, source.get_dataset(split, shuffle=False).take(count).as_numpy_iterator())
    return list(
        itertools.islice(itertools.chain.from_iterable(items(dataset, record) for record in map(dict, some)), count)
    )


def _plain(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: plain_value(value) for name, value in record.items()}
