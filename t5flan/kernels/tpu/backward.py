"""The backward Pallas TPU kernels: one for the gradients of queries and bias, one for those of keys and values.

Each makes the probabilities of a tile again from the logarithm of its queries' softmax sums. See `tpu/tile.py` for
the letters and for how a tile is made.

The gradient of a softmax is p * (dp - sum(p * dp)), and that sum is taken from y * dy, which needs no pass over the keys.
But y was made of rounded probabilities and was rounded itself, so that the gradients of a query's logits do not quite add
up to zero. A bias adds up those of many queries, and is left with what is over. So the kernel of the keys, which runs
first, also gives what those of each query add up to, and the kernel of queries and bias takes that off.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from t5flan.kernels.tpu import tile
from t5flan.kernels.tpu.forward import compiler_params, place_by_query
from t5flan.kernels.tpu.tile import Arrays, Place, Seen, TileForm

# Bytes of a core's memory for the sums of the gradients of logits. Where the queries (some 260,000 of heads of 64) and
# the heads that share a key are too many for that, the gradient of the bias goes without the correction.
MOST_EXCESS = 2**21


def backward(form: TileForm, arrays: Arrays, y: jax.Array, log_sum_BJUT: jax.Array, dy: jax.Array) -> Arrays:
    """Gradients of q, k, v and bias, each like its array; None for the rest."""
    batch, queries, _ = y.shape
    product = (y.astype(jnp.float32) * dy.astype(jnp.float32)).reshape(batch, queries, -1, form.heads, form.head_dim)
    inner_BJUT = jnp.sum(product, axis=-1).transpose(0, 2, 3, 1)
    given = {name: x for name, x in arrays._asdict().items() if x is not None and name != 'q_offset'}
    given |= {'dy': dy, 'log_sum': log_sum_BJUT, 'inner': inner_BJUT}
    dk, dv, excess_BJUT = _gradient_of_keys(form, arrays, given)
    if excess_BJUT is not None:
        given['inner'] = inner_BJUT + excess_BJUT
    dq, dbias = _gradient_of_queries(form, arrays, given)
    return Arrays(dq, dk, dv, dbias, None, None, None, None)


def _gradient_of_queries(form: TileForm, arrays: Arrays, given: dict) -> tuple[jax.Array, jax.Array | None]:
    (batch, queries, width), keys = arrays.q.shape, arrays.k.shape[1]
    blocks = queries // form.block_q, keys // form.block_k
    specs = tile.block_specs(form, functools.partial(place_by_query, blocks[0]))
    seen = tile.seen_by_queries(form, arrays)
    outputs = {'dq': (specs['q'], arrays.q)}
    scratch = {'dq_ref': (form.lanes, form.block_q)}
    if form.band:
        outputs['dbias'] = specs['bias'], arrays.bias
        scratch['sheared_ref'] = scratch['dsheared_ref'] = (form.heads, tile.LANES, form.band.width)
    kernel = functools.partial(_query_kernel, form, (batch, *blocks), (*given, *outputs, *scratch))
    results = pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(seen),
            grid=(width // form.lanes, batch, *blocks),
            in_specs=[specs[name] for name in given],
            out_specs=[spec for spec, _ in outputs.values()],
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch.values()],
        ),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for _, x in outputs.values()],
        compiler_params=compiler_params(4),
        interpret=form.interpret,
        name='t5flan_attention_gradient_of_queries',
    )(*seen, *given.values())
    return results[0], results[1] if form.band else None


def _query_kernel(form: TileForm, sizes: tuple[int, int, int], names: tuple[str, ...], *refs: Any) -> None:
    seen, refs = Seen(*refs[: len(Seen._fields)]), dict(zip(names, refs[len(Seen._fields) :], strict=True))
    group, row, query, key = (pl.program_id(axis) for axis in range(4))
    rows, blocks_q, blocks_k = sizes
    at, q_offset = Place(row, group, query, key), seen.q_offset[0]
    if form.band:

        @pl.when((row == 0) & (query == 0) & (key == 0))
        def _():
            tile.shear_into(form, refs['bias'][...], refs['sheared_ref'])
            refs['dsheared_ref'][...] = jnp.zeros_like(refs['dsheared_ref'])

    @pl.when(key == 0)
    def _():
        refs['dq_ref'][...] = jnp.zeros_like(refs['dq_ref'])

    @pl.when(tile.is_seen(seen, at, blocks_q, blocks_k))
    def _():
        k_EP = refs['k'][...].T
        for head, (_, dlogits_PC, dproducts_PC) in enumerate(_gradients_of_logits(form, refs, at, q_offset)):
            rows_E = tile.rows_of_head(form, head)
            refs['dq_ref'][rows_E] += tile.dot(form, k_EP[rows_E], dproducts_PC.astype(k_EP.dtype), 1, 0)
            if form.band:
                for c, start in enumerate(tile.band_starts(form, at, q_offset)):
                    part = dlogits_PC[c * tile.LANES : (c + 1) * tile.LANES]
                    refs['dsheared_ref'][head, :, pl.ds(start, form.block_q)] += part

    @pl.when(key == blocks_k - 1)
    def _():
        refs['dq'][...] = (refs['dq_ref'][...] * form.scale).T.astype(refs['dq'].dtype)

    if form.band:

        @pl.when((row == rows - 1) & (query == blocks_q - 1) & (key == blocks_k - 1))
        def _():
            for head, dbias_1W in enumerate(tile.unshear(form, refs['dsheared_ref'])):
                refs['dbias'][head : head + 1, :] = dbias_1W


def _gradient_of_keys(form: TileForm, arrays: Arrays, given: dict) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """dk, dv and, where there is a bias, what the gradients of each query's logits add up to, [B, J, U, T]."""
    (batch, queries, _), (_, keys, width) = arrays.q.shape, arrays.k.shape
    blocks = queries // form.block_q, keys // form.block_k
    seen = tile.seen_by_keys(form, arrays)

    def place(kv_group: Any, row: Any, key: Any, member: Any, query: Any, *seen: Any) -> Place:
        _, first, last, _ = seen
        at = row * blocks[1] + key
        return Place(row, kv_group * form.share + member, jnp.clip(query, first[at], last[at]), key)

    specs = tile.block_specs(form, place)
    scratch = {'dk_ref': (form.block_k, form.lanes), 'dv_ref': (form.block_k, form.lanes)}
    if form.band:
        scratch['sheared_ref'] = (form.heads, tile.LANES, form.band.width)
    outputs = {'dk': (specs['k'], arrays.k), 'dv': (specs['v'], arrays.v)}
    of_group = (form.share, form.heads, blocks[0], form.block_q)  # of all queries: stays in a core's memory meanwhile
    if form.band and 4 * math.prod(of_group) <= MOST_EXCESS:
        shape = (batch, width // form.lanes * form.share, *of_group[1:])
        spec = pl.BlockSpec((None, *of_group), lambda kv_group, row, *_: (row, kv_group, 0, 0, 0))
        outputs['excess'] = spec, jax.ShapeDtypeStruct(shape, jnp.float32)
    kernel = functools.partial(_key_kernel, form, blocks, (*given, *outputs, *scratch))
    dk, dv, *excess = pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(seen),
            grid=(width // form.lanes, batch, blocks[1], form.share, blocks[0]),
            in_specs=[specs[name] for name in given],
            out_specs=[spec for spec, _ in outputs.values()],
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch.values()],
        ),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for _, x in outputs.values()],
        compiler_params=compiler_params(5),
        interpret=form.interpret,
        name='t5flan_attention_gradient_of_keys',
    )(*seen, *given.values())
    return dk, dv, excess[0].reshape(given['inner'].shape) if excess else None


