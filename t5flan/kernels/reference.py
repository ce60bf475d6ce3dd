"""The reference implementation of attention ('xla'): plain einsums over arrays of all logits.

B batch, T queries, S keys, N heads, K key-value heads, G = N / K heads that share one, H head_dim, R buckets.
"""

import functools

import jax
import jax.numpy as jnp

from t5flan.kernels.operands import MASKED, AttentionSpec, Operands, is_near
from t5flan.kernels.relative_bias import bias_vector, toeplitz


def reference_attention(spec: AttentionSpec, operands: Operands) -> jax.Array:
    """y_BTNH in q's dtype, by logits [B, K, G, T, S] in float32; `operands.bias_NW` is the bias table [N, R]."""
    q_BTNH, k_BSKH, v_BSKH, q_offset, table_NR, keep_BNS, *_ = operands
    (batch, queries, heads, size), (keys, kv_heads) = q_BTNH.shape, k_BSKH.shape[1:3]
    einsum = functools.partial(jnp.einsum, precision=spec.precision, preferred_element_type=jnp.float32)
    q_BTKGH = q_BTNH.reshape(batch, queries, kv_heads, heads // kv_heads, size)
    logits_BKGTS = einsum('BTKGH,BSKH->BKGTS', q_BTKGH, k_BSKH) * spec.scale
    if spec.soft_cap is not None:
        logits_BKGTS = spec.soft_cap * jnp.tanh(logits_BKGTS / spec.soft_cap)
    if spec.bias is not None and table_NR is not None:
        bias_NW = bias_vector(table_NR, spec.bias, queries, keys, q_offset)
        logits_BKGTS += toeplitz(bias_NW, queries, keys).reshape(1, kv_heads, -1, queries, keys)
    allowed_BTS = _allowed(spec, operands)
    if allowed_BTS is not None:
        logits_BKGTS = jnp.where(allowed_BTS[:, None, None], logits_BKGTS, MASKED)
    weights_BKGTS = jax.nn.softmax(logits_BKGTS, axis=-1)
    if keep_BNS is not None:
        keep_BKG1S = keep_BNS.reshape(batch, kv_heads, -1, 1, keys)
        weights_BKGTS = jnp.where(keep_BKG1S, weights_BKGTS / (1.0 - spec.dropout_rate), 0.0)
    y_BTKGH = einsum('BKGTS,BSKH->BTKGH', weights_BKGTS.astype(v_BSKH.dtype), v_BSKH)
    if allowed_BTS is not None:  # the softmax of a query that sees no key is uniform: drop it, and its gradient
        y_BTKGH = jnp.where(jnp.any(allowed_BTS, axis=-1)[:, :, None, None, None], y_BTKGH, 0.0)
    return y_BTKGH.reshape(q_BTNH.shape).astype(q_BTNH.dtype)


def _allowed(spec: AttentionSpec, operands: Operands) -> jax.Array | None:
    """Which query sees which key, bool [B or 1, T, S]; None if every query sees every key."""
    queries, keys = operands.q_BTNH.shape[1], operands.k_BSKH.shape[1]
    masks = []
    key_1S = jnp.arange(keys, dtype=jnp.int32)[None, :]
    query_T1 = (operands.q_offset + jnp.arange(queries, dtype=jnp.int32))[:, None]
    near_1TS = None if spec.window is None else is_near(spec.window, key_1S - query_T1)[None]
    if spec.causal:
        seen_1TS = (key_1S <= query_T1)[None]
        if spec.far_prefix and near_1TS is not None:
            seen_1TS, near_1TS = seen_1TS & near_1TS, None
        masks.append(seen_1TS if operands.prefix_BS is None else seen_1TS | operands.prefix_BS[:, None, :])
    if near_1TS is not None:
        masks.append(near_1TS)
    if operands.q_segment_ids_BT is not None and operands.kv_segment_ids_BS is not None:
        masks.append(operands.q_segment_ids_BT[:, :, None] == operands.kv_segment_ids_BS[:, None, :])
    if operands.key_seen_BS is not None:
        masks.append(operands.key_seen_BS[:, None, :])
    return functools.reduce(jnp.logical_and, masks) if masks else None
