"""Batches of a task or mixture: this host's rows, prepared ahead in a thread, their position saved with every checkpoint.

The rows of a batch are filled by `streams`, each with its own share of every task's records. A batch is a pure function of
the settings and the streams' positions: it is the same on any number of hosts, and a run goes on at once where it stopped.
"""

import collections
import dataclasses
import queue
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from t5flan.data.batches.converter import Batch, make_batch
from t5flan.data.batches.packing import Packer
from t5flan.data.config import DataConfig
from t5flan.data.mixtures.mixing import Schedule
from t5flan.data.mixtures.readers import Counts, Reader, open_reader
from t5flan.data.mixtures.stages import Plan, make_plan, tasks_of_split
from t5flan.data.preprocessing import features
from t5flan.data.preprocessing.examples import Example
from t5flan.data.skipped import lacking, summary
from t5flan.data.vocabulary.vocabulary import Vocabulary
from t5flan.errors import UserError

Position = dict[str, Any]
NOTHING_READ = {'batch': 0, 'slot': [0, 0], 'tasks': {}}


class Stream:
    """Fills its rows of every batch with examples in the mixture's order.

    Args:
        number: which of `config.stream_count` streams.
    """

    def __init__(self, config: DataConfig, plan: Plan, vocabulary: Vocabulary, number: int) -> None:
        self._config, self._plan, self._vocabulary, self._number = config, plan, vocabulary, number
        self._readers: dict[str, Reader] = {}
        self._schedule: tuple[int, Schedule] | None = None  # of the present stage
        self._batch = 0
        self._at = [0, 0]  # block and slot of the stage's schedule
        self._cursors: dict[str, list[int]] = {}
        self.capacity = features.row_capacity(config.format, config.feature_lengths)

    def start(self, position: Mapping[str, Any]) -> None:
        """Goes to where `position` was taken; before the first batch."""
        self._batch = int(position.get('batch', 0))  # positions saved before there were stages have none
        self._at = [int(number) for number in position['slot']]
        self._cursors = dict(position['tasks'])

    def position(self) -> Position:
        return {'batch': self._batch, 'slot': list(self._at), 'tasks': dict(self._cursors)}

    def next_rows(self, rows: int, counts: Mapping[str, Counts]) -> list[list[Example]]:
        """Examples of the stream's next `rows` rows: as many as fit; the one that does not begins the next batch."""
        packer = Packer(rows, self.capacity, self._config.pack)
        if self._batch in self._plan.begins:
            self._at = [0, 0]
        schedule = self._schedule_of(self._plan.stage_of(self._batch))
        while not packer.full:
            number, *self._at = schedule.task_at(*self._at)
            name = self._plan.tasks[number].name
            reader = self._reader(number)
            ready = reader.peek()
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
            # Of a rare task few are made ahead: thousands of tasks would fill the memory with examples that wait.
            ahead = min(Reader.LARGEST_BLOCK, max(Reader.SMALL_BLOCK, int(2048 * self._plan.rates[:, number].max())))
            reader = open_reader(
                task, self._config, self._vocabulary, self._number, self._config.stream_count, ahead=ahead
            )
            if task.name in self._cursors:
                reader.start(self._cursors[task.name])
            self._readers[task.name] = reader
        return self._readers[task.name]


