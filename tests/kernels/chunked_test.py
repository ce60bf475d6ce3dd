"""Tiles of attention in a window: how many there are, and which keys they read."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5flan.kernels import chunked
from t5flan.kernels.attention import attend
from tests.kernels.attention_cases import inputs


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Tiles of eight queries."""
    monkeypatch.setitem(chunked._TILE_LOGITS, 'cpu', 1)
    monkeypatch.setattr(chunked, '_TILE_ROWS', 1)


def multiplications(queries, **options):
    """Those of all matrix products of output and gradients, for 2 heads of 8, by the traced program."""
    x = jax.ShapeDtypeStruct((1, queries, 2, 8), jnp.float32)
    loss = lambda q, k, v: jnp.sum(attend(q, k, v, implementation='chunked', **options))

    def count(jaxpr):
        total = 0
        for equation in jaxpr.eqns:
            if equation.primitive.name == 'dot_general':
                summed = equation.params['dimension_numbers'][0][0]
                total += equation.outvars[0].aval.size * math.prod(equation.invars[0].aval.shape[i] for i in summed)
            for parameter in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, 'eqns')):
                parameter = getattr(parameter, 'jaxpr', parameter)
                if hasattr(parameter, 'eqns'):
                    total += equation.params.get('length', 1) * count(parameter)
        return total

    return count(jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(x, x, x).jaxpr)


def test_a_window_costs_only_its_own_tiles():
    """A tile of 8 queries reads 8 + window - 1 keys, twice in the forward pass and five times in the backward pass."""
    products = 7 * 2 * 8
    assert multiplications(512) == products * 512 * 512
    for window in (1, 32, 100):
        for queries in (512, 2048):
            assert multiplications(queries, causal=True, window=window) == products * queries * (8 + window - 1)
    assert multiplications(512, window=32) == products * 512 * (8 + 2 * 31)  # keys after the queries too
    assert multiplications(512, window=(15, 16)) == products * 512 * (8 + 15 + 16)
    assert multiplications(16, causal=True, window=100) == products * 16 * 16


def test_keys_outside_the_window_are_not_read():
    q_BTNH, k_BSKH, v_BSKH, *_ = inputs(queries=20, heads=4, head_dim=8)
    unread = [x.at[:, :9].set(np.nan) for x in (k_BSKH, v_BSKH)]  # blocks of eight queries: 0, 8 and 16
    y_BTNH = attend(q_BTNH, *unread, causal=True, window=4, implementation='chunked')
    expected_BTNH = attend(q_BTNH, k_BSKH, v_BSKH, causal=True, window=4, implementation='xla')
    np.testing.assert_allclose(y_BTNH[:, 16:], expected_BTNH[:, 16:], atol=2e-6)
    assert np.isnan(y_BTNH[:, :16]).any()


def test_sizes_of_tiles_in_a_window(monkeypatch):
    monkeypatch.setitem(chunked._TILE_LOGITS, 'cpu', 100 * 1000)
    monkeypatch.setattr(chunked, '_TILE_ROWS', 64)
    size = lambda window, queries, kv_heads=2, share=1: chunked._window_tile_size(
        window, window - 1, queries, queries, share, kv_heads, 'cpu'
    )
    assert size(8, 1000) == (128, 2, 135)  # not many more queries than the window, and both heads
    assert size(200, 1000) == (200, 1, 399)
    assert size(2000, 9000) == (64, 1, 2063)  # no fewer rows, however large the window
    assert size(2000, 9000, share=8) == (8, 1, 2007)
    assert size(8, 20) == (20, 2, 20)  # all queries and all keys
