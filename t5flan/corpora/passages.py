"""Passages that repeat inside other texts: lines that many texts have, and any repeated run of characters.

The repeated runs are those of Lee et al. (arXiv:2107.06499): a character is cut if it lies in a passage of at least
`length` characters that occurred before. They take them from a suffix array; hashes of all windows of `length`
characters give the same passages (a passage repeats if and only if each of its windows does), with memory that is
bounded: the hashes are sorted in as many parts as needed, and the corpus is read once for each part.
"""

import collections
import functools
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from t5flan.corpora.words import words_of
from t5flan.data.randomness import scramble, stable_hash

_BASE = 0x5851F42D4C957F2D  # odd, so that it has an inverse modulo 2**64
_BLOCK = 2**18  # windows hashed at once
_MERGE = 2**21  # lines counted at once
_MOST_BITS = 28  # of a table of bytes
_BYTES = 24  # per window while a part is sorted

Texts = Callable[[], Iterable[str]]
"""Reads the texts of a corpus in order, from the start at each call."""


class Boilerplate:
    """The lines that at least `least` texts have, regardless of white space.

    Lines without words and lines of fewer than `min_length` characters stay. Takes 12 bytes of memory per different
    line.
    """

    def __init__(self, texts: Texts, least: int, min_length: int = 0) -> None:
        self._min_length = min_length
        keys, counts = np.zeros(0, np.uint64), np.zeros(0, np.int32)
        for more in _groups(texts(), self._keys):
            new, often = np.unique(more, return_counts=True)
            keys, places = np.unique(np.concatenate([keys, new]), return_inverse=True)
            counts = np.bincount(places, np.concatenate([counts, often]), len(keys)).astype(np.int32)
        self._keys_to_cut = set(keys[counts >= least].tolist())
        self.restart()

    def restart(self) -> None:
        """Counts what is cut from zero, when the corpus is read again."""
        self._cut: collections.Counter[int] = collections.Counter()
        self._lines: dict[int, str] = {}
        self.characters = 0

    def _keys(self, text: str) -> list[int]:
        """The key of each different line that counts."""
        return list({key for line in text.splitlines() if (key := self._key(line)) is not None})

    def _key(self, line: str) -> int | None:
        plain = ' '.join(line.split())
        return stable_hash(plain) if len(plain) >= max(1, self._min_length) else None

    @property
    def lines(self) -> int:
        """Number of lines cut."""
        return self._cut.total()

    def cut(self, text: str) -> str:
        """The text without these lines."""
        kept = []
        for line in text.splitlines(keepends=True):
            key = self._key(line)
            if key is not None and key in self._keys_to_cut and words_of(line):
                self._cut[key] += 1
                self._lines.setdefault(key, line.strip()[:200])
                self.characters += len(line)
            else:
                kept.append(line)
        return ''.join(kept)

    def most(self, count: int) -> list[dict[str, str | int]]:
        """The lines cut most often: [{'line', 'times'}]."""
        return [{'line': self._lines[key], 'times': times} for key, times in self._cut.most_common(count)]


def _groups(texts: Iterable[str], keys: Callable[[str], list[int]]) -> Iterator[np.ndarray]:
    """The keys of many texts at a time. [keys] uint64."""
    waiting: list[int] = []
    for text in texts:
        waiting += keys(text)
        if len(waiting) >= _MERGE:
            yield np.array(waiting, np.uint64)
            waiting = []
    if waiting:
        yield np.array(waiting, np.uint64)


