"""The forward Pallas GPU kernel: an output and the logarithm of its softmax's sum for every query, with online softmax.

See `gpu/tile.py` for the letters and for how a tile is made.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from t5flan.kernels.gpu import tile
from t5flan.kernels.gpu.tile import Arrays, At, Blocks, TileForm


def forward(form: TileForm, arrays: Arrays) -> tuple[jax.Array, jax.Array]:
    """The output [B, T, N, H] in q's dtype, and the logarithms of base 2 of the softmax sums [B, N, T] in float32."""
    batch, queries, heads, _ = arrays.q_BTNH.shape
    blocks = form.tiling.forward
    given = by_query(form, arrays, blocks)
    specs = specs_by_query(form, arrays, blocks)
    return pl.pallas_call(
        functools.partial(_forward_kernel, form, (*given, 'y', 'log_sum')),
        grid=(queries // blocks.queries, heads, batch),
        in_specs=[specs[name] for name in given],
        out_specs=[specs['q_BTNH'], specs['per_query']],
        out_shape=[
            jax.ShapeDtypeStruct(arrays.q_BTNH.shape, arrays.q_BTNH.dtype),
            jax.ShapeDtypeStruct((batch, heads, queries), jnp.float32),
        ],
        compiler_params=plgpu.CompilerParams(num_warps=blocks.warps, num_stages=blocks.stages),
        interpret=form.interpret,
        name='t5flan_attention_forward',
    )(*given.values())


def by_query(form: TileForm, arrays: Arrays, blocks: Blocks) -> dict[str, jax.Array]:
    """What a kernel reads that goes through the keys of a block of queries."""
    given = {name: x for name, x in arrays._asdict().items() if x is not None}
    return given | {'bounds': tile.bounds(form, arrays, blocks, axis=2)}


def specs_by_query(form: TileForm, arrays: Arrays, blocks: Blocks) -> dict[str, pl.BlockSpec]:
    """How each array is cut for a grid (blocks of queries, heads, rows)."""
    (_, _, _, size), keys = arrays.q_BTNH.shape, arrays.k_BSKH.shape[1]
    c = blocks.queries
    of_keys = pl.BlockSpec((None, keys, None, size), lambda i, n, b: (b, 0, lax.div(n, form.share), 0))
    specs = {
        'q_BTNH': pl.BlockSpec((None, c, None, size), lambda i, n, b: (b, i, n, 0)),
        'k_BSKH': of_keys,
        'v_BSKH': of_keys,
        'keep_BNS': pl.BlockSpec((None, None, keys), lambda i, n, b: (b, n, 0)),
        'query_ids_BT': pl.BlockSpec((None, c), lambda i, n, b: (b, i)),
        'key_ids_BS': pl.BlockSpec((None, keys), lambda i, n, b: (b, 0)),
        'q_offset': pl.BlockSpec((1,), lambda i, n, b: (0,)),
        'bounds': pl.BlockSpec((None, None, 2), lambda i, n, b: (b, i, 0)),
        'per_query': pl.BlockSpec((None, None, c), lambda i, n, b: (b, n, i)),
        'per_block': pl.BlockSpec((None, None, 1), lambda i, n, b: (b, n, i)),
    }
    if arrays.bias_NW is not None:
        specs['bias_NW'] = pl.BlockSpec((None, arrays.bias_NW.shape[1]), lambda i, n, b: (n, 0))
    return specs


def query_ids(form: TileForm, refs: dict) -> jax.Array | None:
    """The ids of the program's own queries, where a mask looks at them."""
    return refs['query_ids_BT'].ref[...] if form.masked == 'pairs' else None


def _forward_kernel(form: TileForm, names: tuple[str, ...], *refs: Any) -> None:
    refs, blocks = tile.parts(names, refs), form.tiling.forward
    query = pl.program_id(0) * blocks.queries
    q_CH, ids_C = refs['q_BTNH'].ref[...], query_ids(form, refs)

    def add_tile(zone: str, key: jax.Array, keys: int, carry: tuple) -> tuple:
        top_C, sum_C, y_CH = carry
        k_PH, v_PH = (tile.rows(refs[name], key, keys) for name in ('k_BSKH', 'v_BSKH'))
        logits_CP, _ = tile.logits(form, tile.dot(form, q_CH, k_PH, 1, 1), zone, refs, At(query, key), ids_C, 1)
        new_top_C = jnp.maximum(top_C, jnp.max(logits_CP, axis=1))
        weights_CP, shrink_C = tile.exp2(form, logits_CP - new_top_C[:, None]), tile.exp2(form, top_C - new_top_C)
        sum_C = sum_C * shrink_C + jnp.sum(weights_CP, axis=1)
        factor_1P = tile.kept(form, refs, key, keys, 1)
        if factor_1P is not None:
            weights_CP = weights_CP * factor_1P
        y_CH = y_CH * shrink_C[:, None] + tile.dot(form, weights_CP.astype(v_PH.dtype), v_PH, 1, 0)
        return new_top_C, sum_C, y_CH

    carry = (
        jnp.full((blocks.queries,), tile.LEAST_MAXIMUM, jnp.float32),
        jnp.zeros((blocks.queries,), jnp.float32),
        jnp.zeros(q_CH.shape, jnp.float32),
    )
    top_C, sum_C, y_CH = tile.over_keys(form, blocks, refs, query, add_tile, carry)
    sum_C = jnp.where(sum_C > 0.0, sum_C, 1.0)  # a query that sees nothing
    refs['y'].ref[...] = (y_CH / sum_C[:, None]).astype(refs['y'].ref.dtype)
    refs['log_sum'].ref[...] = top_C + jnp.log2(sum_C)
