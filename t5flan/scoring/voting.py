"""Self-consistency (Wang et al. 2022, arXiv:2203.11171): several sampled rationales vote on the answer."""

import collections
from collections.abc import Hashable, Sequence
from typing import TypeVar

T = TypeVar('T', bound=Hashable)


def vote(answers: Sequence[T | None]) -> T | None:
    """The most frequent answer; of equally frequent ones, that which was given first. None abstains.

    >>> vote(['12', None, '7', '7'])
    '7'
    >>> vote(['12', '7'])
    '12'
    >>> vote([None]) is None
    True
    """
    counts = collections.Counter(answer for answer in answers if answer is not None)
    return counts.most_common(1)[0][0] if counts else None
