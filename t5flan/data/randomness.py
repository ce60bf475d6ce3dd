"""Randomness of the data: generators, hashes and permutations that depend only on their key, never on process state."""

import hashlib
from typing import Any

import numpy as np


class _NoEntropy(np.random.bit_generator.ISeedSequence):
    """Seeds a bit generator with zeros, for one whose state is set next."""

    _ZEROS = np.zeros(2, np.uint64)

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> np.ndarray:
        return self._ZEROS


_NO_ENTROPY, _COUNTER = _NoEntropy(), np.zeros(4, np.uint64)


def generator(key: int) -> np.random.Generator:
    """Generator(Philox(key=key)) in half the time: NumPy's own asks the system for entropy that it does not use."""
    philox = np.random.Philox(_NO_ENTROPY)  # type: ignore[arg-type]  # NumPy's stub lacks ISeedSequence
    philox.state = {
        'bit_generator': 'Philox',
        'state': {'counter': _COUNTER, 'key': np.array([key, 0], np.uint64)},
        'buffer': _COUNTER,
        'buffer_pos': 4,
        'has_uint32': 0,
        'uinteger': 0,
    }
    return np.random.Generator(philox)


def stable_hash(text: str | bytes) -> int:
    """A 64-bit hash that is the same in every process, unlike Python's own."""
    data = text.encode('utf-8', 'surrogatepass') if isinstance(text, str) else text
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), 'little')


class Permutation:
    """A shuffle of 0 ... size-1 that computes each place on its own.

    A Feistel network permutes a power of four; a result outside the range is permuted again until it is inside
    (cycle walking: Black and Rogaway, "Ciphers with arbitrary finite domains", 2002).
    """

    _ROUNDS = 4

    def __init__(self, size: int, key: str) -> None:
        self.size = size
        self._half_bits = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
        self._mask = (np.uint64(1) << self._half_bits) - np.uint64(1)
        self._keys = [np.uint64(stable_hash(f'{key}/{i}')) for i in range(self._ROUNDS)]

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        """The numbers at `places`, each in 0 ... size-1. int64, the shape of `places`."""
        numbers = self._network(np.atleast_1d(places).astype(np.uint64))
        while (outside := numbers >= self.size).any():
            numbers[outside] = self._network(numbers[outside])
        return numbers.astype(np.int64)

    def _network(self, x: np.ndarray) -> np.ndarray:
        left, right = x >> self._half_bits, x & self._mask
        for key in self._keys:
            left, right = right, left ^ (scramble(right + key) & self._mask)
        return (left << self._half_bits) | right


def scramble(x: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64: every bit of the result depends on every bit of x (uint64, wrapping)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
