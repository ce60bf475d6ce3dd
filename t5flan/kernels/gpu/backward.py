"""The backward Pallas GPU kernels: the gradients of queries, of the bias near the diagonal, and of keys and values.

Each recomputes the probabilities of a tile from the lse of its queries. See `gpu/tile.py` for the letters and for how a
tile is computed.

**The gradient of the bias** is one sum for each distance. Tiles at the same distance from the diagonal hold the same
distances, so a separate kernel adds up all tiles of one such line, element by element, and the diagonals of the
result are summed once, outside. That is 2 of the 7 products of the backward pass, for a strip of tiles as wide as the
reach. All pairs with a key at least `reach` after the query share one number, which the kernel of the queries sums; the
sum of those as far before is what remains, since the gradients of a query's logits sum to zero. There are no atomic
additions: results are deterministic.

As in `tpu/backward.py`, rounding makes that sum not quite zero. The kernel of the queries, which runs first, also
returns it for each query (the excess), and the others subtract it.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from t5flan.kernels.gpu import tile
from t5flan.kernels.gpu.forward import Outputs, input_specs, inputs_by_query, query_ids, run_kernel, specs_by_query
from t5flan.kernels.gpu.tile import Arrays, At, Refs, TileSpec
from t5flan.kernels.operands import KernelArrays, dot
from t5flan.kernels.relative_bias import toeplitz

_PROGRAMS = 1024  # of the sums along diagonals: several for each of a GPU's 100 to 150 multiprocessors


def backward(
    spec: TileSpec, arrays: KernelArrays, y_BTNH: jax.Array, lse_BNT: jax.Array, dy_BTNH: jax.Array
) -> KernelArrays:
    """Gradients of q, k, v and of the bias in natural logits, each like its array; None for the rest."""
    product_BTNH = y_BTNH.astype(jnp.float32) * dy_BTNH.astype(jnp.float32)
    given = {'dy': dy_BTNH, 'lse': lse_BNT, 'delta': jnp.sum(product_BTNH, axis=-1).swapaxes(1, 2)}
    dq_BTNH, *sums = _gradient_of_queries(spec, arrays, given)
    dbias_NW = None
    if sums:
        excess_BNT, after_BNI = sums
        given['delta'] = given['delta'] + excess_BNT
        dbias_NW = _gradient_of_bias(spec, arrays, given, jnp.sum(after_BNI, axis=(0, 2)))
    dk_BSKH, dv_BSKH = _gradient_of_keys(spec, arrays, given)
    no_gradient: Any = None
    return KernelArrays(dq_BTNH, dk_BSKH, dv_BSKH, dbias_NW, None, None, None, no_gradient)


def _gradients_of_logits(
    spec: TileSpec, refs: Refs, zone: str, at: At, ids_C: jax.Array | None, tiles: tuple, key_axis: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The probabilities of a tile, the gradient of its logits, and that of its products / scale.

    `tiles` are q and dy [C, H], k and v [P, H], lse and delta [C]; results are [C, P] if `key_axis` is 1, else [P, C].
    """
    q_CH, dy_CH, k_PH, v_PH, lse_C, delta_C = tiles
    multiply = lambda of_query, of_key: dot(spec, *((of_query, of_key) if key_axis else (of_key, of_query)), 1, 1)
    as_query = lambda x_C: jnp.expand_dims(x_C, key_axis)
    x, slope = tile.logits(spec, multiply(q_CH, k_PH), zone, refs, at, ids_C, key_axis)
    weights, dweights = tile.exp2(spec, x - as_query(lse_C)), multiply(dy_CH, v_PH)
    factor = tile.dropout_factor(spec, refs, at.key, k_PH.shape[0], key_axis)
    if factor is not None:
        dweights = dweights * factor
    dlogits = weights * (dweights - as_query(delta_C))
    return weights, dlogits, dlogits if slope is None else dlogits * slope


