"""Attention with T5's relative bias as Pallas (Triton) kernels for NVIDIA GPUs, forward and backward, in linear memory.

Flash attention (arXiv:2205.14135, arXiv:2307.08691) that computes the bias inside: neither pass holds an array of T x
S, and the bias costs one vector of 2 * reach + 1 numbers for each head. cuDNN's attention, as JAX calls it, takes a
bias only as a dense [B, N, T, S] array. `docs/attention.md` explains the differences from the TPU kernels.

It uses Triton, not Mosaic GPU: one program runs from A100 to Blackwell, and on a CPU by JAX's interpreter. Mosaic would
give the last part of a Hopper's speed (loads by TMA, warp specialization).

This file converts the model's arrays to the kernels' layout and back; the kernels are in `gpu/forward.py` and
`gpu/backward.py`, what they share in `gpu/tile.py`.

B batch, T queries, S keys, N heads, K key-value heads, H head_dim, W distances.
"""

from typing import Any

import jax
import jax.numpy as jnp

from t5flan.kernels.gpu.backward import backward
from t5flan.kernels.gpu.forward import forward
from t5flan.kernels.gpu.tile import LEAST_SIZE, LOG2_E, Blocks, TileSpec, Tiling
from t5flan.kernels.operands import AttentionSpec, KernelArrays, Operands, packed_ids, unsupported, with_gradients
from t5flan.kernels.relative_bias import bias_of_distances

DTYPES = ('bfloat16', 'float16', 'float32')
LEAST_CAPABILITY = (8, 0)
# Queries and keys of a tile, warps and stages, by the bytes of a number and head_dim; in order for the forward pass,
# the gradients of queries and of keys, and the sums along diagonals. Chosen from what XLA's compiler reports
# (`benchmarks/attention_blocks_gpu.py` lists it, and its docstring has the rule): no register spilled, at least 8 warps
# on a multiprocessor, and then the fewest reads. The safe ones are those of an A100 whose programs need at most 99 KiB
# of shared memory, which every GPU from 8.0 on provides. Exceptions: for float32 heads of 128 and 256 fewer were tried,
# and the gradient of keys of the last spills 40 bytes; that of an H100 and heads of 256 spills 20, since with fewer
# than 64 keys it could not use the chip's large matrix instructions (wgmma).
_TILINGS = {
    'safe': {
        (2, 64): ((128, 32, 8, 2), (128, 64, 8, 3), (64, 128, 8, 3), (64, 64, 4, 2)),
        (2, 128): ((128, 64, 8, 3), (128, 32, 8, 3), (64, 64, 8, 2), (64, 64, 8, 2)),
        (2, 256): ((64, 32, 8, 2), (32, 32, 4, 2), (32, 32, 8, 3), (32, 32, 4, 2)),
        (4, 64): ((128, 32, 8, 2), (128, 32, 8, 3), (32, 32, 4, 2), (32, 32, 8, 2)),
        (4, 128): ((64, 32, 8, 2), (64, 32, 8, 2), (32, 64, 8, 2), (32, 32, 8, 2)),
        (4, 256): ((32, 16, 4, 2), (32, 16, 8, 2), (16, 32, 8, 2), (16, 16, 4, 2)),
    },
    'A100': {
        (2, 128): ((128, 64, 8, 3), (128, 32, 8, 3), (64, 64, 8, 3), (64, 64, 8, 2)),
        (2, 256): ((64, 32, 8, 3), (64, 32, 8, 2), (32, 64, 8, 2), (32, 32, 4, 2)),
    },
    'H100': {
        (2, 64): ((128, 64, 8, 3), (128, 32, 8, 3), (64, 128, 8, 3), (64, 64, 8, 2)),
        (2, 128): ((128, 32, 8, 3), (128, 64, 8, 3), (32, 128, 8, 3), (64, 64, 8, 2)),
        (2, 256): ((128, 32, 8, 3), (128, 32, 8, 2), (32, 64, 8, 3), (32, 32, 8, 2)),
    },
}
_OF_DEVICE = {'A100': 'A100', 'H100': 'H100', 'H200': 'H100', 'GH200': 'H100'}  # by a part of its name


def unsupported_reason(device: jax.Device, spec: AttentionSpec, operands: Operands) -> str | None:
    """Why the kernels do not run on such a device or do not support such arrays, or None if they do."""
    capability = getattr(device, 'compute_capability', None)  # a CPU, which interprets the kernels, has none
    if capability is not None:
        numbers = str(capability).split('.')
        if not all(number.isdecimal() for number in numbers):
            return f'it runs on NVIDIA GPUs, not on {device.device_kind} ({capability}, ROCm)'
        if tuple(map(int, numbers)) < LEAST_CAPABILITY:
            return f'it needs compute capability 8.0 (A100) or later; {device.device_kind} has {capability}'
    return unsupported(spec, operands, DTYPES)


