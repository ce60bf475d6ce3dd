"""Packing: several short examples in a row, so that fewer tokens of a step are padding. None attends to another."""

from collections.abc import Sequence

from t5flan.data.preprocessing.examples import Example


class Packer:
    """Fills the rows of a batch by first fit, in the order of the examples.

    Args:
        rows: rows to fill.
        capacity: tokens that a row holds of each kind, such as (encoder, decoder).
        pack: False puts one example in each row.

    Attributes:
        rows: the examples of each row so far.
    """

    def __init__(self, rows: int, capacity: Sequence[int], pack: bool) -> None:
        self.rows: list[list[Example]] = [[] for _ in range(rows)]
        self._left = [tuple(capacity)] * rows
        self._pack = pack
        self._open = 0  # rows before this one are full, or have their one example

    @property
    def full(self) -> bool:
        """Whether no further example can fit."""
        return self._open >= len(self.rows)

    def add(self, example: Example, cost: Sequence[int]) -> bool:
        """Puts an example, cut to a row's capacity, into the first row with room; returns False if no row has room."""
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
