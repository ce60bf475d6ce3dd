"""The backward Pallas GPU kernels: the gradients of queries, of the bias near the diagonal, and of keys and values.

Each makes the probabilities of a tile again from the logarithm of its queries' softmax sums. See `gpu/tile.py` for
the letters and for how a tile is made.

**The gradient of the bias** has one sum for each distance. A kernel of its own goes along the diagonal for it: tiles at
the same distance from the diagonal have the same distances inside, so that one program adds up all tiles of one such
row of tiles, place by place, and their diagonals are summed once, outside, where a reshape does it. That is 2 of the 7
products of the backward pass for a strip of tiles as wide as the reach, and an array that does not grow with the length.
What lies at least `reach` after its query is one number, which the kernel of the queries adds up; and what lies as far
before is what is left, as the gradients of a query's logits add up to zero. There is no atomic addition: the numbers are
the same in every run.

The gradient of a softmax is p * (dp - sum(p * dp)), and that sum is taken from y * dy, which needs no pass over the keys.
But y was made of rounded probabilities and was rounded itself, so that a query's logit gradients do not quite add up to
zero. A bias adds up those of many queries. So the kernel of the queries, which runs first, also gives what they add up
to, and the others take that off.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from t5flan.kernels.gpu import tile
from t5flan.kernels.gpu.forward import by_query, query_ids, specs_by_query
from t5flan.kernels.gpu.tile import Arrays, At, TileForm
from t5flan.kernels.relative_bias import toeplitz

_PROGRAMS = 1024  # of the sums by diagonals: several for each of a GPU's 100 to 150 processors


def backward(form: TileForm, arrays: Arrays, y_BTNH: jax.Array, log_sum_BNT: jax.Array, dy_BTNH: jax.Array) -> Arrays:
    """Gradients of q, k, v and of the bias by natural logits, each like its array; None for the rest."""
    product_BTNH = y_BTNH.astype(jnp.float32) * dy_BTNH.astype(jnp.float32)
    given = {'dy': dy_BTNH, 'log_sum': log_sum_BNT, 'inner': jnp.sum(product_BTNH, axis=-1).swapaxes(1, 2)}
    dq_BTNH, *sums = _gradient_of_queries(form, arrays, given)
    dbias_NW = None
    if sums:
        excess_BNT, after_BNI = sums
        given['inner'] = given['inner'] + excess_BNT
        dbias_NW = _gradient_of_bias(form, arrays, given, jnp.sum(after_BNI, axis=(0, 2)))
    dk_BSKH, dv_BSKH = _gradient_of_keys(form, arrays, given)
    return Arrays(dq_BTNH, dk_BSKH, dv_BSKH, dbias_NW, None, None, None, None)


def _gradients_of_logits(
    form: TileForm, refs: dict, zone: str, at: At, ids_C: jax.Array | None, tiles: tuple, key_axis: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The probabilities of a tile, the gradient of its logits, and that of its products / scale.

    Args:
        tiles: q and dy [C, H], k and v [P, H], the logarithms of the sums and the inner products [C].
    """
    q_CH, dy_CH, k_PH, v_PH, log_sum_C, inner_C = tiles
    multiply = lambda of_query, of_key: tile.dot(form, *((of_query, of_key) if key_axis else (of_key, of_query)), 1, 1)
    as_query = lambda x_C: jnp.expand_dims(x_C, key_axis)
    x, slope = tile.logits(form, multiply(q_CH, k_PH), zone, refs, at, ids_C, key_axis)
    weights, dweights = tile.exp2(form, x - as_query(log_sum_C)), multiply(dy_CH, v_PH)
    factor = tile.kept(form, refs, at.key, k_PH.shape[0], key_axis)
    if factor is not None:
        dweights = dweights * factor
    dlogits = weights * (dweights - as_query(inner_C))
    return weights, dlogits, dlogits if slope is None else dlogits * slope


