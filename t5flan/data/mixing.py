"""The order of a run's examples as a pure function of the seed: which task is next, and which of its records.

Nothing here remembers: the task of slot i and the record at place j are computed from i and j, so that a run goes on at
any position at once, on any number of hosts.
"""

import difflib
from collections.abc import Sequence
from typing import Any

import numpy as np

from t5flan.data.examples import stable_hash
from t5flan.errors import UserError


def find_mixture(name: str) -> Any:
    """The SeqIO task or mixture of that name.

    Raises:
        UserError: there is none; names the nearest ones.
    """
    import seqio

    names = [*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]
    if name in names:
        return seqio.get_mixture_or_task(name)
    near = difflib.get_close_matches(name, names, 3, 0.5)
    hint = f'the nearest are {", ".join(near)}' if near else f'{len(names)} are registered'
    raise UserError(
        f'no task or mixture {name!r}; {hint}. Set DataConfig.mixture, or name the module that registers it in '
        'DataConfig.modules.'
    )


def tasks_and_rates(mixture: Any, split: str | None = None) -> list[tuple[Any, float]]:
    """The tasks of a task or (nested) mixture with their shares, which sum to 1; with a split, those that have it.

    Raises:
        UserError: nothing is left.
    """
    import seqio

    if not isinstance(mixture, seqio.Mixture):
        pairs = [(mixture, 1.0)]
    else:
        pairs = [(task, float(mixture.get_rate(task))) for task in sorted(mixture.tasks, key=lambda task: task.name)]
    splits = sorted({name for task, _ in pairs for name in task.splits})
    pairs = [(task, rate) for task, rate in pairs if rate > 0 and (split is None or split in task.splits)]
    total = sum(rate for _, rate in pairs)
    if not pairs:
        raise UserError(
            f'{mixture.name}: no task has a split {split!r} and a rate above 0; the splits are {", ".join(splits)}. Set '
            'DataConfig.split.'
        )
    return [(task, rate / total) for task, rate in pairs]


class Schedule:
    """Which task each slot of a stream takes.

    The slots come in blocks. Up to the end of block b a task with rate r has had floor(b r M + u) slots, u in [0, 1) drawn
    once: shares are right to one slot at every block's end, however small the rate. Within a block the order is shuffled.

    Args:
        rates: share of each task; they sum to 1.
        key: what makes this schedule another than others (seed, mixture, stream).
        shuffle: False keeps a fixed round within each block.
    """

    BLOCK = 256

    def __init__(self, rates: Sequence[float], key: str, shuffle: bool = True) -> None:
        self._quota = np.asarray(rates, np.float64) * self.BLOCK
        self._key = key
        self._shuffle = shuffle
        start = np.random.Generator(np.random.Philox(key=stable_hash(f'{key}/start')))
        self._offset = start.random(len(rates)) if len(rates) > 1 else np.zeros(1)
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


class Permutation:
    """A shuffle of 0 … size-1 that computes any place by itself: a Feistel network, walked until it lands inside.

    (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002: a bijection of a power of four, restricted.)
    """

    _ROUNDS = 4

    def __init__(self, size: int, key: str) -> None:
        self.size = size
        self._half_bits = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
        self._mask = (np.uint64(1) << self._half_bits) - np.uint64(1)
        self._keys = [np.uint64(stable_hash(f'{key}/{i}')) for i in range(self._ROUNDS)]

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        """The numbers at `places` (each in 0 … size-1), int64."""
        numbers = self._network(np.atleast_1d(places).astype(np.uint64))
        while (outside := numbers >= self.size).any():
            numbers[outside] = self._network(numbers[outside])
        return numbers.astype(np.int64)

    def _network(self, x: np.ndarray) -> np.ndarray:
        left, right = x >> self._half_bits, x & self._mask
        for key in self._keys:
            left, right = right, left ^ (_scramble(right + key) & self._mask)
        return (left << self._half_bits) | right


def _scramble(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64: every bit of the result depends on every bit of x (uint64, wrapping)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
