"""The backward kernels of TPUs, interpreted on the CPU: parts of the queries, and tiles far from the diagonal."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5flan.kernels.attention import RelativeBias
from t5flan.kernels.tpu import backward, tile
from tests.kernels.attention_cases import CASES, QUICK, check_program, inputs
from tests.kernels.attention_reference import output_and_gradients, reference

FLASH = 'flash_tpu'
check = functools.partial(check_program, FLASH)


pytestmark = pytest.mark.usefixtures('interpreted')


@pytest.mark.parametrize('reach', [9, 128, 200])
@pytest.mark.parametrize('block_q, block_k', [(128, 128), (256, 128), (128, 384), (512, 1024)])
def test_keys_outside_the_near_blocks_are_far(reach, block_q, block_k):
    blocks_k = 9
    sizes = dict(heads=2, head_dim=64, share=1, block_q=block_q, block_k=block_k, masked=False, interpret=True)
    spec = tile.TileSpec(bias=RelativeBias(True, 8, reach), **sizes)
    near = tile.near_blocks(spec, blocks_k)
    assert near * block_k < block_q + 2 * reach + 2 * block_k  # not more than needed
    for q_offset in (0, 1, 77, 1000, -200):
        for query in range(8):
            first = int(tile.first_near(spec, query, q_offset, blocks_k))
            assert 0 <= first <= blocks_k - near
            first_query = query * block_q + q_offset
            last_before, first_after = first * block_k - 1, (first + near) * block_k
            assert first == 0 or first_query - last_before >= reach
            assert first + near == blocks_k or first_after - (first_query + block_q - 1) >= reach


def test_few_blocks_are_all_near():
    sizes = dict(heads=2, head_dim=64, share=1, block_q=512, block_k=1024, masked=False, interpret=True)
    spec = tile.TileSpec(bias=RelativeBias(True), **sizes)
    assert [tile.near_blocks(spec, blocks) for blocks in (1, 2, 3, 8)] == [1, 2, 2, 2]


FAR = {
    'both ways': (dict(bias=RelativeBias(True, 8, 9)), dict(queries=384, keys=640, heads=1)),
    'causal': (dict(bias=RelativeBias(False, 8, 9), causal=True), dict(queries=640, heads=1)),
    'later queries': (dict(bias=RelativeBias(True, 8, 9), q_offset=300), dict(queries=256, keys=640, heads=1)),
    'grouped, masked': (
        dict(bias=RelativeBias(True, 8, 9), soft_cap=2.0, kv_lengths_B=np.array([600, 0], np.int32)),
        dict(batch=2, queries=256, keys=640, heads=4, kv_heads=2, head_dim=128),
    ),
    'dropout': (
        dict(bias=RelativeBias(True, 8, 9), dropout_rate=0.3, dropout_key=jax.random.key(1)),
        dict(queries=256, keys=640, heads=2),
    ),
}


@pytest.mark.parametrize('part', [None, 128])
@pytest.mark.parametrize('case', FAR)
def test_far_keys_share_their_gradient(case, part, monkeypatch):
    if part is not None:
        monkeypatch.setitem(backward.MAX_GRADIENT, False, 4 * 128 * part)
    check(*FAR[case])


@pytest.mark.parametrize('case', ['packed encoder', 'grouped heads of 128', 'prefix, packed, narrow heads'])
def test_parts_of_the_queries_add_up(case, monkeypatch):
    options, shape = CASES[case]
    monkeypatch.setitem(backward.MAX_GRADIENT, False, 1)  # a block at a time
    check(options, shape)
    check(options, shape, dtype=jnp.bfloat16)


@pytest.mark.parametrize('fit', [1, 2, 4, 8], ids='{} blocks fit'.format)
@pytest.mark.parametrize('heads, kv_heads, head_dim', [(6, 1, 128), (8, 2, 64)])
def test_heads_that_share_keys_take_turns(heads, kv_heads, head_dim, fit, monkeypatch):
    """Of 6 heads 1, 2, 3 and 6 are computed at once."""
    monkeypatch.setitem(backward.MAX_GRADIENT, False, 4 * 128 * 128 * fit)
    keep = dict(dropout_rate=0.3, dropout_key=jax.random.key(2))
    options = dict(bias=RelativeBias(True, 8, 9), causal=True, prefix_BS=np.arange(384)[None] % 3 == 0, **keep)
    check(options, dict(queries=256, keys=384, heads=heads, kv_heads=kv_heads, head_dim=head_dim))


@pytest.mark.parametrize('parts', [1, 2])
def test_rounding_does_not_add_up_in_the_gradient_of_the_bias(parts, monkeypatch):
    """Values and gradients around 1 make the sums of a query's gradients far from zero before they are corrected."""
    if parts == 2:
        monkeypatch.setitem(backward.MAX_GRADIENT, False, 4 * 128 * 384)
    q, k, v, table, dy = inputs(queries=768, heads=2, buckets=8, dtype=jnp.bfloat16)
    arrays = q, k, v + 1, table, dy + 1
    options = dict(bias=RelativeBias(True, 8, 9))
    dtable = np.asarray(output_and_gradients(*arrays, FLASH, QUICK, **options)[4])
    expected = np.asarray(reference(*arrays, options)[4])
    assert np.max(np.abs(dtable - expected)) < 1e-3 * np.max(np.abs(expected))
