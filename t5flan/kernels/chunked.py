"""Attention in tiles: logits exist for one batch row and one block of queries at a time, forward and backward.

The idea is that of Flash attention (arXiv:2205.14135), in plain XLA: the forward pass keeps the logarithm of each
query's softmax sum, and the backward pass makes the probabilities of a tile again from it. On a CPU this is faster than
whole arrays, since tiles stay in the cache; anywhere it takes the memory of a tile in place of [B, N, T, S].

What measurement on a CPU decided: operands have the head in front, [K, rows, H] (products over a strided head run at
half the speed); the backward tile is the transposed one, [K, S, rows], so that only one of its five products reads
an operand against its order; and query blocks, not key blocks, are the outer loop.

B batch, T queries, S keys, N heads, K key-value heads, G = N / K heads that share one, H head_dim, C queries of a block,
M = G * C rows of a tile, I blocks, W = T + S - 1 distances. A tile is [K, G, C, S], or [K, S, G, C] transposed.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from t5flan.kernels.relative_bias import bias_tile

MASKED = -1e30  # finite: a query that sees no key must not make NaN


@dataclasses.dataclass(frozen=True)
class Form:
    """What is fixed when the program is traced."""

    block: int  # C
    causal: bool
    scale: float
    soft_cap: float | None
    dropout_rate: float
    precision: Any


class Operands(NamedTuple):
    """The arrays of one call; None where an option is off. T is a multiple of the block."""

    q_BTNH: jax.Array
    k_BSKH: jax.Array
    v_BSKH: jax.Array
    bias_NW: jax.Array | None  # `relative_bias.bias_vector`
    keep_BNS: jax.Array | None  # bool: dropout keeps this key for this head
    q_segment_ids_BT: jax.Array | None  # a query sees keys of an equal id; both or neither
    kv_segment_ids_BS: jax.Array | None
    prefix_BS: jax.Array | None  # bool
    key_seen_BS: jax.Array | None  # bool
    q_offset: jax.Array  # int32 scalar


class _Row(NamedTuple):
    """What one batch row (or, with an axis B in front, all of them) brings to a tile, besides queries, keys, values."""

    keep_KGS: jax.Array | None
    q_segment_ids_C: jax.Array | None
    kv_segment_ids_S: jax.Array | None
    prefix_S: jax.Array | None
    key_seen_S: jax.Array | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def chunked_attention(form: Form, operands: Operands) -> jax.Array:
    """Attention of all queries, [B, T, N, H] in q's dtype; never holds the logits of more than one tile."""
    return _forward(form, operands)[0]


