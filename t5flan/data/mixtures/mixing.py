"""Shares of tasks, and the order of a run's examples as a pure function of the seed: which task is next, which record.

Nothing here remembers: the task of slot i and the record at place j are computed from i and j, so that a run goes on at
any position at once, on any number of hosts.
"""

import dataclasses
import difflib
from collections.abc import Sequence
from typing import Any

import numpy as np

from t5flan.data.randomness import stable_hash
from t5flan.errors import UserError


def find_mixture(name: str, setting: str = 'DataConfig.mixture') -> Any:
    """The SeqIO task or mixture of that name.

    Raises:
        UserError: there is none; names the nearest ones.
    """
    import seqio

    tasks, mixtures = seqio.TaskRegistry.names(), seqio.MixtureRegistry.names()
    if name in mixtures:
        return seqio.MixtureRegistry.get(name)
    if name in tasks:
        return seqio.TaskRegistry.get(name)
    names = [*tasks, *mixtures]
    near = difflib.get_close_matches(name, names, 3, 0.5)
    hint = f'the nearest are {", ".join(near)}' if near else f'{len(names)} are registered'
    raise UserError(
        f'no task or mixture {name!r}; {hint}. Set {setting}, or name the module that registers it in DataConfig.modules.'
    )


def tasks_and_rates(
    mixture: Any, split: str | None = None, broken: dict[str, str] | None = None
) -> list[tuple[Any, float]]:
    """The tasks of a task or (nested) mixture with their shares, which sum to 1, by name; with a split, those that have it.

    SeqIO's `Mixture.get_rate`, in one pass.

    Args:
        broken: task -> why it is left out; its share goes to the rest of the innermost mixture that holds it. A task whose
            rate cannot be told is added. None leaves none out.

    Raises:
        UserError: nothing is left, or (without `broken`) the rate of a task cannot be told.
    """
    found: dict[str, Any] = {}
    shares = _shares(mixture, found, broken)
    splits = sorted({name for task in found.values() for name in task.splits})
    pairs = [(found[name], shares[name]) for name in sorted(shares) if split is None or split in found[name].splits]
    total = sum(rate for _, rate in pairs)
    if not pairs:
        raise UserError(
            f'{mixture.name}: no task has a split {split!r} and a rate above 0; the splits are {", ".join(splits)}. Set '
            'DataConfig.split.'
        )
    return [(task, rate / total) for task, rate in pairs]


def _shares(mixture: Any, found: dict[str, Any], broken: dict[str, str] | None) -> dict[str, float]:
    """Task name -> share within `mixture`, summing to 1 (or {}); the tasks go into `found`."""
    import seqio

    if not isinstance(mixture, seqio.Mixture):
        found[mixture.name] = mixture
        return {} if broken and mixture.name in broken else {mixture.name: 1.0}
    weighted = []
    for name, rate in mixture.rate_per_task_name.items():
        part = mixture._task_map[name]  # sub-mixtures that no registry knows are to be had from here alone
        inner = _shares(part, found, broken)
        if not inner:
            continue
        try:
            weighted.append((_weight(part, rate), inner))
        except UserError as error:
            if broken is None:
                raise
            broken[name] = str(error)
    total = sum(weight for weight, _ in weighted)
    shares: dict[str, float] = {}
    for weight, inner in weighted:
        for name, share in inner.items():
            if weight > 0:
                shares[name] = shares.get(name, 0.0) + weight / total * share
    return shares


def _weight(part: Any, rate: Any) -> float:
    try:
        return float(rate(part) if callable(rate) else rate)
    except UserError:
        raise
    except Exception as error:  # whatever a source raises that is asked for its size, TFDS over the network included
        why = str(error).strip().splitlines()[0][:200] if str(error).strip() else ''
        raise UserError(
            f'task {part.name}: its rate cannot be told: {type(error).__name__} {why} Prepare its data, or set '
            'DataConfig.mixture to one without it.'
        ) from error


@dataclasses.dataclass(frozen=True)
class ByExamples:
    """A rate for a SeqIO mixture: min(examples of 'train', cap) ** (1 / temperature); of a task that is only tested, its test's.

    A mixture has as many examples as its largest task.

    The cap is T5's (arXiv:1910.10683, section 3.5.2) and Flan's; the temperature mT5's (arXiv:2010.11934, section 3).
    """

    cap: int | None = None
    temperature: float = 1.0

    def __call__(self, task: Any) -> float:
        size = max(map(_examples, getattr(task, 'tasks', None) or [task]))
        return float(size if self.cap is None else min(size, self.cap)) ** (1 / self.temperature)


def _examples(task: Any) -> int:
    size = task.num_input_examples('train' if 'train' in task.splits else min(task.splits))
    if size is None:
        raise UserError(
            f'task {task.name}: its source does not know how many examples it has. Give it a rate by Blend.shares.'
        )
    return size


def caps(mixture: Any) -> dict[str, int]:
    """Task name -> the cap on its examples, of the tasks that a `ByExamples` (or SeqIO's own rate) caps."""
    found = {}
    for name, rate in getattr(mixture, 'rate_per_task_name', {}).items():
        part = mixture._task_map[name]
        cap = rate.cap if isinstance(rate, ByExamples) else getattr(rate, 'keywords', {}).get('maximum')
        found |= caps(part) if hasattr(part, 'rate_per_task_name') else {} if cap is None else {name: int(cap)}
    return found


class Schedule:
    """Which task each slot of a stream takes.

    The slots come in blocks. Up to the end of block b a task with rate r has had floor(b r M + u) slots, u in [0, 1) drawn
    once: shares are right to one slot at every block's end, however small the rate. Within a block the order is shuffled.
    The streams of a run have their u at even steps, so that a task's slots of all streams together are right to one too:
    the sum of floor(x + u + s/n) over n streams is floor(n (x + u)) (Hermite).

    Args:
        rates: share of each task; they sum to 1.
        key: what makes this schedule another than others (seed, mixture).
        shuffle: False keeps a fixed round within each block.
        stream: which of `streams`; their orders differ.
    """

    BLOCK = 256

    def __init__(
        self, rates: Sequence[float], key: str, shuffle: bool = True, stream: int = 0, streams: int = 1
    ) -> None:
        self._quota = np.asarray(rates, np.float64) * self.BLOCK
        self._key = f'{key}/{stream}'
        self._shuffle = shuffle
        start = np.random.Generator(np.random.Philox(key=stable_hash(f'{key}/start')))
        self._offset = (start.random(len(rates)) + stream / streams) % 1.0 if len(rates) > 1 else np.zeros(1)
        self._cached: tuple[int, np.ndarray] = (-1, np.zeros(0, np.int64))

    def block(self, number: int) -> np.ndarray:
        """The tasks of block `number`, in order. [slots] int64; about BLOCK slots"""
        if self._cached[0] != number:
            counts = np.floor((number + 1) * self._quota + self._offset) - np.floor(number * self._quota + self._offset)
            tasks = np.repeat(np.arange(len(counts)), counts.astype(np.int64))
            key = f'{self._key}/{number if self._shuffle else 0}'
            np.random.Generator(np.random.Philox(key=stable_hash(key))).shuffle(tasks)
            self._cached = (number, tasks)
        return self._cached[1]

    def task_at(self, block: int, slot: int) -> tuple[int, int, int]:
        """(task, block, slot) of the first slot at or after this one (a block may be short, even empty)."""
        while slot >= len(self.block(block)):
            block, slot = block + 1, 0
        return int(self.block(block)[slot]), block, slot
