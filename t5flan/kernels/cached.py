"""Attention of new tokens to a KV cache that is stored as the products read it, which XLA's CPU runs fast.

B rows of the cache, T new tokens that read one of them, M cache slots, N heads, K key-value heads, X = T N / K queries
of one key-value head, H head_dim.
"""

import jax
import jax.numpy as jnp

from t5flan.kernels.operands import MASKED


def cached_attention(
    q_BTNH: jax.Array,
    k_BKHM: jax.Array,
    v_BKMH: jax.Array,
    allowed_BTM: jax.Array,
    *,
    bias_NM: jax.Array | None = None,
    scale: float = 1.0,
    soft_cap: float | None = None,
) -> jax.Array:
    """What `attend()` computes, for any mask: y_BTNH in q's dtype, zeros where a query sees no slot.

    Args:
        q_BTNH: queries; all T of a row read the row's keys, once.
        k_BKHM: cached keys, and v_BKMH their values: of the same dtype, or of one that holds it.
        allowed_BTM: which slot a query sees, bool; B and T may be 1.
        bias_NM: relative bias of each slot, or None.
        scale: factor of the products of queries and keys.
        soft_cap: as in `attend()`.
    """
    (batch, queries, heads, size), kv_heads = q_BTNH.shape, k_BKHM.shape[1]
    split = (batch, queries, kv_heads, heads // kv_heads, size)
    q_BKXH = q_BTNH.reshape(split).transpose(0, 2, 1, 3, 4).reshape(batch, kv_heads, -1, size)
    logits_BKXM = _product(q_BKXH.astype(k_BKHM.dtype), k_BKHM) * scale
    if soft_cap is not None:
        logits_BKXM = soft_cap * jnp.tanh(logits_BKXM / soft_cap)
    logits_BKTGM = logits_BKXM.reshape(batch, kv_heads, queries, heads // kv_heads, -1)
    if bias_NM is not None:
        logits_BKTGM += bias_NM.reshape(1, kv_heads, 1, -1, bias_NM.shape[-1])
    logits_BKTGM = jnp.where(allowed_BTM[:, None, :, None], logits_BKTGM, MASKED)
    weights_BKXM = jax.nn.softmax(logits_BKTGM, axis=-1).reshape(logits_BKXM.shape)
    y_BKXH = _product(weights_BKXM.astype(q_BTNH.dtype).astype(v_BKMH.dtype), v_BKMH)
    y_BTKGH = y_BKXH.reshape(batch, kv_heads, queries, heads // kv_heads, size).transpose(0, 2, 1, 3, 4)
    y_BTKGH = jnp.where(jnp.any(allowed_BTM, axis=-1)[:, :, None, None, None], y_BTKGH, 0.0)
    return y_BTKGH.reshape(q_BTNH.shape).astype(q_BTNH.dtype)


def _product(x_BKXI: jax.Array, y_BKIO: jax.Array) -> jax.Array:
    """Matrix products for each row and head, summed in float32."""
    dimensions = (((3,), (2,)), ((0, 1), (0, 1)))
    return jax.lax.dot_general(x_BKXI, y_BKIO, dimensions, preferred_element_type=jnp.float32)
