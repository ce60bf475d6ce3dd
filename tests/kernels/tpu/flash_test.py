"""The TPU kernels, interpreted on the CPU, against a float64 loop over heads; what they skip, save and reject."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from t5flan import sharding
from t5flan.errors import UserError
from t5flan.kernels import attention, implementations
from t5flan.kernels.attention import RelativeBias, attend
from t5flan.kernels.operands import SAVED_NAMES, AttentionSpec, Operands, visible_tiles
from t5flan.kernels.tpu import flash as flash_tpu
from tests.kernels.attention_cases import (
    CASES,
    QUICK,
    check_eight_devices,
    check_program,
    check_queries_without_keys,
    check_split_lengths,
    draw,
    inputs,
    largest_array,
    products,
)
from tests.kernels.attention_reference import output_and_gradients

FLASH = 'flash_tpu'
check = functools.partial(check_program, FLASH)


pytestmark = pytest.mark.usefixtures('interpreted')


SLOW_CASES = ('decoder, distances far beyond the band',)  # the float64 loop over 900 queries


@pytest.mark.parametrize(
    'case', [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW_CASES else []) for name in CASES]
)
def test_output_and_gradients_match_the_float64_loop(case):
    check(*CASES[case])


@pytest.mark.parametrize('case', ['packed encoder', 'later queries'])
def test_bfloat16(case):
    check(*CASES[case], dtype=jnp.bfloat16)


def test_unequal_blocks_partly_filled(monkeypatch):
    monkeypatch.setattr(flash_tpu, 'block_sizes', lambda *sizes: (256, 384))
    check(dict(bias=RelativeBias(True), causal=True), dict(queries=300, keys=500))


@pytest.mark.parametrize(
    'case',
    [
        dict(dtype=jnp.bfloat16),
        dict(dtype=jnp.bfloat16, heads=4, kv_heads=2),
        dict(dtype=jnp.float32, dropout_rate=0.3, dropout_key=jax.random.key(0)),
    ],
    ids=['bfloat16', 'grouped', 'dropout'],
)
def test_gradients_of_the_bias_sum_to_zero(case):
    """Adding a constant to all logits of a query changes nothing, even if the output was rounded."""
    shape = {name: case.get(name, 2) for name in ('heads', 'kv_heads')} | dict(dtype=case['dtype'])
    options = {name: x for name, x in case.items() if name not in shape}
    *_, dtable_NR = output_and_gradients(
        *inputs(queries=300, buckets=8, **shape), FLASH, QUICK, bias=RelativeBias(True, 8, 16), **options
    )
    assert np.max(np.abs(np.sum(dtable_NR, axis=1))) < 2e-5 * np.max(np.abs(dtable_NR))


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(40))
def test_random_options(seed, monkeypatch):
    options, shape, dtype, blocks = draw(seed)
    monkeypatch.setattr(flash_tpu, 'block_sizes', lambda *sizes: blocks)
    check(options, shape, dtype=dtype, seed=seed)


@pytest.mark.slow
@pytest.mark.parametrize('case', ['packed encoder', 'later queries', 'grouped heads of 128', 'grouped heads of 64'])
def test_in_the_tpu_simulator(case, monkeypatch, capfd):
    """Its memory starts as NaN, its copies between memories are asynchronous as on a TPU, and it detects races."""
    simulated = pltpu.InterpretParams(uninitialized_memory='nan', detect_races=True)
    monkeypatch.setitem(implementations.PLATFORMS['flash_tpu'], 'cpu', simulated)
    options, *shape = CASES[case]
    # Dropout happens outside the kernels, in a jax.checkpoint, which cannot hold the simulator's effects.
    check({name: x for name, x in options.items() if not name.startswith('dropout')}, *shape)
    assert 'RACE' not in ''.join(capfd.readouterr())


def test_a_query_that_sees_no_key_returns_zeros_and_has_no_gradient():
    check_queries_without_keys(FLASH, inputs(batch=2, queries=150), QUICK)


def test_unseen_tiles_are_not_computed():
    """A NaN in the keys and values of such a tile would spread to everything that reads it."""
    ids = np.repeat(np.array([[1, 2, 3]], np.int32), 128, axis=1)
    q, k, v, table, dy = inputs(queries=384)
    spoil = lambda x: jnp.where((ids == 2)[:, :, None, None], jnp.nan, x)
    masks = dict(q_segment_ids_BT=ids, kv_segment_ids_BS=ids, bias=RelativeBias(True))
    results = output_and_gradients(q, spoil(k), spoil(v), table, dy, FLASH, QUICK, **masks)
    for x in results[:4]:
        np.testing.assert_array_equal(np.any(np.isnan(x), axis=(2, 3)), ids == 2)
    y = attend(q, spoil(k), spoil(v), kv_segment_ids_BS=(ids != 2).astype(np.int32), implementation=FLASH)
    assert np.all(np.isfinite(y))


def test_which_tiles_are_computed():
    q = jnp.zeros((1, 512, 1, 64))
    ids = np.repeat(np.array([[1, 2, 3, 0]], np.int32), 128, axis=1)

    def count(causal=False, ids=None, prefix=None, offset=0, window=None, far_prefix=False):
        operands = Operands(q, q, q, jnp.int32(offset), q_segment_ids_BT=ids, kv_segment_ids_BS=ids, prefix_BS=prefix)
        _, arrays = flash_tpu.arrange(AttentionSpec(causal), operands, (128, 128))
        pair = (window - 1, window - 1) if isinstance(window, int) else window
        return int(visible_tiles(arrays, 128, 128, causal, pair, far_prefix).sum())

    assert count() == 16
    assert count(causal=True) == 10
    assert count(causal=True, offset=1) == 13  # the last query of each block sees the first key of the next
    assert count(causal=True, offset=-512) == 0
    assert count(ids=ids) == 3
    # The first query of a block reaches back by window - 1 keys.
    assert [count(causal=True, window=window) for window in (1, 2, 129, 130)] == [4, 7, 7, 9]
    assert [count(window=window) for window in (1, 2, 129, 130)] == [4, 10, 10, 14]
    assert [count(window=window) for window in ((0, 0), (0, 1), (1, 0), (128, 2), (2, 129))] == [4, 7, 7, 10, 12]
    # The window leaves out two tiles of the prefix, which all queries see if it is seen from far away.
    prefix = jnp.arange(512)[None] < 128
    assert [count(causal=True, window=2, prefix=prefix, far_prefix=far) for far in (False, True)] == [7, 9]
    # The queries of block 0 see block 1 too.
    assert count(causal=True, prefix=jnp.arange(512)[None] == 200) == 11


@pytest.mark.parametrize(
    'mesh, kv_heads', [((1, 2, 4), 4), pytest.param((2, 2, 2), 1, marks=pytest.mark.slow)], ids=str
)
def test_eight_devices_match_one(mesh, kv_heads):
    check_eight_devices(FLASH, mesh, kv_heads, length=130, head_dim=64)


def test_queries_and_keys_split_over_their_length_match_the_reference():
    check_split_lengths(FLASH, 512)


def test_saving_the_saved_names_avoids_running_the_forward_kernel_again():
    assert products(FLASH, None) == 2 + 2 + 5  # forward, forward again, gradients
    assert products(FLASH, jax.checkpoint_policies.save_only_these_names(*SAVED_NAMES)) == 2 + 5


def test_the_backward_pass_redraws_the_dropout_mask():
    """Only inputs, output and lse are saved, not even a bit for each key and head; no kernel runs again."""
    q, k, v, *_ = inputs(queries=128, keys=2560, heads=2)
    dropout = dict(dropout_rate=0.3, dropout_key=jax.random.key(0))
    y, vjp = jax.vjp(lambda q, k, v: attend(q, k, v, implementation=FLASH, **dropout), q, k, v)
    kept = sum(x.nbytes for x in jax.tree.leaves(vjp))
    assert kept - sum(x.nbytes for x in (q, k, v, y)) - 4 * 2 * 128 < 2 * 2560 / 8
    step = jax.jit(
        jax.value_and_grad(lambda q, k, v: jnp.sum(attend(q, k, v, implementation=FLASH, **dropout)), (0, 1, 2))
    )
    assert step.lower(q, k, v).compile(QUICK).as_text().count(' dot(') == 2 * (2 + 5)  # of two heads


def test_no_array_of_queries_by_keys_is_allocated():
    assert largest_array(FLASH, 1152) < 1152 * 1152 / 2


def test_blocks_need_little_padding():
    lengths = [1, 128, 130, 512, 640, 1000, 1536, 16384, 16385]
    assert [flash_tpu._block(length, 512) for length in lengths] == [128, 128, 256, 512, 384, 512, 512, 512, 512]


def test_blocks_by_device():
    kinds = dict(head_dim=64, dtype=jnp.bfloat16, bias=RelativeBias(True))
    assert flash_tpu.largest_blocks('TPU v5', **kinds) == (512, 1024)
    assert flash_tpu.largest_blocks('TPU v4', **kinds) == (512, 512)
    assert flash_tpu.largest_blocks('a future TPU', **kinds) == (512, 512)
    assert flash_tpu.largest_blocks('TPU v5', **dict(kinds, head_dim=32)) == (512, 512)
    assert flash_tpu.largest_blocks('TPU v5', **dict(kinds, dtype=jnp.float32)) == (256, 512)
    assert flash_tpu.largest_blocks('TPU v5', **dict(kinds, bias=RelativeBias(True, 32, 800))) == (512, 512)
    assert [flash_tpu._block(length, 1024) for length in (640, 1024, 1536, 4096)] == [640, 1024, 768, 1024]


BAD = {
    'it supports bfloat16, float32, not float16': (dict(dtype=jnp.float16), {}),
    'a head_dim up to 256, not 300': (dict(head_dim=300), {}),
    'ModelConfig.relative_max_distance': ({}, dict(bias=RelativeBias(True, 32, 20000))),
    'precision, not high': ({}, dict(precision='high')),
}


@pytest.mark.parametrize('message', BAD)
def test_unsupported_arguments_raise_and_auto_falls_back_to_chunked(message, monkeypatch):
    shape, options = BAD[message]
    q, k, v, table, _ = inputs(queries=512, **shape)
    if 'bias' in options:
        options = dict(options, bias_table=table)
    with pytest.raises(UserError, match=f"{message}.*Set ModelConfig.attention='chunked'") as error:
        attend(q, k, v, implementation=FLASH, **options)
    assert '\n' not in str(error.value)
    chosen = []
    monkeypatch.setattr(sharding, 'platform', lambda: 'tpu')
    monkeypatch.setattr(attention, '_log_once', lambda platform, name, reason: chosen.append((name, reason)))
    jax.eval_shape(functools.partial(attend, **options), q, k, v)  # 'auto' falls back to chunked and logs why
    assert chosen[0][0] == 'chunked' and message in chosen[0][1]
