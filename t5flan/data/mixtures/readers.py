"""Reads a task's examples from any position: by number if its source is indexed, else in order through SeqIO.

    reader = Reader(task, config, vocabulary, stream=0, streams=8)
    reader.cursor     where the next example comes from: a tuple of ints that a checkpoint saves
    reader.peek()     the next example; reader.pop() moves past it

`IndexedRecords` and `SequentialRecords` find the records, `Reader` makes examples of them.
"""

import collections
import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from t5flan.data.config import DataConfig
from t5flan.data.mixtures import definitions
from t5flan.data.preprocessing import features
from t5flan.data.preprocessing.examples import Context, Example, ExampleFn, run_block
from t5flan.data.preprocessing.joining import joined_by, run_joined
from t5flan.data.randomness import Permutation, stable_hash
from t5flan.data.vocabulary.vocabulary import Vocabulary
from t5flan.errors import UserError

Cursor = tuple[int, ...]
FEATURES: tuple[str, ...] = ('inputs', 'targets')
SMALL_BLOCK, LARGEST_BLOCK = 8, 64
"""Records that a reader processes at once, at first and at most."""


@dataclasses.dataclass(slots=True)
class Counts:
    """How many of a task's examples were used, cut and dropped."""

    examples: int = 0
    trimmed: int = 0
    dropped: int = 0
    few_sentinels: int = 0
    """Windows of text made shorter because their spans would outnumber the vocabulary's sentinels."""

    def add(self, other: 'Counts') -> None:
        """Adds other counts to these."""
        self.examples += other.examples
        self.trimmed += other.trimmed
        self.dropped += other.dropped
        self.few_sentinels += other.few_sentinels


@dataclasses.dataclass(frozen=True, slots=True)
class Ready:
    """An example that fits the features, the cursor after it, and what was counted on the way to it."""

    example: Example
    whole: Example
    """The example before trimming."""
    after: Cursor
    counts: Counts

    @property
    def lengths(self) -> dict[str, int]:
        """Tokens of each feature before trimming."""
        return {name: len(self.whole[name]) for name in FEATURES if name in self.whole}


@dataclasses.dataclass(frozen=True, slots=True)
class Block:
    """Consecutive records of a stream; with DataConfig.concatenate, groups of them that are joined."""

    groups: list[list[Example]]
    cursors: list[Cursor]
    """Of each group, without the number of examples done in it."""
    places: list[tuple[int, int]]
    """(index, epoch) of each group, which its random numbers depend on."""
    after: Cursor


