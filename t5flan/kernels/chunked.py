"""Attention in tiles: logits exist for one batch row and one block of queries at a time, forward and backward.

The idea is that of Flash attention (arXiv:2205.14135), in plain XLA: the forward pass keeps the logarithm of each
query's softmax sum, and the backward pass makes the probabilities of a tile again from it. On a CPU this is faster than
whole arrays, since tiles stay in the cache; anywhere it takes the memory of a tile in place of [B, N, T, S].

What measurement on a CPU decided: a tile reads its own rows and heads from the arrays as they come (a product over strided
heads runs at half the speed, and whole arrays with the head in front are a copy each, which pays where blocks of queries
read the same keys again); the backward tile is the
transposed one, [K, S, rows], so that only one of its five products reads an operand against its order.

B batch, T queries, S keys, N heads, K key-value heads, G = N / K heads that share one, H head_dim, C queries of a block,
M = G * C rows of a tile, W = T + S - 1 distances, J steps: blocks of queries for each group of heads. In a tile N and K
count the heads of one group. A tile is [K, G, C, S], or [K, S, G, C] transposed.
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


class _Place(NamedTuple):
    """Where a tile lies: batch row, first query, first head, first key-value head (int32 scalars)."""

    row: jax.Array
    query: jax.Array
    head: jax.Array
    kv_head: jax.Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def chunked_attention(form: Form, operands: Operands) -> jax.Array:
    """Attention of all queries, [B, T, N, H] in q's dtype; never holds the logits of more than one tile."""
    return _forward(form, operands)[0]


