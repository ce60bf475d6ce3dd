"""Near duplicates among any number of texts: MinHash finds candidates, their n-grams decide.

Texts are near duplicates if they share at least a threshold of their word n-grams (Jaccard similarity). MinHash and
locality-sensitive hashing (Broder 1997; Lee et al., arXiv:2107.06499) find the candidates. Every candidate is checked
with the n-grams themselves, so the bands are chosen to miss next to nothing.

    store = NearStore(folder, rules)
    store.add(hash_ngrams(hash_words(text), rules.ngram))     # for every text, in order
    repeated = store.find_repeats()                           # {text: (the earlier text, similarity)}

A text takes about 1 KB in files of the folder (n-grams, MinHash values and band keys). In memory it takes 8 bytes, 16
more while one band after the other is sorted, and about 30 for each band that it shares with another text.
"""

import array
import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from t5flan.data.randomness import generator, scramble
from t5flan.errors import UserError

RECALL = 0.995
"""Expected share of the pairs right at the threshold that become candidates; above it the share is higher."""
_FLUSH = 4096  # texts between two writes
_SLICE = 1024  # n-grams hashed at once, so that their [K, 1024] values stay in the processor's cache
_TOLERANCE = 5.0  # standard errors below the threshold at which MinHash rules out a candidate


@dataclasses.dataclass(frozen=True)
class Rules:
    """What counts as a duplicate.

    Raises:
        UserError: a value is out of range.
    """

    threshold: float = 0.8
    """Similarity from which a text is a near duplicate; 1 finds exact duplicates only."""
    ngram: int = 5
    """Words per n-gram; characters in scripts without spaces."""
    permutations: int = 128
    """Permutations of MinHash: more find more of the pairs near the threshold, but take longer."""

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise UserError(f'--threshold={self.threshold} must be above 0 and at most 1. Set --threshold.')
        if self.ngram < 1 or self.permutations < 2:
            given = f'--ngram={self.ngram} --permutations={self.permutations}'
            raise UserError(f'{given} must be at least 1 and 2. Set --ngram or --permutations.')

    @property
    def bands(self) -> tuple[int, int]:
        """Number of bands and rows of each: the longest bands that still find `RECALL` of the pairs at the threshold.

        >>> Rules(0.8, permutations=128).bands
        (21, 6)
        """
        for rows in range(self.permutations, 1, -1):
            bands = self.permutations // rows
            if 1 - (1 - self.threshold**rows) ** bands >= RECALL:
                return bands, rows
        return self.permutations, 1


class MinHash:
    """The MinHash values and band keys of texts; the same in every process."""

    def __init__(self, rules: Rules) -> None:
        self._bands, self._rows = rules.bands
        self.size = self._bands * self._rows
        draws_2K = generator(0).integers(0, 2**64, (2, self.size), np.uint64)
        self._factors_K, self._offsets_K = draws_2K[0] | np.uint64(1), draws_2K[1]

    def values(self, ngrams_G: np.ndarray) -> np.ndarray:
        """The least value of each permutation over hashed n-grams, at least one. [K] uint32."""
        least_K = np.full(self.size, 2**64 - 1, np.uint64)
        for start in range(0, len(ngrams_G), _SLICE):
            hashed_KG = np.multiply.outer(self._factors_K, ngrams_G[start : start + _SLICE])
            hashed_KG += self._offsets_K[:, None]
            np.minimum(least_K, hashed_KG.min(axis=1), out=least_K)
        return (least_K >> np.uint64(32)).astype(np.uint32)

    def band_keys(self, values_K: np.ndarray) -> np.ndarray:
        """A key for each band: texts with an equal key are candidates. [bands] uint64; [N, K] gives [N, bands]."""
        values_BR = values_K.reshape(*values_K.shape[:-1], self._bands, self._rows)
        keys_B = np.zeros(values_BR.shape[:-1], np.uint64)
        for row in range(self._rows):
            keys_B = scramble(keys_B + values_BR[..., row])
        return keys_B


def similarity(a_G: np.ndarray, b_G: np.ndarray) -> float:
    """Jaccard similarity of two sets of hashed n-grams, each sorted and without repeats."""
    if len(a_G) > len(b_G):
        a_G, b_G = b_G, a_G
    places = np.searchsorted(b_G, a_G)
    places[places == len(b_G)] = 0
    common = int((b_G[places] == a_G).sum()) if len(b_G) else 0
    return common / max(1, len(a_G) + len(b_G) - common)


