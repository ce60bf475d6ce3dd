"""Bootstrap intervals, paired comparisons and the normalized average."""

import doctest

import numpy as np
import pytest

from t5flan.errors import UserError
from t5flan.scoring import statistics, voting
from t5flan.scoring.statistics import BASELINES, bootstrap_interval, compare, normalized_average


@pytest.mark.parametrize('module', [statistics, voting])
def test_worked_examples(module):
    results = doctest.testmod(module)
    assert results.attempted and not results.failed


def test_an_interval_agrees_with_theory():
    """The standard error of a share p of n questions is sqrt(p (1 - p) / n)."""
    values = [100.0] * 300 + [0.0] * 700
    low, high = bootstrap_interval([[values]], resamples=4000)
    error = 1.96 * 100 * (0.3 * 0.7 / 1000) ** 0.5
    np.testing.assert_allclose([low, high], [30 - error, 30 + error], atol=0.3)


def test_tasks_count_alike_and_merged_tasks_count_once():
    big, small = [0.0] * 1000, [100.0] * 10
    assert bootstrap_interval([[big], [small]]) == (50, 50)
    assert bootstrap_interval([[big, big, big], [small]]) == (50, 50)
    assert bootstrap_interval([]) == (0, 0)


def test_an_interval_covers_the_truth():
    rng = np.random.default_rng(0)
    inside = 0
    for trial in range(200):
        low, high = bootstrap_interval([[(rng.random(80) < 0.4).astype(float)]], resamples=300, seed=trial)
        inside += low <= 0.4 <= high
    assert 0.9 < inside / 200 < 0.99


def test_a_comparison_is_paired():
    first = {('a', i): float(i % 2 == 0 or i < 10) for i in range(100)}
    second = {('a', i): float(i % 2 == 0) for i in range(100)} | {('b', 0): 1.0}
    found = compare(first, second)
    assert (found.questions, found.wins, found.losses) == (100, 5, 0)
    assert found.difference == pytest.approx(0.05) and found.p_value == pytest.approx(2 * 0.5**5)
    assert 0 < found.low < found.difference < found.high, 'unpaired, the interval would be much wider'
    back = compare(second, first)
    assert (back.difference, back.wins, back.losses) == (-found.difference, 0, 5)
    assert compare(first, first).p_value == 1


def test_results_without_a_shared_question_cannot_be_compared():
    with pytest.raises(UserError, match='share no question'):
        compare({('a', 0): 1.0}, {('a', 1): 1.0})


def test_the_normalized_average_is_0_for_random_answers_and_100_for_right_ones():
    assert normalized_average(BASELINES) == 0
    assert normalized_average(dict.fromkeys(BASELINES, 100.0)) == 100
    with pytest.raises(UserError, match='lacks mmlu_cot, mgsm'):
        normalized_average({name: 1.0 for name in BASELINES if name not in ('mmlu_cot', 'mgsm')})