class HostBatches:
    """One host's rows of every batch, one batch after the other."""

    def __init__(self, config: DataConfig, plan: Plan, vocabulary: Vocabulary, rows: slice, position: Position) -> None:
        """`rows` of the global batch, from `position` on."""
        self._config, self._rows, self._start_id = config, rows, vocabulary.start_id
        self._per_stream = config.batch_size // config.stream_count
        self._first = rows.start // self._per_stream
        last = (rows.stop - 1) // self._per_stream
        self._streams = [Stream(config, plan, vocabulary, number) for number in range(self._first, last + 1)]
        self._records = record_counts(plan.tasks, config.split)
        for name, before in position.get('records', {}).items():
            if self._records.get(name, before) != before:
                raise UserError(
                    f'task {name} had {before} records when the checkpoint was saved and has {self._records[name]} now: '
                    'its order would be another. Bring its files back, or start in another --workdir.'
                )
        for number, stream in enumerate(self._streams, self._first):
            if str(number) not in position['streams']:
                raise UserError(
                    f'the data position lacks stream {number}: part of the hosts saved it. Restore a whole checkpoint.'
                )
            stream.start(position['streams'][str(number)])

    def position(self) -> Position:
        """Where this host's streams are; other hosts' are not in it."""
        streams = {str(number): stream.position() for number, stream in enumerate(self._streams, self._first)}
        return {'stream_count': self._config.stream_count, 'records': self._records, 'streams': streams}

    def make(self) -> tuple[Batch, Position, dict[str, Counts], tuple[int, int]]:
        """The next batch, the position after it, what was counted, and (tokens, tokens it could hold)."""
        counts: dict[str, Counts] = collections.defaultdict(Counts)
        rows = [row for stream in self._streams for row in stream.next_rows(self._per_stream, counts)]
        skip = self._rows.start - self._first * self._per_stream
        rows = rows[skip : skip + self._rows.stop - self._rows.start]
        batch = make_batch(self._config.format, self._config.feature_lengths, rows, self._config.pack, self._start_id)
        filled = sum(sum(features.row_cost(self._config.format, example)) for row in rows for example in row)
        return batch, self.position(), counts, (filled, len(rows) * sum(self._streams[0].capacity))


