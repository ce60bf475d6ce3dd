"""The forward Pallas TPU kernel: an output and the logarithm of its softmax's sum for every query, with online softmax.

See `tpu/tile.py` for the letters and for how a tile is made.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from t5flan.kernels.chunked import MASKED
from t5flan.kernels.tpu import tile
from t5flan.kernels.tpu.tile import Arrays, Place, Seen, TileForm

# Logits that are masked lie far below every running maximum, so that their exponential is zero.
LEAST_MAXIMUM = 0.1 * MASKED


def forward(form: TileForm, arrays: Arrays) -> tuple[jax.Array, jax.Array]:
    """The output [B, T, J * E] in q's dtype, and the logarithms of the softmax sums [B, J, U, T] in float32."""
    (batch, queries, width), keys = arrays.q.shape, arrays.k.shape[1]
    blocks = queries // form.block_q, keys // form.block_k
    groups = width // form.lanes
    seen = tile.seen_by_queries(form, arrays)
    names = tuple(name for name, x in arrays._asdict().items() if x is not None and name != 'q_offset')
    specs = tile.block_specs(form, functools.partial(place_by_query, blocks[0]))
    scratch = {
        'top': (form.heads, 1, form.block_q),
        'sum': (form.heads, 1, form.block_q),
        'y': (form.lanes, form.block_q),
    }
    if form.band:
        scratch['sheared'] = (form.heads, tile.LANES, form.band.width)
    kernel = functools.partial(
        _kernel, form, blocks, (*names, 'y_out', 'log_sum', *(f'{name}_ref' for name in scratch))
    )
    return pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(seen),
            grid=(groups, batch, *blocks),
            in_specs=[specs[name] for name in names],
            out_specs=[specs['y'], specs['log_sum']],
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch.values()],
        ),
        out_shape=[
            jax.ShapeDtypeStruct(arrays.q.shape, arrays.q.dtype),
            jax.ShapeDtypeStruct((batch, groups, form.heads, queries), jnp.float32),
        ],
        compiler_params=compiler_params(4),
        interpret=form.interpret,
        name='t5flan_attention_forward',
    )(*seen, *(getattr(arrays, name) for name in names))


def compiler_params(axes: int) -> Any:
    """Groups of heads may run on different cores; what follows keeps memory from one step to the next."""
    return pltpu.CompilerParams(dimension_semantics=('parallel',) + ('arbitrary',) * (axes - 1))


def place_by_query(blocks_q: int, group: Any, row: Any, query: Any, key: Any, *seen: Any) -> Place:
    """Of a grid (groups, rows, blocks of queries, blocks of keys); unseen keys at either end are not even read."""
    _, first, last, _ = seen
    at = row * blocks_q + query
    return Place(row, group, query, jnp.clip(key, first[at], last[at]))


def _kernel(form: TileForm, blocks: tuple[int, int], names: tuple[str, ...], *refs: Any) -> None:
    seen, refs = Seen(*refs[: len(Seen._fields)]), dict(zip(names, refs[len(Seen._fields) :], strict=True))
    group, row, query, key = (pl.program_id(axis) for axis in range(4))
    at = Place(row, group, query, key)
    if form.band:

        @pl.when((row == 0) & (query == 0) & (key == 0))
        def _():
            tile.shear_into(form, refs['bias'][...], refs['sheared_ref'])

    @pl.when(key == 0)
    def _():
        refs['top_ref'][...] = jnp.full_like(refs['top_ref'], LEAST_MAXIMUM)
        refs['sum_ref'][...] = jnp.zeros_like(refs['sum_ref'])
        refs['y_ref'][...] = jnp.zeros_like(refs['y_ref'])

    @pl.when(tile.is_seen(seen, at, *blocks))
    def _():
        _add_tile(form, refs, at, seen.q_offset[0])

    @pl.when(key == blocks[1] - 1)
    def _():
        _write(form, refs)


def _add_tile(form: TileForm, refs: dict, at: Place, q_offset: jax.Array) -> None:
    q_CE, k_PE, v_EP = refs['q'][...], refs['k'][...], refs['v'][...].T
    allowed_PC = tile.allowed(form, refs, at, q_offset)
    for head in range(form.heads):
        logits_PC, _ = tile.logits_of_head(
            form, k_PE, tile.of_head(form, q_CE, head), refs.get('sheared_ref'), allowed_PC, at, head, q_offset
        )
        top_1C = jnp.maximum(refs['top_ref'][head], jnp.max(logits_PC, axis=0, keepdims=True))
        weights_PC = jnp.exp(logits_PC - top_1C)
        shrink_1C = jnp.exp(refs['top_ref'][head] - top_1C)
        refs['top_ref'][head] = top_1C
        refs['sum_ref'][head] = refs['sum_ref'][head] * shrink_1C + jnp.sum(weights_PC, axis=0, keepdims=True)
        rows = tile.rows_of_head(form, head)
        v_HP = v_EP[rows]
        if form.kept:
            v_HP = (v_HP * refs['keep'][head : head + 1, :]).astype(v_EP.dtype)  # exact, and as good as on the weights
        refs['y_ref'][rows] = refs['y_ref'][rows] * shrink_1C + tile.dot(
            form, v_HP, weights_PC.astype(v_EP.dtype), 1, 0
        )


def _write(form: TileForm, refs: dict) -> None:
    for head in range(form.heads):
        rows = tile.rows_of_head(form, head)
        sum_1C = refs['sum_ref'][head]
        sum_1C = jnp.where(sum_1C > 0.0, sum_1C, 1.0)  # a query that sees nothing
        refs['y_ref'][rows] = refs['y_ref'][rows] / (sum_1C * (form.kept or 1.0))
        refs['log_sum'][head : head + 1, :] = refs['top_ref'][head] + jnp.log(sum_1C)
    refs['y_out'][...] = refs['y_ref'][...].T.astype(refs['y_out'].dtype)
