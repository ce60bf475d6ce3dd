"""Batches of a task or mixture: this host's rows, prepared ahead in a thread, with a position for every checkpoint.

    with TrainPipeline(config, vocabulary) as pipeline:
        pipeline.start(position)
        for batch, position in pipeline: ...

streams.py fills the rows; a run resumes at any position at once.
"""

import dataclasses
import queue
import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from t5flan.data.batches.converter import Batch, make_batch
from t5flan.data.batches.packing import Packer
from t5flan.data.batches.streams import HostBatches, Position, first_position
from t5flan.data.config import DataConfig
from t5flan.data.mixtures.mixing import find_mixture, tasks_of
from t5flan.data.mixtures.readers import Counts, Reader
from t5flan.data.mixtures.stages import make_plan, tasks_of_split
from t5flan.data.preprocessing import features
from t5flan.data.preprocessing.examples import Example
from t5flan.data.skipped import left_out_lines, note_lines, summary
from t5flan.data.vocabulary.vocabulary import Vocabulary
from t5flan.errors import UserError, did_you_mean


class TrainPipeline:
    """Endless batches of `config.mixture`; iterating yields (batch, position after it).

    `batch` holds this host's rows: int32 (and float32 loss weights) arrays [rows, length], see converter.py. `position`
    is JSON-able; `start` takes it back. A context manager; leaving it ends the thread.

    Args:
        process_index: this host among `process_count`, in the order of their rows.

    Raises:
        UserError: the mixture, a split, a feature or the vocabulary does not fit the settings.
    """

    def __init__(
        self, config: DataConfig, vocabulary: Vocabulary, process_index: int = 0, process_count: int = 1
    ) -> None:
        if config.batch_size % process_count:
            problem = f'DataConfig.batch_size={config.batch_size} does not divide over {process_count} hosts'
            raise UserError(f'{problem}. Set DataConfig.batch_size.')
        self.config = config
        plan = self.plan = make_plan(config, vocabulary)
        self.rates = plan.named_rates()
        self._counts = {task.name: Counts() for task in plan.tasks}
        self._expected = np.zeros(len(plan.tasks))  # examples of each task that the rates so far predict
        self._filled = [0, 0]  # tokens in the batches, tokens that they can hold
        size = config.batch_size // process_count
        rows = slice(process_index * size, (process_index + 1) * size)
        self._open = lambda position: HostBatches(config, plan, vocabulary, rows, position)
        self._prefetched: Prefetch | None = None
        self.start(None)

    def start(self, position: Position | None = None) -> None:
        """Moves to a position (None: before the first batch) and discards the batches prepared so far.

        Raises a UserError if the position has other streams than the settings, or the records have changed since.
        """
        count = self.config.stream_count
        position = position or first_position(count)
        if position['stream_count'] != count:
            had = position['stream_count']
            problem = f'the data position has {had} streams, the settings give {count}'
            raise UserError(f'{problem}. Set DataConfig.streams = {had}.')
        batches = self._open(position)
        self._stop()
        self._batches, self._position = batches, batches.position()

    @property
    def position(self) -> Position:
        """The position after the last batch delivered."""
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
        """Ends the thread. Iterating again continues after the last batch delivered."""
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
        """What this host's streams delivered since the pipeline was made.

        Returns:
            {'tasks': {name: {'rate', 'share', 'examples', 'trimmed', 'dropped', 'few_sentinels'}},
            'packing_efficiency', 'skipped': {name: why}}. 'rate' is the mean over the stages so far, weighted by their
            examples; the efficiency is the share of tokens that are not padding.
        """
        total = max(1, sum(count.examples for count in self._counts.values()))
        rates = self._expected / total if self._expected.any() else self.plan.rates[0]
        tasks = {
            name: {'rate': float(rate), 'share': counts.examples / total} | dataclasses.asdict(counts)
            for (name, counts), rate in zip(self._counts.items(), rates, strict=True)
        }
        efficiency = self._filled[0] / max(1, self._filled[1])
        return {'tasks': tasks, 'packing_efficiency': efficiency, 'skipped': dict(self.plan.skipped)}

    def report_lines(self) -> list[str]:
        """`report()` as lines to print: the totals, and each task with examples that were too long."""
        report = self.report()
        examples = sum(task['examples'] for task in report['tasks'].values())
        filled = f'{report["packing_efficiency"]:.1%} of the tokens of a batch are not padding'
        lines = [f'{examples:,} examples of {len(report["tasks"])} tasks; {filled}']
        for name, task in report['tasks'].items():
            if long := task['trimmed'] + task['dropped']:
                did = 'trimmed' if self.config.too_long == 'trim' else 'dropped'
                seen = f'{long:,} of {task["examples"] + task["dropped"]:,} examples'
                lines.append(f'{name}: {seen} longer than {dict(self.config.feature_lengths)} were {did}')
            if few := task['few_sentinels']:
                seen = f'{few:,} of {task["examples"]:,} windows of text were made shorter'
                lines.append(f'{name}: {seen}, as their spans would outnumber the sentinels (DataConfig.extra_ids)')
        mixtures = (self.config.mixture, *(stage.mixture for stage in self.config.stages), *self.config.mixed_in)
        return lines + summary(report['skipped']) + left_out_lines() + note_lines(mixtures)