class TrainPipeline:
    """Endless batches of `config.mixture`: iterating gives (batch, position after it).

    `batch` holds this host's rows: int32 (and float32 loss weights) arrays [rows, length], see converter.py. `position` is
    JSON-able and goes back into `start`. A context manager; `close` ends the thread.

    Args:
        process_index: this host among `process_count`, in the order of their rows.

    Raises:
        UserError: the mixture, a split, a feature or the vocabulary does not fit the settings.
    """

    def __init__(
        self, config: DataConfig, vocabulary: Vocabulary, process_index: int = 0, process_count: int = 1
    ) -> None:
        if config.batch_size % process_count:
            raise UserError(
                f'DataConfig.batch_size={config.batch_size} does not divide over {process_count} hosts. Set '
                'DataConfig.batch_size.'
            )
        self.config = config
        plan = self.plan = make_plan(config, vocabulary)
        self.rates = self.plan.named_rates()
        self._counts = {task.name: Counts() for task in self.plan.tasks}
        self._expected = np.zeros(len(self.plan.tasks))  # examples of each task that its rates so far make
        self._filled = [0, 0]  # tokens in the batches, tokens they could hold
        size = config.batch_size // process_count
        rows = slice(process_index * size, (process_index + 1) * size)
        self._open = lambda position: HostBatches(config, plan, vocabulary, rows, position)
        self._prefetched: Prefetch | None = None
        self.start(None)

    def start(self, position: Position | None = None) -> None:
        """Goes to where `position` was taken (None: to the beginning); batches prepared so far are left.

        Raises:
            UserError: the position has other streams than the settings.
        """
        count = self.config.stream_count
        if position is None:
            position = {'stream_count': count, 'streams': {str(number): NOTHING_READ for number in range(count)}}
        if position['stream_count'] != count:
            raise UserError(
                f'the data position has {position["stream_count"]} streams, the settings give {count}. '
                f'Set DataConfig.streams = {position["stream_count"]}.'
            )
        batches = self._open(position)
        self._stop()
        self._batches, self._position = batches, batches.position()

    @property
    def position(self) -> Position:
        """The position after the last batch that was delivered."""
        return self._position

    def __iter__(self) -> Iterator[tuple[Batch, Position]]:
        return self

    def __next__(self) -> tuple[Batch, Position]:
        if self.config.prefetch and self._prefetched is None:
            self._prefetched = Prefetch(self._batches.make, self.config.prefetch)
        batch, position, counts, filled = self._prefetched.get() if self._prefetched else self._batches.make()
        for name, count in counts.items():
            self._counts[name].add(count)
        stage = self.plan.stage_of(min(at['batch'] for at in position['streams'].values()) - 1)
        self._expected += self.plan.rates[stage] * sum(count.examples for count in counts.values())
        self._filled = [a + b for a, b in zip(self._filled, filled, strict=True)]
        self._position = position
        return batch, position

    def close(self) -> None:
        """Ends the thread. Iterating again goes on after the last batch delivered."""
        self.start(self._position)

    def _stop(self) -> None:
        if self._prefetched is not None:
            self._prefetched.close()
            self._prefetched = None

    def __enter__(self) -> 'TrainPipeline':
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop()

    def report(self) -> dict[str, Any]:
        """What was delivered: {'tasks': {name: {'rate', 'share', 'examples', 'trimmed', 'dropped', 'few_sentinels'}},
        'packing_efficiency', 'left_out': {name: why}}.

        Counts are of this host's streams since the pipeline was made; efficiency is the share of tokens not padding. A rate
        is that of the stages so far, weighed by their examples.
        """
        total = max(1, sum(count.examples for count in self._counts.values()))
        rates = self._expected / total if self._expected.any() else self.plan.rates[0]
        tasks = {
            name: {
                'rate': float(rate),
                'share': c.examples / total,
                'examples': c.examples,
                'trimmed': c.trimmed,
                'dropped': c.dropped,
                'few_sentinels': c.few_sentinels,
            }
            for (name, c), rate in zip(self._counts.items(), rates, strict=True)
        }
        efficiency = self._filled[0] / max(1, self._filled[1])
        return {'tasks': tasks, 'packing_efficiency': efficiency, 'left_out': dict(self.plan.left_out)}

    def report_lines(self) -> list[str]:
        """`report()` for people: one line of totals, one for each task with examples that were too long."""
        report = self.report()
        examples = sum(task['examples'] for task in report['tasks'].values())
        lines = [
            f'{examples:,} examples of {len(report["tasks"])} tasks; {report["packing_efficiency"]:.1%} of the tokens '
            'of a batch are not padding'
        ]
        for name, task in report['tasks'].items():
            if long := task['trimmed'] + task['dropped']:
                did = 'trimmed' if self.config.too_long == 'trim' else 'dropped'
                seen = task['examples'] + task['dropped']
                lines.append(
                    f'{name}: {long:,} of {seen:,} examples longer than {dict(self.config.feature_lengths)} were {did}'
                )
            if few := task['few_sentinels']:
                lines.append(
                    f'{name}: {few:,} of {task["examples"]:,} windows of text were cut shorter, for their spans would outnumber the '
                    'sentinels (DataConfig.extra_ids)'
                )
        mixtures = (self.config.mixture, *(stage.mixture for stage in self.config.stages), *self.config.mixed_in)
        return lines + summary(report['left_out']) + lacking(mixtures)


class Prefetch:
    """Calls `make` ahead in a thread, which ends with this object; what it raises is raised by `get`."""

    def __init__(self, make: Any, ahead: int) -> None:
        self._queue: queue.Queue = queue.Queue(ahead)
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=_produce, args=(make, self._queue, self._stop), name='t5flan-data', daemon=True
        )
        self._thread.start()
        # Also at the interpreter's end: a thread that is still in native code then can bring the process down.
        self.close = weakref.finalize(self, _end, self._queue, self._stop, self._thread)

    def get(self) -> Any:
        """The next result.

        Raises:
            Whatever `make` raised; then again at every further call.
        """
        result, error = self._queue.get()
        if error is not None:
            self._queue.put((None, error))
            raise error
        return result