class RepeatedPassages:
    """Finds the characters of texts that lie in a passage which occurred before; give it the texts in order.

    Args:
        texts: the texts, read once for each part.
        length: least number of characters of a passage.
        characters: number of characters of all texts, at most.
        memory: bytes that sorting may take; the different repeated windows take 9 bytes each besides.
    """

    def __init__(self, texts: Texts, length: int, characters: int, memory: int) -> None:
        self._length = length
        self.parts = max(1, -(-characters * _BYTES // memory))
        self._repeated = np.sort(np.concatenate([self._find(texts(), part) for part in range(self.parts)]))
        self._is_seen = np.zeros(len(self._repeated), bool)
        # Most windows repeat nothing: a table of the hashes' first bits saves searching for them.
        self._shift = np.uint64(64 - min(_MOST_BITS, len(self._repeated).bit_length() + 4))
        self._is_possible = np.zeros(2 ** (64 - int(self._shift)), bool)
        self._is_possible[self._repeated >> self._shift] = True

    def _find(self, texts: Iterable[str], part: int) -> np.ndarray:
        """The hashes of windows that occur at least twice, among those of one part."""
        found = [np.zeros(0, np.uint64)]
        for text in texts:
            for _, hashes_W in _windows(text, self._length):
                found.append(hashes_W[hashes_W % self.parts == part] if self.parts > 1 else hashes_W)
        hashes = np.concatenate(found)
        found.clear()
        hashes.sort()
        return np.unique(hashes[1:][hashes[1:] == hashes[:-1]])

    def spans(self, text: str) -> list[tuple[int, int]]:
        """(start, end) of the passages of the next text to cut, in order."""
        copied, kept = [], []
        for start, hashes_W in _windows(text, self._length) if len(self._repeated) else ():
            at_H = np.flatnonzero(self._is_possible[hashes_W >> self._shift])
            numbers_H = np.searchsorted(self._repeated, hashes_W[at_H])
            numbers_H[numbers_H == len(self._repeated)] = 0
            is_found_H = self._repeated[numbers_H] == hashes_W[at_H]
            at_H, numbers_H = at_H[is_found_H], numbers_H[is_found_H]
            if not len(at_H):
                continue
            order_H = np.argsort(numbers_H, kind='stable')
            at_H, numbers_H = at_H[order_H], numbers_H[order_H]
            is_first_H = np.concatenate([[True], numbers_H[1:] != numbers_H[:-1]])
            is_new_H = is_first_H & ~self._is_seen[numbers_H]
            self._is_seen[numbers_H] = True
            copied.append(at_H[~is_new_H] + start)
            # In a run such as 'aaaa...' the second window overlaps the first, whose characters stay.
            follows_H = np.concatenate([~is_first_H[1:], [False]]) & is_new_H
            close_H = np.flatnonzero(follows_H)
            close_H = close_H[at_H[np.minimum(close_H + 1, len(at_H) - 1)] - at_H[close_H] < self._length]
            kept.append(at_H[close_H] + start)
        if not copied:
            return []
        is_cut = self._cover(copied, len(text)) & ~self._cover(kept, len(text))
        edges = np.flatnonzero(np.diff(is_cut, prepend=False, append=False)).tolist()
        return list(zip(edges[::2], edges[1::2], strict=True))

    def cut(self, text: str) -> tuple[str, list[str]]:
        """The next text without its repeated passages, and these."""
        spans = self.spans(text)
        starts, ends = [0, *(end for _, end in spans)], [*(start for start, _ in spans), len(text)]
        left = ''.join(text[start:end] for start, end in zip(starts, ends, strict=True))
        return left, [text[start:end] for start, end in spans]

    def _cover(self, starts: list[np.ndarray], size: int) -> np.ndarray:
        """Whether each character lies in a window that begins at one of `starts`. [size] bool."""
        steps = np.zeros(size + 1, np.int32)
        at = np.concatenate([*starts, np.zeros(0, np.int64)]).astype(np.int64)
        np.add.at(steps, at, 1)
        np.add.at(steps, at + self._length, -1)
        return np.cumsum(steps[:-1]) > 0


@functools.lru_cache(maxsize=4)
def _powers(count: int) -> tuple[np.ndarray, np.ndarray]:
    """The powers of the base and of its inverse, modulo 2**64. Twice [count] uint64."""
    both = []
    for base in (_BASE, pow(_BASE, -1, 2**64)):
        powers = np.full(count, base, np.uint64)
        powers[0] = 1
        both.append(np.cumprod(powers))
    return both[0], both[1]


def _windows(text: str, length: int) -> Iterator[tuple[int, np.ndarray]]:
    """(first window, hashes): the 64-bit hashes of all windows of `length` characters, block by block."""
    if len(text) < length:
        return
    codes = np.frombuffer(text.encode('utf-32-le', 'surrogatepass'), np.uint32)
    powers, inverse = _powers(_BLOCK + length)
    for start in range(0, len(text) - length + 1, _BLOCK):
        block = scramble(codes[start : start + _BLOCK + length - 1].astype(np.uint64) + np.uint64(1))
        sums = np.zeros(len(block) + 1, np.uint64)
        np.cumsum(block * powers[: len(block)], out=sums[1:])
        hashes_W = (sums[length:] - sums[:-length]) * inverse[: len(block) - length + 1]
        yield start, scramble(hashes_W)
