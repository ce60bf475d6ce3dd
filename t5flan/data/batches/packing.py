"""Packing: several short examples in a row, so that fewer of a step's tokens are padding. None sees another (features.py)."""

from collections.abc import Sequence

from t5flan.data.preprocessing.examples import Example


class Packer:
    """The rows of a batch as they fill: first fit, in the order the examples come.

    Args:
        rows: rows to fill.
        capacity: tokens a row holds of each kind, e.g. (encoder, decoder).
        pack: False puts one example in a row.
    """

    def __init__(self, rows: int, capacity: Sequence[int], pack: bool) -> None:
        self.rows: list[list[Example]] = [[] for _ in range(rows)]
        self._left = [tuple(capacity)] * rows
        self._pack = pack
        self._open = 0  # rows before this one are full, or hold their one example

    @property
    def full(self) -> bool:
        """Whether no example can fit any more."""
        return self._open >= len(self.rows)

    def add(self, example: Example, cost: Sequence[int]) -> bool:
        """Puts an example into the first row with room for it; False if there is none.

        A row of one example at the least takes it whatever its cost: callers cut examples to the capacity before.
        """
        for row in range(self._open, len(self.rows)):
            left = tuple(have - need for have, need in zip(self._left[row], cost))
            if min(left) >= 0:
                self.rows[row].append(example)
                self._left[row] = left
                if not self._pack:
                    self._open = row + 1
                while not self.full and min(self._left[self._open]) <= 0:
                    self._open += 1
                return True
        return False
