"""t5flan/data/randomness.py: generators, hashes and permutations depend on their key only."""

import subprocess
import sys

import numpy as np
import pytest

from t5flan.data.randomness import Permutation, generator, stable_hash


def test_hashes_are_the_same_in_every_process():
    assert stable_hash('text') == stable_hash(b'text') != stable_hash('Text')
    assert stable_hash('a \ud800 surrogate') != stable_hash('a surrogate')
    program = "from t5flan.data.randomness import stable_hash; print(stable_hash('text'))"
    out = subprocess.run([sys.executable, '-c', program], check=True, capture_output=True, text=True).stdout
    assert int(out) == stable_hash('text')


@pytest.mark.parametrize('key', [0, 1, 2**63, 2**64 - 1])
def test_a_generator_is_philox_with_its_key(key):
    for draw in (
        lambda rng: rng.random(9),
        lambda rng: rng.integers(10, size=5),
        lambda rng: rng.permutation(7),
        lambda rng: rng.normal(),
    ):
        assert np.array_equal(draw(generator(key)), draw(np.random.Generator(np.random.Philox(key=key))))


@pytest.mark.parametrize('size', [1, 2, 3, 4, 5, 16, 17, 100, 1000, 4097])
def test_a_permutation_has_every_number_once(size):
    order = Permutation(size, 'a')[np.arange(size)]
    assert sorted(order.tolist()) == list(range(size))
    np.testing.assert_array_equal(order, [Permutation(size, 'a')[np.array([i])][0] for i in range(size)])
    if size > 10:
        other = Permutation(size, 'b')[np.arange(size)]
        assert (order != other).mean() > 0.8 and (order != np.arange(size)).mean() > 0.8


def test_a_permutation_of_a_huge_split_takes_no_time():
    size = 365_000_000
    numbers = Permutation(size, 'c4')[np.arange(0, size, size // 50_000)]
    assert numbers.min() >= 0 and numbers.max() < size
    assert abs(np.corrcoef(np.arange(len(numbers)), numbers)[0, 1]) < 0.02
    assert abs(numbers.mean() / size - 0.5) < 0.01
