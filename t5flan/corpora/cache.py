"""Prepares a task's records offline with SeqIO's Beam pipeline, on this machine or on a cluster (`t5flan cache`).

    cache(data, 'c4_ul2', '/data/cache')

Each shard of the source is read, preprocessed up to the task's `seqio.CacheDatasetPlaceholder` (tokenization) and
written as one file in the source's order, so the cache is the same on any runner. Existing shards are not written
again, so a stopped command can be resumed. t5flan/data/mixtures/cache.py describes and reads the folder.
"""

import functools
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import seqio

from t5flan.data.config import DataConfig
from t5flan.data.mixtures.cache import INFO, VERSION, cache_step, made_with, read_info, shard_name
from t5flan.data.mixtures.mixing import find_mixture
from t5flan.data.vocabulary.loading import load_vocabulary
from t5flan.data.vocabulary.seqio_vocabulary import choose_vocabulary
from t5flan.errors import UserError
from t5flan.files import open_whole, write_json
from t5flan.files.buckets import epath

Prepare = Callable[[DataConfig], None]
Info = dict[str, Any]
_set_up_for: list[str] = []  # the settings that this worker process was set up for


def cache(
    data: DataConfig,
    name: str,
    output: str,
    *,
    prepare: Prepare,
    splits: Sequence[str] = (),
    overwrite: bool = False,
    pipeline_options: Sequence[str] = (),
) -> dict[str, Info]:
    """Caches a task or every task of a mixture; tasks with the same tokens (denoisers of a corpus) share their records.

    Args:
        data: vocabulary, text files and modules of the run that will read the cache.
        output: the folder; local, or a bucket that the runner's workers can write to.
        prepare: registers the tasks of `data`; called in every worker.
        splits: the splits to cache (default: all splits of a task).
        pipeline_options: Beam's options, such as '--runner=DataflowRunner'.

    Returns:
        {task: its info.json}.

    Raises:
        UserError: apache-beam is not installed, a task cannot be cached, or it lacks a split.
    """
    beam_utils = import_beam()
    vocabulary = load_vocabulary(data.vocabulary, data.extra_ids, data.mode_tokens, data.added_tokens)
    choose_vocabulary(vocabulary)
    found = find_mixture(name, 'NAME')
    tasks = getattr(found, 'tasks', None) or [found]
    made: dict[str, Info] = {}
    for first, *others in _alike(tasks):
        _check(first, splits)
        folder = epath.Path(output) / first.name
        if overwrite and folder.exists():
            folder.rmtree()
        known = read_info(output, first.name)
        wanted, now = set(splits or first.splits), made_with(first, vocabulary)
        if known:
            _check_same(known[1], now, first.name, output)
        if known and wanted <= set(known[1]['splits']):
            made[first.name] = known[1]
        else:
            wanted |= set(known[1]['splits']) if known else set()
            set_up = functools.partial(_set_up, data, prepare)
            shards = _run(beam_utils, first, sorted(wanted), folder, now, set_up, pipeline_options)
            made[first.name] = finish(folder, shards, now)
        for other in others:
            write_json(epath.Path(output) / other.name / INFO, {'version': VERSION, 'same_as': first.name})
            made[other.name] = made[first.name]
    return made


def import_beam() -> Any:
    """Imports SeqIO's Beam pipeline.

    Raises:
        UserError: Beam is not installed.
    """
    try:
        from seqio import beam_utils
    except ImportError as error:
        raise UserError(f"apache-beam is not installed ({error}). Run pip install 't5flan[beam]'.") from None
    return beam_utils


def _alike(tasks: Iterable[seqio.Task]) -> list[list[seqio.Task]]:
    """Groups tasks with the same source and the same preprocessors before the cache."""
    groups: dict[tuple, list[seqio.Task]] = {}
    for task in sorted(tasks, key=lambda task: task.name):
        cached = tuple(map(repr, task.preprocessors[: cache_step(task) or 0]))
        groups.setdefault((id(task.source), cached), []).append(task)
    return list(groups.values())


def _check(task: seqio.Task, splits: Sequence[str]) -> None:
    if cache_step(task) is None:
        raise UserError(f'task {task.name} cannot be cached without a seqio.CacheDatasetPlaceholder. Name another.')
    if missing := sorted(set(splits) - set(task.splits)):
        raise UserError(f'task {task.name} has no split {missing[0]!r}; it has {", ".join(task.splits)}. Set --splits.')


def _check_same(info: Info, now: Mapping[str, Any], task: str, output: str) -> None:
    if info['made_with'] != now:
        raise UserError(
            f'{output} has {task} made with {info["made_with"]}, the settings are {now}. Set another --output, or '
            '--overwrite.'
        )


def _run(
    beam_utils: Any,
    task: seqio.Task,
    splits: Sequence[str],
    folder: epath.Path,
    made: Mapping[str, Any],
    set_up: Callable[[], None],
    pipeline_options: Sequence[str],
) -> dict[str, int]:
    """Writes all shards of a task; returns {split: number of shards}."""
    import apache_beam as beam

    folder.mkdir(parents=True, exist_ok=True)
    try:
        pipeline = beam.Pipeline(options=beam.options.pipeline_options.PipelineOptions(list(pipeline_options)))
    except ValueError as error:  # an unknown runner, or one that needs other options
        given, why = ' '.join(pipeline_options), str(error).splitlines()[0]
        raise UserError(f'--pipeline_options={given}: {why} Set options that Beam knows.') from None
    shards: dict[str, int] = {}
    with pipeline:
        for split in splits:
            source = beam_utils.PreprocessTask(task, split, setup_fn=set_up)
            shards[split] = len(source.shards)
            write = functools.partial(write_shard, source._emit_examples, str(folder), split, shards[split], made)
            label = f'{split} of {task.name}'
            all_shards = pipeline | f'shards: {label}' >> beam.Create(source.shards)
            _ = all_shards | f'spread: {label}' >> beam.Reshuffle() | f'write: {label}' >> beam.Map(write)
    return shards