class NearStore:
    """Collects texts by their n-grams and finds those that nearly repeat an earlier one.

    Args:
        folder: an empty folder for its files, which the caller removes.
    """

    def __init__(self, folder: str, rules: Rules) -> None:
        self._folder, self._rules, self._minhash = Path(folder), rules, MinHash(rules)
        self._texts = 0
        self._numbers = array.array('q')  # of the texts with words
        self._ends = array.array('q', [0])  # of their n-grams in the file
        self._waiting: list[np.ndarray] = []
        self._ngrams = self._open('ngrams')
        self._values = self._open('values')
        self._keys = [self._open(f'band{band}') for band in range(rules.bands[0])]

    def _open(self, name: str) -> BinaryIO:
        return open(self._folder / name, 'wb', buffering=2**16)

    def add(self, ngrams_G: np.ndarray) -> None:
        """Adds the next text by its hashed n-grams; one without n-grams repeats no other."""
        number, self._texts = self._texts, self._texts + 1
        if not len(ngrams_G):
            return
        set_G = np.unique(ngrams_G)
        self._waiting.append(self._minhash.values(set_G))
        short_G = (set_G >> np.uint64(32)).astype(np.uint32)
        self._ngrams.write(short_G.tobytes())
        self._numbers.append(number)
        self._ends.append(self._ends[-1] + len(short_G))
        if len(self._waiting) == _FLUSH:
            self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        values_NK = np.stack(self._waiting)
        self._waiting.clear()
        self._values.write(values_NK.tobytes())
        for file, keys_N in zip(self._keys, self._minhash.band_keys(values_NK).T, strict=True):
            file.write(np.ascontiguousarray(keys_N).tobytes())

    def find_repeats(self, is_left_out: np.ndarray | None = None) -> dict[int, tuple[int, float]]:
        """Texts that repeat an earlier text which repeats none: {text: (the most similar of these, similarity)}.

        Args:
            is_left_out: [texts] bool: texts to leave out, such as exact duplicates.
        """
        self._flush()
        for file in (self._ngrams, self._values, *self._keys):
            file.close()
        if not self._numbers:
            return {}
        numbers_N = np.frombuffer(self._numbers, np.int64)
        is_in_N = np.ones(len(numbers_N), bool) if is_left_out is None else ~is_left_out[numbers_N]
        shared = self._shared(np.flatnonzero(is_in_N))
        with open(self._folder / 'values', 'rb') as values, open(self._folder / 'ngrams', 'rb') as ngrams:
            found = self._repeats(*shared, values, ngrams)
            return {int(numbers_N[place]): (int(numbers_N[of]), alike) for place, of, alike in found}

    def _shared(self, places_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(places of texts, numbers of buckets): each membership in a bucket of two or more, sorted by text."""
        members, buckets, count = [], [], 0
        for band in range(len(self._keys)):
            keys_M = np.fromfile(self._folder / f'band{band}', np.uint64)[places_M]
            order_M = np.argsort(keys_M)
            keys_M = keys_M[order_M]
            is_next_M = np.concatenate([[False], keys_M[1:] == keys_M[:-1]])  # the same key as the one before
            is_in_M = is_next_M | np.concatenate([is_next_M[1:], [False]])
            members.append(places_M[order_M[is_in_M]].astype(np.int32))
            buckets.append((np.cumsum(is_in_M & ~is_next_M, dtype=np.int32) + np.int32(count - 1))[is_in_M])
            count += int((is_in_M & ~is_next_M).sum())
        members_P, buckets_P = np.concatenate(members), np.concatenate(buckets)
        members, buckets = [], []
        order_P = np.argsort(members_P, kind='stable')
        return members_P[order_P], buckets_P[order_P]

    def _repeats(
        self, members_P: np.ndarray, buckets_P: np.ndarray, values: BinaryIO, ngrams: BinaryIO
    ) -> Iterator[tuple[int, int, float]]:
        """Goes through texts that share a bucket in order; only texts that repeat none are compared with later ones."""
        if not len(members_P):
            return
        size = self._minhash.size
        read_values = lambda place: _read(values, place * size, (place + 1) * size)
        read_ngrams = lambda place: _read(ngrams, self._ends[place], self._ends[place + 1])
        threshold = self._rules.threshold
        error = (threshold * (1 - threshold) / size) ** 0.5
        # The texts of each bucket that repeat none, as chains of memberships: the last one, and the one before each.
        last = array.array('q', [-1]) * (int(buckets_P.max()) + 1)
        before = array.array('q', [-1]) * len(members_P)
        cuts = np.flatnonzero(np.diff(members_P)) + 1
        for start, end in zip([0, *cuts.tolist()], [*cuts.tolist(), len(members_P)], strict=True):
            place, own = int(members_P[start]), buckets_P[start:end].tolist()
            near_places = set()
            for bucket in own:
                at = last[bucket]
                while at >= 0:
                    near_places.add(int(members_P[at]))
                    at = before[at]
            near = sorted(near_places)
            best, of = 0.0, -1
            if near:
                estimates = (np.stack([*map(read_values, near)]) == read_values(place)).mean(axis=1)
                mine_G = read_ngrams(place)
                for other, estimate in zip(near, estimates.tolist(), strict=True):
                    if estimate >= threshold - _TOLERANCE * error:
                        alike = similarity(mine_G, read_ngrams(other))
                        best, of = max((best, of), (alike, other), key=lambda found: found[0])
            if best >= threshold:
                yield place, of, best
            else:
                for at, bucket in enumerate(own, start):
                    before[at], last[bucket] = last[bucket], at


def _read(file: BinaryIO, start: int, end: int) -> np.ndarray:
    """Some numbers of a file. A memory map would count all of the file as memory of this process."""
    return np.frombuffer(os.pread(file.fileno(), 4 * (end - start), 4 * start), np.uint32)


def exact_repeats(keys_N: np.ndarray) -> np.ndarray:
    """For each text the first text with the same key, itself if there is none earlier. [N] int64."""
    order_N = np.argsort(keys_N, kind='stable')
    is_first_N = np.concatenate([[True], keys_N[order_N][1:] != keys_N[order_N][:-1]])
    of_N = np.empty(len(keys_N), np.int64)
    of_N[order_N] = order_N[is_first_N][np.cumsum(is_first_N) - 1]
    return of_N


def greedy_repeats(pairs: Iterable[tuple[int, int, float]]) -> Mapping[int, tuple[int, float]]:
    """The result of `NearStore.find_repeats` from all pairs (earlier, later, similarity) at or above the threshold."""
    found: dict[int, tuple[int, float]] = {}
    for of, text, alike in sorted(pairs, key=lambda pair: (pair[1], pair[0])):
        if of not in found and alike > found.get(text, (0, 0.0))[1]:
            found[text] = (of, alike)
    return found
