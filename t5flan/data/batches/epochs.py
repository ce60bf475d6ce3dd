"""Steps of an epoch: as many as it takes to see every record of the training data once."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from t5flan.data.batches.streams import HostBatches, Position, first_position
from t5flan.data.config import DataConfig
from t5flan.data.mixtures.readers import example_functions
from t5flan.data.mixtures.stages import Plan
from t5flan.data.preprocessing.joining import joined_by
from t5flan.data.vocabulary.vocabulary import Vocabulary
from t5flan.errors import UserError

_MOST_EXAMPLES = 20_000
"""Examples that are packed to measure how many fit in a batch."""


def steps_of_epochs(epochs: float, config: DataConfig, vocabulary: Vocabulary, plan: Plan) -> tuple[int, str]:
    """The number of steps in which a run sees as many records as `epochs` times those of its tasks.

    Without packing and with one example per record the number is exact. Otherwise the first batches are made, until an
    epoch is over or 20,000 examples are seen, and the rest is extrapolated.

    Returns:
        The steps, and a line that says how they were found.

    Raises:
        UserError: the number of records of a task is not known.
    """
    records = sum(_records(task, config.split) for task in plan.tasks)
    goal = epochs * records
    config = dataclasses.replace(config, prefetch=0)
    position = first_position(config.stream_count)
    batches = HostBatches(config, plan, vocabulary, slice(0, config.batch_size), position)
    joined = {task.name: joined_by(example_functions(task), config.concatenate) for task in plan.tasks}
    steps = seen = examples = 0
    while seen < goal and examples < _MOST_EXAMPLES:
        _, position, counts, _ = batches.make()
        steps, seen = steps + 1, _seen(position, joined)
        examples += sum(count.examples + count.dropped for count in counts.values())
    is_whole = seen >= goal
    steps = steps if is_whole else max(1, math.ceil(steps * goal / max(seen, 1)))
    about = '' if is_whole else 'about '
    passes = f'{epochs:g} epoch' + 's' * (epochs != 1)
    return steps, f'{passes} of {records:,} records: {about}{steps:,} step' + 's' * (steps != 1)


def _records(task: Any, split: str) -> int:
    count = task.source.num_input_examples(split)
    if count is None:
        raise UserError(f'task {task.name}: its number of records is not known. Set RunConfig.steps instead of epochs.')
    return count


def _seen(position: Position, joined: Mapping[str, int]) -> int:
    """Records that the streams have read: the groups before each cursor, times the records of a group."""
    cursors = [pair for stream in position['streams'].values() for pair in stream['tasks'].items()]
    return sum(cursor[-2] * joined[name] for name, cursor in cursors)
