"""Attention on each device of a mesh for its own rows, heads and queries: a loop over a split axis would gather it.

B batch, T queries, S keys, N heads, K key-value heads, H head_dim.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec

from t5flan import sharding
from t5flan.kernels.operands import Operands


def on_devices(run: Callable[[Operands], jax.Array], operands: Operands) -> jax.Array:
    """`run(operands)` on each device of the current mesh, or as it is outside a mesh.

    Rows, queries and heads are split as the axis rules say; heads that do not divide stay whole. Keys and values, which
    every query may see, arrive split over their length too and are gathered; their gradients are summed and split again
    (one is the transpose of the other).
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
            head = jax.lax.axis_index(head_axes) * kv_heads // _parts_of(current.mesh, head_axes)
            k_BSKH, v_BSKH = (jax.lax.dynamic_slice_in_dim(x, head, 1, axis=2) for x in (k_BSKH, v_BSKH))
        if key_axes:
            k_BSKH, v_BSKH = (jax.lax.all_gather(x, key_axes, axis=1, tiled=True) for x in (k_BSKH, v_BSKH))
        if query_axes:
            q_offset = q_offset + jax.lax.axis_index(query_axes) * operands.q_BTNH.shape[1]
        return run(operands._replace(k_BSKH=k_BSKH, v_BSKH=v_BSKH, q_offset=q_offset))

    rows = current.spec(('batch',), operands.q_BTNH.shape[:1])[0]
    specs = _specs(operands, rows, query_axes, key_axes, head_axes, kv_axes)
    return jax.shard_map(local, mesh=current.mesh, in_specs=(specs,), out_specs=specs.q_BTNH, check_vma=False)(operands)


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
