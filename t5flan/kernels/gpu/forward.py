"""The forward Pallas GPU kernel: the output and the log-sum-exp (lse) of every query, by online softmax.

See `gpu/tile.py` for the letters and for how a tile is computed.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from t5flan.kernels.gpu import tile
from t5flan.kernels.gpu.tile import Arrays, At, Blocks, Part, Refs, TileSpec
from t5flan.kernels.operands import LEAST_MAXIMUM, KernelArrays, dot

Specs = dict[str, pl.BlockSpec]
Outputs = dict[str, tuple[pl.BlockSpec, Any]]  # blocks, and arrays or their shapes


def forward(spec: TileSpec, arrays: KernelArrays) -> tuple[jax.Array, jax.Array]:
    """The output [B, T, N, H] in q's dtype, and the lse of base 2 [B, N, T] in float32."""
    batch, queries, heads, _ = arrays.q.shape
    blocks = spec.tiling.forward
    inputs = inputs_by_query(spec, arrays, blocks)
    specs = specs_by_query(spec, arrays, blocks)
    lse_shape = jax.ShapeDtypeStruct((batch, heads, queries), jnp.float32)
    outputs: Outputs = {'y': (specs['q'], arrays.q), 'lse': (specs['lse'], lse_shape)}
    kernel, grid = functools.partial(_kernel, spec), (queries // blocks.queries, heads, batch)
    y, lse = run_kernel(spec, kernel, 'forward', grid, blocks, specs, inputs, outputs)
    return y, lse


def run_kernel(
    spec: TileSpec,
    kernel: Callable[[Refs], None],
    name: str,
    grid: tuple[int, ...],
    blocks: Blocks,
    specs: Specs,
    inputs: Arrays,
    outputs: Outputs,
) -> list[jax.Array]:
    """Runs `kernel` over a grid; it takes all inputs and outputs by name, read whole."""
    names = *inputs, *outputs
    return pl.pallas_call(
        lambda *refs: kernel({name: Part(ref) for name, ref in zip(names, refs, strict=True)}),
        grid=grid,
        in_specs=[specs[name] for name in inputs],
        out_specs=[block for block, _ in outputs.values()],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for _, x in outputs.values()],
        compiler_params=plgpu.CompilerParams(num_warps=blocks.warps, num_stages=blocks.stages),
        interpret=spec.interpret,
        name=f't5flan_attention_{name}',
    )(*inputs.values())


def inputs_by_query(spec: TileSpec, arrays: KernelArrays, blocks: Blocks) -> Arrays:
    """The inputs of a kernel that loops over the keys of a block of queries."""
    return arrays.given() | {'bounds': tile.bounds(spec, arrays, blocks, axis=2)}


def specs_by_query(spec: TileSpec, arrays: KernelArrays, blocks: Blocks) -> Specs:
    """The block of each array, for a grid (blocks of queries, heads, rows)."""
    c, keys, size = blocks.queries, arrays.k.shape[1], arrays.q.shape[3]
    specs = input_specs(
        by_query=pl.BlockSpec((None, c, None, size), lambda i, n, b: (b, i, n, 0)),
        by_key=pl.BlockSpec((None, keys, None, size), lambda i, n, b: (b, 0, lax.div(n, spec.share), 0)),
        per_query=pl.BlockSpec((None, None, c), lambda i, n, b: (b, n, i)),
        keep=pl.BlockSpec((None, None, keys), lambda i, n, b: (b, n, 0)),
        query_ids=pl.BlockSpec((None, c), lambda i, n, b: (b, i)),
        key_ids=pl.BlockSpec((None, keys), lambda i, n, b: (b, 0)),
        bounds=pl.BlockSpec((None, None, 2), lambda i, n, b: (b, i, 0)),
    )
    if arrays.bias is not None:
        specs['bias'] = pl.BlockSpec((None, arrays.bias.shape[1]), lambda i, n, b: (n, 0))
    return specs


def input_specs(by_query: pl.BlockSpec, by_key: pl.BlockSpec, per_query: pl.BlockSpec, **others: pl.BlockSpec) -> Specs:
    """The block of each input by name, for a grid of three axes."""
    specs = dict.fromkeys(('q', 'dy'), by_query) | dict.fromkeys(('k', 'v'), by_key)
    specs |= dict.fromkeys(('lse', 'delta'), per_query)
    return specs | others | {'q_offset': pl.BlockSpec((1,), lambda i, j, k: (0,))}


def query_ids(spec: TileSpec, refs: Refs) -> jax.Array | None:
    """The ids of the program's own queries, if segments are compared."""
    return refs['query_ids'].ref[...] if spec.masked == 'pairs' else None


def _kernel(spec: TileSpec, refs: Refs) -> None:
    blocks = spec.tiling.forward
    query = pl.program_id(0) * blocks.queries
    q_CH, ids_C = refs['q'].ref[...], query_ids(spec, refs)

    def add_tile(zone: str, key: jax.Array, keys: int, carry: tuple) -> tuple:
        max_C, sum_C, y_CH = carry
        k_PH, v_PH = (tile.rows(refs[name], key, keys) for name in ('k', 'v'))
        logits_CP, _ = tile.logits(spec, dot(spec, q_CH, k_PH, 1, 1), zone, refs, At(query, key), ids_C, 1)
        new_max_C = jnp.maximum(max_C, jnp.max(logits_CP, axis=1))
        weights_CP, rescale_C = tile.exp2(spec, logits_CP - new_max_C[:, None]), tile.exp2(spec, max_C - new_max_C)
        sum_C = sum_C * rescale_C + jnp.sum(weights_CP, axis=1)
        factor_1P = tile.dropout_factor(spec, refs, key, keys, 1)
        if factor_1P is not None:
            weights_CP = weights_CP * factor_1P
        y_CH = y_CH * rescale_C[:, None] + dot(spec, weights_CP.astype(v_PH.dtype), v_PH, 1, 0)
        return new_max_C, sum_C, y_CH

    max_C = jnp.full((blocks.queries,), LEAST_MAXIMUM, jnp.float32)
    sum_C, y_CH = (jnp.zeros(shape, jnp.float32) for shape in (max_C.shape, q_CH.shape))
    max_C, sum_C, y_CH = tile.over_keys(spec, blocks, refs, query, add_tile, (max_C, sum_C, y_CH))
    sum_C = jnp.where(sum_C > 0.0, sum_C, 1.0)  # a query that sees no key
    refs['y'].ref[...] = (y_CH / sum_C[:, None]).astype(refs['y'].ref.dtype)
    refs['lse'].ref[...] = max_C + jnp.log2(sum_C)
