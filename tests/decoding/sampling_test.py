"""The filters equal a sort in NumPy; samples follow the probabilities and do not depend on the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from t5flan.decoding.sampling import filter_logits, row_keys, sample

draw = jax.jit(sample)


def _kept_by_sorting(logits_V, top_k, top_p):
    """The set of token ids that the filter keeps, found by sorting."""
    order = np.argsort(-logits_V, kind='stable')
    if top_k:
        order = order[:top_k]
    probs = np.exp(logits_V[order] - logits_V[order].max())
    probs /= probs.sum()
    before = np.concatenate([[0.0], np.cumsum(probs)[:-1]])
    return set(order[(before < top_p) | (top_p == 1)].tolist())


@pytest.mark.parametrize(
    'top_k, top_p', [(0, 1.0), (1, 1.0), (5, 1.0), (0, 0.5), (0, 0.9), (7, 0.6), (500, 1.0), (0, 1e-6)]
)
def test_the_filter_equals_a_sort(top_k, top_p):
    logits_BV = np.random.default_rng(0).normal(0, 3, (4, 101)).astype(np.float32)
    filtered_BV = np.asarray(jax.jit(filter_logits)(logits_BV, top_k, top_p))
    for logits_V, filtered_V in zip(logits_BV, filtered_BV):
        kept = set(np.flatnonzero(np.isfinite(filtered_V)).tolist())
        assert kept == _kept_by_sorting(logits_V, top_k, top_p)
        np.testing.assert_array_equal(filtered_V[sorted(kept)], logits_V[sorted(kept)])


def test_ties_are_kept_together():
    logits_BV = jnp.array([[1.0, 2.0, 2.0, -5.0], [-0.0, 0.0, -jnp.inf, -3e38]])
    kept = np.isfinite(np.asarray(filter_logits(logits_BV, 1, 1.0)))
    # -0.0 and 0.0 are equal, but their bits are not; keeping one of them is right for k = 1.
    np.testing.assert_array_equal(kept, [[False, True, True, False], [False, True, False, False]])


def test_samples_follow_the_probabilities():
    logits_BV = jnp.broadcast_to(jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05]])), (4000, 4))
    keys_B = row_keys(0, jnp.arange(4000))
    counts = np.bincount(np.asarray(draw(logits_BV, keys_B, 1.0, 0, 1.0)), minlength=4) / 4000
    np.testing.assert_allclose(counts, [0.5, 0.3, 0.15, 0.05], atol=0.03)
    counts = np.bincount(np.asarray(draw(logits_BV, keys_B, 0.5, 2, 1.0)), minlength=4) / 4000
    np.testing.assert_allclose(counts, [25 / 34, 9 / 34, 0, 0], atol=0.03)


@pytest.mark.parametrize('temperature, top_k, top_p', [(1.0, 0, 1.0), (0.7, 10, 1.0), (1.3, 0, 0.8), (0.9, 12, 0.9)])
def test_the_distribution_of_samples_passes_a_chi_square_test(temperature, top_k, top_p):
    count = 20000
    logits_V = np.random.default_rng(3).normal(0, 1.5, 24).astype(np.float32)
    kept = sorted(_kept_by_sorting(logits_V / temperature, top_k, top_p))
    probs = np.exp(logits_V[kept].astype(np.float64) / temperature)
    logits_BV = jnp.broadcast_to(jnp.asarray(logits_V)[None, :], (count, 24))
    tokens_B = np.asarray(draw(logits_BV, row_keys(7, jnp.arange(count)), temperature, top_k, top_p))
    counts = np.bincount(tokens_B, minlength=24)
    assert counts[kept].sum() == count
    assert stats.chisquare(counts[kept], count * probs / probs.sum()).pvalue > 0.001
    wrong = probs**1.2  # the test notices a temperature that is off by a fifth
    assert stats.chisquare(counts[kept], count * wrong / wrong.sum()).pvalue < 1e-6


def test_a_row_has_the_same_samples_in_any_batch():
    logits_BV = jnp.asarray(np.random.default_rng(1).normal(size=(6, 50)), jnp.float32)
    rows_B = jnp.array([3, 9, 0, 7, 12, 5])
    together = np.asarray(draw(logits_BV, row_keys(4, rows_B), 1.0, 20, 0.9))
    for i in range(6):
        alone = np.asarray(draw(logits_BV[i : i + 1], row_keys(4, rows_B[i : i + 1]), 1.0, 20, 0.9))
        assert alone[0] == together[i]
    assert len({int(jax.random.bits(key)) for key in row_keys(4, rows_B)}) == 6