class Reader:
    """The examples of one task that belong to one stream.

    Args:
        stream: number of this stream among the `streams` that share the task's records.
        epochs: passes over the records; None repeats them endlessly.
        ahead: the most records to process at once.
        beside: the task's readers in the other streams of this host, where this one is added. They process their
            records together: the streams of a run need a rare task at about the same time, a few records each.
    """

    def __init__(
        self,
        task: Any,
        config: DataConfig,
        vocabulary: Vocabulary,
        stream: int = 0,
        streams: int = 1,
        epochs: int | None = None,
        ahead: int = LARGEST_BLOCK,
        beside: list['Reader'] | None = None,
    ) -> None:
        from t5flan.data.records.sources import IndexedSource

        self._task, self._config, self._epochs = task, config, epochs
        self._functions = example_functions(task)
        self._joined = joined_by(self._functions, config.concatenate)
        indexed = isinstance(task.source, IndexedSource) and self._functions is not None
        kind: type[IndexedRecords] | type[SequentialRecords] = IndexedRecords if indexed else SequentialRecords
        self._records = kind(task, config, stream, streams, self._joined)
        settings: dict[str, Any] = dict(seed=config.seed, instructions=config.instructions, format=config.format)
        name = dict(task=task.name, split=self._records.random_split)
        self._context = functools.partial(Context, vocabulary, config.feature_lengths, **settings, **name)
        self.cursor: Cursor = self._records.START
        self._fetched: Cursor = self._records.START  # where the block after the ready examples starts
        self._ready: collections.deque[Ready] = collections.deque()
        self._counts, self._unused = Counts(), 0  # what was dropped, and groups read, since the last ready example
        self._largest_block = ahead
        # Different first sizes, so that the tasks of a mixture do not all run dry at the same time, nor the streams of
        # a frequent task, which do not read together.
        together = beside is not None and 2 * max(ahead, self._joined) <= LARGEST_BLOCK
        first = stable_hash(task.name if together else f'{task.name}/{stream}')
        self._block = 1 + first % min(SMALL_BLOCK, ahead)
        self._beside: list[Reader] = beside if beside is not None and indexed else []
        if self._beside is beside:
            self._beside.append(self)

    def start(self, cursor: Sequence[int]) -> None:
        """Moves to a cursor from a checkpoint; to be called before the first example."""
        self.cursor = self._fetched = tuple(int(number) for number in cursor)

    def peek(self) -> Ready | None:
        """The next example, or None after the last epoch.

        Raises:
            UserError: a whole epoch has no usable example.
        """
        while not self._ready:
            if not self._read_ahead():
                return None
            # An example that the reader meets once an epoch may be the first of one and the last of the next.
            most = 2 * self._records.epoch_size(self._fetched)
            if not self._ready and self._epochs is None and self._unused > most:
                raise self._nothing_usable()
        return self._ready[0]

    def pop(self) -> None:
        """Moves past the example that peek() returned."""
        self.cursor = self._ready.popleft().after

    def _read_ahead(self) -> bool:
        """Makes the examples of the next block, and those of the readers beside this one; False after the last epoch.

        No example depends on the block that it is made in.
        """
        blocks = []
        for reader in self._running_dry():
            size = max(1, reader._next_size() // reader._joined)
            block = reader._records.read(reader._fetched, size, reader._epochs)
            if block is not None:
                blocks.append((reader, block))
        groups = [group for _, block in blocks for group in block.groups]
        contexts = [reader._context(index=i, epoch=epoch) for reader, block in blocks for i, epoch in block.places]
        made = iter(self._made(groups, contexts) if groups else ())
        for reader, block in blocks:
            reader._take(block, itertools.islice(made, len(block.groups)))
        return any(reader is self for reader, _ in blocks)

    def _running_dry(self) -> list['Reader']:
        """This reader and those beside it that have few examples left, for up to LARGEST_BLOCK records in all."""
        found, records = [self], max(self._block, self._joined)
        for reader in self._beside:
            if reader is not self and 2 * len(reader._ready) <= reader._block:
                records += max(reader._block, reader._joined)
                if records > LARGEST_BLOCK:
                    break
                found.append(reader)
        return found

    def _next_size(self) -> int:
        """Records to read: few at first, as a mixture of many tasks takes few of each, and more of a frequent task."""
        size, self._block = self._block, min(max(2 * self._block, SMALL_BLOCK), self._largest_block)
        return size

    def _made(self, groups: Sequence[list[Example]], contexts: Sequence[Context]) -> list[list[Example]]:
        """The examples that the preprocessors make of each group."""
        if self._functions is None:
            return [[_model_example(record)] for (record,) in groups]
        if self._joined == 1:
            return run_block(self._functions, [record for (record,) in groups], contexts)
        return run_joined(self._functions, groups, contexts)

    def _take(self, block: Block, made: Iterable[list[Example]]) -> None:
        """Keeps the examples of a block that fit the features."""
        done = self._fetched[-1]  # examples of the first group before the cursor
        for examples, group in zip(made, block.cursors, strict=True):
            self._unused += 1
            for example, after in zip(*_with_cursors(examples, group, done)):
                kept = self._fit(example)
                if kept is not None:
                    self._ready.append(Ready(kept, example, after, self._counts))
                    self._counts, self._unused = Counts(), 0
            done = 0
        self._fetched = block.after

    def _fit(self, example: Example) -> Example | None:
        kept, cut = features.fit_example(example, self._config.feature_lengths, self._config.format)
        if not len(kept['targets']):
            return None
        if cut and self._config.too_long == 'drop':
            self._counts.dropped += 1
            return None
        self._counts.examples += 1
        self._counts.trimmed += cut
        self._counts.few_sentinels += 'few_sentinels' in kept
        return kept

    def _nothing_usable(self) -> UserError:
        why = 'its records are empty, or its preprocessors removed all. Check what it reads (TextFiles.train)'
        if self._counts.dropped:
            why = f'{self._counts.dropped} are longer than DataConfig.feature_lengths. Set longer ones'
        problem = f'task {self._task.name}: no example of a whole epoch can be used'
        return UserError(f'{problem}: {why}, or set another DataConfig.mixture.')


class IndexedRecords:
    """Records by number, in groups of `joined`. Cursor: (groups before it, examples done of the group)."""

    START: Cursor = (0, 0)

    def __init__(self, task: Any, config: DataConfig, stream: int, streams: int, joined: int) -> None:
        self._records = task.source.records(config.split)
        self._name, self._config, self._stream, self._streams, self._joined = task.name, config, stream, streams, joined
        self._size = -(-len(self._records) // joined)
        self._orders: dict[int, Permutation] = {}
        self._ordered = (0, np.zeros(0, np.int64), np.zeros(0, np.int64))  # first group, their numbers and epochs
        self.random_split = config.split

    def epoch_size(self, cursor: Cursor) -> int:
        """Groups of this stream in an epoch."""
        return self._size // self._streams + 1

    def read(self, cursor: Cursor, count: int, epochs: int | None) -> Block | None:
        """The next `count` groups from `cursor` on; None after the last epoch."""
        first, _ = cursor
        start, numbers, passes = self._ordered
        if first < start or first + count > start + len(numbers):
            # The order of many groups takes hardly longer than that of a few.
            start, numbers, passes = self._ordered = first, *self._order(first, max(count, _order_ahead(count)), epochs)
        here = slice(first - start, first - start + count)
        places = list(zip(numbers[here].tolist(), passes[here].tolist()))
        if epochs is not None and not places:
            return None
        groups = [self._group(number) for number, _ in places]
        cursors: list[Cursor] = [(first + i,) for i in range(len(groups))]
        return Block(groups, cursors, places, (first + len(groups), 0))

    def _order(self, first: int, count: int, epochs: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Numbers and epochs of this stream's next `count` groups, fewer at the end of the last epoch. int64."""
        places = self._stream + self._streams * np.arange(first, first + count)
        passes, places = np.divmod(places, self._size)
        if epochs is not None:
            places, passes = places[passes < epochs], passes[passes < epochs]
        numbers = places.copy()
        if self._config.shuffle:
            for epoch in np.unique(passes):
                numbers[passes == epoch] = self._permutation(int(epoch))[places[passes == epoch]]
        return numbers, passes

    def _permutation(self, epoch: int) -> Permutation:
        if epoch not in self._orders:
            config = self._config
            self._orders = {e: p for e, p in self._orders.items() if e >= epoch - 1}
            self._orders[epoch] = Permutation(self._size, f'{config.seed}/{self._name}/{config.split}/{epoch}')
        return self._orders[epoch]

    def _group(self, number: int) -> list[Example]:
        first = number * self._joined
        return [self._records[i] for i in range(first, min(first + self._joined, len(self._records)))]


def _order_ahead(count: int) -> int:
    """Groups whose order to compute with that of `count`: 2 KB for each reader of thousands of tasks."""
    return min(16 * count, 128)


class SequentialRecords:
    """Records of a SeqIO task in order, in groups of `joined`. Cursor: (epoch, groups before, examples done).

    A stream reads its own share of the shards or of the records. If every preprocessor is an ExampleFn, only the source
    is read through tf.data; otherwise SeqIO runs the task's preprocessors too.
    """

    START: Cursor = (0, 0, 0)

    def __init__(self, task: Any, config: DataConfig, stream: int, streams: int, joined: int) -> None:
        self._task, self._config, self._stream, self._streams, self._joined = task, config, stream, streams, joined
        self._source_only = example_functions(task) is not None
        self._iterator: Iterator[Mapping[str, Any]] | None = None
        self._at: Cursor = self.START  # where the iterator is
        self._largest = 0  # groups of an epoch, known once one was read to its end
        self.random_split = f'{config.split}/{stream}'

    def epoch_size(self, cursor: Cursor) -> int:
        """Groups of this stream in an epoch; before the second epoch, a number too large to reach."""
        return self._largest if cursor[0] > 1 else 2**62

    def read(self, cursor: Cursor, count: int, epochs: int | None) -> Block | None:
        """The next `count` groups from `cursor` on, none at the end of an epoch; None after the last epoch."""
        epoch, first, _ = cursor
        if epochs is not None and epoch >= epochs:
            return None
        if self._iterator is None or self._at != cursor[:2]:
            self._iterator = self._records_from(epoch, first)
        records: list[Any] = list(itertools.islice(self._iterator, count * self._joined))
        if not records:
            self._iterator, self._largest = None, max(self._largest, first)
            return Block([], [], [], (epoch + 1, 0, 0))
        if self._source_only:
            from t5flan.data.records.tf_values import plain_value

            records = [{name: plain_value(value) for name, value in record.items()} for record in records]
        groups = [records[i : i + self._joined] for i in range(0, len(records), self._joined)]
        numbers = range(first, first + len(groups))
        self._at = (epoch, numbers.stop)
        return Block(groups, [(epoch, i) for i in numbers], [(i, epoch) for i in numbers], (epoch, numbers.stop, 0))

    def _records_from(self, epoch: int, start: int) -> Iterator[Mapping[str, Any]]:
        try:
            records = self._open(epoch, self._streams, self._stream)
            first = next(records, None)
            if first is None and self._streams > 1:  # fewer examples than streams: this one reads them all
                records = self._open(epoch, 1, 0)
                first = next(records, None)
        except Exception as error:
            if isinstance(error, UserError) or not self._source_only:
                raise  # a preprocessor's own error keeps its traceback
            why = str(error).strip().splitlines()[0] if str(error).strip() else ''
            problem = f'its source {self._task.source!r} cannot be read: {type(error).__name__} {why}'
            fix = 'Prepare the data set (tfds build), or set DataConfig.mixture to another.'
            raise UserError(f'task {self._task.name}: {problem} {fix}') from error
        if first is None:
            problem = f'task {self._task.name}: split {self._config.split!r} has no examples'
            raise UserError(f'{problem}. Set DataConfig.split, or another DataConfig.mixture.')
        yield from itertools.islice(itertools.chain([first], records), start * self._joined, None)

    def _open(self, epoch: int, shards: int, index: int) -> Iterator[Mapping[str, Any]]:
        import seqio

        config, source = self._config, self._task.source
        seed = (config.seed + epoch * 1_000_003) % 2**31
        options: dict[str, Any] = dict(split=config.split, shuffle=config.shuffle, seed=seed)
        shard = seqio.ShardInfo(index=index, num_shards=shards) if shards > 1 else None
        if not self._source_only:
            options |= dict(num_epochs=1, trim_output_features=False, try_in_mem_cache=False)
            dataset = self._task.get_dataset(sequence_length=config.feature_lengths, shard_info=shard, **options)
        elif shard is None or len(source.list_shards(config.split)) >= shards:
            dataset = source.get_dataset(shard_info=shard, **options)
        else:
            dataset = source.get_dataset(**options).shard(shards, index)
        if config.shuffle and self._source_only:
            dataset = dataset.shuffle(10_000, seed=seed)
        return dataset.as_numpy_iterator()


def _model_example(record: Mapping[str, Any]) -> Example:
    """A SeqIO example with its token features as int32 arrays."""
    return {name: np.asarray(value, np.int32) if name in FEATURES else value for name, value in record.items()}


def _with_cursors(examples: list[Example], group: Cursor, done: int) -> tuple[list[Example], list[Cursor]]:
    """The examples of a group after the first `done`, and the cursor after each."""
    *before, number = group
    after: list[Cursor] = [(*before, number, i + 1) for i in range(len(examples) - 1)]
    after += [(*before, number + 1, 0)] * bool(examples)
    return examples[done:], after[done:]


def example_functions(task: Any) -> list[ExampleFn] | None:
    """The task's preprocessors if all of them work on single examples, else None."""
    places: tuple[type, ...] = (definitions.CachePlace,)
    if definitions.is_published():
        import seqio

        places += (seqio.CacheDatasetPlaceholder,)
    functions = [function for function in task.preprocessors if not isinstance(function, places)]
    return functions if all(isinstance(function, ExampleFn) for function in functions) else None
