"""Rows that have ended stop costing: a batch continues with the rows that have not, once these are half of it or fewer.

A loop of decoding is run in parts. Between two of them the host looks which prompts still run, keeps the rows of the
loop that hold them, and remembers the tokens of the others. The number of rows is halved, so that few shapes are
compiled. Random keys, positions and caches move with their rows, so a row's tokens are the same.

Shapes: B rows of the whole batch, R rows of the loop now, T new tokens.
"""

from typing import Any, NamedTuple

import numpy as np

from t5flan import sharding as sharding_lib
from t5flan.decoding import sampled
from t5flan.decoding.steps import power_of_two

CHECK_EVERY = 32
"""Tokens that are decoded between two looks at the rows."""
LEAST_PROMPTS = 8
"""A batch of so many prompts is not made smaller: on a CPU, a step then mostly waits for the parameters."""
LEAST_TOKENS = 64
"""Tokens that must be left for a smaller batch to be worth compiling."""


class Results(NamedTuple):
    """The tokens of a batch, on the host; the attributes are those of `sampled.Loop`."""

    tokens_BT: np.ndarray
    log_probs_BT: np.ndarray
    lengths_B: np.ndarray


def is_useful(prompts: int, limit: int) -> bool:
    """Whether a batch of `prompts` rows with up to `limit` new tokens may be made smaller: on one CPU device.

    An accelerator is faster if the host does not wait for it, and a mesh needs the same rows on each device.
    """
    one_cpu = sharding_lib.platform() == 'cpu' and sharding_lib.current() is None
    return one_cpu and prompts > LEAST_PROMPTS and limit >= CHECK_EVERY + LEAST_TOKENS


class Compaction:
    """A batch whose rows end one after the other.

    Attributes:
        places_R: the place in the batch of each row of the loop.
    """

    def __init__(self, loop: sampled.Loop, num_samples: int, limit: int):
        rows, self.num_samples, self.limit = loop.lengths_B.shape[0], num_samples, limit
        self.places_R = np.arange(rows)
        self._useful = is_useful(rows // num_samples, limit)
        shape = loop.tokens_BT.shape
        self._results = Results(np.zeros(shape, np.int32), np.zeros(shape, np.float32), np.zeros(rows, np.int32))

    @property
    def prompts_Q(self) -> np.ndarray:
        """The place in the batch of the prompt of each `num_samples` rows of the loop."""
        return self.places_R[:: self.num_samples] // self.num_samples

    def shrink(self, loop: sampled.Loop, step: int) -> sampled.Loop:
        """The loop after `step` tokens with half of its prompts or fewer, if so few have not ended."""
        if not self._useful or self.limit - step < LEAST_TOKENS:
            return loop
        ended_P = np.all(np.asarray(loop.ended_B).reshape(-1, self.num_samples), axis=1)
        height = max(LEAST_PROMPTS, power_of_two(int((~ended_P).sum())))
        if height * 2 > len(ended_P) or ended_P.all():
            return loop
        self._remember(loop)
        kept_P = np.sort(np.argsort(ended_P, kind='stable')[:height])  # all that run, and others to fill up
        kept_R = (kept_P[:, None] * self.num_samples + np.arange(self.num_samples)).reshape(-1)
        self.places_R = self.places_R[kept_R]
        return sampled.keep(loop, kept_R, kept_P)

    def results(self, loop: sampled.Loop) -> Results:
        """The tokens of the whole batch, after the last step."""
        self._remember(loop)
        return self._results

    def _remember(self, loop: sampled.Loop) -> None:
        now: Any = sharding_lib.fetch((loop.tokens_BT, loop.log_probs_BT, loop.lengths_B))
        for whole, part in zip(self._results, now, strict=True):
            whole[self.places_R] = part