class Prefetch:
    """Calls `make` in a thread, up to `ahead` results ahead. The thread ends with this object."""

    def __init__(self, make: Any, ahead: int) -> None:
        self._queue: queue.Queue = queue.Queue(ahead)
        self._stop = threading.Event()
        work = make, self._queue, self._stop
        self._thread = threading.Thread(target=_produce, args=work, name='t5flan-data', daemon=True)
        self._thread.start()
        # Also at the interpreter's exit: a thread that is still in native code then can crash the process.
        self.close = weakref.finalize(self, _end, self._stop, self._thread)

    def get(self) -> Any:
        """The next result; raises whatever `make` raised, at this and every later call."""
        result, error = self._queue.get()
        if error is not None:
            self._queue.put((None, error))
            raise error
        return result


def _produce(make: Any, results: queue.Queue, stop: threading.Event) -> None:
    while not stop.is_set():
        item: tuple[Any, BaseException | None]
        try:
            item = (make(), None)
        except BaseException as error:  # whatever it is, the consumer gets it
            item = (None, error)
        while not stop.is_set():
            try:
                results.put(item, timeout=0.1)
                break
            except queue.Full:
                continue
        if item[1] is not None:
            return


def _end(stop: threading.Event, thread: threading.Thread) -> None:
    stop.set()
    if thread is not threading.current_thread():  # the garbage collector may run in it
        thread.join(timeout=10)


# -- Finite passes over a split -------------------------------------------------------------------------------------


class HeldOut:
    """The evaluation batches of a run: of all its tasks together, and of single tasks.

    A task is opened and checked at its first pass and stays open for the later ones.

    Args:
        config: the run's data settings, with the split to evaluate on.
        names: tasks and mixtures to evaluate by themselves too (EvaluationConfig.tasks): each task of a mixture.

    Attributes:
        config: the settings of its batches.
        tasks: the names of the tasks to evaluate by themselves.

    Raises:
        UserError: a name is not a task or mixture.
    """

    def __init__(self, config: DataConfig, vocabulary: Vocabulary, names: Sequence[str] = ()) -> None:
        self.config = dataclasses.replace(config, shuffle=False, too_long='trim')
        self._vocabulary = vocabulary
        mixtures = [find_mixture(name, 'EvaluationConfig.tasks') for name in names]
        self.tasks = list(dict.fromkeys(task.name for mixture in mixtures for task in tasks_of(mixture)))
        self._opened: dict[str | None, list[Any]] = {}

    def check_split(self, task: str | None = None) -> None:
        """Raises a UserError if a task, or none of the run's tasks, has the split."""
        config = self.config
        names = [task] if task else [config.mixture, *(stage.mixture for stage in config.stages), *config.mixed_in]
        splits = {split for name in names for one in tasks_of(find_mixture(name)) for split in one.splits}
        if config.split not in splits:
            known, hint = ', '.join(sorted(splits)), did_you_mean(config.split, splits) or '.'
            problem = f'EvaluationConfig.split={config.split!r}: {names[0]} has the splits {known}{hint}'
            raise UserError(f'{problem} Set EvaluationConfig.split, or EvaluationConfig.every = 0.')

    def batches(self, task: str | None = None) -> Iterator[Batch]:
        """The batches of one task, or of all tasks of the run, from the start; see `eval_batches`."""
        config = self.config if task is None else _only(self.config, task)
        if task not in self._opened:
            known = [one for one in self._opened.get(None, ()) if one.name == task]
            self._opened[task] = known or tasks_of_split(config, self._vocabulary)
        return eval_batches(config, self._vocabulary, self._opened[task])


