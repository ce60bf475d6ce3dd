"""Rates of the tasks in a mixture, and the order in which a run takes them, as a pure function of the seed.

Nothing here keeps state: the task of slot i is computed from i, so a run resumes at any position at once, on any number
of hosts.
"""

import dataclasses
import difflib
from collections.abc import Sequence
from typing import Any

import numpy as np

from t5flan.data.mixtures import definitions
from t5flan.data.randomness import stable_hash
from t5flan.errors import UserError


def find_mixture(name: str, setting: str = 'DataConfig.mixture') -> Any:
    """The task or mixture that `setting` names; if there is none, raises a UserError with the nearest names."""
    if (found := definitions.find(name)) is not None:
        return found
    names = [*definitions.task_names(), *definitions.mixture_names()]
    longer = sorted(one for one in names if name and one.startswith(name))
    inside = sorted(one for one in names if name and name in one)
    near = (longer or inside or difflib.get_close_matches(name, names, 3, 0.5))[:3]
    hint = f'the nearest are {", ".join(near)}' if near else f'{len(names)} are registered'
    fix = f'Set {setting}, or DataConfig.modules to the module that registers it.'
    raise UserError(f'no task or mixture {name!r}; {hint}. {fix}')


def tasks_of(mixture: Any) -> list[Any]:
    """The tasks of a (nested) mixture; a task is its own only one."""
    return getattr(mixture, 'tasks', None) or [mixture]


def tasks_and_rates(
    mixture: Any, split: str | None = None, broken: dict[str, str] | None = None
) -> list[tuple[Any, float]]:
    """The tasks of a task or (nested) mixture with their rates, which sum to 1, sorted by name.

    The same as SeqIO's `Mixture.get_rate`, in one pass.

    Args:
        split: only tasks that have this split; None takes all.
        broken: task -> why it is skipped. Its rate goes to the rest of the innermost mixture that contains it. A task
            whose rate cannot be computed is added. None skips no task.

    Raises:
        UserError: no task is left, or (without `broken`) a task's rate cannot be computed.
    """
    found: dict[str, Any] = {}
    rates = _rates(mixture, found, broken)
    splits = sorted({name for task in found.values() for name in task.splits})
    pairs = [(found[name], rates[name]) for name in sorted(rates) if split is None or split in found[name].splits]
    total = sum(rate for _, rate in pairs)
    if not pairs:
        problem = f'{mixture.name}: no task has a split {split!r} and a rate above 0'
        raise UserError(f'{problem}; the splits are {", ".join(splits)}. Set DataConfig.split.')
    return [(task, rate / total) for task, rate in pairs]


def _rates(mixture: Any, found: dict[str, Any], broken: dict[str, str] | None) -> dict[str, float]:
    """Task name -> rate within `mixture`, summing to 1 (or {}); adds the tasks to `found`."""
    if not hasattr(mixture, 'rate_per_task_name'):
        found[mixture.name] = mixture
        return {} if broken and mixture.name in broken else {mixture.name: 1.0}
    weighted = []
    for name, rate in mixture.rate_per_task_name.items():
        part = mixture._task_map[name]  # the only way to sub-mixtures that are not registered
        inner = _rates(part, found, broken)
        if not inner:
            continue
        try:
            weighted.append((_weight(part, rate), inner))
        except UserError as error:
            if broken is None:
                raise
            broken[name] = str(error)
    total = sum(weight for weight, _ in weighted)
    rates: dict[str, float] = {}
    for weight, inner in weighted:
        for name, share in inner.items():
            if weight > 0:
                rates[name] = rates.get(name, 0.0) + weight / total * share
    return rates


def _weight(part: Any, rate: Any) -> float:
    try:
        return float(rate(part) if callable(rate) else rate)
    except UserError:
        raise
    except Exception as error:  # whatever a source raises when asked for its size, over the network for TFDS
        why = str(error).strip().splitlines()[0][:200] if str(error).strip() else ''
        problem = f'task {part.name}: its rate cannot be computed: {type(error).__name__} {why}'
        raise UserError(f'{problem} Prepare its data, or set DataConfig.mixture to one without it.') from error


