"""The loop that takes one token after the other; generate_test.py tests what it writes."""

import jax.numpy as jnp
import numpy as np

from t5flan.decoding.sampled import first_largest


def test_first_largest_is_argmax():
    logits_BV = np.round(np.random.default_rng(0).normal(size=(50, 8)), 1).astype(np.float32)
    np.testing.assert_array_equal(first_largest(jnp.asarray(logits_BV)), logits_BV.argmax(-1))
    assert int(first_largest(jnp.full((1, 4), jnp.nan))[0]) == 3
