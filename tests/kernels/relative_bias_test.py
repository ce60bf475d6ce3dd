"""Relative buckets against a scalar copy of T5's formula; tiles of the bias against their definition."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5flan.errors import UserError
from t5flan.kernels.relative_bias import (
    RelativeBias,
    bias_tile,
    bias_vector,
    relative_buckets,
    toeplitz,
    toeplitz_transposed,
)

SETTINGS = [
    RelativeBias(True),
    RelativeBias(False),
    RelativeBias(True, 64, 256),
    RelativeBias(False, 20, 100),
    RelativeBias(True, 6, 50),
    RelativeBias(False, 32, 20000),
    RelativeBias(True, 12, 7),
]


def scalar_bucket(position: int, bias: RelativeBias) -> int:
    """T5's `_relative_position_bucket`, one number at a time in float64.

    Like T5X it adds epsilon, so that a distance on a border falls into the bucket that starts there.
    """
    buckets, bucket, n = bias.num_buckets, 0, -position
    if bias.bidirectional:
        buckets //= 2
        bucket += buckets if n < 0 else 0
        n = abs(n)
    else:
        n = max(n, 0)
    exact = buckets // 2
    if n < exact:
        return bucket + n
    log = math.log(n / exact + float(np.finfo(np.float32).eps)) / math.log(bias.max_distance / exact)
    return bucket + min(exact + int(log * (buckets - exact)), buckets - 1)


@pytest.mark.parametrize('bias', SETTINGS, ids=str)
def test_buckets_match_t5(bias):
    positions = np.arange(-20000, 20001)
    expected = np.array([scalar_bucket(int(position), bias) for position in positions])
    np.testing.assert_array_equal(relative_buckets(positions, bias, np), expected)
    on_device = jax.jit(lambda x: relative_buckets(x, bias))(positions)
    np.testing.assert_array_equal(on_device, expected)
    assert on_device.dtype == jnp.int32


def test_the_usual_settings_use_every_bucket():
    for bias in SETTINGS[:2]:
        used = np.unique(relative_buckets(np.arange(-200, 201), bias, np))
        # Bidirectional: distance 0 counts as before the query, so the first bucket after it stays empty, as in T5.
        assert set(range(32)) - set(used.tolist()) == ({16} if bias.bidirectional else set())


def test_invalid_settings_raise():
    for bad in ((True, 5, 128), (True, 2, 128), (False, 1, 128), (False, 32, 16)):
        with pytest.raises(UserError, match='ModelConfig.relative_'):
            RelativeBias(*bad)


@pytest.mark.parametrize('rows, columns', [(1, 1), (1, 5), (5, 1), (3, 7), (7, 3), (4, 8), (8, 8)])
def test_toeplitz_both_ways(rows, columns):
    vector = np.random.default_rng(0).normal(size=(2, rows + columns - 1)).astype(np.float32)
    index = np.arange(columns)[None, :] - np.arange(rows)[:, None] + rows - 1
    np.testing.assert_array_equal(toeplitz(jnp.asarray(vector), rows, columns), vector[:, index])
    np.testing.assert_array_equal(
        toeplitz_transposed(jnp.asarray(vector), rows, columns), vector[:, index].swapaxes(1, 2)
    )


@pytest.mark.parametrize('transposed', [False, True])
def test_tiles_and_their_gradient_match_the_gathered_bias(transposed):
    bias, heads, queries, keys, block, offset = RelativeBias(False, 8, 20), 3, 12, 17, 4, 5
    rng = np.random.default_rng(1)
    table = jnp.asarray(rng.normal(size=(heads, 8)), jnp.float32)
    position = np.arange(keys)[None, :] - np.arange(queries)[:, None] - offset
    weights = rng.normal(size=(heads, queries, keys)).astype(np.float32)

    @jax.jit
    def tiled(table, offset):
        vector = bias_vector(table, bias, queries, keys, offset)
        tiles = [bias_tile(vector, start, block, keys, transposed=transposed) for start in range(0, queries, block)]
        return jnp.concatenate([tile.swapaxes(1, 2) if transposed else tile for tile in tiles], axis=1)

    gathered = table[:, relative_buckets(position, bias, np)]
    np.testing.assert_array_equal(tiled(table, offset), gathered)
    gradient = jax.grad(lambda table: jnp.sum(tiled(table, offset) * weights))(table)
    expected = np.zeros((heads, 8))
    np.add.at(expected, (slice(None), relative_buckets(position, bias, np)), weights.astype(np.float64))
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-5)
