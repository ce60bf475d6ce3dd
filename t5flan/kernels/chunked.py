"""Attention in tiles: logits exist for one batch row and one block of queries at a time, forward and backward.

The idea is that of Flash attention (arXiv:2205.14135), in plain XLA: the forward pass keeps the logarithm of each
query's softmax sum, and the backward pass makes the probabilities of a tile again from it. On a CPU this is faster than
whole arrays, since tiles stay in the cache; anywhere it takes the memory of a tile in place of [B, N, T, S].

What measurement on a CPU decided: operands have the head in front, [K, rows, H] (products over a strided head run at
half the speed); the backward tile is the transposed one, [K, S, rows], so that only one of its five products reads
an operand against its order; and query blocks, not key blocks, are the outer loop.

B batch, T queries, S keys, N heads, K key-value heads, G = N / K heads that share one, H head_dim, C queries of a block,
M = G * C rows of a tile, I blocks, P groups of heads, W = T + S - 1 distances. In a tile N and K count the heads of one
group. A tile is [K, G, C, S], or [K, S, G, C] transposed.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from t5flan.kernels.relative_bias import bias_tile

# What a rematerialisation policy may keep (`save_only_these_names`), so that the backward pass need not run the forward
# tiles again: [B, T, N, H] and a float32 for each query and head.
SAVED_NAMES = ('attention_output', 'attention_log_sum')

MASKED = -1e30  # finite: a query that sees no key must not make NaN


@dataclasses.dataclass(frozen=True)
class Form:
    """What is fixed when the program is traced."""

    block: int  # C
    kv_heads: int  # of a tile, K; divides all kv heads
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


class _Group(NamedTuple):
    """The kv heads that a tile holds, their axis in front; in the backward pass with what the queries got."""

    queries: Any  # q_IBKMH, then in the backward pass dy_IBKMH, log_sum_IBKM, inner_IBKM
    k_BKSH: jax.Array
    v_BKSH: jax.Array
    bias_NW: jax.Array | None
    keep_BKGS: jax.Array | None


class _Row(NamedTuple):
    """What one batch row (or, with an axis B in front, all of them) brings to a tile, besides the queries."""

    k_KSH: jax.Array
    v_KSH: jax.Array
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
    groups = _groups(form, operands)
    q_segment_ids_IBC = _split_ids(form, operands)

    def block(group: _Group, i: Any, q_BKMH: jax.Array, q_segment_ids_BC: jax.Array | None) -> Any:
        tile = _shared_tile(form, operands, group, group.bias_NW, i, transposed=False)

        def row(inputs: tuple[jax.Array, _Row]) -> tuple[jax.Array, jax.Array]:
            q_KMH, row = inputs
            logits, _ = _logits(form, _dot(form, q_KMH, row.k_KSH, 2, 2), i, tile, row, operands.q_offset, False)
            # No less than a tenth of MASKED, so that the exponential of a masked logit is zero in every row.
            top = jnp.maximum(jnp.max(logits, axis=-1, keepdims=True), 0.1 * MASKED)
            weights = jnp.exp(logits - top)
            sum_KM1 = jnp.sum(weights, axis=-1).reshape(*q_KMH.shape[:2], 1)
            sum_KM1 = jnp.where(sum_KM1 > 0.0, sum_KM1, 1.0)
            weights_KMS = _drop(form, weights, row.keep_KGS, transposed=False).reshape(*q_KMH.shape[:2], -1)
            y_KMH = _dot(form, weights_KMS.astype(row.v_KSH.dtype), row.v_KSH, 2, 1) / sum_KM1
            return y_KMH.astype(q_KMH.dtype), (top.reshape(sum_KM1.shape) + jnp.log(sum_KM1))[..., 0]

        return lax.map(row, (q_BKMH, _rows(operands, group, q_segment_ids_BC)))

    def all_blocks(group: _Group) -> tuple[jax.Array, jax.Array]:
        inputs = (*group.queries, q_segment_ids_IBC)
        return _scan(lambda _, i, *inputs: (None, block(group, i, *inputs)), None, inputs)[1]

    y_PIBKMH, log_sum_PIBKM = _scan(lambda _, p, group: (None, all_blocks(group)), None, (groups,))[1]
    y_BTNH = checkpoint_name(_join_queries(y_PIBKMH, operands.q_BTNH.shape), SAVED_NAMES[0])
    log_sum_PIBKM = checkpoint_name(log_sum_PIBKM, SAVED_NAMES[1])
    return y_BTNH, (operands._replace(q_BTNH=None, k_BSKH=None, v_BSKH=None), groups, y_BTNH, log_sum_PIBKM)


def _backward(form: Form, residuals: Any, dy_BTNH: jax.Array) -> tuple[Operands]:
    operands, groups, y_BTNH, log_sum_PIBKM = residuals
    kv_heads = groups.k_BKSH.shape[0] * groups.k_BKSH.shape[2]
    # The gradient of a softmax is p * (dp - sum(p * dp)), and that sum is y * dy.
    inner_BTN1 = jnp.sum(y_BTNH.astype(jnp.float32) * dy_BTNH.astype(jnp.float32), axis=-1, keepdims=True)
    groups = groups._replace(queries=(*groups.queries, _split_queries(form, dy_BTNH, kv_heads), log_sum_PIBKM,
                                      _split_queries(form, inner_BTN1, kv_heads)[..., 0]))
    q_segment_ids_IBC = _split_ids(form, operands)

    def block(group: _Group, sums: Any, i: Any, queries: Any, q_segment_ids_BC: jax.Array | None) -> tuple[Any, jax.Array]:
        """`sums`: gradients of keys, values and bias vector so far, None before the first block."""
        tile, tile_vjp = jax.vjp(lambda bias_NW: _shared_tile(form, operands, group, bias_NW, i, transposed=True),
                                 group.bias_NW)
        dk_BKSH, dv_BKSH, dbias_NW = sums or (None, None, None)

        def row(dtile: jax.Array | None, inputs: Any) -> tuple[jax.Array | None, Any]:
            queries, row, dk0_KSH, dv0_KSH = inputs
            dlogits, dq_KHM, dk_KSH, dv_KSH = _tile_gradients(form, i, tile, operands.q_offset, queries, row)
            if dk0_KSH is not None:
                dk_KSH, dv_KSH = dk_KSH + dk0_KSH, dv_KSH + dv0_KSH
            return None if dtile is None else dtile + dlogits, (dq_KHM.astype(dy_BTNH.dtype), dk_KSH, dv_KSH)

        dtile = None if group.bias_NW is None else jnp.zeros(tile.shape, jnp.float32)
        inputs = queries, _rows(operands, group, q_segment_ids_BC), dk_BKSH, dv_BKSH
        dtile, (dq_BKHM, dk_BKSH, dv_BKSH) = lax.scan(row, dtile, inputs)
        if dtile is not None:
            dbias_NW = tile_vjp(dtile)[0] + (0.0 if dbias_NW is None else dbias_NW)
        return (dk_BKSH, dv_BKSH, dbias_NW), dq_BKHM

    def all_blocks(group: _Group) -> Any:
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), (group.k_BKSH, group.v_BKSH, group.bias_NW))
        return _scan(functools.partial(block, group), zeros, (group.queries, q_segment_ids_IBC))

    _, (sums, dq_PIBKHM) = _scan(lambda _, p, group: (None, all_blocks(group)), None, (groups,))
    dk_BSKH, dv_BSKH = (_join_keys(x, dy_BTNH.dtype) for x in sums[:2])
    dbias_NW = None if sums[2] is None else sums[2].reshape(-1, sums[2].shape[-1])
    none = Operands(*[None] * len(Operands._fields))
    return (none._replace(q_BTNH=_join_queries(dq_PIBKHM.swapaxes(4, 5), dy_BTNH.shape), k_BSKH=dk_BSKH, v_BSKH=dv_BSKH,
                          bias_NW=dbias_NW),)


chunked_attention.defvjp(_forward, _backward)


def _tile_gradients(form: Form, i: Any, tile: jax.Array | None, q_offset: jax.Array, queries: Any,
                    row: _Row) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Gradients through one transposed tile: of the logits [K, S, G, C], then dq [K, H, M], dk and dv [K, S, H]."""
    q_KMH, dy_KMH, log_sum_KM, inner_KM = queries
    logits, slope = _logits(form, _dot(form, row.k_KSH, q_KMH, 2, 2), i, tile, row, q_offset, transposed=True)
    per_query = (logits.shape[0], 1, *logits.shape[2:])
    weights = jnp.exp(logits - log_sum_KM.reshape(per_query))
    dweights = _drop(form, _dot(form, row.v_KSH, dy_KMH, 2, 2).reshape(logits.shape), row.keep_KGS, transposed=True)
    dlogits = weights * (dweights - inner_KM.reshape(per_query))
    dproducts = dlogits if slope is None else dlogits * slope
    if form.scale != 1.0:
        dproducts = dproducts * form.scale
    dproducts_KSM = dproducts.reshape(*row.k_KSH.shape[:2], -1).astype(row.k_KSH.dtype)
    weights_KSM = _drop(form, weights, row.keep_KGS, transposed=True).reshape(dproducts_KSM.shape)
    dv_KSH = _dot(form, weights_KSM.astype(row.v_KSH.dtype), dy_KMH, 2, 1)
    dk_KSH = _dot(form, dproducts_KSM, q_KMH, 2, 1)
    dq_KHM = _dot(form, row.k_KSH, dproducts_KSM, 1, 1)
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


