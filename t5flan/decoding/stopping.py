"""Stop strings: a continuation ends before the first of them, wherever tokens begin and end.

The text is searched, not the tokens: a string may span tokens, begin inside one, and be written by many sequences.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

CHECK_EVERY = 8
"""Tokens that are decoded between two searches for stop strings; what follows a stop string is dropped."""


@dataclasses.dataclass(frozen=True)
class StopStrings:
    """The strings that end a continuation.

    Attributes:
        stop: the strings.
        decode: token ids -> text.
    """

    stop: tuple[str, ...]
    decode: Callable[[Sequence[int]], str]

    def cut(self, text: str) -> str | None:
        r"""The text before its first stop string; None without one.

        >>> StopStrings(('\n', 'Q:'), str).cut('7 Q: 8\n')
        '7 '
        """
        places = [place for one in self.stop if (place := text.find(one)) >= 0]
        return text[: min(places)] if places else None

    def find(self, tokens_T: Any, checked: int = 0) -> tuple[int, str] | None:
        """The first number of tokens whose text has a stop string, and the text before it; None if none has.

        Args:
            tokens_T: token ids [T].
            checked: how many tokens have no stop string in their text.
        """
        tokens = np.asarray(tokens_T).tolist()
        if self.cut(self.decode(tokens)) is None:
            return None
        for length in range(checked + 1, len(tokens) + 1):
            text = self.cut(self.decode(tokens[:length]))
            if text is not None:
                return length, text
        return None

    def stopped(self, tokens_BCT: np.ndarray, lengths_BC: np.ndarray) -> np.ndarray:
        """Whether the last token of each candidate completes a stop string, bool [B, C]."""
        stopped_BC = np.zeros(lengths_BC.shape, bool)
        for place in np.ndindex(*lengths_BC.shape):
            length = int(lengths_BC[place])
            stopped_BC[place] = self.find(tokens_BCT[place][:length], length - 1) is not None
        return stopped_BC

    def shorten(
        self, tokens_BT: np.ndarray, lengths_B: np.ndarray, checked_B: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """New lengths [B] of rows whose text has a stop string, and which rows these are, bool [B].

        Args:
            tokens_BT: token ids.
            lengths_B: number of tokens of each row.
            checked_B: how many of them were searched before.
        """
        lengths_B, stopped_B = lengths_B.copy(), np.zeros(lengths_B.shape, bool)
        for row in np.flatnonzero(lengths_B > checked_B):
            found = self.find(tokens_BT[row, : lengths_B[row]], int(checked_B[row]))
            if found is not None:
                lengths_B[row], stopped_B[row] = found[0], True
        return lengths_B, stopped_B