@dataclasses.dataclass(frozen=True)
class ByExamples:
    """A rate for a mixture: (times * min(examples, cap)) ** (1 / temperature).

    Examples are those of 'train', or of the first split of a task without one. A mixture has as many examples as its
    largest task. The cap is T5's (arXiv:1910.10683, section 3.5.2) and Flan's, the temperature mT5's (arXiv:2010.11934,
    section 3).
    """

    cap: int | None = None
    temperature: float = 1.0
    times: int = 1
    """The number of tasks that one stands for (T0 has several prompts for one data set)."""

    def __call__(self, task: Any) -> float:
        """The rate of a task or mixture."""
        size = max(map(_examples, tasks_of(task)))
        return float(self.times * (size if self.cap is None else min(size, self.cap))) ** (1 / self.temperature)


def _examples(task: Any) -> int:
    size = task.num_input_examples('train' if 'train' in task.splits else min(task.splits))
    if size is None:
        problem = f'task {task.name}: its source does not report its number of examples'
        raise UserError(f'{problem}. Give it a rate with Mixture.rates.')
    return size


def caps(mixture: Any) -> dict[str, int]:
    """Task name -> the cap on its examples, for tasks that a `ByExamples` (or SeqIO's own rate) caps."""
    found: dict[str, int] = {}
    for name, rate in getattr(mixture, 'rate_per_task_name', {}).items():
        part = mixture._task_map[name]
        cap = rate.cap if isinstance(rate, ByExamples) else getattr(rate, 'keywords', {}).get('maximum')
        found |= caps(part) if hasattr(part, 'rate_per_task_name') else {} if cap is None else {name: int(cap)}
    return found


class Schedule:
    """The task of each slot of a stream.

    Slots come in blocks of about M. By the end of block b, a task with rate r has had floor(b r M + u) slots, with u in
    [0, 1) drawn once: its share is exact to one slot at the end of each block, however small the rate. The order within
    a block is shuffled. The streams of a run have their u at even distances, so the slots of a task over all streams
    are exact to one too: the sum of floor(x + u + s/n) over n streams is floor(n (x + u)) (Hermite's identity).

    Args:
        rates: rate of each task; they sum to 1.
        key: distinguishes this schedule from others (seed, mixture).
        shuffle: False keeps a fixed order within each block.
        stream: number of this stream among `streams`; their orders differ.
    """

    BLOCK = 256

    def __init__(
        self, rates: Sequence[float] | np.ndarray, key: str, shuffle: bool = True, stream: int = 0, streams: int = 1
    ) -> None:
        self._quota = np.asarray(rates, np.float64) * self.BLOCK
        self._key = f'{key}/{stream}'
        self._shuffle = shuffle
        start = np.random.Generator(np.random.Philox(key=stable_hash(f'{key}/start')))
        self._offset = (start.random(len(rates)) + stream / streams) % 1.0 if len(rates) > 1 else np.zeros(1)
        self._cached: tuple[int, np.ndarray] = (-1, np.zeros(0, np.int64))

    def block(self, number: int) -> np.ndarray:
        """The tasks of block `number`, in order. [slots] int64, with about BLOCK slots."""
        if self._cached[0] != number:
            counts = np.floor((number + 1) * self._quota + self._offset) - np.floor(number * self._quota + self._offset)
            tasks = np.repeat(np.arange(len(counts)), counts.astype(np.int64))
            key = f'{self._key}/{number if self._shuffle else 0}'
            np.random.Generator(np.random.Philox(key=stable_hash(key))).shuffle(tasks)
            self._cached = (number, tasks)
        return self._cached[1]

    def task_at(self, block: int, slot: int) -> tuple[int, int, int]:
        """(task, block, slot) of the first slot at or after this one; a block may be short or empty."""
        while slot >= len(self.block(block)):
            block, slot = block + 1, 0
        return int(self.block(block)[slot]), block, slot
