"""Attention to a cache as decoding stores it equals `attend()`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5flan.kernels.attention import attend
from t5flan.kernels.cached import cached_attention
from t5flan.kernels.relative_bias import RelativeBias, relative_buckets


@pytest.mark.parametrize(
    'heads, kv_heads, biased, soft_cap', [(4, 4, True, None), (6, 2, False, 5.0), (2, 1, True, 2.0)]
)
def test_equals_attend_for_the_masks_that_attend_has(heads, kv_heads, biased, soft_cap):
    draw = lambda number, *shape: jax.random.normal(jax.random.key(number), shape)
    q_BTNH, k_BSKH, v_BSKH = draw(0, 3, 1, heads, 8), draw(1, 3, 7, kv_heads, 8), draw(2, 3, 7, kv_heads, 8)
    bias, table_NR = RelativeBias(bidirectional=False, num_buckets=8, max_distance=6), draw(3, heads, 8)
    ids_BS = np.array(
        [[0, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0]]
    )  # the last row sees nothing
    offset = 4
    expected = attend(
        q_BTNH,
        k_BSKH,
        v_BSKH,
        bias_table=table_NR if biased else None,
        bias=bias if biased else None,
        q_offset=offset,
        causal=True,
        kv_segment_ids_BS=ids_BS,
        scale=0.3,
        soft_cap=soft_cap,
        implementation='xla',
    )
    found = cached_attention(
        q_BTNH,
        k_BSKH.transpose(0, 2, 3, 1),
        v_BSKH.swapaxes(1, 2),
        jnp.asarray((ids_BS > 0) & (np.arange(7) <= offset))[:, None],
        bias_NM=table_NR[:, relative_buckets(np.arange(7) - offset, bias)] if biased else None,
        scale=0.3,
        soft_cap=soft_cap,
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert not found[2].any()


def test_queries_of_one_row_may_see_different_slots():
    draw = lambda number, *shape: jax.random.normal(jax.random.key(number), shape)
    q_BTNH, k_BKHM, v_BKMH = draw(0, 2, 3, 4, 8), draw(1, 2, 2, 8, 5), draw(2, 2, 2, 5, 8)
    seen_BTM = jax.random.bernoulli(jax.random.key(3), 0.6, (2, 3, 5))
    together = cached_attention(q_BTNH, k_BKHM, v_BKMH, seen_BTM)
    for t in range(3):
        alone = cached_attention(q_BTNH[:, t : t + 1], k_BKHM, v_BKMH, seen_BTM[:, t : t + 1])
        np.testing.assert_allclose(together[:, t : t + 1], alone, atol=1e-6)
