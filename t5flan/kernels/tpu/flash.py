"""Attention with T5's relative bias as Pallas (Mosaic) kernels for TPU, forward and backward, in linear memory.

Flash attention (arXiv:2205.14135, arXiv:2307.08691) that computes the bias inside: neither pass holds an array of T x
S, and the bias costs one vector of about 2 * (block_q + max_distance) numbers for each head. JAX's own TPU kernels take
a bias only as a dense [B, N, T, S] array or not at all. `docs/attention.md` explains it with a picture.

This file converts the model's arrays to the kernels' layout and back; the kernels are in `tpu/forward.py` and
`tpu/backward.py`, what they share in `tpu/tile.py`.

B batch, T queries, S keys, N heads, K key-value heads, H head_dim, J groups of U heads, E = U * H lanes
(`tpu/tile.py`), W numbers of a band of distances.
"""

from typing import Any

import jax
import jax.numpy as jnp

from t5flan.kernels.operands import AttentionSpec, KernelArrays, Operands, packed_ids, unsupported, with_gradients
from t5flan.kernels.relative_bias import RelativeBias, bias_of_distances
from t5flan.kernels.tpu.backward import backward
from t5flan.kernels.tpu.forward import forward
from t5flan.kernels.tpu.tile import LANES, Band, TileSpec

DTYPES = ('bfloat16', 'float32')
_LEAST_HEAD_DIM = 32  # smaller heads are padded
# Bytes of the sheared bias of a group of heads: 128 rows of float32. The kernel of its gradient holds two; a core of v4
# has 16 MiB.
_MAX_BIAS = {'bfloat16': 7 * 2**19, 'float32': 5 * 2**19}
# Queries and keys of a tile. The safe blocks fit on every chip with every option. The others, for 16-bit heads of at
# least 64 lanes and T5's own distances, need the fewest bundles among those that fit and skip finely enough
# (`benchmarks/attention_blocks.py`): for 1024 logits, (512, 512) and (512, 1024) take 54 and 35 on v5e, 55 and 36 on
# v5p, 45 and 29 on v6e, 45 and 28 on tpu7x at 64 lanes (62 to 50 and 41 to 31 at 128). v4 has too little memory for the
# second.
SAFE_BLOCKS = {'bfloat16': (512, 512), 'float32': (256, 512)}
BLOCKS = {'TPU v5 lite': (512, 1024), 'TPU v5': (512, 1024), 'TPU v6 lite': (512, 1024), 'TPU7x': (512, 1024)}
_MAX_BIAS_OF_BLOCKS = 2**21


def unsupported_reason(spec: AttentionSpec, operands: Operands) -> str | None:
    """Why the kernels do not support such arrays, or None if they do."""
    reason = unsupported(spec, operands, DTYPES)
    if reason is None and spec.bias is not None:
        dtype = str(operands.q_BTNH.dtype)
        if _bias_bytes(operands.q_BTNH.shape[3], dtype, spec.bias) > _MAX_BIAS[dtype]:
            over = f'a bias over {spec.bias.max_distance} distances'
            return f'{over} does not fit in its memory (ModelConfig.relative_max_distance)'
    return reason


