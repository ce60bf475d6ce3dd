"""A task's examples from any place on: by number where its source is indexed, else read in order through SeqIO.

Both give the same interface, so that a stream of the pipeline need not know which it has:

    reader.cursor     where the next example comes from, a tuple of ints that a checkpoint keeps
    reader.peek()     the next example; reader.pop() goes past it
"""

import collections
import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from t5flan.data.config import DataConfig
from t5flan.data.preprocessing import features
from t5flan.data.preprocessing.examples import Context, Example, ExampleFn, run_block
from t5flan.data.preprocessing.joining import joined_by, run_joined
from t5flan.data.randomness import Permutation, stable_hash
from t5flan.data.vocabulary.vocabulary import Vocabulary
from t5flan.errors import UserError

Cursor = tuple[int, ...]


@dataclasses.dataclass(slots=True)
class Counts:
    """What became of a task's examples."""

    examples: int = 0
    trimmed: int = 0
    dropped: int = 0
    few_sentinels: int = 0
    """Windows of text cut shorter, because their spans would outnumber the vocabulary's sentinels."""

    def add(self, other: 'Counts') -> None:
        self.examples += other.examples
        self.trimmed += other.trimmed
        self.dropped += other.dropped
        self.few_sentinels += other.few_sentinels


@dataclasses.dataclass(frozen=True, slots=True)
class Ready:
    """An example that fits the features, where to go on after it, and what was counted on the way to it."""

    example: Example
    lengths: Mapping[str, int]
    """Tokens of each feature before any cut."""
    after: Cursor
    counts: Counts


