import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5flan.models.attention import Attention, LayerCache, Mask
from t5flan.models.parameters import Scope
from tests.models.small_models import small_config

CONFIG = small_config('t5_1_1')
LONG = 6


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def by_hand(attention: Attention, x_BTD: np.ndarray, y_BSD: np.ndarray, sees_BTS: np.ndarray) -> np.ndarray:
    """Plain attention, one head after another, without positions."""
    q, k, v, out = (np.asarray(getattr(attention, name).kernel[...]) for name in ('query', 'key', 'value', 'out'))
    heads, groups = q.shape[1], q.shape[1] // k.shape[1]
    total_BTD = 0
    for n in range(heads):
        scores_BTS = (x_BTD @ q[:, n]) @ (y_BSD @ k[:, n // groups]).swapaxes(1, 2) * attention.config.attention_scale
        p_BTS = np.exp(scores_BTS - scores_BTS.max(-1, keepdims=True)) * sees_BTS
        total_BTD = total_BTD + (p_BTS / p_BTS.sum(-1, keepdims=True)) @ (y_BSD @ v[:, n // groups]) @ out[n]
    return total_BTD


@pytest.mark.parametrize('kv_heads, scale', [(1, False), (2, True), (4, False)])
def test_it_matches_attention_by_hand(kv_heads, scale):
    config = dataclasses.replace(CONFIG, num_kv_heads=kv_heads, scale_attention=scale)
    attention = Attention(config, Scope(jax.random.key(0)), bidirectional=True)
    x_BTD, y_BSD = random(2, 4, 32), random(2, 5, 32, seed=1)
    kv_segments_BS = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    mask = Mask(causal=False, kv_segment_ids_BS=jnp.asarray(kv_segments_BS))
    expected = by_hand(attention, x_BTD, y_BSD, (kv_segments_BS > 0)[:, None, :])
    np.testing.assert_allclose(attention(x_BTD, attention.project_kv(y_BSD), mask), expected, atol=2e-5)


def test_the_scale_is_in_the_logits_or_in_the_initializer():
    """Both start with the same function, as in T5."""
    folded = Attention(CONFIG, Scope(jax.random.key(0)), bidirectional=True)
    scaled = Attention(dataclasses.replace(CONFIG, scale_attention=True), Scope(jax.random.key(0)), bidirectional=True)
    np.testing.assert_allclose(folded.query.kernel[...] * 8**0.5, scaled.query.kernel[...], rtol=1e-5)
    x_BTD, mask = random(2, LONG, 32), Mask(causal=True)
    np.testing.assert_allclose(
        folded(x_BTD, folded.project_kv(x_BTD), mask), scaled(x_BTD, scaled.project_kv(x_BTD), mask), atol=1e-5
    )


def test_relative_bias_is_read_by_distance():
    """A bias that hides every distance but -2 (bucket 2) makes each query copy the value two positions earlier."""
    attention = Attention(CONFIG, Scope(jax.random.key(0)), bidirectional=False)
    x_BTD = random(1, LONG, 32)
    table_NR = np.where(np.arange(32)[None] == 2, 0, -1e4) * np.ones((4, 1), np.float32)
    kv = attention.project_kv(x_BTD)
    y_BTD = attention(x_BTD, kv, Mask(causal=True), bias_table_NR=jnp.asarray(table_NR, jnp.float32))
    copied = attention.out(kv[1])
    np.testing.assert_allclose(y_BTD[:, 2:], copied[:, :-2], atol=2e-5)


@pytest.mark.parametrize('position', ['relative_bias', 'rope'])
def test_one_query_with_a_cache_matches_the_full_sequence(position):
    config = dataclasses.replace(CONFIG, position=position, num_kv_heads=2)
    attention = Attention(config, Scope(jax.random.key(0)), bidirectional=False)
    table_NR = jnp.asarray(random(4, 32, seed=2)) if position == 'relative_bias' else None
    x_BTD, positions_BT = random(2, LONG, 32), np.tile(np.arange(LONG), (2, 1))
    k_BTKH, v_BTKH = attention.project_kv(x_BTD, positions_BT)
    whole_BTD = attention(x_BTD, (k_BTKH, v_BTKH), Mask(causal=True), positions_BT=positions_BT, bias_table_NR=table_NR)

    at = 3
    written_1T11 = jnp.arange(LONG)[None, :, None, None] < at
    cached = [jnp.where(written_1T11, x, 99.0) for x in (k_BTKH, v_BTKH)]
    new_kv = attention.project_kv(x_BTD[:, at : at + 1], positions_BT[:, at : at + 1])
    row_B1D = attention(
        x_BTD[:, at : at + 1],
        LayerCache(*cached, jnp.int32(at)).updated(new_kv),
        Mask(causal=True),
        positions_BT=positions_BT[:, at : at + 1],
        bias_table_NR=table_NR,
        q_offset=jnp.int32(at),
    )
    np.testing.assert_allclose(row_B1D, whole_BTD[:, at : at + 1], atol=2e-5)


def test_cross_attention_keys_are_not_rotated():
    config = dataclasses.replace(CONFIG, position='rope')
    across = Attention(config, Scope(jax.random.key(0)), bidirectional=True, across=True)
    x_BTD = random(2, 4, 32)
    sees_BTS = np.ones((2, 4, 4))
    np.testing.assert_allclose(
        across(x_BTD, across.project_kv(x_BTD), Mask(causal=False)), by_hand(across, x_BTD, x_BTD, sees_BTS), atol=2e-5
    )


def test_dropout_needs_a_key_and_a_rate():
    attention = Attention(dataclasses.replace(CONFIG, dropout_rate=0.5), Scope(jax.random.key(0)), bidirectional=True)
    x_BTD = random(2, 4, 32)
    read = [
        attention(x_BTD, attention.project_kv(x_BTD), Mask(causal=False), dropout_key=key)
        for key in (None, jax.random.key(0), jax.random.key(1))
    ]
    assert np.abs(read[0] - read[1]).max() > 0.01 and np.abs(read[1] - read[2]).max() > 0.01
