"""The backward Pallas TPU kernels: one for the gradients of queries and bias, one for those of keys and values.

Each recomputes the probabilities of a tile from the lse of its queries. See `tpu/tile.py` for the letters and for how a
tile is computed.

The gradient of a softmax is p * (dp - delta) with delta = sum(p * dp), which equals sum(y * dy) and needs no pass over
the keys. But y was computed from rounded probabilities and was rounded itself, so that the gradients of a query's
logits do not quite sum to zero. The gradient of the bias sums over many queries and would keep the error. So the kernel
of keys and values, which runs first, also returns that sum for each query (the excess), and the other one subtracts it.
"""

import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from t5flan.kernels.operands import KernelArrays, dot
from t5flan.kernels.tpu import tile
from t5flan.kernels.tpu.forward import Outputs, Scratch, place_by_query, run_kernel
from t5flan.kernels.tpu.tile import Arrays, Place, Refs, Seen, TileSpec

# Bytes of a core's memory for the excess. Where it needs more (from about 260,000 queries of heads of 64 that share a
# key), the gradient of the bias goes without the correction.
MAX_EXCESS = 2**21


def backward(spec: TileSpec, arrays: KernelArrays, y: jax.Array, lse_BJUT: jax.Array, dy: jax.Array) -> KernelArrays:
    """Gradients of q, k, v and bias, each like its array; None for the rest."""
    batch, queries, _ = y.shape
    product = (y.astype(jnp.float32) * dy.astype(jnp.float32)).reshape(batch, queries, -1, spec.heads, spec.head_dim)
    delta_BJUT = jnp.sum(product, axis=-1).transpose(0, 2, 3, 1)
    inputs = arrays.given() | {'dy': dy, 'lse': lse_BJUT, 'delta': delta_BJUT}
    del inputs['q_offset']  # in `seen`
    dk, dv, excess_BJUT = _gradient_of_keys(spec, arrays, inputs)
    if excess_BJUT is not None:
        inputs['delta'] = delta_BJUT + excess_BJUT
    dq, dbias = _gradient_of_queries(spec, arrays, inputs)
    no_gradient: Any = None
    return KernelArrays(dq, dk, dv, dbias, None, None, None, no_gradient)


