"""Attention in tiles: logits exist for one batch row and one block of queries at a time, forward and backward.

This is Flash attention (arXiv:2205.14135) in plain XLA: the forward pass saves the log-sum-exp (lse) of each query's
logits, and the backward pass recomputes the probabilities of a tile from it. On a CPU it is faster than whole arrays.

The layout was measured on a CPU. Products over strided heads run at half the speed, but moving the heads of whole
arrays to the front is a copy, which pays off only if several blocks of queries read the same keys. The backward tile is
transposed, so that only one of its five products reads an operand against its memory order.

B batch, T queries, S keys, N heads, K key-value heads, G = N / K heads that share one, H head_dim, C queries of a
block, M = G * C rows of a tile, W = T + S - 1 distances, J steps: blocks of queries for each group of heads. In a tile,
N and K count the heads of one group. A tile is [K, G, C, S], or [K, S, G, C] transposed.

With a window a tile reads only the keys that its queries may see, and S is their number: C, those of the window before
them, and those after them if they look ahead.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from t5flan import sharding
from t5flan.kernels.operands import LEAST_MAXIMUM, MASKED, AttentionSpec, Operands, is_near, with_gradients
from t5flan.kernels.relative_bias import bias_tile, bias_vector

# Logits of one tile. On a CPU, larger tiles were measured to leave the cache; elsewhere a step of the loop must be
# worth its launch. For long keys a tile still has this many rows: every tile reads and writes the gradients of all keys
# again.
_TILE_LOGITS = {'cpu': 500_000, 'other': 16_000_000}
_TILE_ROWS = 256
# Where causal attention leaves out the keys after the queries of a tile, it is read in parts of so many keys: a tile of
# all keys of a long row leaves the cache of a CPU, and half of its logits are masked. Such a tile has more rows, which
# makes the products of a part worth their start: at 8,192 keys it takes a third less time than one of 256 rows.
_KEYS_OF_A_PART = 512
_ROWS_IN_PARTS = 768
_LEAST_WINDOW_BLOCK = 128  # queries of a tile, though the window is smaller


@dataclasses.dataclass(frozen=True, kw_only=True)
class TileSpec(AttentionSpec):
    """The options of a call, and the size of its tiles."""

    block: int  # C
    blocks: int  # of queries; with more than one, keys are read, and their gradients summed, repeatedly
    kv_heads: int  # of a tile, K; divides all key-value heads
    share: int  # G
    keys: int  # S, of a tile: all keys, or those of a window
    part: int = 0  # keys of a part in the forward pass, which leaves out those after the queries; 0: all keys at once
    written_as: jnp.dtype | None = None  # dtype of the arrays that tiles are written to; None: that of the queries

    @property
    def sliding_window(self) -> tuple[int, int] | None:
        """The window, if a tile reads only its keys; None if a prefix is seen from far away."""
        return None if self.far_prefix else self.window

    @property
    def heads(self) -> int:
        """N, of a tile."""
        return self.kv_heads * self.share


class _Place(NamedTuple):
    """The position of a tile: batch row, first query, head, key-value head and key (int32 scalars)."""

    row: jax.Array
    query: jax.Array
    head: jax.Array
    kv_head: jax.Array
    key: jax.Array | int  # 0 unless there is a window


def chunked_attention(spec: AttentionSpec, operands: Operands) -> jax.Array:
    """y_BTNH in q's dtype, holding the logits of one tile at a time; `operands.bias_NW` is the bias table [N, R]."""
    queries, keys, tile_spec = operands.q_BTNH.shape[1], operands.k_BSKH.shape[1], choose_tiles(spec, operands)
    padding = tile_spec.blocks * tile_spec.block - queries
    operands = _pad_queries(operands, padding)
    if spec.bias is not None and operands.bias_NW is not None:
        bias_NW = bias_vector(operands.bias_NW, spec.bias, queries + padding, keys, operands.q_offset)
        operands = operands._replace(bias_NW=bias_NW)
    return _attention(tile_spec, operands)[:, :queries]