def _for_kernels(spec: TileSpec, arrays: KernelArrays) -> KernelArrays:
    """The bias in base 2, extended at both ends as far as tiles near the diagonal read.

    An index that is never clipped is one base address plus constants to the compiler.
    """
    if arrays.bias is None:
        return arrays
    bias_NW = jnp.pad(arrays.bias, [(0, 0), (sum(spec.tiling.padding),) * 2], mode='edge')
    return arrays._replace(bias=LOG2_E * bias_NW)


_attention = with_gradients(
    lambda spec, arrays: forward(spec, _for_kernels(spec, arrays)),
    lambda spec, arrays, *saved: backward(spec, _for_kernels(spec, arrays), *saved),
)


def flash_attention(spec: AttentionSpec, operands: Operands, blocks: Tiling, interpret: Any = False) -> jax.Array:
    """Attention by the kernels: y_BTNH in q's dtype, for any T and S; `operands.bias_NW` is the bias table [N, R].

    `blocks` are those of each kernel. `interpret` is Pallas' argument, True on a CPU.
    """
    queries, size = operands.q_BTNH.shape[1], operands.q_BTNH.shape[3]
    return _attention(*arrange(spec, operands, blocks, interpret))[:, :queries, :, :size]


def arrange(
    spec: AttentionSpec, operands: Operands, blocks: Tiling, interpret: Any = False
) -> tuple[TileSpec, KernelArrays]:
    """The kernels' spec and arrays: lengths padded to blocks, heads to a power of two, masks as two rows of ids."""
    (_, _, heads, size), kv_heads = operands.q_BTNH.shape, operands.k_BSKH.shape[2]
    padding_H, (block_q, block_k) = padded_head_dim(size) - size, blocks.padding
    padding_T, padding_S = -operands.q_BTNH.shape[1] % block_q, -operands.k_BSKH.shape[1] % block_k
    lay_out = lambda x, padding: jnp.pad(x, [(0, 0), (0, padding), (0, 0), (0, padding_H)])
    bias_NW, keep_BNS, packed = None, operands.keep_BNS, operands.q_segment_ids_BT is not None
    if spec.bias is not None and operands.bias_NW is not None:
        reach = spec.bias.max_distance
        bias_NW = bias_of_distances(operands.bias_NW, spec.bias, jnp.arange(-reach, reach + 1, dtype=jnp.int32))
    if keep_BNS is not None:
        keep_BNS = jnp.pad(keep_BNS.astype(jnp.float32), [(0, 0), (0, 0), (0, padding_S)])
    # All kernels must agree on whether a query sees any key: where pairs are not compared, added queries see keys too.
    query_ids_BT, key_ids_BS = packed_ids(operands, padding_T, padding_S, padded_query=-1 if packed else 1)
    masks: dict[str, Any] = dict(masked='' if key_ids_BS is None else 'pairs' if packed else 'keys')
    masks |= dict(prefix=operands.prefix_BS is not None)
    tile_spec = TileSpec(**vars(spec), **masks, share=heads // kv_heads, tiling=blocks, interpret=interpret)
    q = lay_out(operands.q_BTNH, padding_T)
    k, v = (lay_out(x, padding_S) for x in (operands.k_BSKH, operands.v_BSKH))
    q_offset = operands.q_offset.reshape(1)
    return tile_spec, KernelArrays(q, k, v, bias_NW, keep_BNS, query_ids_BT, key_ids_BS, q_offset)


def padded_head_dim(head_dim: int) -> int:
    """The power of two that a head is padded to.

    >>> [padded_head_dim(size) for size in (8, 64, 80, 256)]
    [16, 64, 128, 256]
    """
    return _power_of_two(max(head_dim, LEAST_SIZE))


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


def choose_tiling(device_kind: str, spec: AttentionSpec, operands: Operands) -> Tiling:
    """The blocks of each kernel for a call on a device (`jax.Device.device_kind`)."""
    q_BTNH = operands.q_BTNH
    largest = largest_tiling(device_kind, q_BTNH.shape[3], q_BTNH.dtype)
    return tiling(q_BTNH.shape[1], operands.k_BSKH.shape[1], largest)


def largest_tiling(device_kind: str, head_dim: int, dtype: Any) -> Tiling:
    """The largest blocks of a device."""
    key = jnp.dtype(dtype).itemsize, max(64, padded_head_dim(head_dim))
    table = next((_TILINGS[name] for part, name in _OF_DEVICE.items() if part in device_kind), {})
    return Tiling._make(Blocks(*blocks) for blocks in table.get(key, _TILINGS['safe'][key]))


def tiling(queries: int, keys: int, largest: Tiling) -> Tiling:
    """Blocks of at most the largest sizes, smaller if there are fewer queries or keys."""
    most_q, most_k = (_power_of_two(max(length, LEAST_SIZE)) for length in (queries, keys))
    fit = lambda blocks, q, k: blocks._replace(queries=min(blocks.queries, q), keys=min(blocks.keys, k))
    *others, diagonals = largest
    square = min(most_q, most_k)
    return Tiling._make([*(fit(blocks, most_q, most_k) for blocks in others), fit(diagonals, square, square)])