def _gradient_of_queries(spec: TileSpec, arrays: KernelArrays, given: Arrays) -> list[jax.Array]:
    """dq; with a bias also the sum of each query's logit gradients, and the part of those far after their query."""
    batch, queries, heads, _ = arrays.q.shape
    blocks = spec.tiling.gradient_of_queries
    specs = specs_by_query(spec, arrays, blocks)
    inputs = inputs_by_query(spec, arrays, blocks) | given
    outputs: Outputs = {'dq': (specs['q'], arrays.q)}
    if spec.bias is not None:
        shaped = lambda length: jax.ShapeDtypeStruct((batch, heads, length), jnp.float32)
        outputs['excess'] = specs['lse'], shaped(queries)
        per_block = pl.BlockSpec((None, None, 1), lambda i, n, b: (b, n, i))
        outputs['after'] = per_block, shaped(queries // blocks.queries)
    kernel, grid = functools.partial(_query_kernel, spec), (queries // blocks.queries, heads, batch)
    return run_kernel(spec, kernel, 'gradient_of_queries', grid, blocks, specs, inputs, outputs)


def _query_kernel(spec: TileSpec, refs: Refs) -> None:
    blocks = spec.tiling.gradient_of_queries
    query, ids_C = pl.program_id(0) * blocks.queries, query_ids(spec, refs)
    q_CH, dy_CH, lse_C, delta_C = (refs[name].ref[...] for name in ('q', 'dy', 'lse', 'delta'))

    def add_tile(zone: str, key: jax.Array, keys: int, carry: tuple) -> tuple:
        dq_CH, *sums = carry
        k_PH, v_PH = (tile.rows(refs[name], key, keys) for name in ('k', 'v'))
        at, tiles = At(query, key), (q_CH, dy_CH, k_PH, v_PH, lse_C, delta_C)
        weights_CP, dlogits_CP, dproducts_CP = _gradients_of_logits(spec, refs, zone, at, ids_C, tiles, 1)
        dq_CH = dq_CH + dot(spec, dproducts_CP.astype(k_PH.dtype), k_PH, 1, 0)
        return dq_CH, *(_add_to_sums(spec, refs, zone, at, sums, weights_CP, dlogits_CP) if sums else ())

    zeros = (jnp.zeros((blocks.queries,), jnp.float32),) * (0 if spec.bias is None else 3)
    carry = (jnp.zeros(q_CH.shape, jnp.float32), *zeros)
    dq_CH, *sums = tile.over_keys(spec, blocks, refs, query, add_tile, carry)
    refs['dq'].ref[...] = (dq_CH * spec.scale).astype(refs['dq'].ref.dtype)
    if sums:
        excess_C, after_C, weight_after_C = sums
        refs['excess'].ref[...] = excess_C
        refs['after'].ref[0] = jnp.sum(after_C - excess_C * weight_after_C)


def _add_to_sums(
    spec: TileSpec, refs: Refs, zone: str, at: At, sums: list, weights_CP: jax.Array, dlogits_CP: jax.Array
) -> tuple:
    """Each query's sums of logit gradients, of those at least `reach` after it, and of the probabilities there."""
    excess_C, after_C, weight_after_C = sums
    excess_C = excess_C + jnp.sum(dlogits_CP, axis=1)
    if zone == 'before' or not spec.looks_after:
        return excess_C, after_C, weight_after_C
    if zone == 'near':
        after_CP = tile.distances(refs, at, dlogits_CP.shape, 1) >= spec.reach
        dlogits_CP, weights_CP = (jnp.where(after_CP, x, 0.0) for x in (dlogits_CP, weights_CP))
    return excess_C, after_C + jnp.sum(dlogits_CP, axis=1), weight_after_C + jnp.sum(weights_CP, axis=1)


def _gradient_of_bias(spec: TileSpec, arrays: KernelArrays, given: Arrays, after_N: jax.Array) -> jax.Array:
    """The gradient of the bias of every distance, [N, 2 * reach + 1], in natural logits; `after_N` is the last one."""
    (batch, queries, heads, size), (_, keys, _, _) = arrays.q.shape, arrays.k.shape
    blocks, reach = spec.tiling.diagonals, spec.reach
    block = blocks.queries
    first, rows = strip(block, reach)
    blocks_q = queries // block
    splits = min(blocks_q, max(1, _PROGRAMS // (heads * rows)))
    inputs = arrays.given() | given
    whole = lambda length: pl.BlockSpec((batch, length), lambda n, d, p: (0, 0))
    of_head = lambda length: pl.BlockSpec((batch, None, length), lambda n, d, p: (0, n, 0))
    specs = input_specs(
        by_query=pl.BlockSpec((batch, queries, None, size), lambda n, d, p: (0, 0, n, 0)),
        by_key=pl.BlockSpec((batch, keys, None, size), lambda n, d, p: (0, 0, lax.div(n, spec.share), 0)),
        per_query=of_head(queries),
        keep=of_head(keys),
        query_ids=whole(queries),
        key_ids=whole(keys),
        bias=pl.BlockSpec((None, inputs['bias'].shape[1]), lambda n, d, p: (n, 0)),
    )
    tiles = pl.BlockSpec((None, None, None, block, block), lambda n, d, p: (p, n, d, 0, 0))
    outputs: Outputs = {'tiles': (tiles, jax.ShapeDtypeStruct((splits, heads, rows, block, block), jnp.float32))}
    kernel = functools.partial(_diagonal_kernel, spec, (batch, blocks_q, keys // block, splits))
    grid = heads, rows, splits
    (tiles_ZNDCP,) = run_kernel(spec, kernel, 'gradient_of_bias', grid, blocks, specs, inputs, outputs)
    near_NW = _sums_by_distance(jnp.sum(tiles_ZNDCP, axis=0), first, reach, arrays.q_offset[0])
    before_N = -jnp.sum(near_NW, axis=1) - after_N
    return jnp.concatenate([before_N[:, None], near_NW, after_N[:, None]], axis=1)


def strip(block: int, reach: int) -> tuple[int, int]:
    """The first line of near block x block tiles, in tiles from the diagonal, and how many there are for any q_offset.

    >>> strip(block=64, reach=128)
    (-2, 6)
    """
    first = -((reach + block - 2) // block)
    return first, (reach + 2 * block - 3) // block - first + 1


def _diagonal_kernel(spec: TileSpec, sizes: tuple[int, int, int, int], refs: Refs) -> None:
    batch, blocks_q, blocks_k, splits = sizes
    block, chunk = spec.tiling.diagonals.queries, -(-blocks_q // splits)
    q_offset = refs['q_offset'].ref[0]
    own_block = q_offset >> (block.bit_length() - 1)
    ahead = own_block + strip(block, spec.reach)[0] + pl.program_id(1)  # blocks between a query and its keys
    nearest = ahead * block - q_offset  # the distance of the tiles' first query and first key
    near = (nearest + block > -spec.reach + 1) & (nearest - block < spec.reach - 1)
    if spec.causal and not spec.prefix:
        near &= nearest - block < 0
    start = pl.program_id(2) * chunk
    first = jnp.maximum(start, -ahead)
    end = jnp.where(near, jnp.minimum(jnp.minimum(start + chunk, blocks_q), blocks_k - ahead), 0)

    def of_row(row: jax.Array, dtile_CP: jax.Array) -> jax.Array:
        by_row = {name: part for name, part in refs.items() if name not in ('bias', 'q_offset')}
        own = refs | {name: part._replace(before=(row,)) for name, part in by_row.items()}

        def add_tile(i: jax.Array, dtile_CP: jax.Array) -> jax.Array:
            at = At(i * block, (i + ahead) * block)
            q, dy, lse, delta = (tile.rows(own[name], at.query, block) for name in ('q', 'dy', 'lse', 'delta'))
            k, v = (tile.rows(own[name], at.key, block) for name in ('k', 'v'))
            ids_C = tile.rows(own['query_ids'], at.query, block) if spec.masked == 'pairs' else None
            return dtile_CP + _gradients_of_logits(spec, own, 'near', at, ids_C, (q, dy, k, v, lse, delta), 1)[1]

        return lax.fori_loop(first, end, add_tile, dtile_CP)

    refs['tiles'].ref[...] = lax.fori_loop(0, batch, of_row, jnp.zeros((block, block), jnp.float32))


def _sums_by_distance(tiles_NDCP: jax.Array, first: int, reach: int, q_offset: jax.Array) -> jax.Array:
    """Tiles in a row across the diagonal -> sums of the distances -reach + 1 ... reach - 1, [N, 2 * reach - 1]."""
    heads, _, block, _ = tiles_NDCP.shape
    vectors = jax.ShapeDtypeStruct((*tiles_NDCP.shape[:2], 2 * block - 1), jnp.float32)
    (sums_NDW,) = jax.linear_transpose(lambda x: toeplitz(x, block, block), vectors)(tiles_NDCP)
    # Number w of line d is the sum of the distance (first + d) * block + w - (block - 1) - q_offset modulo block.
    sums_NDW = jnp.pad(sums_NDW, [(0, 0), (0, 0), (0, 1)])
    pad = lambda half, ends: jnp.pad(half, [(0, 0), ends, (0, 0)])
    halves = pad(sums_NDW[..., :block], (0, 1)), pad(sums_NDW[..., block:], (1, 0))
    line_NW = (halves[0] + halves[1]).reshape(heads, -1)
    start = (block - 1) - first * block - (reach - 1) + q_offset % block
    return lax.dynamic_slice_in_dim(line_NW, start, 2 * reach - 1, axis=1)


def _gradient_of_keys(spec: TileSpec, arrays: KernelArrays, given: Arrays) -> tuple[jax.Array, jax.Array]:
    (batch, queries, _, size), (_, keys, kv_heads, _) = arrays.q.shape, arrays.k.shape
    blocks = spec.tiling.gradient_of_keys
    inputs = arrays.given() | given
    inputs['bounds'] = tile.bounds(spec, arrays, blocks, axis=1)
    own = pl.BlockSpec((None, blocks.keys, None, size), lambda o, k, b: (b, o, k, 0))
    of_heads = lambda length: pl.BlockSpec((None, spec.share, length), lambda o, k, b: (b, k, 0))
    of_row = lambda length: pl.BlockSpec((None, length), lambda o, k, b: (b, 0))
    specs = input_specs(
        by_query=pl.BlockSpec((None, queries, spec.share, size), lambda o, k, b: (b, 0, k, 0)),
        by_key=own,
        per_query=of_heads(queries),
        keep=of_heads(keys),
        query_ids=of_row(queries),
        key_ids=of_row(keys),
        bounds=pl.BlockSpec((None, None, 2), lambda o, k, b: (b, o, 0)),
    )
    if arrays.bias is not None:
        specs['bias'] = pl.BlockSpec((spec.share, arrays.bias.shape[1]), lambda o, k, b: (k, 0))
    outputs: Outputs = {'dk': (own, arrays.k), 'dv': (own, arrays.v)}
    kernel, grid = functools.partial(_key_kernel, spec), (keys // blocks.keys, kv_heads, batch)
    dk, dv = run_kernel(spec, kernel, 'gradient_of_keys', grid, blocks, specs, inputs, outputs)
    return dk, dv


def _key_kernel(spec: TileSpec, refs: Refs) -> None:
    blocks = spec.tiling.gradient_of_keys
    key = pl.program_id(0) * blocks.keys
    k_PH, v_PH = refs['k'].ref[...], refs['v'].ref[...]

    def of_member(member: Any, carry: tuple) -> tuple:
        by_head = [name for name in ('bias', 'keep', 'lse', 'delta') if name in refs]
        own = refs | {name: refs[name]._replace(before=(member,)) for name in by_head}
        own |= {name: refs[name]._replace(after=(member,)) for name in ('q', 'dy')}

        def add_tile(zone: str, query: jax.Array, queries: int, carry: tuple) -> tuple:
            dk_PH, dv_PH = carry
            q, dy, lse, delta = (tile.rows(own[name], query, queries) for name in ('q', 'dy', 'lse', 'delta'))
            ids_C = tile.rows(own['query_ids'], query, queries) if spec.masked == 'pairs' else None
            at, tiles = At(query, key), (q, dy, k_PH, v_PH, lse, delta)
            weights_PC, _, dproducts_PC = _gradients_of_logits(spec, own, zone, at, ids_C, tiles, 0)
            factor_P1 = tile.dropout_factor(spec, own, key, blocks.keys, 0)
            if factor_P1 is not None:
                weights_PC = weights_PC * factor_P1
            dk_PH = dk_PH + dot(spec, dproducts_PC.astype(q.dtype), q, 1, 0)
            return dk_PH, dv_PH + dot(spec, weights_PC.astype(dy.dtype), dy, 1, 0)

        return tile.over_queries(spec, blocks, refs, key, add_tile, carry)

    carry = (jnp.zeros(k_PH.shape, jnp.float32),) * 2
    dk_PH, dv_PH = of_member(0, carry) if spec.share == 1 else lax.fori_loop(0, spec.share, of_member, carry)
    refs['dk'].ref[...] = (dk_PH * spec.scale).astype(refs['dk'].ref.dtype)
    refs['dv'].ref[...] = dv_PH.astype(refs['dv'].ref.dtype)
