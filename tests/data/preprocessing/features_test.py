"""t5flan/data/preprocessing/features.py: trimmed examples fit, and nothing else changes."""

import numpy as np
import pytest

from t5flan.data.config import FORMATS
from t5flan.data.preprocessing.features import LOSS_WEIGHTS, fit_example, row_capacity, row_cost


def test_tokens_of_a_row_and_of_an_example():
    example = {'inputs': np.arange(5), 'targets': np.arange(3)}
    assert row_capacity('encoder_decoder', {'inputs': 7, 'targets': 6}) == (7, 6)
    assert row_capacity('prefix_lm', {'inputs': 7, 'targets': 6}) == (13,) and row_capacity(
        'causal_lm', {'targets': 6}
    ) == (6,)
    assert row_cost('encoder_decoder', example) == (5, 3) and row_cost('causal_lm', example) == (8,)
    assert row_cost('causal_lm', {'targets': np.arange(3)}) == (3,)


@pytest.mark.parametrize('format', FORMATS)
def test_a_trimmed_example_fits_and_one_that_fits_stays(format):
    rng = np.random.default_rng(0)
    lengths = {'inputs': 7, 'targets': 6}
    for _ in range(300):
        inputs, targets = rng.integers(0, 15, 2)
        example = {'inputs': np.arange(inputs), 'targets': np.arange(targets), 'id': 3}
        if rng.random() < 0.5:
            example[LOSS_WEIGHTS] = np.ones(targets, np.float32)
        fitted, was_cut = fit_example(example, lengths, format)
        assert all(cost <= room for cost, room in zip(row_cost(format, fitted), row_capacity(format, lengths)))
        assert was_cut == any(len(fitted[name]) < len(example[name]) for name in ('inputs', 'targets'))
        assert fitted['id'] == 3 and all(fitted[name].tolist() == list(range(len(fitted[name]))) for name in lengths)
        assert len(fitted.get(LOSS_WEIGHTS, fitted['targets'])) == len(fitted['targets'])
        assert was_cut or fitted is example