def _forward(form: Form, operands: Operands) -> tuple[jax.Array, Any]:
    k, v = (_arrange_keys(form, operands, x) for x in (operands.k_BSKH, operands.v_BSKH))

    def step(y_BTNH: jax.Array, j: jax.Array) -> tuple[jax.Array, jax.Array]:
        tile = _shared_tile(form, operands, _group_bias(form, operands, j), _place(form, operands, j, 0), False)

        def row(y_BTNH: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
            place = _place(form, operands, j, b)
            q_KMH = _read_queries(form, operands.q_BTNH, operands, place)
            v_KSH = _read_keys(form, operands, v, place)
            products_KMS = _dot(form, q_KMH, _read_keys(form, operands, k, place), 2, 2)
            logits, _ = _logits(form, products_KMS, tile, operands, place, transposed=False)
            # No less than a tenth of MASKED, so that the exponential of a masked logit is zero in every row.
            top = jnp.maximum(jnp.max(logits, axis=-1, keepdims=True), 0.1 * MASKED)
            weights = jnp.exp(logits - top)
            sum_KM1 = jnp.sum(weights, axis=-1).reshape(*q_KMH.shape[:2], 1)
            sum_KM1 = jnp.where(sum_KM1 > 0.0, sum_KM1, 1.0)
            weights_KMS = _drop(form, weights, operands, place, transposed=False).reshape(products_KMS.shape)
            y_KMH = _dot(form, weights_KMS.astype(v_KSH.dtype), v_KSH, 2, 1) / sum_KM1
            log_sum_KM = (top.reshape(sum_KM1.shape) + jnp.log(sum_KM1))[..., 0]
            return _write_queries(form, y_BTNH, y_KMH, place), log_sum_KM

        return lax.scan(row, y_BTNH, _count(operands.q_BTNH.shape[0]))

    y_BTNH, log_sum_JBKM = lax.scan(step, jnp.zeros_like(operands.q_BTNH), _count(_steps(form, operands)))
    y_BTNH, log_sum_JBKM = map(checkpoint_name, (y_BTNH, log_sum_JBKM), SAVED_NAMES)
    return y_BTNH, (operands, y_BTNH, log_sum_JBKM)


def _backward(form: Form, residuals: Any, dy_BTNH: jax.Array) -> tuple[Operands]:
    operands, y_BTNH, log_sum_JBKM = residuals
    several = _several_blocks(form, operands)
    k, v = (_arrange_keys(form, operands, x) for x in (operands.k_BSKH, operands.v_BSKH))

    def step(gradients: Any, inputs: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        j, log_sum_BKM = inputs
        *gradients, dbias_NW = gradients
        group_bias_NW = _group_bias(form, operands, j)
        start = _place(form, operands, j, 0)
        tile, tile_vjp = jax.vjp(lambda bias_NW: _shared_tile(form, operands, bias_NW, start, True), group_bias_NW)

        def row(carry: Any, inputs: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
            dtile, dq_BTNH, dk, dv = carry
            b, log_sum_KM = inputs
            place = _place(form, operands, j, b)
            queries = [_read_queries(form, x, operands, place) for x in (operands.q_BTNH, y_BTNH, dy_BTNH)]
            keys = [_read_keys(form, operands, x, place) for x in (k, v)]
            dlogits, dq_KMH, dk_KSH, dv_KSH = _tile_gradients(form, operands, place, tile, *queries, *keys, log_sum_KM)
            if several:
                dk_KSH = dk_KSH + _read_keys(form, operands, dk, place)
                dv_KSH = dv_KSH + _read_keys(form, operands, dv, place)
            dk, dv = _write_keys(form, operands, dk, dk_KSH, place), _write_keys(form, operands, dv, dv_KSH, place)
            dq_BTNH = _write_queries(form, dq_BTNH, dq_KMH, place)
            return (None if dtile is None else dtile + dlogits, dq_BTNH, dk, dv), None

        dtile = None if dbias_NW is None else jnp.zeros(tile.shape, jnp.float32)
        (dtile, *gradients), _ = lax.scan(row, (dtile, *gradients), (_count(dy_BTNH.shape[0]), log_sum_BKM))
        if dtile is not None:
            summed = lax.dynamic_slice_in_dim(dbias_NW, start.head, group_bias_NW.shape[0]) + tile_vjp(dtile)[0]
            dbias_NW = lax.dynamic_update_slice_in_dim(dbias_NW, summed, start.head, axis=0)
        return (*gradients, dbias_NW), None

    keys_dtype = jnp.float32 if several else k.dtype
    zeros = (
        jnp.zeros_like(operands.q_BTNH),
        jnp.zeros(k.shape, keys_dtype),
        jnp.zeros(v.shape, keys_dtype),
        None if operands.bias_NW is None else jnp.zeros_like(operands.bias_NW),
    )
    gradients, _ = lax.scan(step, zeros, (_count(_steps(form, operands)), log_sum_JBKM))
    dq_BTNH, dk, dv, dbias_NW = gradients
    dk_BSKH, dv_BSKH = (_arrange_keys(form, operands, x).astype(k.dtype) for x in (dk, dv))
    nothing = Operands(*[None] * len(Operands._fields))
    return (nothing._replace(q_BTNH=dq_BTNH, k_BSKH=dk_BSKH, v_BSKH=dv_BSKH, bias_NW=dbias_NW),)


chunked_attention.defvjp(_forward, _backward)


def _tile_gradients(
    form: Form,
    operands: Operands,
    place: _Place,
    tile: jax.Array | None,
    q_KMH: jax.Array,
    y_KMH: jax.Array,
    dy_KMH: jax.Array,
    k_KSH: jax.Array,
    v_KSH: jax.Array,
    log_sum_KM: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Gradients through one transposed tile: of the logits [K, S, G, C], then dq [K, M, H], dk and dv [K, S, H]."""
    logits, slope = _logits(form, _dot(form, k_KSH, q_KMH, 2, 2), tile, operands, place, transposed=True)
    per_query = (logits.shape[0], 1, *logits.shape[2:])
    weights = jnp.exp(logits - log_sum_KM.reshape(per_query))
    dweights = _drop(form, _dot(form, v_KSH, dy_KMH, 2, 2).reshape(logits.shape), operands, place, transposed=True)
    # The gradient of a softmax is p * (dp - sum(p * dp)), and that sum is y * dy.
    inner_KM = jnp.sum(y_KMH.astype(jnp.float32) * dy_KMH.astype(jnp.float32), axis=-1)
    dlogits = weights * (dweights - inner_KM.reshape(per_query))
    if operands.bias_NW is not None:
        dlogits = dlogits - weights * _sum_of_keys(dlogits).reshape(per_query)
    dproducts = dlogits if slope is None else dlogits * slope
    if form.scale != 1.0:
        dproducts = dproducts * form.scale
    dproducts_KSM = dproducts.reshape(*k_KSH.shape[:2], -1).astype(k_KSH.dtype)
    weights_KSM = _drop(form, weights, operands, place, transposed=True).reshape(dproducts_KSM.shape)
    dv_KSH = _dot(form, weights_KSM.astype(v_KSH.dtype), dy_KMH, 2, 1)
    dk_KSH = _dot(form, dproducts_KSM, q_KMH, 2, 1)
    # The barrier keeps XLA from making the product [K, M, H] at once, with both operands against their order.
    dq_KHM = lax.optimization_barrier(_dot(form, k_KSH, dproducts_KSM, 1, 1))
    return dlogits, dq_KHM.swapaxes(1, 2), dk_KSH, dv_KSH


def _sum_of_keys(dlogits: jax.Array) -> jax.Array:
    """What the gradients of each query's logits add up to, [K, M], of a transposed tile.

    It is zero but for rounding: the output that the softmax's gradient is taken from was rounded, and made of rounded
    probabilities. A bias adds up the gradients of many queries, and would be left with what is over.
    """
    kv_heads, keys = dlogits.shape[:2]
    # A product with ones: XLA's CPU takes three times as long as for all the rest to sum over the keys, which lie far apart.
    ones_K1S = jnp.ones((kv_heads, 1, keys), dlogits.dtype)
    return lax.dot_general(
        ones_K1S, dlogits.reshape(kv_heads, keys, -1), (((2,), (1,)), ((0,), (0,))), precision='highest'
    )


def _logits(
    form: Form, products: jax.Array, tile: jax.Array | None, operands: Operands, place: _Place, transposed: bool
) -> tuple[jax.Array, jax.Array | None]:
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
    of_row = lambda x_BS: as_key(lax.dynamic_index_in_dim(x_BS, place.row, keepdims=False))
    allowed = []
    if form.causal and operands.prefix_BS is not None:
        allowed.append(_not_after(form, operands, place, transposed) | of_row(operands.prefix_BS))
    if operands.q_segment_ids_BT is not None:
        ids_C = lax.dynamic_slice(operands.q_segment_ids_BT, (place.row, place.query), (1, form.block))
        allowed.append(as_query(ids_C) == of_row(operands.kv_segment_ids_BS))
    if operands.key_seen_BS is not None:
        allowed.append(of_row(operands.key_seen_BS))
    return (jnp.where(functools.reduce(jnp.logical_and, allowed), logits, MASKED) if allowed else logits), slope


def _axes(transposed: bool) -> tuple[Callable[[jax.Array], jax.Array], Callable[[jax.Array], jax.Array]]:
    """How a vector over queries, and one over keys, lie in a tile."""
    query, key = ((1, 1, 1, -1), (1, -1, 1, 1)) if transposed else ((1, 1, -1, 1), (1, 1, 1, -1))
    return lambda x_C: x_C.reshape(query), lambda x_S: x_S.reshape(key)


def _not_after(form: Form, operands: Operands, place: _Place, transposed: bool) -> jax.Array:
    as_query, as_key = _axes(transposed)
    return as_key(_count(operands.k_BSKH.shape[1])) <= as_query(place.query + operands.q_offset + _count(form.block))


def _shared_tile(
    form: Form, operands: Operands, bias_NW: jax.Array | None, place: _Place, transposed: bool
) -> jax.Array | None:
    """What is added to the logits of every batch row: the bias, and the causal mask where rows have no prefix."""
    tile = None
    if bias_NW is not None:
        bias = bias_tile(bias_NW, place.query, form.block, operands.k_BSKH.shape[1], transposed=transposed)
        bias = bias.reshape(form.kv_heads, -1, *bias.shape[1:])
        tile = bias.swapaxes(1, 2) if transposed else bias
    if form.causal and operands.prefix_BS is None:
        not_after = _not_after(form, operands, place, transposed)
        tile = jnp.where(not_after, 0.0 if tile is None else tile, MASKED)
    return tile


def _drop(form: Form, weights: jax.Array, operands: Operands, place: _Place, transposed: bool) -> jax.Array:
    """Dropout of a tile: a head loses a key for all of its queries."""
    if operands.keep_BNS is None:
        return weights
    heads, keys = form.kv_heads * _share(operands), operands.keep_BNS.shape[2]
    keep_1NS = lax.dynamic_slice(operands.keep_BNS, (place.row, place.head, 0), (1, heads, keys))
    keep_KGS = keep_1NS.reshape(form.kv_heads, -1, keys)
    keep = jnp.expand_dims(keep_KGS.swapaxes(1, 2), 3) if transposed else jnp.expand_dims(keep_KGS, 2)
    return weights * jnp.where(keep, 1.0 / (1.0 - form.dropout_rate), 0.0)


def _dot(form: Form, a: jax.Array, b: jax.Array, a_axis: int, b_axis: int) -> jax.Array:
    """Product over one axis of each, axis 0 in common, summed and given in float32."""
    return lax.dot_general(
        a, b, (((a_axis,), (b_axis,)), ((0,), (0,))), precision=form.precision, preferred_element_type=jnp.float32
    )


def _count(n: int) -> jax.Array:
    return jnp.arange(n, dtype=jnp.int32)


def _share(operands: Operands) -> int:
    """G."""
    return operands.q_BTNH.shape[2] // operands.k_BSKH.shape[2]


def _steps(form: Form, operands: Operands) -> int:
    """J."""
    return operands.q_BTNH.shape[1] // form.block * (operands.k_BSKH.shape[2] // form.kv_heads)


def _place(form: Form, operands: Operands, j: jax.Array, b: Any) -> _Place:
    """Where step j of row b is: all blocks of queries of one group of heads come before the next group."""
    blocks = operands.q_BTNH.shape[1] // form.block
    kv_head = j // blocks * form.kv_heads
    return _Place(jnp.asarray(b, jnp.int32), j % blocks * form.block, kv_head * _share(operands), kv_head)


def _group_bias(form: Form, operands: Operands, j: jax.Array) -> jax.Array | None:
    """The bias vectors of the heads of step j."""
    if operands.bias_NW is None:
        return None
    heads = form.kv_heads * _share(operands)
    return lax.dynamic_slice_in_dim(operands.bias_NW, _place(form, operands, j, 0).head, heads)


def _read_queries(form: Form, x_BTNH: jax.Array, operands: Operands, place: _Place) -> jax.Array:
    """A tile's [K, M, H] of an array like the queries."""
    heads, size = form.kv_heads * _share(operands), x_BTNH.shape[-1]
    x_1CNH = lax.dynamic_slice(x_BTNH, (place.row, place.query, place.head, 0), (1, form.block, heads, size))
    x_KGCH = x_1CNH.reshape(form.block, form.kv_heads, -1, size).transpose(1, 2, 0, 3)
    return x_KGCH.reshape(form.kv_heads, -1, size)


def _write_queries(form: Form, into_BTNH: jax.Array, x_KMH: jax.Array, place: _Place) -> jax.Array:
    """The inverse of `_read_queries`."""
    size = x_KMH.shape[-1]
    x_CKGH = x_KMH.reshape(form.kv_heads, -1, form.block, size).transpose(2, 0, 1, 3)
    x_1CNH = x_CKGH.reshape(1, form.block, -1, size).astype(into_BTNH.dtype)
    return lax.dynamic_update_slice(into_BTNH, x_1CNH, (place.row, place.query, place.head, 0))


def _several_blocks(form: Form, operands: Operands) -> bool:
    """Whether a tile holds some of the queries only, so that keys are read, and their gradients summed, repeatedly."""
    return operands.q_BTNH.shape[1] > form.block


def _arrange_keys(form: Form, operands: Operands, x: jax.Array) -> jax.Array:
    """Keys or values as tiles read them, and back: [B, S, K, H], or with several blocks of queries [B, K, S, H]."""
    return x.swapaxes(1, 2) if _several_blocks(form, operands) else x


def _read_keys(form: Form, operands: Operands, x: jax.Array, place: _Place) -> jax.Array:
    """A tile's [K, S, H] of arranged keys."""
    (_, keys, _, size), kv_heads = operands.k_BSKH.shape, form.kv_heads
    if _several_blocks(form, operands):
        return lax.dynamic_slice(x, (place.row, place.kv_head, 0, 0), (1, kv_heads, keys, size))[0]
    return lax.dynamic_slice(x, (place.row, 0, place.kv_head, 0), (1, keys, kv_heads, size))[0].swapaxes(0, 1)


def _write_keys(form: Form, operands: Operands, into: jax.Array, x_KSH: jax.Array, place: _Place) -> jax.Array:
    """The inverse of `_read_keys`."""
    x_KSH = x_KSH.astype(into.dtype)
    if _several_blocks(form, operands):
        return lax.dynamic_update_slice(into, x_KSH[None], (place.row, place.kv_head, 0, 0))
    return lax.dynamic_update_slice(into, x_KSH.swapaxes(0, 1)[None], (place.row, 0, place.kv_head, 0))
