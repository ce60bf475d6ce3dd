"""Attention on each device of a mesh for its own rows, heads and queries: a loop over a split axis would gather it.

B batch, T queries, S keys, N heads, K key-value heads, H head_dim.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from t5flan import sharding
from t5flan.kernels.operands import Operands


def on_devices(run: Callable[[Operands], jax.Array], operands: Operands) -> jax.Array:
    """`run(operands)` on each device of the current mesh, or as it is outside a mesh.

    Rows and heads are split as the axis rules say; heads that do not divide stay whole. Queries, keys and values may
    arrive split over their length too. Then the devices that share rows exchange them: each gets whole rows of some of
    the heads (DeepSpeed-Ulysses, arXiv:2309.14509), so that all have the same work under a causal mask, and no gradient
    is a sum over devices. If their heads do not divide over them, or only keys are split, each gathers the keys and
    values of whole rows instead; their gradients are summed in float32 and split again.
    """
    current = sharding.current()
    if current is None:
        return run(operands)
    heads, kv_heads, parts = operands.q_BTNH.shape[2], operands.k_BSKH.shape[2], current.size('act_heads')
    parts = 1 if heads % parts or (kv_heads % parts and parts % kv_heads) else parts
    head_axes = current.axis('act_heads') if parts > 1 else None
    kv_axes = None if kv_heads % parts else head_axes
    query_axes, key_axes = (_length_axes(current, x.shape[1]) for x in (operands.q_BTNH, operands.k_BSKH))

    def local(operands: Operands) -> jax.Array:
        k_BSKH, v_BSKH, q_offset = operands.k_BSKH, operands.v_BSKH, operands.q_offset
        if head_axes and not kv_axes:  # fewer key-value heads than parts: the heads here all read the same one
            head = lax.axis_index(head_axes) * kv_heads // _parts_of(current.mesh, head_axes)
            k_BSKH, v_BSKH = (lax.dynamic_slice_in_dim(x, head, 1, axis=2) for x in (k_BSKH, v_BSKH))
        operands = operands._replace(k_BSKH=k_BSKH, v_BSKH=v_BSKH)
        if query_axes and key_axes and _divide(operands, row_parts := _parts_of(current.mesh, key_axes)):
            return _exchanged(run, operands, key_axes, row_parts)
        if key_axes:
            gather = functools.partial(lax.all_gather, axis_name=key_axes, axis=1, tiled=True)
            k_BSKH, v_BSKH = (_summed_in_float32(gather, x.shape, x.dtype, x) for x in (k_BSKH, v_BSKH))
        if query_axes:
            q_offset = q_offset + lax.axis_index(query_axes) * operands.q_BTNH.shape[1]
        return run(operands._replace(k_BSKH=k_BSKH, v_BSKH=v_BSKH, q_offset=q_offset))

    rows = current.spec(('batch',), operands.q_BTNH.shape[:1])[0]
    specs = _specs(operands, rows, query_axes, key_axes, head_axes, kv_axes)
    return jax.shard_map(local, mesh=current.mesh, in_specs=(specs,), out_specs=specs.q_BTNH, check_vma=False)(operands)


def _divide(operands: Operands, parts: int) -> bool:
    """Whether heads can be exchanged: each device gets as many, which read key-value heads of their own, or one."""
    heads, kv_heads = operands.q_BTNH.shape[2], operands.k_BSKH.shape[2]
    return heads % parts == 0 and (kv_heads % parts == 0 or parts % kv_heads == 0)


def _exchanged(
    run: Callable[[Operands], jax.Array], operands: Operands, axes: tuple[str, ...], parts: int
) -> jax.Array:
    """`run` on whole rows and a part of the heads, on each of the devices of `axes`, which have parts of the rows."""
    heads, kv_heads = operands.q_BTNH.shape[2], operands.k_BSKH.shape[2]
    to_rows = functools.partial(lax.all_to_all, axis_name=axes, split_axis=2, concat_axis=1, tiled=True)
    repeat = functools.partial(jnp.repeat, repeats=max(1, parts // kv_heads), axis=2)

    def own(x: jax.Array | None, axis: int) -> jax.Array | None:
        first = lax.axis_index(axes) * (heads // parts)
        return None if x is None else lax.dynamic_slice_in_dim(x, first, heads // parts, axis)

    k_BSKH, v_BSKH = (
        to_rows(_summed_in_float32(repeat, x.shape, x.dtype, x)) for x in (operands.k_BSKH, operands.v_BSKH)
    )
    ids_BT = operands.q_segment_ids_BT
    whole = operands._replace(
        q_BTNH=to_rows(operands.q_BTNH),
        k_BSKH=k_BSKH,
        v_BSKH=v_BSKH,
        bias_NW=own(operands.bias_NW, 0),
        keep_BNS=own(operands.keep_BNS, 1),
        q_segment_ids_BT=None if ids_BT is None else lax.all_gather(ids_BT, axes, axis=1, tiled=True),
    )
    return lax.all_to_all(run(whole), axes, split_axis=1, concat_axis=2, tiled=True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _summed_in_float32(
    copy: Callable[[jax.Array], jax.Array], shape: tuple[int, ...], dtype: Any, x: jax.Array
) -> jax.Array:
    """`copy(x)`, whose gradient is the sum of those of the copies, computed in float32; x has the shape and dtype."""
    return copy(x)


def _sum_copies(copy: Callable, shape: tuple[int, ...], dtype: Any, _: None, dy: jax.Array) -> tuple[jax.Array]:
    (dx,) = jax.linear_transpose(copy, jax.ShapeDtypeStruct(shape, jnp.float32))(dy.astype(jnp.float32))
    return (dx.astype(dtype),)


_summed_in_float32.defvjp(lambda copy, shape, dtype, x: (copy(x), None), _sum_copies)


def _specs(operands: Operands, rows: Any, queries: Any, keys: Any, heads: Any, kv_heads: Any) -> Any:
    """`Operands` of partition specs; None where `operands` is None."""
    by_key = PartitionSpec(rows, keys, kv_heads, None)
    specs = {
        'q_BTNH': PartitionSpec(rows, queries, heads, None),
        **dict.fromkeys(('k_BSKH', 'v_BSKH'), by_key),
        'q_offset': PartitionSpec(),
        'bias_NW': PartitionSpec(heads, None),
        'keep_BNS': PartitionSpec(rows, heads, None),
        'q_segment_ids_BT': PartitionSpec(rows, queries),
    }
    by_row = PartitionSpec(rows, None)
    given = operands._asdict().items()
    return Operands._make(None if x is None else specs.get(name, by_row) for name, x in given)


def local_length(length: int) -> int:
    """How many of `length` queries one device holds."""
    current = sharding.current()
    axes = _length_axes(current, length) if current else None
    return length // _parts_of(current.mesh, axes) if current and axes else length


def _length_axes(current: sharding.Sharding, length: int) -> tuple[str, ...] | None:
    """The mesh axes that queries or keys are split over; None where their length does not divide, as in decoding."""
    axes = current.axis('length')
    return None if axes is None or length % _parts_of(current.mesh, axes) else axes


def _parts_of(mesh: Mesh, axes: tuple[str, ...]) -> int:
    return math.prod(mesh.shape[axis] for axis in axes)
