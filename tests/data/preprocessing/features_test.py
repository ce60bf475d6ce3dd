"""t5flan/data/preprocessing/features.py: trimmed examples fit, and nothing else changes."""

import numpy as np
import pytest

from t5flan.data.config import FORMATS
from t5flan.data.preprocessing.features import LOSS_WEIGHTS, check_features, fit_example, row_capacity, row_cost
from t5flan.errors import UserError

LENGTHS = {'inputs': 7, 'targets': 6}


def weighted(inputs, targets, weights):
    example = {'inputs': np.array(inputs, np.int32), 'targets': np.array(targets, np.int32)}
    return example | {LOSS_WEIGHTS: np.array(weights, np.float32)}


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
    for _ in range(300):
        inputs, targets = rng.integers(0, 15, 2)
        example = {'inputs': np.arange(inputs), 'targets': np.arange(targets), 'id': 3}
        if rng.random() < 0.5:
            example[LOSS_WEIGHTS] = np.ones(targets, np.float32)
        fitted, was_cut = fit_example(example, LENGTHS, format)
        assert all(cost <= room for cost, room in zip(row_cost(format, fitted), row_capacity(format, LENGTHS)))
        assert was_cut == any(len(fitted[name]) < len(example[name]) for name in ('inputs', 'targets'))
        assert fitted['id'] == 3 and all(fitted[name].tolist() == list(range(len(fitted[name]))) for name in LENGTHS)
        assert len(fitted.get(LOSS_WEIGHTS, fitted['targets'])) == len(fitted['targets'])
        assert was_cut or fitted is example


def test_loss_weights_are_trimmed_with_their_targets():
    long = weighted([7, 1], range(8), [1, 1, 0, 0, 1, 1, 0, 1])
    cut, was_cut = fit_example(long, LENGTHS)
    assert was_cut and cut['targets'].tolist() == [0, 1, 2, 3, 4, 5]
    assert cut[LOSS_WEIGHTS].tolist() == [1, 1, 0, 0, 1, 1]
    for format in ('prefix_lm', 'causal_lm'):
        assert fit_example(long, LENGTHS, format) == (long, False), 'a decoder-only row has room for everything'
        assert fit_example(long, {'inputs': 2, 'targets': 7}, format)[1]
    dropped = weighted([7], [3], [1]) | {'turns_left_out': 2}
    assert fit_example(dropped, LENGTHS)[1], 'text that its maker dropped counts as cut'
    with pytest.raises(ValueError, match='2 targets_loss_weights for 3 targets'):
        fit_example(weighted([7], [3, 4, 5], [1, 1]), LENGTHS)


@pytest.mark.parametrize(
    'format,lengths,features,pattern',
    [
        ('encoder_decoder', LENGTHS, ['targets'], "has no 'inputs'"),
        ('causal_lm', {'targets': 4}, ['inputs', 'targets'], 'feature_lengths.*has no length'),
        ('causal_lm', LENGTHS, ['text'], "has no feature 'targets'"),
    ],
)
def test_one_line_for_unsuitable_features(format, lengths, features, pattern):
    with pytest.raises(UserError, match=pattern) as error:
        check_features(format, lengths, features, 'task')
    assert '\n' not in str(error.value)