def _gradient_of_queries(form: TileForm, arrays: Arrays, given: dict) -> list[jax.Array]:
    """dq; with a bias also what each query's logit gradients add up to, and the part of those far after their queries."""
    batch, queries, heads, _ = arrays.q_BTNH.shape
    blocks = form.tiling.gradient_of_queries
    specs = specs_by_query(form, arrays, blocks)
    specs |= {'dy': specs['q_BTNH'], 'log_sum': specs['per_query'], 'inner': specs['per_query']}
    given = by_query(form, arrays, blocks) | given
    outputs = {'dq': (specs['q_BTNH'], jax.ShapeDtypeStruct(arrays.q_BTNH.shape, arrays.q_BTNH.dtype))}
    if form.reach is not None:
        shaped = lambda length: jax.ShapeDtypeStruct((batch, heads, length), jnp.float32)
        outputs['excess'] = specs['per_query'], shaped(queries)
        outputs['after'] = specs['per_block'], shaped(queries // blocks.queries)
    return pl.pallas_call(
        functools.partial(_query_kernel, form, (*given, *outputs)),
        grid=(queries // blocks.queries, heads, batch),
        in_specs=[specs[name] for name in given],
        out_specs=[spec for spec, _ in outputs.values()],
        out_shape=[shape for _, shape in outputs.values()],
        compiler_params=plgpu.CompilerParams(num_warps=blocks.warps, num_stages=blocks.stages),
        interpret=form.interpret,
        name='t5flan_attention_gradient_of_queries',
    )(*given.values())


def _query_kernel(form: TileForm, names: tuple[str, ...], *refs: Any) -> None:
    refs, blocks = tile.parts(names, refs), form.tiling.gradient_of_queries
    query = pl.program_id(0) * blocks.queries
    ids_C = query_ids(form, refs)
    q_CH, dy_CH, log_sum_C, inner_C = (refs[name].ref[...] for name in ('q_BTNH', 'dy', 'log_sum', 'inner'))

    def add_tile(zone: str, key: jax.Array, keys: int, carry: tuple) -> tuple:
        dq_CH, *sums = carry
        k_PH, v_PH = (tile.rows(refs[name], key, keys) for name in ('k_BSKH', 'v_BSKH'))
        weights_CP, dlogits_CP, dproducts_CP = _gradients_of_logits(
            form, refs, zone, At(query, key), ids_C, (q_CH, dy_CH, k_PH, v_PH, log_sum_C, inner_C), 1
        )
        dq_CH = dq_CH + tile.dot(form, dproducts_CP.astype(k_PH.dtype), k_PH, 1, 0)
        if sums:
            sums = _add_to_sums(form, refs, zone, At(query, key), sums, weights_CP, dlogits_CP)
        return dq_CH, *sums

    sums = (jnp.zeros((blocks.queries,), jnp.float32),) * (0 if form.reach is None else 3)
    carry = (jnp.zeros(q_CH.shape, jnp.float32), *sums)
    dq_CH, *sums = tile.over_keys(form, blocks, refs, query, add_tile, carry)
    refs['dq'].ref[...] = (dq_CH * form.scale).astype(refs['dq'].ref.dtype)
    if sums:
        excess_C, after_C, weight_after_C = sums
        refs['excess'].ref[...] = excess_C
        refs['after'].ref[0] = jnp.sum(after_C - excess_C * weight_after_C)


def _add_to_sums(
    form: TileForm, refs: dict, zone: str, at: At, sums: list, weights_CP: jax.Array, dlogits_CP: jax.Array
) -> tuple:
    """Of each query: the sums of its logit gradients, of those at least `reach` after it, and of the probabilities there."""
    excess_C, after_C, weight_after_C = sums
    excess_C = excess_C + jnp.sum(dlogits_CP, axis=1)
    if zone == 'before' or 'after' not in form.zones:
        return excess_C, after_C, weight_after_C
    if zone == 'near':
        after_CP = tile.distances(refs, at, dlogits_CP.shape, 1) >= form.reach
        dlogits_CP, weights_CP = (jnp.where(after_CP, x, 0.0) for x in (dlogits_CP, weights_CP))
    return excess_C, after_C + jnp.sum(dlogits_CP, axis=1), weight_after_C + jnp.sum(weights_CP, axis=1)


def _gradient_of_bias(form: TileForm, arrays: Arrays, given: dict, after_N: jax.Array) -> jax.Array:
    """The gradient of the bias of every distance, [N, 2 * reach + 1], by natural logits.

    Args:
        after_N: that of the last of them.
    """
    (batch, queries, heads, size), (_, keys, _, _) = arrays.q_BTNH.shape, arrays.k_BSKH.shape
    block, reach = form.tiling.diagonals.queries, form.reach
    first, rows = strip(block, reach)
    blocks_q = queries // block
    splits = min(blocks_q, max(1, _PROGRAMS // (heads * rows)))
    whole = lambda length: pl.BlockSpec((batch, length), lambda n, d, p: (0, 0))
    of_head = lambda length: pl.BlockSpec((batch, None, length), lambda n, d, p: (0, n, 0))
    by_query = pl.BlockSpec((batch, queries, None, size), lambda n, d, p: (0, 0, n, 0))
    by_key = pl.BlockSpec((batch, keys, None, size), lambda n, d, p: (0, 0, lax.div(n, form.share), 0))
    specs = {
        'q_BTNH': by_query,
        'k_BSKH': by_key,
        'v_BSKH': by_key,
        'dy': by_query,
        'keep_BNS': of_head(keys),
        'bias_NW': pl.BlockSpec((None, arrays.bias_NW.shape[1]), lambda n, d, p: (n, 0)),
        'query_ids_BT': whole(queries),
        'key_ids_BS': whole(keys),
        'log_sum': of_head(queries),
        'inner': of_head(queries),
        'q_offset': pl.BlockSpec((1,), lambda n, d, p: (0,)),
    }
    given = {name: x for name, x in arrays._asdict().items() if x is not None} | given
    tiles_ZNDCP = pl.pallas_call(
        functools.partial(_diagonal_kernel, form, (batch, blocks_q, keys // block, splits), (*given, 'tiles')),
        grid=(heads, rows, splits),
        in_specs=[specs[name] for name in given],
        out_specs=pl.BlockSpec((None, None, None, block, block), lambda n, d, p: (p, n, d, 0, 0)),
        out_shape=jax.ShapeDtypeStruct((splits, heads, rows, block, block), jnp.float32),
        compiler_params=plgpu.CompilerParams(
            num_warps=form.tiling.diagonals.warps, num_stages=form.tiling.diagonals.stages
        ),
        interpret=form.interpret,
        name='t5flan_attention_gradient_of_bias',
    )(*given.values())
    near_NW = _sums_by_distance(jnp.sum(tiles_ZNDCP, axis=0), first, reach, arrays.q_offset[0])
    before_N = -jnp.sum(near_NW, axis=1) - after_N
    return jnp.concatenate([before_N[:, None], near_NW, after_N[:, None]], axis=1)


def strip(block: int, reach: int) -> tuple[int, int]:
    """Of tiles block x block the first that may be near, in tiles from the diagonal, and how many, for any q_offset.

    >>> strip(block=64, reach=128)
    (-2, 6)
    """
    first = -((reach + block - 2) // block)
    return first, (reach + 2 * block - 3) // block - first + 1


def _diagonal_kernel(form: TileForm, sizes: tuple[int, int, int, int], names: tuple[str, ...], *refs: Any) -> None:
    (batch, blocks_q, blocks_k, splits), refs = sizes, tile.parts(names, refs)
    block, chunk = form.tiling.diagonals.queries, -(-blocks_q // splits)
    q_offset = refs['q_offset'].ref[0]
    ahead = (
        (q_offset >> (block.bit_length() - 1)) + strip(block, form.reach)[0] + pl.program_id(1)
    )  # of the query's own block
    nearest = ahead * block - q_offset  # the distance of the tiles' first query and first key
    near = (nearest + block > -form.reach + 1) & (nearest - block < form.reach - 1)
    if form.causal and not form.prefix:
        near &= nearest - block < 0
    start = pl.program_id(2) * chunk
    first = jnp.maximum(start, -ahead)
    end = jnp.where(near, jnp.minimum(jnp.minimum(start + chunk, blocks_q), blocks_k - ahead), 0)

    def of_row(row: jax.Array, dtile_CP: jax.Array) -> jax.Array:
        own = {
            name: part if name in ('bias_NW', 'q_offset') else part._replace(before=(row,))
            for name, part in refs.items()
        }

        def add_tile(i: jax.Array, dtile_CP: jax.Array) -> jax.Array:
            at = At(i * block, (i + ahead) * block)
            q, dy, log_sum, inner = (
                tile.rows(own[name], at.query, block) for name in ('q_BTNH', 'dy', 'log_sum', 'inner')
            )
            k, v = (tile.rows(own[name], at.key, block) for name in ('k_BSKH', 'v_BSKH'))
            ids_C = tile.rows(own['query_ids_BT'], at.query, block) if form.masked == 'pairs' else None
            return dtile_CP + _gradients_of_logits(form, own, 'near', at, ids_C, (q, dy, k, v, log_sum, inner), 1)[1]

        return lax.fori_loop(first, end, add_tile, dtile_CP)

    refs['tiles'].ref[...] = lax.fori_loop(0, batch, of_row, jnp.zeros((block, block), jnp.float32))


def _sums_by_distance(tiles_NDCP: jax.Array, first: int, reach: int, q_offset: jax.Array) -> jax.Array:
    """Tiles in a row across the diagonal -> sums of the distances -reach + 1 ... reach - 1, [N, 2 * reach - 1]."""
    heads, _, block, _ = tiles_NDCP.shape
    vectors = jax.ShapeDtypeStruct((*tiles_NDCP.shape[:2], 2 * block - 1), jnp.float32)
    (sums_NDW,) = jax.linear_transpose(lambda x: toeplitz(x, block, block), vectors)(tiles_NDCP)
    # Number w of tile row d is of the distance (first + d) * block + w - (block - 1) - q_offset modulo block.
    sums_NDW = jnp.pad(sums_NDW, [(0, 0), (0, 0), (0, 1)])
    halves = (sums_NDW[..., :block], (0, 1)), (sums_NDW[..., block:], (1, 0))
    line_NW = sum(jnp.pad(half, [(0, 0), ends, (0, 0)]) for half, ends in halves).reshape(heads, -1)
    start = (block - 1) - first * block - (reach - 1) + q_offset % block
    return lax.dynamic_slice_in_dim(line_NW, start, 2 * reach - 1, axis=1)


def _gradient_of_keys(form: TileForm, arrays: Arrays, given: dict) -> tuple[jax.Array, jax.Array]:
    (batch, queries, _, size), (_, keys, kv_heads, _) = arrays.q_BTNH.shape, arrays.k_BSKH.shape
    blocks = form.tiling.gradient_of_keys
    given = {name: x for name, x in arrays._asdict().items() if x is not None} | given
    given['bounds'] = tile.bounds(form, arrays, blocks, axis=1)
    own = pl.BlockSpec((None, blocks.keys, None, size), lambda o, k, b: (b, o, k, 0))
    by_query = pl.BlockSpec((None, queries, form.share, size), lambda o, k, b: (b, 0, k, 0))
    of_heads = lambda length: pl.BlockSpec((None, form.share, length), lambda o, k, b: (b, k, 0))
    of_row = lambda length: pl.BlockSpec((None, length), lambda o, k, b: (b, 0))
    specs = {
        'q_BTNH': by_query,
        'k_BSKH': own,
        'v_BSKH': own,
        'dy': by_query,
        'keep_BNS': of_heads(keys),
        'query_ids_BT': of_row(queries),
        'key_ids_BS': of_row(keys),
        'log_sum': of_heads(queries),
        'inner': of_heads(queries),
        'q_offset': pl.BlockSpec((1,), lambda o, k, b: (0,)),
        'bounds': pl.BlockSpec((None, None, 2), lambda o, k, b: (b, o, 0)),
    }
    if arrays.bias_NW is not None:
        specs['bias_NW'] = pl.BlockSpec((form.share, arrays.bias_NW.shape[1]), lambda o, k, b: (k, 0))
    return pl.pallas_call(
        functools.partial(_key_kernel, form, (*given, 'dk', 'dv')),
        grid=(keys // blocks.keys, kv_heads, batch),
        in_specs=[specs[name] for name in given],
        out_specs=[own, own],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (arrays.k_BSKH, arrays.v_BSKH)],
        compiler_params=plgpu.CompilerParams(num_warps=blocks.warps, num_stages=blocks.stages),
        interpret=form.interpret,
        name='t5flan_attention_gradient_of_keys',
    )(*given.values())


def _key_kernel(form: TileForm, names: tuple[str, ...], *refs: Any) -> None:
    refs, blocks = tile.parts(names, refs), form.tiling.gradient_of_keys
    key = pl.program_id(0) * blocks.keys
    k_PH, v_PH = refs['k_BSKH'].ref[...], refs['v_BSKH'].ref[...]

    def of_member(member: Any, carry: tuple) -> tuple:
        own = {
            name: part._replace(before=(member,)) if name in ('bias_NW', 'keep_BNS', 'log_sum', 'inner') else part
            for name, part in refs.items()
        }
        own |= {name: refs[name]._replace(after=(member,)) for name in ('q_BTNH', 'dy')}

        def add_tile(zone: str, query: jax.Array, queries: int, carry: tuple) -> tuple:
            dk_PH, dv_PH = carry
            q, dy, log_sum, inner = (
                tile.rows(own[name], query, queries) for name in ('q_BTNH', 'dy', 'log_sum', 'inner')
            )
            ids_C = tile.rows(own['query_ids_BT'], query, queries) if form.masked == 'pairs' else None
            weights_PC, _, dproducts_PC = _gradients_of_logits(
                form, own, zone, At(query, key), ids_C, (q, dy, k_PH, v_PH, log_sum, inner), 0
            )
            factor_P1 = tile.kept(form, own, key, blocks.keys, 0)
            if factor_P1 is not None:
                weights_PC = weights_PC * factor_P1
            return (
                dk_PH + tile.dot(form, dproducts_PC.astype(q.dtype), q, 1, 0),
                dv_PH + tile.dot(form, weights_PC.astype(dy.dtype), dy, 1, 0),
            )

        return tile.over_queries(form, blocks, refs, key, add_tile, carry)

    carry = (jnp.zeros(k_PH.shape, jnp.float32),) * 2
    dk_PH, dv_PH = of_member(0, carry) if form.share == 1 else lax.fori_loop(0, form.share, of_member, carry)
    refs['dk'].ref[...] = (dk_PH * form.scale).astype(refs['dk'].ref.dtype)
    refs['dv'].ref[...] = dv_PH.astype(refs['dv'].ref.dtype)
