"""Streams fill the rows of batches, each from its own share of every task's records; a host runs those of its rows.

A batch is a pure function of the settings and the streams' positions: it is the same on any number of hosts.
"""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

from t5flan.data.batches.converter import Batch, make_batch
from t5flan.data.batches.packing import Packer
from t5flan.data.config import DataConfig
from t5flan.data.mixtures.mixing import Schedule
from t5flan.data.mixtures.readers import LARGEST_BLOCK, SMALL_BLOCK, Counts, Reader
from t5flan.data.mixtures.stages import Plan
from t5flan.data.preprocessing import features
from t5flan.data.preprocessing.examples import Example
from t5flan.data.vocabulary.vocabulary import Vocabulary
from t5flan.errors import UserError

Position = dict[str, Any]
"""Where the streams of a run are; JSON-able."""


def first_position(stream_count: int) -> Position:
    """The position before the first batch."""
    nothing_read = {'batch': 0, 'slot': [0, 0], 'tasks': {}}
    return {'stream_count': stream_count, 'streams': {str(number): nothing_read for number in range(stream_count)}}


def merge_positions(positions: Sequence[Position]) -> Position:
    """The position over all hosts from each host's own; hosts that share a stream agree on it."""
    streams = {number: at for position in positions for number, at in position['streams'].items()}
    return {**positions[0], 'streams': streams}


class Stream:
    """Fills its rows of every batch with examples in the mixture's order.

    Args:
        number: the stream's, below `config.stream_count`.
        readers: task -> its readers in all streams of this host, where this stream's are added.
    """

    def __init__(
        self, config: DataConfig, plan: Plan, vocabulary: Vocabulary, number: int, readers: dict[str, list[Reader]]
    ) -> None:
        self._config, self._plan, self._vocabulary, self._number = config, plan, vocabulary, number
        self._readers_of_host = readers
        self._readers: dict[str, Reader] = {}
        self._schedule: tuple[int, Schedule] | None = None  # of the present stage
        self._batch = 0
        self._at = [0, 0]  # block and slot of the stage's schedule
        self._cursors: dict[str, list[int]] = {}
        self.capacity = features.row_capacity(config.format, config.feature_lengths)

    def start(self, position: Mapping[str, Any]) -> None:
        """Moves to a saved position; to be called before the first batch."""
        self._batch = int(position.get('batch', 0))  # positions saved before stages existed have none
        self._at = [int(number) for number in position['slot']]
        self._cursors = dict(position['tasks'])

    def position(self) -> Position:
        """The position after the last batch."""
        return {'batch': self._batch, 'slot': list(self._at), 'tasks': dict(self._cursors)}

    def next_rows(self, rows: int, counts: Mapping[str, Counts]) -> list[list[Example]]:
        """The examples of the next `rows` rows, as many as fit; the first one that does not fit starts the next batch.

        What becomes of each task's examples is added to its `counts`.
        """
        packer = Packer(rows, self.capacity, self._config.pack)
        if self._batch in self._plan.start_steps:
            self._at = [0, 0]
        schedule = self._schedule_of(self._plan.stage_of(self._batch))
        while not packer.full:
            number, *self._at = schedule.task_at(*self._at)
            name = self._plan.tasks[number].name
            reader = self._reader(number)
            ready = reader.peek()
            assert ready is not None  # it repeats its epochs endlessly
            if not packer.add(ready.example, features.row_cost(self._config.format, ready.example)):
                break
            reader.pop()
            self._cursors[name] = list(reader.cursor)
            counts[name].add(ready.counts)
            self._at[1] += 1
        self._batch += 1
        return packer.rows

    def _schedule_of(self, stage: int) -> Schedule:
        if self._schedule is None or self._schedule[0] != stage:
            config = self._config
            key = f'{config.seed}/{config.mixture}' + (f'/stage {stage}' if stage else '')
            streams = self._number, config.stream_count
            self._schedule = stage, Schedule(self._plan.rates[stage], key, config.shuffle, *streams)
        return self._schedule[1]

    def _reader(self, number: int) -> Reader:
        task = self._plan.tasks[number]
        if task.name not in self._readers:
            # A rare task prepares few examples ahead: thousands of tasks would fill the memory with waiting ones.
            ahead = min(LARGEST_BLOCK, max(SMALL_BLOCK, int(2048 * self._plan.rates[:, number].max())))
            streams = self._number, self._config.stream_count
            beside = self._readers_of_host.setdefault(task.name, [])
            reader = Reader(task, self._config, self._vocabulary, *streams, ahead=ahead, beside=beside)
            if task.name in self._cursors:
                reader.start(self._cursors[task.name])
            self._readers[task.name] = reader
        return self._readers[task.name]


class HostBatches:
    """One host's `rows` of every global batch, from a position on.

    Raises:
        UserError: `position` lacks a stream of these rows, or a task's number of records has changed since.
    """

    def __init__(self, config: DataConfig, plan: Plan, vocabulary: Vocabulary, rows: slice, position: Position) -> None:
        self._config, self._rows = config, rows
        self._start_id, self._starts = vocabulary.start_id, vocabulary.conventions.add_bos
        self._per_stream = config.batch_size // config.stream_count
        self._first = rows.start // self._per_stream
        last = (rows.stop - 1) // self._per_stream
        readers: dict[str, list[Reader]] = {}
        self._streams = [Stream(config, plan, vocabulary, n, readers) for n in range(self._first, last + 1)]
        self._records = _record_counts(plan.tasks, config.split)
        for name, before in position.get('records', {}).items():
            if self._records.get(name, before) != before:
                change = f'had {before} records when the checkpoint was saved and has {self._records[name]} now'
                raise UserError(f'task {name} {change}. Restore its files, or start in another --workdir.')
        for number, stream in enumerate(self._streams, self._first):
            if str(number) not in position['streams']:
                problem = f'the data position lacks stream {number}: only some of the hosts saved it'
                raise UserError(f'{problem}. Restore a complete checkpoint.')
            stream.start(position['streams'][str(number)])

    def position(self) -> Position:
        """The position of this host's streams; it lacks those of other hosts."""
        streams = {str(number): stream.position() for number, stream in enumerate(self._streams, self._first)}
        return {'stream_count': self._config.stream_count, 'records': self._records, 'streams': streams}

    def make(self) -> tuple[Batch, Position, dict[str, Counts], tuple[int, int]]:
        """The next batch, the position after it, the counts by task, and (tokens, tokens that the rows can hold)."""
        counts: dict[str, Counts] = collections.defaultdict(Counts)
        rows = [row for stream in self._streams for row in stream.next_rows(self._per_stream, counts)]
        skip = self._rows.start - self._first * self._per_stream
        rows = rows[skip : skip + self._rows.stop - self._rows.start]
        batch = make_batch(
            self._config.format, self._config.feature_lengths, rows, self._config.pack, self._start_id, self._starts
        )
        filled = sum(sum(features.row_cost(self._config.format, example)) for row in rows for example in row)
        return batch, self.position(), counts, (filled, len(rows) * sum(self._streams[0].capacity))


def _record_counts(tasks: Sequence[Any], split: str) -> dict[str, int]:
    """Task -> number of records, for indexed sources: the order of their records depends on it."""
    from t5flan.data.records.sources import IndexedSource

    return {task.name: len(task.source.records(split)) for task in tasks if isinstance(task.source, IndexedSource)}