def _produce(make: Any, results: queue.Queue, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            item = (make(), None)
        except BaseException as error:  # noqa: B902 - whatever it is, it belongs to the consumer
            item = (None, error)
        while not stop.is_set():
            try:
                results.put(item, timeout=0.1)
                break
            except queue.Full:
                continue
        if item[1] is not None:
            return


def _end(results: queue.Queue, stop: threading.Event, thread: threading.Thread) -> None:
    stop.set()
    if thread is not threading.current_thread():  # the garbage collector may run in it
        thread.join(timeout=10)


def merge_positions(positions: Sequence[Position]) -> Position:
    """The position over all hosts from each host's own; hosts that share a stream agree on it."""
    return {
        **positions[0],
        'streams': {number: at for position in positions for number, at in position['streams'].items()},
    }


def record_counts(tasks: Sequence[Any], split: str) -> dict[str, int]:
    """Records of the tasks whose sources are indexed: their order depends on the number."""
    from t5flan.data.records.sources import IndexedSource

    return {task.name: len(task.source.records(split)) for task in tasks if isinstance(task.source, IndexedSource)}


# -- Finite passes over a split ------------------------------------------------------------------------------------------


def eval_batches(config: DataConfig, vocabulary: Vocabulary) -> Iterator[Batch]:
    """Every example of `config.split` once, in batches of all hosts' rows; the last one ends in padding rows without loss.

    The tasks take turns, so that a few batches hold something of each. Not shuffled; `config.pack` packs.

    Raises:
        UserError: as TrainPipeline.
    """
    config = dataclasses.replace(config, shuffle=False, too_long='trim')
    capacity = features.row_capacity(config.format, config.feature_lengths)
    packer = Packer(config.batch_size, capacity, config.pack)

    def batch() -> Batch:
        return make_batch(config.format, config.feature_lengths, packer.rows, config.pack, vocabulary.start_id)

    for example in _in_turns(config, vocabulary):
        cost = features.row_cost(config.format, example)
        if packer.full or not packer.add(example, cost):
            yield batch()
            packer = Packer(config.batch_size, capacity, config.pack)
            packer.add(example, cost)
    if any(packer.rows):
        yield batch()


def _in_turns(config: DataConfig, vocabulary: Vocabulary) -> Iterator[Example]:
    readers = [open_reader(task, config, vocabulary, 0, 1, epochs=1) for task in tasks_of_split(config, vocabulary)]
    while readers:
        for reader in list(readers):
            ready = reader.peek()
            if ready is None:
                readers.remove(reader)
            else:
                reader.pop()
                yield ready.example


class EvalExamples(list):
    """Examples of a task, and how many of them were longer than the features (`counts`)."""

    counts: Counts


def eval_examples(
    config: DataConfig, vocabulary: Vocabulary, task: str | None = None, limit: int | None = None
) -> EvalExamples:
    """The first `limit` examples (None: all) of a split of one task, for generation and metrics.

    Args:
        config: its split, feature_lengths, format and seed count; too_long='drop' does not: nothing is left out of a test.
        task: the task's name; None is config.mixture, which must then be a task.

    Returns:
        Dicts with 'inputs_pretokenized' and 'targets_pretokenized' (str), 'inputs' and 'targets' (int32 tokens, cut to
        the feature lengths) and whatever else the task's preprocessors leave.

    Raises:
        UserError: as TrainPipeline.
    """
    config = dataclasses.replace(
        config, mixture=task or config.mixture, stages=(), mixed_in={}, shuffle=False, too_long='trim'
    )
    made = EvalExamples()
    made.counts = Counts()
    for one in tasks_of_split(config, vocabulary):
        reader = open_reader(one, config, vocabulary, 0, 1, epochs=1)
        while limit is None or len(made) < limit:
            ready = reader.peek()
            if ready is None:
                break
            reader.pop()
            made.append(_as_text(ready.example, vocabulary))
            made.counts.add(ready.counts)
    return made


def _as_text(example: Example, vocabulary: Vocabulary) -> dict[str, Any]:
    """The example with text for its tokens, where its task kept none (raw text, tasks tokenized by SeqIO)."""
    text = {}
    for name in ('inputs', 'targets'):
        if name in example:
            kept = example.get(f'{name}_pretokenized')
            kept = kept.decode('utf-8') if isinstance(kept, bytes) else kept
            text[f'{name}_pretokenized'] = kept if isinstance(kept, str) else vocabulary.decode(example[name])
    return {**example, **text}