class Reader:
    """The examples of one task that belong to one stream of several, endlessly (or one epoch of them).

    Args:
        ahead: most records made in one go.
    """

    SMALL_BLOCK, LARGEST_BLOCK = 8, 64

    def __init__(
        self,
        task: Any,
        config: DataConfig,
        vocabulary: Vocabulary,
        stream: int,
        streams: int,
        epochs: int | None = None,
        ahead: int = LARGEST_BLOCK,
    ) -> None:
        self.task = task
        self.cursor: Cursor = self.START
        self._config, self._vocabulary, self._epochs = config, vocabulary, epochs
        self._stream, self._streams = stream, streams
        self._ready: collections.deque[Ready] = collections.deque()
        self._fetched: Cursor = self.START  # where the block after the ready ones begins
        # Of different sizes, so that the readers of a mixture do not all run dry at the same time.
        self._largest_block, self._block = (
            ahead,
            1 + stable_hash(f'{task.name}/{stream}') % min(self.SMALL_BLOCK, ahead),
        )
        self._functions = example_functions(task)
        self._joined = joined_by(self._functions, config.concatenate)
        """Records that make one text; where there are several, cursors count groups of so many."""

    START: Cursor = (0, 0)

    def start(self, cursor: Sequence[int]) -> None:
        """Goes to a cursor that a checkpoint kept; before the first example."""
        self.cursor = self._fetched = tuple(int(number) for number in cursor)

    def peek(self) -> Ready | None:
        """The next example, None after the last epoch.

        Raises:
            UserError: a whole epoch gives none.
        """
        counts, skipped = Counts(), 0
        while not self._ready:
            blocks = self._fetch()
            if blocks is None:
                return None
            skipped += len(blocks)
            for examples, cursors in blocks:
                for example, after in zip(examples, cursors):
                    kept = self._fit(example, counts)
                    if kept is not None:
                        lengths = {name: len(example[name]) for name in ('inputs', 'targets') if name in example}
                        self._ready.append(Ready(kept, lengths, after, counts))
                        counts = Counts()
            if not self._ready and self._epochs is None and skipped > self._epoch_size():
                why = (
                    f'{counts.dropped} are longer than DataConfig.feature_lengths. Set longer ones'
                    if counts.dropped
                    else 'its records are empty, or its preprocessors left none. Check what it reads (TextFiles.train)'
                )
                raise UserError(
                    f'task {self.task.name}: no example of a whole epoch can be used: {why}, or set another DataConfig.mixture.'
                )
        return self._ready[0]

    def pop(self) -> None:
        """Goes past the example that peek() gave."""
        self.cursor = self._ready.popleft().after

    def _fit(self, example: Example, counts: Counts) -> Example | None:
        lengths = self._config.feature_lengths
        kept, cut = features.fit_example(example, lengths, self._config.format)
        if not len(kept['targets']):
            return None
        if cut and self._config.too_long == 'drop':
            counts.dropped += 1
            return None
        counts.examples += 1
        counts.trimmed += cut
        counts.few_sentinels += 'few_sentinels' in kept
        return kept

    def _next_block(self) -> int:
        """Records to fetch: few at first (a mixture of thousands of tasks takes few of each), more as a task proves frequent."""
        size, self._block = self._block, min(max(2 * self._block, self.SMALL_BLOCK), self._largest_block)
        return max(1, size // self._joined)

    def _run(self, groups: Sequence[Sequence[Example]], contexts: Sequence[Context]) -> list[list[Example]]:
        """What the preprocessors make of each group of records."""
        if self._joined == 1:
            return run_block(self._functions, [record for (record,) in groups], contexts)
        return run_joined(self._functions, groups, contexts)

    def _fetch(self) -> list[tuple[list[Example], list[Cursor]]] | None:
        """The next records' examples, each with the cursor after it; None at the end of the last epoch."""
        raise NotImplementedError

    def _epoch_size(self) -> int:
        raise NotImplementedError


class IndexedReader(Reader):
    """Reads records by number. Cursor: (records of this stream before it, examples of the present record before it).

    Where records are joined, a group of them counts as one.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._records = self.task.source.records(self._config.split)
        self._size = -(-len(self._records) // self._joined)
        self._orders: dict[int, Permutation] = {}

    def _epoch_size(self) -> int:
        return self._size // self._streams + 1

    def _order(self, epoch: int) -> Permutation:
        if epoch not in self._orders:
            config = self._config
            self._orders = {e: p for e, p in self._orders.items() if e >= epoch - 1}
            self._orders[epoch] = Permutation(self._size, f'{config.seed}/{self.task.name}/{config.split}/{epoch}')
        return self._orders[epoch]

    def _fetch(self) -> list[tuple[list[Example], list[Cursor]]] | None:
        first, done = self._fetched
        places = self._stream + self._streams * np.arange(first, first + self._next_block())
        epochs, places = np.divmod(places, self._size)
        if self._epochs is not None:
            places, epochs = (places[epochs < self._epochs], epochs[epochs < self._epochs])
            if not len(places):
                return None
        numbers = places.copy()
        if self._config.shuffle:
            for epoch in np.unique(epochs):
                numbers[epochs == epoch] = self._order(int(epoch))[places[epochs == epoch]]
        contexts = [
            Context(
                self._vocabulary,
                self._config.feature_lengths,
                seed=self._config.seed,
                task=self.task.name,
                split=self._config.split,
                index=number,
                epoch=epoch,
                instructions=self._config.instructions,
                format=self._config.format,
            )
            for number, epoch in zip(numbers.tolist(), epochs.tolist())
        ]
        made = self._run([self._group(number) for number in numbers.tolist()], contexts)
        self._fetched = (first + len(made), 0)
        return [with_cursors(examples, (first + i,), done if i == 0 else 0) for i, examples in enumerate(made)]

    def _group(self, number: int) -> list[Example]:
        first = number * self._joined
        return [self._records[i] for i in range(first, min(first + self._joined, len(self._records)))]


class SequentialReader(Reader):
    """Reads a SeqIO task in order, its own share of the shards or examples. Cursor: (epoch, records before, examples before).

    Where every preprocessor is an ExampleFn only the source is read through tf.data; otherwise the task as SeqIO runs it.
    """

    START: Cursor = (0, 0, 0)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._iterator: Iterator[Mapping[str, Any]] | None = None
        self._largest = 0  # records of an epoch, once one was read to its end

    def _epoch_size(self) -> int:
        return self._largest if self._fetched[0] > 1 else 2**62

    def _open(self, epoch: int, shards: int, index: int) -> Iterator[Mapping[str, Any]]:
        import seqio

        config = self._config
        options: dict[str, Any] = dict(
            split=config.split, shuffle=config.shuffle, seed=(config.seed + epoch * 1_000_003) % 2**31
        )
        shard = seqio.ShardInfo(index=index, num_shards=shards) if shards > 1 else None
        if self._functions is None:
            dataset = self.task.get_dataset(
                sequence_length=config.feature_lengths,
                shard_info=shard,
                num_epochs=1,
                trim_output_features=False,
                try_in_mem_cache=False,
                **options,
            )
        elif shard is None or len(self.task.source.list_shards(config.split)) >= shards:
            dataset = self.task.source.get_dataset(shard_info=shard, **options)
        else:
            dataset = self.task.source.get_dataset(**options).shard(shards, index)
        if config.shuffle and self._functions is not None:
            dataset = dataset.shuffle(10_000, seed=options['seed'])
        return dataset.as_numpy_iterator()

    def _records_from(self, epoch: int, start: int) -> Iterator[Mapping[str, Any]]:
        try:
            records = self._open(epoch, self._streams, self._stream)
            first = next(records, None)
            if first is None and self._streams > 1:  # fewer examples than streams: this one reads them all
                records = self._open(epoch, 1, 0)
                first = next(records, None)
        except Exception as error:
            if isinstance(error, UserError) or self._functions is None:
                raise  # a preprocessor's own error keeps its traceback
            why = str(error).strip().splitlines()[0] if str(error).strip() else ''
            raise UserError(
                f'task {self.task.name}: its source {self.task.source!r} cannot be read: {type(error).__name__} {why} '
                'Prepare the data set (tfds build), or set DataConfig.mixture to another.'
            ) from error
        if first is None:
            raise UserError(
                f'task {self.task.name}: split {self._config.split!r} has no examples. Set DataConfig.split or another mixture.'
            )
        yield from itertools.islice(itertools.chain([first], records), start * self._joined, None)

    def _fetch(self) -> list[tuple[list[Example], list[Cursor]]] | None:
        epoch, first, done = self._fetched
        if self._epochs is not None and epoch >= self._epochs:
            return None
        if self._iterator is None:
            self._iterator = self._records_from(epoch, first)
        records = list(itertools.islice(self._iterator, self._next_block() * self._joined))
        groups = [records[i : i + self._joined] for i in range(0, len(records), self._joined)]
        if not records:
            self._largest = max(self._largest, first)
            self._iterator, self._fetched = None, (epoch + 1, 0, 0)
            return []
        self._fetched = (epoch, first + len(groups), 0)
        if self._functions is None:
            made = [[_model_example(record)] for record in records]
        else:
            from t5flan.data.records.tf_values import plain_value

            shared = dict(
                seed=self._config.seed,
                task=self.task.name,
                split=f'{self._config.split}/{self._stream}',
                epoch=epoch,
                instructions=self._config.instructions,
                format=self._config.format,
            )
            contexts = [
                Context(self._vocabulary, self._config.feature_lengths, index=first + i, **shared)
                for i in range(len(groups))
            ]
            plain = lambda record: {name: plain_value(value) for name, value in record.items()}
            made = self._run([[plain(record) for record in group] for group in groups], contexts)
        return [with_cursors(examples, (epoch, first + i), done if i == 0 else 0) for i, examples in enumerate(made)]


def _model_example(record: Mapping[str, Any]) -> Example:
    """A SeqIO example with its token features as int32 arrays."""
    return {
        name: np.asarray(value, np.int32) if name in ('inputs', 'targets') else value for name, value in record.items()
    }


def with_cursors(examples: list[Example], record: Cursor, done: int) -> tuple[list[Example], list[Cursor]]:
    """The examples of a record after the first `done`, and the cursor after each."""
    *before, number = record
    after = [(*before, number, i + 1) for i in range(len(examples) - 1)] + [(*before, number + 1, 0)] * bool(examples)
    return examples[done:], after[done:]


def example_functions(task: Any) -> list[ExampleFn] | None:
    """The task's preprocessors where all of them work on single examples, else None."""
    import seqio

    functions = [function for function in task.preprocessors if not isinstance(function, seqio.CacheDatasetPlaceholder)]
    return functions if all(isinstance(function, ExampleFn) for function in functions) else None


def open_reader(
    task: Any,
    config: DataConfig,
    vocabulary: Vocabulary,
    stream: int,
    streams: int,
    epochs: int | None = None,
    ahead: int = Reader.LARGEST_BLOCK,
) -> Reader:
    """The fast reader where the task allows it, else the sequential one."""
    from t5flan.data.records.sources import IndexedSource

    indexed = isinstance(task.source, IndexedSource) and example_functions(task) is not None
    return (IndexedReader if indexed else SequentialReader)(task, config, vocabulary, stream, streams, epochs, ahead)
