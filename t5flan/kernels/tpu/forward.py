"""The forward Pallas TPU kernel: the output and the log-sum-exp (lse) of every query, by online softmax.

See `tpu/tile.py` for the letters and for how a tile is computed.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from t5flan.kernels.operands import LEAST_MAXIMUM, KernelArrays, dot
from t5flan.kernels.tpu import tile
from t5flan.kernels.tpu.tile import Arrays, Place, Refs, Seen, TileSpec

Outputs = dict[str, tuple[pl.BlockSpec, Any]]  # blocks, and arrays or their shapes
Scratch = dict[str, tuple[int, ...]]  # shapes of float32 memory
_MEMORY = 2**25  # bytes of a core, of 64 MiB or more; by default a kernel gets 16 MiB


def forward(spec: TileSpec, arrays: KernelArrays) -> tuple[jax.Array, jax.Array]:
    """The output [B, T, J * E] in q's dtype, and the lse [B, J, U, T] in float32."""
    (batch, queries, width), keys = arrays.q.shape, arrays.k.shape[1]
    blocks = queries // spec.block_q, keys // spec.block_k
    groups, heads = width // spec.lanes, spec.heads
    seen = tile.seen_tiles(spec, arrays, axis=2)
    inputs = arrays.given()
    del inputs['q_offset']  # in `seen`
    specs = tile.block_specs(spec, functools.partial(place_by_query, blocks[0]))
    scratch: Scratch = dict.fromkeys(('max_ref', 'sum_ref'), (heads, 1, spec.block_q))
    scratch['y_ref'] = (spec.lanes, spec.block_q)
    if spec.band:
        scratch['sheared_ref'] = (heads, tile.LANES, spec.band.width)
    lse_shape = jax.ShapeDtypeStruct((batch, groups, heads, queries), jnp.float32)
    outputs: Outputs = {'y': (specs['y'], arrays.q), 'lse': (specs['lse'], lse_shape)}
    kernel = functools.partial(_kernel, spec, blocks)
    y, lse = run_kernel(spec, kernel, 'forward', (groups, batch, *blocks), specs, seen, inputs, outputs, scratch)
    return y, lse


def run_kernel(
    spec: TileSpec,
    kernel: Callable[[Seen, Refs], None],
    name: str,
    grid: tuple[int, ...],
    specs: dict[str, pl.BlockSpec],
    seen: Seen,
    inputs: Arrays,
    outputs: Outputs,
    scratch: Scratch,
) -> list[jax.Array]:
    """Runs `kernel` over a grid; it takes references: those of `seen`, and by name all inputs, outputs and scratch.

    `name` is shown in a profile. Groups of heads are the grid's first axis and may run on different cores; later axes
    keep memory from one step to the next. `specs` has the blocks of the inputs. An output takes the memory of the input
    of its name and `_before`, if there is one.
    """
    names, count = (*inputs, *outputs, *scratch), len(Seen._fields)

    def body(*refs: Any) -> None:
        kernel(Seen(*refs[:count]), dict(zip(names, refs[count:], strict=True)))

    semantics: list[Any] = ['parallel', *['arbitrary'] * (len(grid) - 1)]
    memory = _MEMORY if spec.large else None
    aliases = {
        count + i: [*outputs].index(name.removesuffix('_before'))
        for i, name in enumerate(inputs)
        if name.endswith('_before')
    }
    return pl.pallas_call(
        body,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=count,
            grid=grid,
            in_specs=[specs[name] for name in inputs],
            out_specs=[block for block, _ in outputs.values()],
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch.values()],
        ),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for _, x in outputs.values()],
        compiler_params=pltpu.CompilerParams(dimension_semantics=semantics, vmem_limit_bytes=memory),
        input_output_aliases=aliases,
        interpret=spec.interpret,
        name=f't5flan_attention_{name}',
    )(*seen, *inputs.values())


def place_by_query(blocks_q: int, group: Any, row: Any, query: Any, key: Any, *seen: Any) -> Place:
    """A tile's position in a grid (groups, rows, blocks of queries, of keys); unseen keys at either end stay unread."""
    _, first, last, _ = seen
    at = row * blocks_q + query
    return Place(row, group, query, jnp.clip(key, first[at], last[at]))


def _kernel(spec: TileSpec, blocks: tuple[int, int], seen: Seen, refs: Refs) -> None:
    group, row, query, key = (pl.program_id(axis) for axis in range(4))
    at = Place(row, group, query, key)
    if spec.band:

        @pl.when((row == 0) & (query == 0) & (key == 0))
        def start_group() -> None:
            tile.shear_into(spec, refs['bias'][...], refs['sheared_ref'])

    @pl.when(key == 0)
    def start_queries() -> None:
        refs['max_ref'][...] = jnp.full_like(refs['max_ref'], LEAST_MAXIMUM)
        refs['sum_ref'][...] = jnp.zeros_like(refs['sum_ref'])
        refs['y_ref'][...] = jnp.zeros_like(refs['y_ref'])

    @pl.when(tile.is_seen(seen, at, *blocks))
    def add_tile() -> None:
        _add_tile(spec, refs, at._replace(q_offset=seen.q_offset[0]))

    @pl.when(key == blocks[1] - 1)
    def finish_queries() -> None:
        _write(spec, refs)


def _add_tile(spec: TileSpec, refs: Refs, at: Place) -> None:
    q_CE, k_PE, v_EP = refs['q'][...], refs['k'][...], refs['v'][...].T
    allowed_PC = tile.allowed(spec, refs, at)
    for head in range(spec.heads):
        logits_PC, _ = tile.head_logits(spec, refs, q_CE, k_PE, allowed_PC, at, head)
        max_1C = jnp.maximum(refs['max_ref'][head], jnp.max(logits_PC, axis=0, keepdims=True))
        weights_PC = jnp.exp(logits_PC - max_1C)
        rescale_1C = jnp.exp(refs['max_ref'][head] - max_1C)
        refs['max_ref'][head] = max_1C
        refs['sum_ref'][head] = refs['sum_ref'][head] * rescale_1C + jnp.sum(weights_PC, axis=0, keepdims=True)
        rows = tile.head_rows(spec, head)
        v_HP = v_EP[rows]
        if spec.keep_rate:  # on the values: exact, and equivalent to dropping probabilities
            v_HP = (v_HP * refs['keep'][head : head + 1, :]).astype(v_EP.dtype)
        y_HC = refs['y_ref'][rows] * rescale_1C
        refs['y_ref'][rows] = y_HC + dot(spec, v_HP, weights_PC.astype(v_EP.dtype), 1, 0)


def _write(spec: TileSpec, refs: Refs) -> None:
    for head in range(spec.heads):
        rows = tile.head_rows(spec, head)
        sum_1C = refs['sum_ref'][head]
        sum_1C = jnp.where(sum_1C > 0.0, sum_1C, 1.0)  # a query that sees no key
        refs['y_ref'][rows] = refs['y_ref'][rows] / (sum_1C * (spec.keep_rate or 1.0))
        refs['lse'][head : head + 1, :] = refs['max_ref'][head] + jnp.log(sum_1C)
    refs['y'][...] = refs['y_ref'][...].T.astype(refs['y'].dtype)