def _forward(form: Form, operands: Operands) -> tuple[jax.Array, Any]:
    kv_heads = operands.k_BSKH.shape[2]
    q_IBKMH = _split_queries(operands.q_BTNH, form.block, kv_heads)
    operands = operands._replace(k_BSKH=operands.k_BSKH.swapaxes(1, 2), v_BSKH=operands.v_BSKH.swapaxes(1, 2))
    rows = _rows(operands)

    def block(i: Any, q_BKMH: jax.Array, q_segment_ids_BC: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        tile = _shared_tile(form, operands, operands.bias_NW, i, transposed=False)

        def row(inputs: Any) -> tuple[jax.Array, jax.Array]:
            q_KMH, k_KSH, v_KSH, row = inputs
            logits, _ = _logits(form, _dot(form, q_KMH, k_KSH, 2, 2), i, tile, row, operands.q_offset, transposed=False)
            # No less than a tenth of MASKED, so that the exponential of a masked logit is zero in every row.
            top = jnp.maximum(jnp.max(logits, axis=-1, keepdims=True), 0.1 * MASKED)
            weights = jnp.exp(logits - top)
            sum_KM1 = jnp.sum(weights, axis=-1).reshape(*q_KMH.shape[:2], 1)
            sum_KM1 = jnp.where(sum_KM1 > 0.0, sum_KM1, 1.0)
            weights_KMS = _drop(form, weights, row.keep_KGS, transposed=False).reshape(*q_KMH.shape[:2], -1)
            y_KMH = _dot(form, weights_KMS.astype(v_KSH.dtype), v_KSH, 2, 1) / sum_KM1
            return y_KMH.astype(q_KMH.dtype), (top.reshape(sum_KM1.shape) + jnp.log(sum_KM1))[..., 0]

        rows_of_block = rows._replace(q_segment_ids_C=q_segment_ids_BC)
        return lax.map(row, (q_BKMH, operands.k_BSKH, operands.v_BSKH, rows_of_block))

    _, (y_IBKMH, log_sum_IBKM) = _scan_blocks(
        lambda _, i, *inputs: (None, block(i, *inputs)), None, (q_IBKMH, _split_ids(operands, form.block)))
    y_BTNH = _join_queries(y_IBKMH, operands.q_BTNH.shape)
    return y_BTNH, (operands._replace(q_BTNH=q_IBKMH), y_BTNH, log_sum_IBKM)


def _backward(form: Form, residuals: Any, dy_BTNH: jax.Array) -> tuple[Operands]:
    operands, y_BTNH, log_sum_IBKM = residuals
    q_IBKMH, k_BKSH, v_BKSH, *_ = operands
    kv_heads = k_BKSH.shape[1]
    # The gradient of a softmax is p * (dp - sum(p * dp)), and that sum is y * dy.
    inner_BTN1 = jnp.sum(y_BTNH.astype(jnp.float32) * dy_BTNH.astype(jnp.float32), axis=-1, keepdims=True)
    queries = (q_IBKMH, _split_queries(dy_BTNH, form.block, kv_heads), log_sum_IBKM,
               _split_queries(inner_BTN1, form.block, kv_heads)[..., 0])
    rows = _rows(operands)

    def block(sums: Any, i: Any, queries: Any, q_segment_ids_BC: jax.Array | None) -> tuple[Any, jax.Array]:
        """`sums`: gradients of keys, values and bias vector so far, None before the first block."""
        tile, tile_vjp = jax.vjp(lambda bias_NW: _shared_tile(form, operands, bias_NW, i, transposed=True),
                                 operands.bias_NW)
        dk_BKSH, dv_BKSH, dbias_NW = sums or (None, None, None)

        def row(dtile: jax.Array | None, inputs: Any) -> tuple[jax.Array | None, Any]:
            *inputs, dk0_KSH, dv0_KSH = inputs
            dlogits, dq_KHM, dk_KSH, dv_KSH = _tile_gradients(form, i, tile, operands.q_offset, *inputs)
            if dk0_KSH is not None:
                dk_KSH, dv_KSH = dk_KSH + dk0_KSH, dv_KSH + dv0_KSH
            return None if dtile is None else dtile + dlogits, (dq_KHM.astype(q_IBKMH.dtype), dk_KSH, dv_KSH)

        dtile = None if operands.bias_NW is None else jnp.zeros(tile.shape, jnp.float32)
        inputs = queries, k_BKSH, v_BKSH, rows._replace(q_segment_ids_C=q_segment_ids_BC), dk_BKSH, dv_BKSH
        dtile, (dq_BKHM, dk_BKSH, dv_BKSH) = lax.scan(row, dtile, inputs)
        if dtile is not None:
            dbias_NW = tile_vjp(dtile)[0] + (0.0 if dbias_NW is None else dbias_NW)
        return (dk_BKSH, dv_BKSH, dbias_NW), dq_BKHM

    zeros = [None if x is None else jnp.zeros(x.shape, jnp.float32) for x in (k_BKSH, v_BKSH, operands.bias_NW)]
    (dk_BKSH, dv_BKSH, dbias_NW), dq_IBKHM = _scan_blocks(
        block, tuple(zeros), (queries, _split_ids(operands, form.block)))
    none = Operands(*[None] * len(Operands._fields))
    return (none._replace(q_BTNH=_join_queries(dq_IBKHM.swapaxes(3, 4), dy_BTNH.shape),
                          k_BSKH=dk_BKSH.swapaxes(1, 2).astype(k_BKSH.dtype),
                          v_BSKH=dv_BKSH.swapaxes(1, 2).astype(v_BKSH.dtype), bias_NW=dbias_NW),)


chunked_attention.defvjp(_forward, _backward)


def _tile_gradients(form: Form, i: Any, tile: jax.Array | None, q_offset: jax.Array, queries: Any, k_KSH: jax.Array,
                    v_KSH: jax.Array, row: _Row) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Gradients through one transposed tile: of the logits [K, S, G, C], then dq [K, H, M], dk and dv [K, S, H]."""
    q_KMH, dy_KMH, log_sum_KM, inner_KM = queries
    logits, slope = _logits(form, _dot(form, k_KSH, q_KMH, 2, 2), i, tile, row, q_offset, transposed=True)
    per_query = (logits.shape[0], 1, *logits.shape[2:])
    weights = jnp.exp(logits - log_sum_KM.reshape(per_query))
    dweights = _drop(form, _dot(form, v_KSH, dy_KMH, 2, 2).reshape(logits.shape), row.keep_KGS, transposed=True)
    dlogits = weights * (dweights - inner_KM.reshape(per_query))
    dproducts = dlogits if slope is None else dlogits * slope
    if form.scale != 1.0:
        dproducts = dproducts * form.scale
    dproducts_KSM = dproducts.reshape(*k_KSH.shape[:2], -1).astype(k_KSH.dtype)
    weights_KSM = _drop(form, weights, row.keep_KGS, transposed=True).reshape(dproducts_KSM.shape)
    dv_KSH = _dot(form, weights_KSM.astype(v_KSH.dtype), dy_KMH, 2, 1)
    dk_KSH = _dot(form, dproducts_KSM, q_KMH, 2, 1)
    dq_KHM = _dot(form, k_KSH, dproducts_KSM, 1, 1)
    return dlogits, dq_KHM, dk_KSH, dv_KSH


def _logits(form: Form, products: jax.Array, i: Any, tile: jax.Array | None, row: _Row, q_offset: jax.Array,
            transposed: bool) -> tuple[jax.Array, jax.Array | None]:
    """Products of queries and keys, [K, M, S] or [K, S, M] -> the tile of masked logits, and the slope of the soft cap."""
    kv_heads, keys = products.shape[0], products.shape[1 if transposed else 2]
    shape = (kv_heads, keys, -1, form.block) if transposed else (kv_heads, -1, form.block, keys)
    logits, slope = products.reshape(shape), None
    if form.scale != 1.0:
        logits = logits * form.scale
    if form.soft_cap is not None:
        bent = jnp.tanh(logits / form.soft_cap)
        logits, slope = form.soft_cap * bent, 1.0 - bent * bent
    if tile is not None:
        logits = logits + tile
    as_query, as_key = _axes(transposed)
    allowed = None
    if form.causal and row.prefix_S is not None:
        allowed = _not_after(form, i, keys, q_offset, transposed) | as_key(row.prefix_S)
    if row.q_segment_ids_C is not None:
        same = as_query(row.q_segment_ids_C) == as_key(row.kv_segment_ids_S)
        allowed = same if allowed is None else allowed & same
    if row.key_seen_S is not None:
        allowed = as_key(row.key_seen_S) if allowed is None else allowed & as_key(row.key_seen_S)
    return (logits if allowed is None else jnp.where(allowed, logits, MASKED)), slope


def _axes(transposed: bool) -> tuple[Callable[[jax.Array], jax.Array], Callable[[jax.Array], jax.Array]]:
    """How a vector over queries, and one over keys, lie in a tile."""
    query, key = ((1, 1, 1, -1), (1, -1, 1, 1)) if transposed else ((1, 1, -1, 1), (1, 1, 1, -1))
    return lambda x_C: x_C.reshape(query), lambda x_S: x_S.reshape(key)


def _not_after(form: Form, i: Any, keys: int, q_offset: jax.Array, transposed: bool) -> jax.Array:
    as_query, as_key = _axes(transposed)
    query_C = i * form.block + q_offset + jnp.arange(form.block, dtype=jnp.int32)
    return as_key(jnp.arange(keys, dtype=jnp.int32)) <= as_query(query_C)


def _shared_tile(form: Form, operands: Operands, bias_NW: jax.Array | None, i: Any, transposed: bool) -> jax.Array | None:
    """What is added to the logits of every batch row: the bias, and the causal mask where rows have no prefix."""
    kv_heads, keys = operands.k_BSKH.shape[1:3]  # the head in front
    tile = None
    if bias_NW is not None:
        bias = bias_tile(bias_NW, i * form.block, form.block, keys, transposed=transposed)
        bias = bias.reshape(kv_heads, -1, *bias.shape[1:])
        tile = bias.swapaxes(1, 2) if transposed else bias
    if form.causal and operands.prefix_BS is None:
        not_after = _not_after(form, i, keys, operands.q_offset, transposed)
        tile = jnp.where(not_after, 0.0 if tile is None else tile, MASKED)
    return tile


def _drop(form: Form, weights: jax.Array, keep_KGS: jax.Array | None, transposed: bool) -> jax.Array:
    """Dropout of a tile: a head loses a key for all of its queries."""
    if keep_KGS is None:
        return weights
    keep = jnp.expand_dims(keep_KGS.swapaxes(1, 2), 3) if transposed else jnp.expand_dims(keep_KGS, 2)
    return weights * jnp.where(keep, 1.0 / (1.0 - form.dropout_rate), 0.0)


def _dot(form: Form, a: jax.Array, b: jax.Array, a_axis: int, b_axis: int) -> jax.Array:
    """Product over one axis of each, axis 0 in common, summed and given in float32."""
    return lax.dot_general(a, b, (((a_axis,), (b_axis,)), ((0,), (0,))), precision=form.precision,
                           preferred_element_type=jnp.float32)


def _rows(operands: Operands) -> _Row:
    """All batch rows, without the queries' segment ids, which come by block."""
    keep_BKGS = operands.keep_BNS
    if keep_BKGS is not None:
        batch, heads, keys = keep_BKGS.shape
        keep_BKGS = keep_BKGS.reshape(batch, operands.k_BSKH.shape[1], -1, keys)
    return _Row(keep_BKGS, None, operands.kv_segment_ids_BS, operands.prefix_BS, operands.key_seen_BS)


def _split_queries(x_BTNH: jax.Array, block: int, kv_heads: int) -> jax.Array:
    """[B, T, N, H] -> [I, B, K, M, H]."""
    batch, _, heads, size = x_BTNH.shape
    x_BICKGH = x_BTNH.reshape(batch, -1, block, kv_heads, heads // kv_heads, size)
    return x_BICKGH.transpose(1, 0, 3, 4, 2, 5).reshape(-1, batch, kv_heads, heads // kv_heads * block, size)


def _join_queries(x_IBKMH: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """[I, B, K, M, H] -> [B, T, N, H], the inverse."""
    blocks, batch, kv_heads, rows, size = x_IBKMH.shape
    group = shape[2] // kv_heads
    x_IBKGCH = x_IBKMH.reshape(blocks, batch, kv_heads, group, rows // group, size)
    return x_IBKGCH.transpose(1, 0, 4, 2, 3, 5).reshape(shape)


def _split_ids(operands: Operands, block: int) -> jax.Array | None:
    """The queries' segment ids by block, [I, B, C]."""
    ids_BT = operands.q_segment_ids_BT
    return None if ids_BT is None else ids_BT.reshape(ids_BT.shape[0], -1, block).swapaxes(0, 1)


def _scan_blocks(block: Callable[..., tuple[Any, Any]], sums: Any, inputs: tuple[Any, ...]) -> tuple[Any, Any]:
    """Scans `block(sums, i, *inputs) -> (sums, outputs)` over I; a single block is called with None for the sums."""
    blocks = jax.tree.leaves(inputs)[0].shape[0]
    if blocks > 1:
        return lax.scan(lambda sums, x: block(sums, *x), sums, (jnp.arange(blocks, dtype=jnp.int32), *inputs))
    sums, outputs = block(None, 0, *jax.tree.map(lambda x: x[0], inputs))
    return sums, jax.tree.map(lambda x: x[None], outputs)
