"""The backward Pallas TPU kernels: one for the gradients of queries, keys and values, and one for that of the bias.

Both recompute the probabilities of a tile from the lse of its queries. See `tpu/tile.py` for the letters and for how a
tile is computed.

The first kernel goes through the queries of one block of keys after another: the gradients of keys and values are
complete after each, those of all queries stay in a core's memory meanwhile.

**The gradient of the bias** is a sum over many queries. The gradient of a softmax is p * (dp - delta) with delta =
sum(p * dp), which equals sum(y * dy) and needs no pass over the keys. But y was computed from rounded probabilities and
was rounded itself, so that the gradients of a query's logits do not quite sum to zero, and the bias would keep that
error of every query. So the first kernel also returns the sum of each query (the excess), and the other one subtracts
it. That one computes only the tiles near the diagonal again: all keys far after a query share one number, which the
first kernel sums, and that of the keys far before is what remains, because the gradients of a query's logits sum to
zero.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from t5flan.kernels.operands import KernelArrays, dot
from t5flan.kernels.tpu import tile
from t5flan.kernels.tpu.forward import Outputs, Scratch, run_kernel
from t5flan.kernels.tpu.tile import Arrays, Place, Refs, Seen, TileSpec

# Bytes of a core's memory for the gradients of queries, on any chip and on those with large tiles: for 4096 and 16384
# queries of 128 lanes, or fewer if several groups of heads read the same keys. Parts of more queries take turns.
MAX_GRADIENT = {False: 2**21, True: 2**23}
_SUMS = ('excess', 'after', 'weight_after')
# The axis of queries of each array, and that of groups of heads.
_AXES_OF_QUERIES = {'q': 1, 'dy': 1, 'dq': 1, 'query_ids': 2, 'lse': 3, 'delta': 3, **dict.fromkeys(_SUMS, 3)}
_AXES_OF_GROUPS = {'q': 2, 'dy': 2, 'dq': 2, 'bias': 0, 'keep': 1, 'lse': 1, 'delta': 1, **dict.fromkeys(_SUMS, 1)}
Before = tuple[jax.Array, jax.Array] | None


def backward(spec: TileSpec, arrays: KernelArrays, y: jax.Array, lse_BJUT: jax.Array, dy: jax.Array) -> KernelArrays:
    """Gradients of q, k, v and bias, each like its array; None for the rest."""
    batch, queries, _ = y.shape
    product = (y.astype(jnp.float32) * dy.astype(jnp.float32)).reshape(batch, queries, -1, spec.heads, spec.head_dim)
    delta_BJUT = jnp.sum(product, axis=-1).transpose(0, 2, 3, 1)
    of_queries = {'dy': dy, 'lse': lse_BJUT, 'delta': delta_BJUT}
    dk, dv, of_each = _gradients_by_part(spec, arrays, of_queries)
    dbias = None
    if spec.band:
        of_queries['delta'] = delta_BJUT + of_each['excess']
        dbias = _gradient_of_bias(spec, arrays, of_queries)
        if 'after' in of_each:
            corrected_BJUT = of_each['after'] - of_each['excess'] * of_each['weight_after']
            dbias = _add_far(dbias, jnp.sum(corrected_BJUT, axis=(0, 3)))
    no_gradient: Any = None
    dk, dv = dk.astype(arrays.k.dtype), dv.astype(arrays.v.dtype)
    return KernelArrays(of_each['dq'], dk, dv, dbias, None, None, None, no_gradient)


def _add_far(dbias_JUW: jax.Array, after_JU: jax.Array) -> jax.Array:
    """Adds the gradients of the keys far after a query, and of those far before, which is what is missing to zero."""
    before_JU = -after_JU - jnp.sum(dbias_JUW, axis=-1)
    return dbias_JUW.at[..., 0].add(after_JU).at[..., -1].add(before_JU)


# -- Queries, keys and values -----------------------------------------------------------------------------------------


def _gradients_by_part(
    spec: TileSpec, arrays: KernelArrays, of_queries: Arrays, before: Before = None
) -> tuple[jax.Array, jax.Array, Arrays]:
    """As `_gradients`, in parts that take turns if a core's memory is too small.

    The parts are of the groups of heads that read the same keys, or of the queries if those of one group are too many.
    """
    blocks_q = arrays.q.shape[1] // spec.block_q
    wider = max(1, spec.lanes // tile.LANES)  # then all else of a tile needs more memory too
    fit = MAX_GRADIENT[spec.large] // (4 * spec.lanes * spec.block_q * wider**2)
    members = _largest_divisor(spec.share, fit)
    if members < spec.share:
        own, groups = dataclasses.replace(spec, share=members), arrays.k.shape[2] // spec.lanes
        return _in_turns(own, arrays, of_queries, before, _AXES_OF_GROUPS, groups, spec.share // members)
    blocks = _largest_divisor(blocks_q, fit // spec.share)
    if blocks < blocks_q:
        return _in_turns(spec, arrays, of_queries, before, _AXES_OF_QUERIES, 1, blocks_q // blocks)
    return _gradients(spec, arrays, of_queries, before)


def _largest_divisor(number: int, most: int) -> int:
    return max(n for n in range(1, number + 1) if number % n == 0 and n <= max(1, most))


def _in_turns(
    spec: TileSpec,
    arrays: KernelArrays,
    of_queries: Arrays,
    before: Before,
    axes: dict[str, int],
    outer: int,
    parts: int,
) -> tuple[jax.Array, jax.Array, Arrays]:
    """`_gradients_by_part` of one part after another: of the axis of each array, which is [outer, parts, a part]."""
    whole = arrays._asdict() | of_queries

    def cut(name: str, number: jax.Array) -> jax.Array:
        x, axis = whole[name], axes[name]
        x = x.reshape(*x.shape[:axis], outer, parts, -1, *x.shape[axis + 1 :])
        x = lax.dynamic_index_in_dim(x, number, axis + 1, keepdims=False)
        return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])

    def join(name: str, x: jax.Array) -> jax.Array:
        axis = axes[name]
        x = x.reshape(parts, *x.shape[1 : axis + 1], outer, -1, *x.shape[axis + 2 :])
        return jnp.moveaxis(x, 0, axis + 1).reshape(*x.shape[1 : axis + 1], -1, *x.shape[axis + 3 :])

    def add_part(before: tuple[jax.Array, jax.Array], number: jax.Array) -> tuple[tuple[jax.Array, jax.Array], Arrays]:
        own = whole | {name: cut(name, number) for name in axes if whole.get(name) is not None}
        if own['q'].shape[1] < arrays.q.shape[1]:
            own['q_offset'] = arrays.q_offset + number * own['q'].shape[1]
        own_arrays = KernelArrays(**{name: own[name] for name in KernelArrays._fields})
        dk, dv, of_each = _gradients_by_part(spec, own_arrays, {name: own[name] for name in of_queries}, before)
        return (dk, dv), of_each

    before = before or (jnp.zeros(arrays.k.shape, jnp.float32), jnp.zeros(arrays.v.shape, jnp.float32))
    (dk, dv), of_each = lax.scan(add_part, before, jnp.arange(parts, dtype=jnp.int32))
    return dk, dv, {name: join(name, x) for name, x in of_each.items()}


def _gradients(
    spec: TileSpec, arrays: KernelArrays, of_queries: Arrays, before: Before
) -> tuple[jax.Array, jax.Array, Arrays]:
    """The gradients of keys and of values, added to those `before` (float32) if given; and by name those of queries.

    The last are `dq` and, if there is a bias, sums [B, J, U, T] of each query: of the gradients of all its logits
    (`excess`) and, if there are tiles that `_gradient_of_bias` leaves out, of the gradients of the keys far after it
    (`after`) and of their probabilities (`weight_after`).
    """
    (batch, queries, width), (_, keys, kv_width) = arrays.q.shape, arrays.k.shape
    blocks = queries // spec.block_q, keys // spec.block_k
    inputs = arrays.given() | of_queries
    del inputs['q_offset']  # in `seen`
    seen = tile.seen_tiles(spec, arrays, axis=1)

    def place(kv_group: Any, row: Any, key: Any, member: Any, query: Any, *seen: Any) -> Place:
        _, first, last, _ = seen
        at = row * blocks[1] + key
        return Place(row, kv_group * spec.share + member, jnp.clip(query, first[at], last[at]), key)

    def place_dq(kv_group: Any, row: Any, key: Any, member: Any, query: Any, *_: Any) -> tuple:
        is_last = (key == blocks[1] - 1).astype(jnp.int32)  # before it, the block that is written first stays
        return row, query * is_last, kv_group * spec.share + member * is_last

    specs = tile.block_specs(spec, place)
    shapes = {'dk': arrays.k, 'dv': arrays.v}
    if before is not None:
        inputs |= {'dk_before': before[0], 'dv_before': before[1]}
        once = pl.Buffered(1)  # read while the block before it is computed, it would take twice the memory
        specs |= {
            f'd{name}_before': pl.BlockSpec(specs[name].block_shape, specs[name].index_map, pipeline_mode=once)
            for name in ('k', 'v')
        }
        shapes = {'dk': before[0], 'dv': before[1]}
    outputs: Outputs = {
        'dk': (specs['k'], shapes['dk']),
        'dv': (specs['v'], shapes['dv']),
        'dq': (pl.BlockSpec((None, spec.block_q, spec.lanes), place_dq), arrays.q),
    }
    scratch: Scratch = dict.fromkeys(('dk_ref', 'dv_ref'), (spec.lanes, spec.block_k))
    scratch['dq_ref'] = (spec.share, blocks[0], spec.lanes, spec.block_q)
    if spec.band:
        scratch['sheared_ref'] = (spec.heads, tile.LANES, spec.band.width)
        of_group = (spec.share, spec.heads, blocks[0], spec.block_q)
        sums = jax.ShapeDtypeStruct((batch, width // spec.lanes, *of_group[1:]), jnp.float32)
        block = pl.BlockSpec((None, *of_group), lambda kv_group, row, *_: (row, kv_group, 0, 0, 0))
        names = _SUMS if tile.near_blocks(spec, blocks[1]) < blocks[1] else _SUMS[:1]
        outputs |= dict.fromkeys(names, (block, sums))
    kernel = functools.partial(_kernel, spec, blocks)
    grid = kv_width // spec.lanes, batch, blocks[1], spec.share, blocks[0]
    results = run_kernel(spec, kernel, 'gradients', grid, specs, seen, inputs, outputs, scratch)
    by_name = dict(zip(outputs, results, strict=True))
    dk, dv = by_name.pop('dk'), by_name.pop('dv')
    like = of_queries['delta'].shape
    return dk, dv, {name: x if name == 'dq' else x.reshape(like) for name, x in by_name.items()}


def _kernel(spec: TileSpec, blocks: tuple[int, int], seen: Seen, refs: Refs) -> None:
    kv_group, row, key, member, query = (pl.program_id(axis) for axis in range(5))
    at = Place(row, kv_group * spec.share + member, query, key, seen.q_offset[0])
    sums = [name for name in _SUMS if name in refs]
    if spec.band:
        first = query == 0
        if spec.share == 1:  # otherwise the bias of the group's next member takes the memory in between
            first &= (row == 0) & (key == 0)

        @pl.when(first)
        def start_group() -> None:
            tile.shear_into(spec, refs['bias'][...], refs['sheared_ref'])

        @pl.when((key == 0) & (member == 0) & (query == 0))
        def start_row() -> None:
            for name in sums:
                refs[name][...] = jnp.zeros_like(refs[name])

    @pl.when((member == 0) & (query == 0))
    def start_keys() -> None:
        refs['dk_ref'][...] = jnp.zeros_like(refs['dk_ref'])
        refs['dv_ref'][...] = jnp.zeros_like(refs['dv_ref'])

    @pl.when(key == 0)
    def start_queries() -> None:
        refs['dq_ref'][member, query] = jnp.zeros((spec.lanes, spec.block_q), jnp.float32)

    @pl.when(tile.is_seen(seen, at, *blocks))
    def add_tile() -> None:
        q_EC, dy_EC, k_EP = refs['q'][...].T, refs['dy'][...].T, refs['k'][...].T
        for head, (weights_PC, dlogits_PC, dproducts_PC) in enumerate(_gradients_of_logits(spec, refs, at)):
            if sums:
                _add_sums(spec, refs, at, blocks[1], (member, head, pl.ds(query, 1)), weights_PC, dlogits_PC)
            rows_E, dproducts_PC = tile.head_rows(spec, head), dproducts_PC.astype(q_EC.dtype)
            dv_HP = dot(spec, dy_EC[rows_E], weights_PC.astype(dy_EC.dtype), 1, 1)
            if spec.keep_rate:
                dv_HP = dv_HP * (refs['keep'][head : head + 1, :] / spec.keep_rate)
            refs['dv_ref'][rows_E] += dv_HP
            refs['dk_ref'][rows_E] += dot(spec, q_EC[rows_E], dproducts_PC, 1, 1)
            refs['dq_ref'][member, query, rows_E] += dot(spec, k_EP[rows_E], dproducts_PC, 1, 0)

    @pl.when((member == spec.share - 1) & (query == blocks[0] - 1))
    def finish_keys() -> None:
        for name, scale in (('dk', spec.scale), ('dv', 1.0)):
            gradient_PE = (refs[f'{name}_ref'][...] * scale).T
            if f'{name}_before' in refs:
                gradient_PE += refs[f'{name}_before'][...]
            refs[name][...] = gradient_PE.astype(refs[name].dtype)

    @pl.when(key == blocks[1] - 1)
    def finish_queries() -> None:
        refs['dq'][...] = (refs['dq_ref'][member, query] * spec.scale).T.astype(refs['dq'].dtype)


def _add_sums(
    spec: TileSpec, refs: Refs, at: Place, blocks_k: int, index: tuple, weights_PC: jax.Array, dlogits_PC: jax.Array
) -> None:
    sum_1C = jnp.sum(dlogits_PC, axis=0, keepdims=True)
    refs['excess'][index] += sum_1C
    if 'after' in refs:

        @pl.when(at.key >= tile.first_near(spec, at.query, at.q_offset, blocks_k) + tile.near_blocks(spec, blocks_k))
        def add_after() -> None:
            refs['after'][index] += sum_1C
            refs['weight_after'][index] += jnp.sum(weights_PC, axis=0, keepdims=True)


# -- The bias ---------------------------------------------------------------------------------------------------------


def _gradient_of_bias(spec: TileSpec, arrays: KernelArrays, of_queries: Arrays) -> jax.Array:
    """The gradient of the bias [J, U, W] from the tiles near the diagonal."""
    assert spec.band is not None and arrays.bias is not None
    (batch, queries, width), keys = arrays.q.shape, arrays.k.shape[1]
    blocks = queries // spec.block_q, keys // spec.block_k
    near = tile.near_blocks(spec, blocks[1])
    inputs = arrays.given() | of_queries
    del inputs['q_offset']  # in `seen`

    def place(group: Any, row: Any, query: Any, number: Any, *seen: Any) -> Place:
        *_, q_offset = seen
        return Place(row, group, query, tile.first_near(spec, query, q_offset[0], blocks[1]) + number)

    specs, seen = tile.block_specs(spec, place), tile.seen_tiles(spec, arrays, axis=2)
    scratch: Scratch = dict.fromkeys(('sheared_ref', 'dsheared_ref'), (spec.heads, tile.LANES, spec.band.width))
    kernel = functools.partial(_bias_kernel, spec, (batch, *blocks))
    grid, outputs = (width // spec.lanes, batch, blocks[0], near), {'dbias': (specs['bias'], arrays.bias)}
    return run_kernel(spec, kernel, 'gradient_of_bias', grid, specs, seen, inputs, outputs, scratch)[0]


def _bias_kernel(spec: TileSpec, sizes: tuple[int, int, int], seen: Seen, refs: Refs) -> None:
    group, row, query, number = (pl.program_id(axis) for axis in range(4))
    rows, blocks_q, blocks_k = sizes
    key = tile.first_near(spec, query, seen.q_offset[0], blocks_k) + number
    at, band = Place(row, group, query, key, seen.q_offset[0]), spec.band
    assert band is not None

    @pl.when((row == 0) & (query == 0) & (number == 0))
    def start_group() -> None:
        tile.shear_into(spec, refs['bias'][...], refs['sheared_ref'])
        refs['dsheared_ref'][...] = jnp.zeros_like(refs['dsheared_ref'])

    @pl.when(tile.is_seen(seen, at, blocks_q, blocks_k))
    def add_tile() -> None:
        starts = tile.band_starts(spec, band, at)
        for head, (_, dlogits_PC, _) in enumerate(_gradients_of_logits(spec, refs, at)):
            for c, start in enumerate(starts):
                part = dlogits_PC[c * tile.LANES : (c + 1) * tile.LANES]
                refs['dsheared_ref'][head, :, pl.ds(start, spec.block_q)] += part

    @pl.when((row == rows - 1) & (query == blocks_q - 1) & (number == tile.near_blocks(spec, blocks_k) - 1))
    def finish_group() -> None:
        for head, dbias_1W in enumerate(tile.unshear(spec, refs['dsheared_ref'])):
            refs['dbias'][head : head + 1, :] = dbias_1W


# -- Both -------------------------------------------------------------------------------------------------------------


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