def _key_kernel(form: TileForm, blocks: tuple[int, int], names: tuple[str, ...], *refs: Any) -> None:
    seen, refs = Seen(*refs[: len(Seen._fields)]), dict(zip(names, refs[len(Seen._fields) :], strict=True))
    kv_group, row, key, member, query = (pl.program_id(axis) for axis in range(5))
    at, q_offset = Place(row, kv_group * form.share + member, query, key), seen.q_offset[0]
    if form.band:
        first = query == 0
        if form.share == 1:  # else the next group's bias takes the memory in between
            first &= (row == 0) & (key == 0)

        @pl.when(first)
        def _():
            tile.shear_into(form, refs['bias'][...], refs['sheared_ref'])

    if 'excess' in refs:

        @pl.when((key == 0) & (member == 0) & (query == 0))
        def _():
            refs['excess'][...] = jnp.zeros_like(refs['excess'])

    @pl.when((member == 0) & (query == 0))
    def _():
        refs['dk_ref'][...] = jnp.zeros_like(refs['dk_ref'])
        refs['dv_ref'][...] = jnp.zeros_like(refs['dv_ref'])

    @pl.when(tile.is_seen(seen, at, *blocks))
    def _():
        q_CE, dy_CE = refs['q'][...], refs['dy'][...]
        for head, (weights_PC, dlogits_PC, dproducts_PC) in enumerate(_gradients_of_logits(form, refs, at, q_offset)):
            if 'excess' in refs:
                refs['excess'][member, head, pl.ds(query, 1)] += jnp.sum(dlogits_PC, axis=0, keepdims=True)
            dv_PE = tile.dot(form, weights_PC.astype(dy_CE.dtype), tile.of_head(form, dy_CE, head), 1, 0)
            if form.kept:
                dv_PE = dv_PE * (refs['keep'][head : head + 1, :].T / form.kept)
            refs['dv_ref'][...] += dv_PE
            refs['dk_ref'][...] += tile.dot(form, dproducts_PC.astype(q_CE.dtype), tile.of_head(form, q_CE, head), 1, 0)

    @pl.when((member == form.share - 1) & (query == blocks[0] - 1))
    def _():
        refs['dk'][...] = (refs['dk_ref'][...] * form.scale).astype(refs['dk'].dtype)
        refs['dv'][...] = refs['dv_ref'][...].astype(refs['dv'].dtype)


def _gradients_of_logits(form: TileForm, refs: dict, at: Place, q_offset: jax.Array) -> Any:
    """For each head the probabilities of a tile, the gradient of its logits, and that of its products / scale, [P, C]."""
    q_CE, k_PE, v_PE, dy_CE = (refs[name][...] for name in ('q', 'k', 'v', 'dy'))
    allowed_PC = tile.allowed(form, refs, at, q_offset)
    for head in range(form.heads):
        logits_PC, slope_PC = tile.logits_of_head(
            form, k_PE, tile.of_head(form, q_CE, head), refs.get('sheared_ref'), allowed_PC, at, head, q_offset
        )
        weights_PC = jnp.exp(logits_PC - refs['log_sum'][head : head + 1, :])
        dweights_PC = tile.dot(form, v_PE, tile.of_head(form, dy_CE, head), 1, 1)
        if form.kept:
            dweights_PC = dweights_PC * (refs['keep'][head : head + 1, :].T / form.kept)
        dlogits_PC = weights_PC * (dweights_PC - refs['inner'][head : head + 1, :])
        yield weights_PC, dlogits_PC, dlogits_PC if slope_PC is None else dlogits_PC * slope_PC