def finish(folder: epath.Path, shards: Mapping[str, int], made: Mapping[str, Any]) -> Info:
    """Writes info.json with the counts of all shards; a cache without it is incomplete.

    Raises:
        UserError: a split has no records.
    """
    info: Info = {'version': VERSION, 'made_with': dict(made), 'splits': {}, 'features': {}}
    for split, count in shards.items():
        parts = [json.loads(_counts_of(folder, split, number, count).read_text()) for number in range(count)]
        tokens = {name: sum(part['tokens'].get(name, 0) for part in parts) for part in parts for name in part['tokens']}
        info['splits'][split] = {'shards': count, 'examples': sum(part['examples'] for part in parts), 'tokens': tokens}
        info['features'] |= next((part['features'] for part in parts if part['features']), {})
        if not info['splits'][split]['examples']:
            raise UserError(f'{folder}: split {split!r} has no records. Check the source and the preprocessors.')
    write_json(folder / INFO, info)
    return info


def _set_up(data: DataConfig, prepare: Prepare) -> None:
    """Registers the tasks and chooses the vocabulary, once per worker."""
    if repr(data) not in _set_up_for:
        prepare(data)
        choose_vocabulary(load_vocabulary(data.vocabulary, data.extra_ids, data.mode_tokens, data.added_tokens))
        _set_up_for[:] = [repr(data)]


def write_shard(
    emit: Callable[[tuple[int, str]], Iterable[dict[str, Any]]],
    folder: str,
    split: str,
    shards: int,
    made: Mapping[str, Any],
    shard: tuple[int, str],
) -> None:
    """Writes one shard of the source as one file, whole or not at all, and a file with its counts; runs in a worker.

    Args:
        emit: (number, name) of a shard -> its records: dicts of tensors, arrays or plain values.
        folder: the task's folder.
        made: what the records were made with; an existing shard with the same is kept.
        shard: number and name of this shard.
    """
    from array_record.python import array_record_module

    name = shard_name(split, shard[0], shards)
    counted = _counts_of(epath.Path(folder), split, shard[0], shards)
    if counted.exists() and json.loads(counted.read_text())['made_with'] == made:
        return
    part: dict[str, Any] = {'examples': 0, 'tokens': {}, 'features': {}, 'made_with': dict(made)}
    with tempfile.TemporaryDirectory() as here:
        writer = array_record_module.ArrayRecordWriter(f'{here}/{name}', 'group_size:1')  # 1: random access
        for example in emit(shard):
            record = {key: _array(value) for key, value in example.items()}
            numbers = {key: value.astype(np.int64) if value.dtype == bool else value for key, value in record.items()}
            writer.write(seqio.dict_to_tfexample(numbers).SerializeToString())
            part['examples'] += 1
            part['features'] = part['features'] or {key: _kind(key, value) for key, value in record.items()}
            for key, value in record.items():
                if value.ndim == 1 and value.dtype.kind in 'iu':
                    part['tokens'][key] = part['tokens'].get(key, 0) + len(value)
        writer.close()
        target = epath.Path(folder) / name
        with open(f'{here}/{name}', 'rb') as read, open_whole(target, 'wb') as write:
            shutil.copyfileobj(read, write, 2**24)
    write_json(counted, part)


def _counts_of(folder: epath.Path, split: str, number: int, shards: int) -> epath.Path:
    return folder / 'shards' / f'{split}.{number:05}-of-{shards:05}.json'


def _array(value: Any) -> np.ndarray:
    value = value.numpy() if hasattr(value, 'numpy') else value
    return np.asarray(value, object if isinstance(value, (bytes, str)) else None)


def _kind(name: str, value: np.ndarray) -> str:
    """The kind of a feature, as `parse_record` expects it.

    Raises:
        UserError: a tf.train.Example cannot hold it.
    """
    if value.ndim > 1:
        raise UserError(
            f'feature {name!r} has shape {value.shape}: a cached record can only have scalars and vectors. Remove it '
            'before the CacheDatasetPlaceholder.'
        )
    return ('str' if value.dtype.kind in 'OSU' else str(value.dtype)) + '[]' * value.ndim


def main(data: DataConfig, name: str, output: str, json_file: str | None = None, **options: Any) -> None:
    """Caches tasks and prints a table of them."""
    from rich.console import Console
    from rich.table import Table

    started = time.monotonic()
    made = cache(data, name, output, **options)
    table = Table(title=f'{output}, {time.monotonic() - started:.1f} s', title_justify='left')
    for column in ('task', 'split', 'shards', 'records', 'tokens'):
        table.add_column(column, justify='left' if column in ('task', 'split') else 'right')
    for task, info in made.items():
        shared = next(name for name, other in made.items() if other is info)
        for split, one in info['splits'].items() if shared == task else ():
            table.add_row(task, split, str(one['shards']), f'{one["examples"]:,}', f'{sum(one["tokens"].values()):,}')
        if shared != task:
            table.add_row(task, f'as {shared}', '', '', '')
    Console(width=120).print(table)
    if json_file is not None:
        write_json(json_file, made)