def choose_tiles(spec: AttentionSpec, operands: Operands) -> TileSpec:
    """The tiles of a call on the current platform."""
    (_, queries, heads, _), (_, keys, kv_heads, _) = operands.q_BTNH.shape, operands.k_BSKH.shape
    platform, share = sharding.platform(), heads // kv_heads
    if spec.window is not None and not spec.far_prefix:
        ahead = not spec.causal or operands.prefix_BS is not None
        before, after = spec.window
        reach, window = before + (after if ahead else 0), max(before, after) + 1
        block, tile_kv_heads, tile_keys = _window_tile_size(window, reach, queries, keys, share, kv_heads, platform)
        part = 0
    else:
        skips, tile_keys = _skips_keys(spec, operands, platform), keys
        rows = _ROWS_IN_PARTS if skips else _TILE_ROWS
        block, tile_kv_heads = _tile_size(queries, keys, heads, kv_heads, platform, rows)
        part = _KEYS_OF_A_PART if block < queries and skips else 0
    sizes: dict[str, Any] = dict(
        block=block, blocks=-(-queries // block), kv_heads=tile_kv_heads, share=share, keys=tile_keys
    )
    # XLA's CPU writes a slice of a 16-bit array by writing all of the array.
    written_as = jnp.dtype(jnp.float32) if platform == 'cpu' else None
    return TileSpec(**vars(spec), **sizes, part=part, written_as=written_as)


def _skips_keys(spec: AttentionSpec, operands: Operands, platform: str) -> bool:
    """Whether the forward pass leaves out the keys after a block of queries: in long causal rows on a CPU."""
    other = operands.bias_NW, operands.keep_BNS, operands.prefix_BS
    long = operands.k_BSKH.shape[1] >= 4 * _KEYS_OF_A_PART
    return platform == 'cpu' and spec.causal and long and all(x is None for x in other)


def _tile_size(queries: int, keys: int, heads: int, kv_heads: int, platform: str, rows: int) -> tuple[int, int]:
    """Queries and key-value heads of a tile of at least `rows`, if there are as many.

    If not all queries fit, blocks share them evenly, in multiples of 8.
    """
    share = heads // kv_heads
    logits = _TILE_LOGITS.get(platform, _TILE_LOGITS['other'])
    if share * queries * keys <= logits:
        fit = logits // (share * queries * keys)
        return queries, max(n for n in range(1, min(fit, kv_heads) + 1) if kv_heads % n == 0)
    return _even_block(queries, max(logits // (share * keys), rows // share, 8)), 1


def _even_block(queries: int, most: int) -> int:
    """The queries of a block, at most `most` (a multiple of 8, up to 7 more): all of them, or evenly shared."""
    if queries <= most:
        return queries
    blocks = -(-queries // most)
    return -(-queries // blocks // 8) * 8


def _window_tile_size(
    window: int, reach: int, queries: int, keys: int, share: int, kv_heads: int, platform: str
) -> tuple[int, int, int]:
    """Queries, key-value heads and keys of a tile in a window: C queries read C + `reach` keys.

    A tile of more queries than the window would compute more masked logits than others.
    """
    logits = _TILE_LOGITS.get(platform, _TILE_LOGITS['other'])
    fit = (math.isqrt(reach * reach + 4 * logits // share) - reach) // 2  # C * (C + reach) * share <= logits
    most = min(max(fit, _TILE_ROWS // share, 8), max(window, _LEAST_WINDOW_BLOCK))
    block = _even_block(queries, most)
    tile_keys = min(keys, block + reach)
    heads = max(1, logits // (share * block * tile_keys))
    return block, max(n for n in range(1, min(heads, kv_heads) + 1) if kv_heads % n == 0), tile_keys


def _pad_queries(operands: Operands, padding: int) -> Operands:
    """Adds queries whose output is discarded, so that blocks divide T."""
    if not padding:
        return operands
    q_BTNH = jnp.pad(operands.q_BTNH, [(0, 0), (0, padding), (0, 0), (0, 0)])
    ids_BT = operands.q_segment_ids_BT
    if ids_BT is not None:
        ids_BT = jnp.pad(ids_BT, [(0, 0), (0, padding)], constant_values=-1)
    return operands._replace(q_BTNH=q_BTNH, q_segment_ids_BT=ids_BT)


def _forward(spec: TileSpec, operands: Operands) -> tuple[jax.Array, jax.Array]:
    """The output, and the lse [J, B, K, M]."""
    k, v = (_arrange_keys(spec, x) for x in (operands.k_BSKH, operands.v_BSKH))

    def step(y_BTNH: jax.Array, j: jax.Array) -> tuple[jax.Array, jax.Array]:
        tile = None
        if not spec.part:
            tile = _shared_tile(spec, operands, _group_bias(spec, operands, j), _place(spec, operands, j, 0), False)

        def row(y_BTNH: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
            place = _place(spec, operands, j, b)
            if spec.part:
                y_KMH, lse_KM = _forward_in_parts(spec, operands, k, v, place)
                return _write_queries(spec, y_BTNH, y_KMH, place), lse_KM
            q_KMH = _read_queries(spec, operands.q_BTNH, place)
            v_KSH = _read_keys(spec, v, place)
            products_KMS = _dot(spec, q_KMH, _read_keys(spec, k, place), 2, 2)
            logits, _ = _logits(spec, products_KMS, tile, operands, place, transposed=False)
            largest = jnp.maximum(jnp.max(logits, axis=-1, keepdims=True), LEAST_MAXIMUM)
            weights = jnp.exp(logits - largest)
            sum_KM1 = jnp.sum(weights, axis=-1).reshape(*q_KMH.shape[:2], 1)
            sum_KM1 = jnp.where(sum_KM1 > 0.0, sum_KM1, 1.0)
            weights_KMS = _drop(spec, weights, operands, place, transposed=False).reshape(products_KMS.shape)
            y_KMH = _dot(spec, weights_KMS.astype(v_KSH.dtype), v_KSH, 2, 1) / sum_KM1
            lse_KM = (largest.reshape(sum_KM1.shape) + jnp.log(sum_KM1))[..., 0]
            return _write_queries(spec, y_BTNH, y_KMH, place), lse_KM

        return lax.scan(row, y_BTNH, _count(operands.q_BTNH.shape[0]))

    y_BTNH, lse_JBKM = lax.scan(step, jnp.zeros_like(operands.q_BTNH, spec.written_as), _steps(spec, operands))
    return y_BTNH.astype(operands.q_BTNH.dtype), lse_JBKM


def _forward_in_parts(
    spec: TileSpec, operands: Operands, k_BKSH: jax.Array, v_BKSH: jax.Array, place: _Place
) -> tuple[jax.Array, jax.Array]:
    """The output [K, M, H] and lse [K, M] of a causal tile, by parts of the keys up to its last query.

    A running maximum and sum join the softmax of the parts, as in Flash attention.
    """
    q_KMH = _read_queries(spec, operands.q_BTNH, place)
    keys, size, (kv_heads, rows, _) = k_BKSH.shape[2], spec.part, q_KMH.shape
    query_C = place.query + operands.q_offset + _count(spec.block)
    as_query, as_key = _axes(False)

    def part(i: jax.Array, state: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        largest_KM1, sum_KM1, y_KMH = state
        first = jnp.minimum(i * size, keys - size)  # the last part overlaps the one before, whose keys are masked
        key_P = first + _count(size)
        of_part = lambda x_BS: None if x_BS is None else lax.dynamic_slice_in_dim(x_BS, first, size, axis=1)
        seen: Any = dict(
            kv_segment_ids_BS=of_part(operands.kv_segment_ids_BS), key_seen_BS=of_part(operands.key_seen_BS)
        )
        read = lambda x: lax.dynamic_slice(x, (place.row, place.kv_head, first, 0), (1, kv_heads, size, x.shape[-1]))[0]
        v_KPH = read(v_BKSH)
        tile = jnp.where((as_key(key_P) <= as_query(query_C)) & (as_key(key_P) >= i * size), 0.0, MASKED)
        products_KMP = _dot(spec, q_KMH, read(k_BKSH), 2, 2)
        logits = _logits(spec, products_KMP, tile, operands._replace(**seen), place, transposed=False)[0]
        logits_KMP = logits.reshape(products_KMP.shape)
        new_KM1 = jnp.maximum(largest_KM1, jnp.max(logits_KMP, axis=-1, keepdims=True))
        weights_KMP, decay_KM1 = jnp.exp(logits_KMP - new_KM1), jnp.exp(largest_KM1 - new_KM1)
        sum_KM1 = sum_KM1 * decay_KM1 + jnp.sum(weights_KMP, axis=-1, keepdims=True)
        y_KMH = y_KMH * decay_KM1 + _dot(spec, weights_KMP.astype(v_KPH.dtype), v_KPH, 2, 1)
        return new_KM1, sum_KM1, y_KMH

    parts = jnp.clip(-(-(query_C[-1] + 1) // size), 0, -(-keys // size))
    zeros_KM1 = jnp.zeros((kv_heads, rows, 1), jnp.float32)
    start = zeros_KM1 + LEAST_MAXIMUM, zeros_KM1, jnp.zeros(q_KMH.shape, jnp.float32)
    largest_KM1, sum_KM1, y_KMH = lax.fori_loop(0, parts, part, start)
    sum_KM1 = jnp.where(sum_KM1 > 0.0, sum_KM1, 1.0)
    return y_KMH / sum_KM1, (largest_KM1 + jnp.log(sum_KM1))[..., 0]


def _backward(
    spec: TileSpec, operands: Operands, y_BTNH: jax.Array, lse_JBKM: jax.Array, dy_BTNH: jax.Array
) -> Operands:
    k, v = (_arrange_keys(spec, x) for x in (operands.k_BSKH, operands.v_BSKH))

    def step(gradients: Any, inputs: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        j, lse_BKM = inputs
        *gradients, dbias_NW = gradients
        group_bias_NW = _group_bias(spec, operands, j)
        start = _place(spec, operands, j, 0)
        tile, tile_vjp = jax.vjp(lambda bias_NW: _shared_tile(spec, operands, bias_NW, start, True), group_bias_NW)

        def row(carry: Any, inputs: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
            dtile, dq_BTNH, dk, dv = carry
            b, lse_KM = inputs
            place = _place(spec, operands, j, b)
            queries = [_read_queries(spec, x, place) for x in (operands.q_BTNH, y_BTNH, dy_BTNH)]
            keys = [_read_keys(spec, x, place) for x in (k, v)]
            dlogits, dq_KMH, dk_KSH, dv_KSH = _tile_gradients(spec, operands, place, tile, queries, keys, lse_KM)
            if spec.blocks > 1:
                dk_KSH, dv_KSH = dk_KSH + _read_keys(spec, dk, place), dv_KSH + _read_keys(spec, dv, place)
            dk, dv = _write_keys(spec, dk, dk_KSH, place), _write_keys(spec, dv, dv_KSH, place)
            dq_BTNH = _write_queries(spec, dq_BTNH, dq_KMH, place)
            return (None if dtile is None else dtile + dlogits, dq_BTNH, dk, dv), None

        dtile = None if dbias_NW is None or tile is None else jnp.zeros(tile.shape, jnp.float32)
        (dtile, *gradients), _ = lax.scan(row, (dtile, *gradients), (_count(dy_BTNH.shape[0]), lse_BKM))
        if dtile is not None and group_bias_NW is not None:
            summed = lax.dynamic_slice_in_dim(dbias_NW, start.head, group_bias_NW.shape[0]) + tile_vjp(dtile)[0]
            dbias_NW = lax.dynamic_update_slice_in_dim(dbias_NW, summed, start.head, axis=0)
        return (*gradients, dbias_NW), None

    keys_dtype = jnp.float32 if spec.blocks > 1 else spec.written_as
    zeros: Any = jnp.zeros_like(operands.q_BTNH, spec.written_as), *(jnp.zeros_like(x, keys_dtype) for x in (k, v))
    dbias_NW = None if operands.bias_NW is None else jnp.zeros_like(operands.bias_NW)
    (dq_BTNH, dk, dv, dbias_NW), _ = lax.scan(step, (*zeros, dbias_NW), (_steps(spec, operands), lse_JBKM))
    dq_BTNH = dq_BTNH.astype(operands.q_BTNH.dtype)
    dk_BSKH, dv_BSKH = (_arrange_keys(spec, x).astype(k.dtype) for x in (dk, dv))
    no_gradient: Any = None
    return Operands(dq_BTNH, dk_BSKH, dv_BSKH, no_gradient, dbias_NW)


_attention = with_gradients(_forward, _backward)


def _tile_gradients(
    spec: TileSpec,
    operands: Operands,
    place: _Place,
    tile: jax.Array | None,
    queries: list,
    keys: list,
    lse_KM: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Gradients of one transposed tile: of the logits [K, S, G, C], then dq [K, M, H], dk and dv [K, S, H].

    `queries` are q, y and dy [K, M, H], `keys` are k and v [K, S, H], `tile` is from `_shared_tile`.
    """
    (q_KMH, y_KMH, dy_KMH), (k_KSH, v_KSH) = queries, keys
    logits, slope = _logits(spec, _dot(spec, k_KSH, q_KMH, 2, 2), tile, operands, place, transposed=True)
    per_query = (logits.shape[0], 1, *logits.shape[2:])
    weights = jnp.exp(logits - lse_KM.reshape(per_query))
    dweights = _drop(spec, _dot(spec, v_KSH, dy_KMH, 2, 2).reshape(logits.shape), operands, place, transposed=True)
    # The gradient of a softmax is p * (dp - delta), where delta = sum(p * dp) = y * dy.
    delta_KM = jnp.sum(y_KMH.astype(jnp.float32) * dy_KMH.astype(jnp.float32), axis=-1)
    dlogits = weights * (dweights - delta_KM.reshape(per_query))
    if operands.bias_NW is not None:
        dlogits = dlogits - weights * _sum_of_keys(dlogits).reshape(per_query)
    dproducts = dlogits if slope is None else dlogits * slope
    if spec.scale != 1.0:
        dproducts = dproducts * spec.scale
    dproducts_KSM = dproducts.reshape(*k_KSH.shape[:2], -1).astype(k_KSH.dtype)
    weights_KSM = _drop(spec, weights, operands, place, transposed=True).reshape(dproducts_KSM.shape)
    dv_KSH = _dot(spec, weights_KSM.astype(v_KSH.dtype), dy_KMH, 2, 1)
    dk_KSH = _dot(spec, dproducts_KSM, q_KMH, 2, 1)
    # Without the barrier XLA computes [K, M, H] directly, with both operands against their memory order.
    dq_KHM = lax.optimization_barrier(_dot(spec, k_KSH, dproducts_KSM, 1, 1))
    return dlogits, dq_KHM.swapaxes(1, 2), dk_KSH, dv_KSH


def _sum_of_keys(dlogits: jax.Array) -> jax.Array:
    """The sum over keys of the logit gradients of a transposed tile, [K, M].

    It is zero up to rounding: delta comes from an output that was rounded, and that rounded probabilities produced. The
    gradient of the bias sums over many queries, so that the error would add up; it is subtracted instead.
    """
    kv_heads, keys = dlogits.shape[:2]
    # A product with ones: on XLA's CPU a sum over the keys, which lie far apart, takes three times as long as the rest.
    ones_K1S = jnp.ones((kv_heads, 1, keys), dlogits.dtype)
    axes = (((2,), (1,)), ((0,), (0,)))
    return lax.dot_general(ones_K1S, dlogits.reshape(kv_heads, keys, -1), axes, precision='highest')


def _logits(
    spec: TileSpec, products: jax.Array, tile: jax.Array | None, operands: Operands, place: _Place, transposed: bool
) -> tuple[jax.Array, jax.Array | None]:
    """Products [K, M, S] or [K, S, M] -> masked logits of the tile, and the derivative of the soft cap or None."""
    kv_heads, keys = products.shape[0], products.shape[1 if transposed else 2]
    shape = (kv_heads, keys, -1, spec.block) if transposed else (kv_heads, -1, spec.block, keys)
    logits, slope = products.reshape(shape), None
    if spec.scale != 1.0:
        logits = logits * spec.scale
    if spec.soft_cap is not None:
        tanh = jnp.tanh(logits / spec.soft_cap)
        logits, slope = spec.soft_cap * tanh, 1.0 - tanh * tanh
    if tile is not None:
        logits = logits + tile
    as_query, as_key = _axes(transposed)
    of_row = lambda x_BS: as_key(_row_of_keys(spec, x_BS, place))
    allowed = []
    if spec.causal and operands.prefix_BS is not None:
        seen = _not_after(spec, operands, place, transposed)
        if spec.window is not None and spec.far_prefix:
            seen &= _is_near(spec, spec.window, operands, place, transposed)
        allowed.append(seen | of_row(operands.prefix_BS))
    if operands.q_segment_ids_BT is not None and operands.kv_segment_ids_BS is not None:
        ids_C = lax.dynamic_slice(operands.q_segment_ids_BT, (place.row, place.query), (1, spec.block))
        allowed.append(as_query(ids_C) == of_row(operands.kv_segment_ids_BS))
    if operands.key_seen_BS is not None:
        allowed.append(of_row(operands.key_seen_BS))
    if allowed:
        logits = jnp.where(functools.reduce(jnp.logical_and, allowed), logits, MASKED)
    return logits, slope


def _row_of_keys(spec: TileSpec, x_BS: jax.Array, place: _Place) -> jax.Array:
    """The row of a tile, and its keys if there is a window."""
    if spec.sliding_window is None:
        return lax.dynamic_index_in_dim(x_BS, place.row, keepdims=False)
    return lax.dynamic_slice(x_BS, (place.row, place.key), (1, spec.keys))[0]


def _axes(transposed: bool) -> tuple[Callable[[jax.Array], jax.Array], Callable[[jax.Array], jax.Array]]:
    """Functions that broadcast a vector over queries, and one over keys, to a tile."""
    query, key = ((1, 1, 1, -1), (1, -1, 1, 1)) if transposed else ((1, 1, -1, 1), (1, 1, 1, -1))
    return lambda x_C: x_C.reshape(query), lambda x_S: x_S.reshape(key)


def _not_after(spec: TileSpec, operands: Operands, place: _Place, transposed: bool) -> jax.Array:
    key_S, query_C = _key_and_query(spec, operands, place, transposed)
    return key_S <= query_C


def _is_near(spec: TileSpec, window: tuple[int, int], operands: Operands, place: _Place, transposed: bool) -> jax.Array:
    key_S, query_C = _key_and_query(spec, operands, place, transposed)
    return is_near(window, key_S - query_C)


def _key_and_query(spec: TileSpec, operands: Operands, place: _Place, transposed: bool) -> tuple[jax.Array, jax.Array]:
    """The indices of a tile's keys and queries among all keys."""
    as_query, as_key = _axes(transposed)
    key_S = as_key(_count(spec.keys))
    key_S = key_S if spec.sliding_window is None else key_S + place.key
    return key_S, as_query(place.query + operands.q_offset + _count(spec.block))


def _shared_tile(
    spec: TileSpec, operands: Operands, bias_NW: jax.Array | None, place: _Place, transposed: bool
) -> jax.Array | None:
    """A tile to add to the logits of every batch row: bias, window, and the causal mask unless rows have a prefix."""
    tile = None
    if bias_NW is not None:
        first = place.query
        if spec.sliding_window is not None:  # only the distances of the tile
            width, last = spec.block + spec.keys - 1, bias_NW.shape[1] - operands.k_BSKH.shape[1] + 1 - spec.block
            bias_NW = lax.dynamic_slice_in_dim(bias_NW, last - place.query + place.key, width, axis=1)
            first = jnp.zeros((), jnp.int32)
        bias = bias_tile(bias_NW, first, spec.block, spec.keys, transposed=transposed)
        bias = bias.reshape(spec.kv_heads, -1, *bias.shape[1:])
        tile = bias.swapaxes(1, 2) if transposed else bias
    if spec.causal and operands.prefix_BS is None:
        not_after = _not_after(spec, operands, place, transposed)
        tile = jnp.where(not_after, 0.0 if tile is None else tile, MASKED)
    if spec.sliding_window is not None:
        near = _is_near(spec, spec.sliding_window, operands, place, transposed)
        tile = jnp.where(near, 0.0 if tile is None else tile, MASKED)
    return tile


def _drop(spec: TileSpec, weights: jax.Array, operands: Operands, place: _Place, transposed: bool) -> jax.Array:
    """Dropout of a tile: a head drops a key for all queries."""
    if operands.keep_BNS is None:
        return weights
    keep_1NS = lax.dynamic_slice(operands.keep_BNS, (place.row, place.head, place.key), (1, spec.heads, spec.keys))
    keep_KGS = keep_1NS.reshape(spec.kv_heads, -1, spec.keys)
    keep = jnp.expand_dims(keep_KGS.swapaxes(1, 2), 3) if transposed else jnp.expand_dims(keep_KGS, 2)
    return weights * jnp.where(keep, 1.0 / (1.0 - spec.dropout_rate), 0.0)


def _dot(spec: TileSpec, a: jax.Array, b: jax.Array, a_axis: int, b_axis: int) -> jax.Array:
    """Product over one axis of each, with axis 0 as batch axis; summed and returned in float32."""
    axes = (((a_axis,), (b_axis,)), ((0,), (0,)))
    return lax.dot_general(a, b, axes, precision=spec.precision, preferred_element_type=jnp.float32)


def _count(n: int) -> jax.Array:
    return jnp.arange(n, dtype=jnp.int32)


def _steps(spec: TileSpec, operands: Operands) -> jax.Array:
    """The numbers of the steps of the loop over tiles, [J]."""
    return _count(spec.blocks * (operands.k_BSKH.shape[2] // spec.kv_heads))


def _place(spec: TileSpec, operands: Operands, j: jax.Array, b: Any) -> _Place:
    """The position of step j in row b: all blocks of queries of one group of heads come before the next group."""
    kv_head, query = j // spec.blocks * spec.kv_heads, j % spec.blocks * spec.block
    key: jax.Array | int = 0
    if spec.sliding_window is not None:
        key = query + operands.q_offset - spec.sliding_window[0]
        key = jnp.clip(key, 0, operands.k_BSKH.shape[1] - spec.keys)
    return _Place(jnp.asarray(b, jnp.int32), query, kv_head * spec.share, kv_head, key)


def _group_bias(spec: TileSpec, operands: Operands, j: jax.Array) -> jax.Array | None:
    """The bias vectors of the heads of step j."""
    if operands.bias_NW is None:
        return None
    return lax.dynamic_slice_in_dim(operands.bias_NW, _place(spec, operands, j, 0).head, spec.heads)


def _read_queries(spec: TileSpec, x_BTNH: jax.Array, place: _Place) -> jax.Array:
    """A tile's part [K, M, H] of an array like the queries."""
    size = x_BTNH.shape[-1]
    x_1CNH = lax.dynamic_slice(x_BTNH, (place.row, place.query, place.head, 0), (1, spec.block, spec.heads, size))
    x_KGCH = x_1CNH.reshape(spec.block, spec.kv_heads, -1, size).transpose(1, 2, 0, 3)
    return x_KGCH.reshape(spec.kv_heads, -1, size)


def _write_queries(spec: TileSpec, into_BTNH: jax.Array, x_KMH: jax.Array, place: _Place) -> jax.Array:
    """The inverse of `_read_queries`."""
    size = x_KMH.shape[-1]
    x_CKGH = x_KMH.reshape(spec.kv_heads, -1, spec.block, size).transpose(2, 0, 1, 3)
    x_1CNH = x_CKGH.reshape(1, spec.block, -1, size).astype(into_BTNH.dtype)
    return lax.dynamic_update_slice(into_BTNH, x_1CNH, (place.row, place.query, place.head, 0))


def _arrange_keys(spec: TileSpec, x: jax.Array) -> jax.Array:
    """Keys or values as tiles read them, and back: [B, S, K, H], or [B, K, S, H] for several blocks of queries."""
    return x.swapaxes(1, 2) if spec.blocks > 1 else x


def _read_keys(spec: TileSpec, x: jax.Array, place: _Place) -> jax.Array:
    """A tile's part [K, S, H] of arranged keys."""
    kv_heads, size = spec.kv_heads, x.shape[-1]
    if spec.blocks > 1:
        return lax.dynamic_slice(x, (place.row, place.kv_head, place.key, 0), (1, kv_heads, spec.keys, size))[0]
    start, sizes = (place.row, place.key, place.kv_head, 0), (1, spec.keys, kv_heads, size)
    return lax.dynamic_slice(x, start, sizes)[0].swapaxes(0, 1)


def _write_keys(spec: TileSpec, into: jax.Array, x_KSH: jax.Array, place: _Place) -> jax.Array:
    """The inverse of `_read_keys`."""
    x_KSH = x_KSH.astype(into.dtype)
    if spec.blocks > 1:
        return lax.dynamic_update_slice(into, x_KSH[None], (place.row, place.kv_head, place.key, 0))
    return lax.dynamic_update_slice(into, x_KSH.swapaxes(0, 1)[None], (place.row, place.key, place.kv_head, 0))