def _only(config: DataConfig, task: str | None) -> DataConfig:
    """The settings for one task, or for their mixture alone."""
    return dataclasses.replace(config, mixture=task or config.mixture, stages=(), mixed_in={})


def eval_batches(config: DataConfig, vocabulary: Vocabulary, tasks: Sequence[Any] | None = None) -> Iterator[Batch]:
    """Every example of `config.split` once, in batches of all hosts' rows; the last one ends in padding without loss.

    The tasks (None: those of `config`) take turns, so that a few batches hold something of each. Not shuffled;
    `config.pack` packs.

    Raises:
        UserError: as TrainPipeline.
    """
    config = dataclasses.replace(config, shuffle=False, too_long='trim')
    tasks = tasks_of_split(config, vocabulary) if tasks is None else tasks
    capacity = features.row_capacity(config.format, config.feature_lengths)
    packer = Packer(config.batch_size, capacity, config.pack)

    def batch() -> Batch:
        lengths, starts = config.feature_lengths, vocabulary.conventions.add_bos
        return make_batch(config.format, lengths, packer.rows, config.pack, vocabulary.start_id, starts)

    for example in _in_turns([Reader(task, config, vocabulary, epochs=1) for task in tasks]):
        cost = features.row_cost(config.format, example)
        if packer.full or not packer.add(example, cost):
            yield batch()
            packer = Packer(config.batch_size, capacity, config.pack)
            packer.add(example, cost)
    if any(packer.rows):
        yield batch()


def _in_turns(readers: list[Reader]) -> Iterator[Example]:
    while readers:
        for reader in list(readers):
            ready = reader.peek()
            if ready is None:
                readers.remove(reader)
            else:
                reader.pop()
                yield ready.example


class EvalExamples(list):
    """Examples of a task; `counts` says how many of them were longer than the features."""

    counts: Counts


def eval_examples(
    config: DataConfig, vocabulary: Vocabulary, task: str | None = None, limit: int | None = None
) -> EvalExamples:
    """The first `limit` examples of a split of one task, for generation and metrics.

    Args:
        config: split, feature_lengths, format and seed apply. Long examples are always trimmed: a test drops none.
        task: the task's name; None is config.mixture, which must then be a task.
        limit: the number of examples; None takes all.

    Returns:
        Dicts with 'inputs_pretokenized' and 'targets_pretokenized' (str), 'inputs' and 'targets' (int32 tokens, cut to
        the feature lengths) and whatever else the task's preprocessors leave.

    Raises:
        UserError: as TrainPipeline.
    """
    config = dataclasses.replace(_only(config, task), shuffle=False, too_long='trim')
    made = EvalExamples()
    made.counts = Counts()
    for one in tasks_of_split(config, vocabulary):
        reader = Reader(one, config, vocabulary, epochs=1)
        while (limit is None or len(made) < limit) and (ready := reader.peek()) is not None:
            reader.pop()
            made.append(_as_text(ready.example, vocabulary))
            made.counts.add(ready.counts)
    return made


def _as_text(example: Example, vocabulary: Vocabulary) -> dict[str, Any]:
    """The example with text for its tokens, which is decoded if the task kept none."""
    text = {}
    for name in ('inputs', 'targets'):
        if name in example:
            kept = example.get(f'{name}_pretokenized')
            kept = kept.decode('utf-8') if isinstance(kept, bytes) else kept
            text[f'{name}_pretokenized'] = kept if isinstance(kept, str) else vocabulary.decode(example[name])
    return {**example, **text}