def _shared_tile(form: Form, operands: Operands, group: _Group, bias_NW: jax.Array | None, i: Any,
                 transposed: bool) -> jax.Array | None:
    """What is added to the logits of every batch row: the bias, and the causal mask where rows have no prefix."""
    kv_heads, keys = group.k_BKSH.shape[1:3]
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


def _groups(form: Form, operands: Operands) -> _Group:
    """All heads by group, an axis P in front."""
    batch, keys, kv_heads, size = operands.k_BSKH.shape
    group = form.kv_heads
    k_PBKSH, v_PBKSH = (x.reshape(batch, keys, -1, group, size).transpose(2, 0, 3, 1, 4)
                        for x in (operands.k_BSKH, operands.v_BSKH))
    bias, keep = operands.bias_NW, operands.keep_BNS
    if bias is not None:
        bias = bias.reshape(kv_heads // group, -1, bias.shape[1])
    if keep is not None:
        keep = keep.reshape(batch, kv_heads // group, group, -1, keys).swapaxes(0, 1)
    return _Group((_split_queries(form, operands.q_BTNH, kv_heads),), k_PBKSH, v_PBKSH, bias, keep)


def _rows(operands: Operands, group: _Group, q_segment_ids_BC: jax.Array | None) -> _Row:
    """All batch rows of one block."""
    return _Row(group.k_BKSH, group.v_BKSH, group.keep_BKGS, q_segment_ids_BC, operands.kv_segment_ids_BS,
                operands.prefix_BS, operands.key_seen_BS)


def _split_queries(form: Form, x_BTNH: jax.Array, kv_heads: int) -> jax.Array:
    """[B, T, N, H] -> [P, I, B, K, M, H]."""
    batch, queries, heads, size = x_BTNH.shape
    shape = (queries // form.block, form.block, kv_heads // form.kv_heads, form.kv_heads, heads // kv_heads, size)
    x_PIBKGCH = x_BTNH.reshape(batch, *shape).transpose(3, 1, 0, 4, 5, 2, 6)
    return x_PIBKGCH.reshape(*x_PIBKGCH.shape[:4], -1, size)


def _join_queries(x_PIBKMH: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """[P, I, B, K, M, H] -> [B, T, N, H], the inverse."""
    groups, blocks, batch, kv_heads, rows, size = x_PIBKMH.shape
    share = shape[2] // (groups * kv_heads)
    x_PIBKGCH = x_PIBKMH.reshape(groups, blocks, batch, kv_heads, share, rows // share, size)
    return x_PIBKGCH.transpose(2, 1, 5, 0, 3, 4, 6).reshape(shape)


def _join_keys(x_PBKSH: jax.Array, dtype: Any) -> jax.Array:
    """[P, B, K, S, H] -> [B, S, P * K, H]."""
    _, batch, _, keys, size = x_PBKSH.shape
    return x_PBKSH.transpose(1, 3, 0, 2, 4).reshape(batch, keys, -1, size).astype(dtype)


def _split_ids(form: Form, operands: Operands) -> jax.Array | None:
    """The queries' segment ids by block, [I, B, C]."""
    ids_BT = operands.q_segment_ids_BT
    return None if ids_BT is None else ids_BT.reshape(ids_BT.shape[0], -1, form.block).swapaxes(0, 1)


def _scan(step: Callable[..., tuple[Any, Any]], sums: Any, inputs: tuple[Any, ...]) -> tuple[Any, Any]:
    """Scans `step(sums, i, *inputs) -> (sums, outputs)`; where there is one step alone, it gets None for the sums."""
    steps = jax.tree.leaves(inputs)[0].shape[0]
    if steps > 1:
        return lax.scan(lambda sums, x: step(sums, *x), sums, (jnp.arange(steps, dtype=jnp.int32), *inputs))
    sums, outputs = step(None, 0, *jax.tree.map(lambda x: x[0], inputs))
    return sums, jax.tree.map(lambda x: x[None], outputs)