def _gradient_of_queries(spec: TileSpec, arrays: KernelArrays, inputs: Arrays) -> tuple[jax.Array, jax.Array | None]:
    (batch, queries, width), keys = arrays.q.shape, arrays.k.shape[1]
    blocks = queries // spec.block_q, keys // spec.block_k
    specs = tile.block_specs(spec, functools.partial(place_by_query, blocks[0]))
    seen = tile.seen_tiles(spec, arrays, axis=2)
    outputs: Outputs = {'dq': (specs['q'], arrays.q)}
    scratch: Scratch = {'dq_ref': (spec.lanes, spec.block_q)}
    if spec.band:
        outputs['dbias'] = specs['bias'], arrays.bias
        scratch['sheared_ref'] = scratch['dsheared_ref'] = (spec.heads, tile.LANES, spec.band.width)
    kernel, grid = functools.partial(_query_kernel, spec, (batch, *blocks)), (width // spec.lanes, batch, *blocks)
    dq, *dbias = run_kernel(spec, kernel, 'gradient_of_queries', grid, specs, seen, inputs, outputs, scratch)
    return dq, dbias[0] if dbias else None


def _query_kernel(spec: TileSpec, sizes: tuple[int, int, int], seen: Seen, refs: Refs) -> None:
    group, row, query, key = (pl.program_id(axis) for axis in range(4))
    rows, blocks_q, blocks_k = sizes
    at, band = Place(row, group, query, key, seen.q_offset[0]), spec.band
    if band:

        @pl.when((row == 0) & (query == 0) & (key == 0))
        def start_group() -> None:
            tile.shear_into(spec, refs['bias'][...], refs['sheared_ref'])
            refs['dsheared_ref'][...] = jnp.zeros_like(refs['dsheared_ref'])

    @pl.when(key == 0)
    def start_queries() -> None:
        refs['dq_ref'][...] = jnp.zeros_like(refs['dq_ref'])

    @pl.when(tile.is_seen(seen, at, blocks_q, blocks_k))
    def add_tile() -> None:
        k_EP = refs['k'][...].T
        for head, (_, dlogits_PC, dproducts_PC) in enumerate(_gradients_of_logits(spec, refs, at)):
            rows_E = tile.head_rows(spec, head)
            refs['dq_ref'][rows_E] += dot(spec, k_EP[rows_E], dproducts_PC.astype(k_EP.dtype), 1, 0)
            if band:
                for c, start in enumerate(tile.band_starts(spec, band, at)):
                    part = dlogits_PC[c * tile.LANES : (c + 1) * tile.LANES]
                    refs['dsheared_ref'][head, :, pl.ds(start, spec.block_q)] += part

    @pl.when(key == blocks_k - 1)
    def finish_queries() -> None:
        refs['dq'][...] = (refs['dq_ref'][...] * spec.scale).T.astype(refs['dq'].dtype)

    if band:

        @pl.when((row == rows - 1) & (query == blocks_q - 1) & (key == blocks_k - 1))
        def finish_group() -> None:
            for head, dbias_1W in enumerate(tile.unshear(spec, refs['dsheared_ref'])):
                refs['dbias'][head : head + 1, :] = dbias_1W


def _gradient_of_keys(
    spec: TileSpec, arrays: KernelArrays, inputs: Arrays
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """dk, dv and, if there is a bias, the sum of the gradients of each query's logits, [B, J, U, T]."""
    (batch, queries, _), (_, keys, width) = arrays.q.shape, arrays.k.shape
    blocks = queries // spec.block_q, keys // spec.block_k
    seen = tile.seen_tiles(spec, arrays, axis=1)

    def place(kv_group: Any, row: Any, key: Any, member: Any, query: Any, *seen: Any) -> Place:
        _, first, last, _ = seen
        at = row * blocks[1] + key
        return Place(row, kv_group * spec.share + member, jnp.clip(query, first[at], last[at]), key)

    specs = tile.block_specs(spec, place)
    scratch: Scratch = dict.fromkeys(('dk_ref', 'dv_ref'), (spec.lanes, spec.block_k))
    if spec.band:
        scratch['sheared_ref'] = (spec.heads, tile.LANES, spec.band.width)
    outputs: Outputs = {'dk': (specs['k'], arrays.k), 'dv': (specs['v'], arrays.v)}
    of_group = (spec.share, spec.heads, blocks[0], spec.block_q)  # of all queries: stays in a core's memory meanwhile
    if spec.band and 4 * math.prod(of_group) <= MAX_EXCESS:
        shape = (batch, width // spec.lanes * spec.share, *of_group[1:])
        block = pl.BlockSpec((None, *of_group), lambda kv_group, row, *_: (row, kv_group, 0, 0, 0))
        outputs['excess'] = block, jax.ShapeDtypeStruct(shape, jnp.float32)
    kernel = functools.partial(_key_kernel, spec, blocks)
    grid = width // spec.lanes, batch, blocks[1], spec.share, blocks[0]
    dk, dv, *excess = run_kernel(spec, kernel, 'gradient_of_keys', grid, specs, seen, inputs, outputs, scratch)
    return dk, dv, excess[0].reshape(inputs['delta'].shape) if excess else None


def _key_kernel(spec: TileSpec, blocks: tuple[int, int], seen: Seen, refs: Refs) -> None:
    kv_group, row, key, member, query = (pl.program_id(axis) for axis in range(5))
    at = Place(row, kv_group * spec.share + member, query, key, seen.q_offset[0])
    if spec.band:
        first = query == 0
        if spec.share == 1:  # otherwise the bias of the group's next member takes the memory in between
            first &= (row == 0) & (key == 0)

        @pl.when(first)
        def start_group() -> None:
            tile.shear_into(spec, refs['bias'][...], refs['sheared_ref'])

    if 'excess' in refs:

        @pl.when((key == 0) & (member == 0) & (query == 0))
        def start_row() -> None:
            refs['excess'][...] = jnp.zeros_like(refs['excess'])

    @pl.when((member == 0) & (query == 0))
    def start_keys() -> None:
        refs['dk_ref'][...] = jnp.zeros_like(refs['dk_ref'])
        refs['dv_ref'][...] = jnp.zeros_like(refs['dv_ref'])

    @pl.when(tile.is_seen(seen, at, *blocks))
    def add_tile() -> None:
        q_EC, dy_EC = refs['q'][...].T, refs['dy'][...].T
        for head, (weights_PC, dlogits_PC, dproducts_PC) in enumerate(_gradients_of_logits(spec, refs, at)):
            if 'excess' in refs:
                refs['excess'][member, head, pl.ds(query, 1)] += jnp.sum(dlogits_PC, axis=0, keepdims=True)
            rows_E = tile.head_rows(spec, head)
            dv_HP = dot(spec, dy_EC[rows_E], weights_PC.astype(dy_EC.dtype), 1, 1)
            if spec.keep_rate:
                dv_HP = dv_HP * (refs['keep'][head : head + 1, :] / spec.keep_rate)
            refs['dv_ref'][rows_E] += dv_HP
            refs['dk_ref'][rows_E] += dot(spec, q_EC[rows_E], dproducts_PC.astype(q_EC.dtype), 1, 1)

    @pl.when((member == spec.share - 1) & (query == blocks[0] - 1))
    def finish_keys() -> None:
        refs['dk'][...] = (refs['dk_ref'][...] * spec.scale).T.astype(refs['dk'].dtype)
        refs['dv'][...] = refs['dv_ref'][...].T.astype(refs['dv'].dtype)


def _gradients_of_logits(spec: TileSpec, refs: Refs, at: Place) -> Iterator[tuple[jax.Array, jax.Array, jax.Array]]:
    """For each head a tile's probabilities, the gradient of its logits, and that of its products / scale, [P, C]."""
    q_CE, k_PE, v_PE, dy_CE = (refs[name][...] for name in ('q', 'k', 'v', 'dy'))
    allowed_PC = tile.allowed(spec, refs, at)
    for head in range(spec.heads):
        logits_PC, slope_PC = tile.head_logits(spec, refs, q_CE, k_PE, allowed_PC, at, head)
        weights_PC = jnp.exp(logits_PC - refs['lse'][head : head + 1, :])
        dweights_PC = dot(spec, v_PE, tile.one_head(spec, dy_CE, head), 1, 1)
        if spec.keep_rate:
            dweights_PC = dweights_PC * (refs['keep'][head : head + 1, :].T / spec.keep_rate)
        dlogits_PC = weights_PC * (dweights_PC - refs['delta'][head : head + 1, :])
        yield weights_PC, dlogits_PC, dlogits_PC if slope_PC is None else dlogits_PC * slope_PC
