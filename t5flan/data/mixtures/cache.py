"""Tasks prepared offline by `t5flan cache`: read by record number, so that an epoch is one shuffle of the whole corpus.

A folder holds, for each task,

    TASK/info.json                              its splits, counts and features, and what the records were made with
    TASK/train.array_record-00003-of-00064      tf.train.Example records (ArrayRecord finds each by its number)

A record is the output of the task's preprocessors before its `seqio.CacheDatasetPlaceholder`. Those after it run during
training, so spans, prompts and everything else that is random are new in each epoch. The records keep the source's
order: training from the cache gives the same examples as training from a source that is read by number.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import seqio

from t5flan.data.config import DataConfig
from t5flan.data.preprocessing.examples import ExampleFn
from t5flan.data.records.sources import IndexedSource
from t5flan.data.vocabulary.vocabulary import Vocabulary
from t5flan.errors import UserError
from t5flan.files.buckets import epath

INFO = 'info.json'
VERSION = 1


def cache_step(task: seqio.Task) -> int | None:
    """The number of preprocessors that run before the records are cached; None if the task cannot be cached."""
    places = [i for i, function in enumerate(task.preprocessors) if isinstance(function, seqio.CacheDatasetPlaceholder)]
    return places[0] if places else None


def made_with(task: seqio.Task, vocabulary: Vocabulary) -> dict[str, Any]:
    """Everything but the source that a task's cached records depend on: if it changes, they are stale."""
    names = [
        repr(function) if isinstance(function, ExampleFn) else seqio.utils.function_name(function)
        for function in task.preprocessors[: cache_step(task)]
    ]
    return {'preprocessors': names, 'vocabulary': vocabulary.fingerprint}


def shard_name(split: str, number: int, shards: int) -> str:
    """The file name of one shard.

    >>> shard_name('train', 3, 64)
    'train.array_record-00003-of-00064'
    """
    return f'{split}.array_record-{number:05}-of-{shards:05}'


class CachedRecords:
    """The records of a cached split, by number.

    Args:
        features: name -> NumPy dtype of the values, followed by [] for an array; 'str' is text.

    Raises:
        UserError: a shard is missing, or `folder` is in a bucket.
    """

    def __init__(self, folder: str, split: str, shards: int, features: Mapping[str, str]) -> None:
        from array_record.python import array_record_data_source

        if '://' in folder:
            fix = 'Mount the bucket (gcsfuse) or copy it, and set DataConfig.cache to that folder.'
            raise UserError(f'{folder}: cached records must be in a local folder. {fix}')
        paths = [str(epath.Path(folder) / shard_name(split, number, shards)) for number in range(shards)]
        missing = [path for path in paths if not epath.Path(path).exists()]
        if missing:
            problem = f'{missing[0]} is missing: the cache is incomplete'
            raise UserError(f'{problem}. Run `t5flan cache` again with --overwrite.')
        not_empty = [path for path in paths if epath.Path(path).stat().length]
        self._source = array_record_data_source.ArrayRecordDataSource(not_empty)
        self._features = dict(features)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return parse_record(self._source[index], self._features)


def parse_record(data: bytes, features: Mapping[str, str]) -> dict[str, Any]:
    """A serialized tf.train.Example as plain values and arrays; `features` as in `CachedRecords`."""
    import tensorflow as tf

    found = tf.train.Example.FromString(data).features.feature
    record: dict[str, Any] = {}
    for name, kind in features.items():
        one = found[name]
        values = getattr(one, one.WhichOneof('kind') or 'int64_list').value
        dtype = kind.removesuffix('[]')
        plain: Any = [value.decode('utf-8') for value in values] if dtype == 'str' else np.array(values, dtype)
        record[name] = plain if kind.endswith('[]') else plain[0] if dtype == 'str' else plain[0].item()
    return record


class CachedSource(IndexedSource):
    """The cached records of a task as a SeqIO source; `info` is the content of its info.json."""

    def __init__(self, folder: str, info: Mapping[str, Any]) -> None:
        splits = info['splits']
        self._counts = {split: one['examples'] for split, one in splits.items()}
        records = functools.partial(CachedRecords, folder, features=info['features'])
        super().__init__({split: functools.partial(records, split, one['shards']) for split, one in splits.items()})

    def num_input_examples(self, split: str) -> int:
        """The number of records of a split."""
        return self._counts[split]


def read_info(root: str, task: str) -> tuple[str, dict[str, Any]] | None:
    """The folder of a task's records and its info.json; None if the task is not cached under `root`.

    Raises a UserError if this version of `t5flan cache` did not write info.json.
    """
    path = epath.Path(root) / task / INFO
    if not path.exists():
        return None
    try:
        info = json.loads(path.read_text())
        if info['version'] != VERSION:
            raise ValueError
        return read_info(root, info['same_as']) if 'same_as' in info else (str(path.parent), info)
    except (ValueError, KeyError, TypeError):
        problem = f'{path} was not written by this version of `t5flan cache`'
        raise UserError(f'{problem}. Cache {task} again with --overwrite.') from None


def cached_task(task: seqio.Task, config: DataConfig, vocabulary: Vocabulary) -> seqio.Task:
    """The task as read from DataConfig.cache; the task itself if it or its split is not cached.

    Raises:
        UserError: the cache was made with another vocabulary or other preprocessors.
    """
    found = read_info(config.cache, task.name) if config.cache else None
    if found is None or config.split not in found[1]['splits'] or isinstance(task.source, CachedSource):
        return task
    folder, info = found
    now = made_with(task, vocabulary)
    others = {'vocabulary': ('another', 'DataConfig.vocabulary'), 'preprocessors': ('other', 'DataConfig.cache')}
    for what, (other, setting) in others.items():
        if (then := info['made_with'][what]) != now[what]:
            problem = f'{folder} was cached with {other} {what} ({then}) than this run has ({now[what]})'
            raise UserError(f'{problem}. Set {setting}, or cache {task.name} again with --overwrite.')
    step = cache_step(task)
    left = [] if step is None else task.preprocessors[step + 1 :]
    return task.replace(source=CachedSource(folder, info), preprocessors=left)


def check_any_cached(tasks: Sequence[Any], config: DataConfig) -> None:
    """Raises a UserError if DataConfig.cache has none of the tasks: its path is wrong, or their names changed."""
    if config.cache and not any(isinstance(task.source, CachedSource) for task in tasks):
        names = ', '.join(task.name for task in tasks[:3])
        problem = f'DataConfig.cache={config.cache!r} holds none of {names} with a split {config.split!r}'
        command = f'`t5flan cache {config.mixture} --output={config.cache}`'
        raise UserError(f'{problem}. Run {command}, or set DataConfig.cache = None.')