def _bias_bytes(head_dim: int, dtype: str, bias: RelativeBias) -> int:
    heads = max(1, LANES // max(head_dim, _LEAST_HEAD_DIM))
    return heads * LANES * 4 * Band(SAFE_BLOCKS[dtype][0], bias.max_distance).width


_attention = with_gradients(forward, backward)


def flash_attention(
    spec: AttentionSpec, operands: Operands, blocks: tuple[int, int], interpret: Any = False
) -> jax.Array:
    """Attention by the kernels: y_BTNH in q's dtype, for any T and S; `operands.bias_NW` is the bias table [N, R].

    `blocks` are the queries and keys of a tile, multiples of 128. `interpret` is Pallas' argument, True on a CPU.
    """
    batch, queries, heads, size = operands.q_BTNH.shape
    tile_spec, arrays = arrange(spec, operands, blocks, interpret)
    y = _attention(tile_spec, arrays)
    return y[:, :queries].reshape(batch, queries, heads, -1)[..., :size]


def arrange(
    spec: AttentionSpec, operands: Operands, blocks: tuple[int, int], interpret: Any = False
) -> tuple[TileSpec, KernelArrays]:
    """The kernels' spec and arrays: heads in groups of 128 lanes, lengths padded to blocks, masks as two rows of ids.

    Of `KernelArrays`, q is [B, T, J * E], k and v [B, S, J / share * E], bias [J, U, W], keep [B, J, U, S], query_ids
    [B, 1, T] and key_ids [B, 1, S].
    """
    batch, queries, heads, size = operands.q_BTNH.shape
    keys, kv_heads = operands.k_BSKH.shape[1:3]
    size_padded, group = lane_group(heads, size)
    repeats = _repeats(heads, kv_heads, group)
    (block_q, block_k), groups = blocks, heads // group
    padding_T, padding_S = -queries % block_q, -keys % block_k
    bias = keep = None
    if spec.bias is not None and operands.bias_NW is not None:
        distances = Band(block_q, spec.bias.max_distance).distances(operands.q_offset)
        bias = bias_of_distances(operands.bias_NW, spec.bias, distances).reshape(groups, group, -1)
    if operands.keep_BNS is not None:
        keep = jnp.pad(operands.keep_BNS.astype(jnp.float32), [(0, 0), (0, 0), (0, padding_S)])
        keep = keep.reshape(batch, groups, group, -1)
    query_ids_BT, key_ids_BS = packed_ids(operands, padding_T, padding_S, padded_query=-1)

    def lay_out(x: jax.Array, padding: int, repeats: int = 1) -> jax.Array:
        x = jnp.pad(x, [(0, 0), (0, padding), (0, 0), (0, size_padded - size)])
        x = jnp.repeat(x, repeats, axis=2) if repeats > 1 else x
        return x.reshape(*x.shape[:2], -1)

    sizes: dict[str, Any] = dict(heads=group, head_dim=size_padded, share=heads // (kv_heads * repeats))
    sizes |= dict(block_q=block_q, block_k=block_k)
    tile_spec = TileSpec(**vars(spec), **sizes, masked=key_ids_BS is not None, interpret=interpret)
    q = lay_out(operands.q_BTNH, padding_T)
    k, v = (lay_out(x, padding_S, repeats) for x in (operands.k_BSKH, operands.v_BSKH))
    query_ids, key_ids = (None if ids is None else ids[:, None, :] for ids in (query_ids_BT, key_ids_BS))
    return tile_spec, KernelArrays(q, k, v, bias, keep, query_ids, key_ids, operands.q_offset.reshape(1))


def lane_group(heads: int, head_dim: int) -> tuple[int, int]:
    """The lanes a head takes, and how many heads share 128 of them.

    >>> [lane_group(heads=8, head_dim=size) for size in (16, 64, 80, 128, 200)]
    [(32, 4), (64, 2), (128, 1), (128, 1), (256, 1)]
    """
    for size in (_LEAST_HEAD_DIM, 64):
        group = min(heads, LANES // size)
        if head_dim <= size and heads % group == 0:
            return size, group
    return -(-head_dim // LANES) * LANES, 1


def _repeats(heads: int, kv_heads: int, group: int) -> int:
    """How often a key-value head is repeated, so that a group of them lies in the lanes of the heads that read it."""
    if group == 1 or heads == kv_heads:
        return 1
    share = heads // kv_heads
    return share if share % group else group


def choose_blocks(device_kind: str, spec: AttentionSpec, operands: Operands) -> tuple[int, int]:
    """Queries and keys of a tile for a call on a device (`jax.Device.device_kind`)."""
    q_BTNH = operands.q_BTNH
    largest = largest_blocks(device_kind, q_BTNH.shape[3], q_BTNH.dtype, spec.bias)
    return block_sizes(q_BTNH.shape[1], operands.k_BSKH.shape[1], largest)


def largest_blocks(device_kind: str, head_dim: int, dtype: Any, bias: RelativeBias | None) -> tuple[int, int]:
    """The largest blocks of a device."""
    dtype = str(jnp.dtype(dtype))
    fits = dtype == 'bfloat16' and head_dim > _LEAST_HEAD_DIM
    if bias is not None:
        fits = fits and _bias_bytes(head_dim, dtype, bias) <= _MAX_BIAS_OF_BLOCKS
    return BLOCKS.get(device_kind, SAFE_BLOCKS[dtype]) if fits else SAFE_BLOCKS[dtype]


def block_sizes(queries: int, keys: int, largest: tuple[int, int] = SAFE_BLOCKS['bfloat16']) -> tuple[int, int]:
    """Blocks of at most the largest sizes that need little padding.

    >>> block_sizes(queries=16384, keys=640)
    (512, 384)
    """
    return _block(queries, largest[0]), _block(keys, largest[1])


def _block(length: int, most: int) -> int:
    # A block costs about half a tile row of 128 more than its own work.
    cost = lambda block: -(-length // block) * (block + LANES // 2)
    return min(range(LANES, most + 1, LANES), key=lambda block: (cost(block), -block))
