"""t5flan/data/batches/packing.py: first fit, within the capacity, each example in one row."""

import numpy as np

from t5flan.data.batches.packing import Packer


def test_first_fit():
    packer = Packer(2, (10, 5), pack=True)
    added = [packer.add({'n': n}, cost) for n, cost in enumerate([(6, 2), (5, 1), (4, 3), (5, 4), (1, 0)])]
    assert added == [True, True, True, True, False]
    assert [[example['n'] for example in row] for row in packer.rows] == [[0, 2], [1, 3]]
    assert packer.full


def test_one_example_a_row_without_packing():
    packer = Packer(2, (10,), pack=False)
    assert packer.add({'n': 0}, (1,)) and packer.add({'n': 1}, (1,)) and not packer.add({'n': 2}, (1,))
    assert [len(row) for row in packer.rows] == [1, 1] and packer.full


def test_random_examples_keep_order_and_capacity():
    rng = np.random.default_rng(0)
    for _ in range(30):
        packer, costs = Packer(4, (50, 20), pack=True), rng.integers(1, 20, (100, 2)).tolist()
        taken = 0
        while not packer.full and packer.add({'n': taken}, costs[taken]):
            taken += 1
        assert sorted(example['n'] for row in packer.rows for example in row) == list(range(taken))
        for row in packer.rows:
            assert (np.sum([costs[example['n']] for example in row], axis=0) <= (50, 20)).all()
            assert row == sorted(row, key=lambda example: example['n'])
