"""Attention with T5's relative bias as Pallas (Triton) kernels for NVIDIA GPUs, forward and backward, in linear memory.

Flash attention (arXiv:2205.14135, arXiv:2307.08691) with the bias made inside: neither pass holds an array of T x S, and
the bias costs one vector of 2 * reach + 1 numbers for each head. cuDNN's attention, as JAX calls it, takes a bias only as
a dense [B, N, T, S] array. `docs/attention.md` says what differs from the TPU kernels.

Why Triton and not Mosaic GPU: the same program runs from A100 to Blackwell, where Mosaic's products are those of Hopper
and of Blackwell, each written for that chip; a thread reads any number of the bias vector; and JAX's own interpreter runs
it on a CPU. Mosaic would give the last part of a Hopper's rate (loads by TMA, warps with roles of their own).

This file brings the model's arrays into the kernels' order and back; the kernels are in `gpu/forward.py` and
`gpu/backward.py`, what they share in `gpu/tile.py`.

B batch, T queries, S keys, N heads, K key-value heads, H head_dim.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from t5flan.kernels.chunked import SAVED_NAMES, Operands
from t5flan.kernels.gpu.backward import backward
from t5flan.kernels.gpu.forward import forward
from t5flan.kernels.gpu.tile import LEAST_SIZE, LOG2_E, Arrays, Blocks, TileForm, Tiling
from t5flan.kernels.relative_bias import RelativeBias, bias_of_distances

DTYPES = ('bfloat16', 'float16', 'float32')
MOST_HEAD_DIM = 256
LEAST_CAPABILITY = (8, 0)
_PRECISIONS = (None, 'default', 'highest', jax.lax.Precision.DEFAULT, jax.lax.Precision.HIGHEST)
# Queries and keys of a tile, warps and stages: of forward, the gradients of queries and of keys, and the sums by diagonals; by
# the bytes of a number and head_dim. Taken from what XLA's compiler makes of them (`benchmarks/attention_blocks_gpu.py` lists
# it, and its docstring has the rule): no register spilt, 8 warps or more on a processor, and then the fewest reads. The safe
# ones are those of an A100 that a program of 99 KiB of shared memory holds, which every GPU from 8.0 on gives it. In float32
# of 128 and 256 fewer were tried, and the gradient of keys of the last spills 40 bytes; that of an H100 and heads of 256
# spills 20, as with fewer than 64 keys it would do without the chip's large products (wgmma).
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


@dataclasses.dataclass(frozen=True)
class FlashForm:
    """What is fixed when the program is traced."""

    causal: bool
    scale: float
    soft_cap: float | None
    dropout_rate: float
    precision: Any
    reach: int | None  # from this distance on the bias is constant (RelativeBias.max_distance); None: no bias
    tiling: Tiling
    interpret: bool = False


def refusal(device: jax.Device, head_dim: int, dtype: Any, precision: Any = None) -> str | None:
    """Why the kernels do not run on such a device or do not take such arrays, or None."""
    capability = getattr(device, 'compute_capability', None)  # of a CPU, which interprets them, none
    if capability is not None:
        numbers = str(capability).split('.')
        if not all(number.isdecimal() for number in numbers):
            return f'it runs on NVIDIA GPUs, not on {device.device_kind} ({capability}, ROCm)'
        if tuple(map(int, numbers)) < LEAST_CAPABILITY:
            return f'it needs compute capability 8.0 (A100) or later; {device.device_kind} has {capability}'
    if precision not in _PRECISIONS:
        return f'it multiplies with the default or the highest precision, not {precision}'
    if str(jnp.dtype(dtype)) not in DTYPES:
        return f'it takes {", ".join(DTYPES)}, not {jnp.dtype(dtype)} (ModelConfig.dtype)'
    if head_dim > MOST_HEAD_DIM:
        return f'it takes a head_dim up to {MOST_HEAD_DIM}, not {head_dim} (ModelConfig.head_dim)'
    return None


def bias_by_distance(table_NR: jax.Array, bias: RelativeBias) -> jax.Array:
    """What the kernels read of the bias: that of every distance -max_distance ... max_distance, float32 [N, W]."""
    return bias_of_distances(table_NR, bias, jnp.arange(-bias.max_distance, bias.max_distance + 1, dtype=jnp.int32))


def flash_attention(form: FlashForm, operands: Operands) -> jax.Array:
    """Attention of all queries, [B, T, N, H] in q's dtype.

    Args:
        operands: as for `chunked_attention`, of any T and S, but with `bias_by_distance` for bias_NW.
    """
    queries, size = operands.q_BTNH.shape[1], operands.q_BTNH.shape[3]
    return _attention(*arrange(form, operands))[:, :queries, :, :size]


def arrange(form: FlashForm, operands: Operands) -> tuple[TileForm, Arrays]:
    """The kernels' form and arrays: lengths padded to blocks, heads to a power of two, masks as two rows of ids."""
    (_, queries, heads, size), (_, keys, kv_heads, _) = operands.q_BTNH.shape, operands.k_BSKH.shape
    padding_H, (block_q, block_k) = padded_head_dim(size) - size, form.tiling.padding
    padding_T, padding_S = -queries % block_q, -keys % block_k
    lay_out = lambda x, padding: jnp.pad(x, [(0, 0), (0, padding), (0, 0), (0, padding_H)])
    keep_BNS = operands.keep_BNS
    if keep_BNS is not None:
        keep_BNS = jnp.pad(keep_BNS.astype(jnp.float32), [(0, 0), (0, 0), (0, padding_S)])
    masked, query_ids_BT, key_ids_BS = _ids(operands, padding_T, padding_S)
    tile_form = TileForm(
        share=heads // kv_heads,
        causal=form.causal,
        prefix=operands.prefix_BS is not None,
        masked=masked,
        kept=None if keep_BNS is None else 1.0 - form.dropout_rate,
        reach=form.reach,
        scale=form.scale,
        soft_cap=form.soft_cap,
        precision=form.precision,
        tiling=form.tiling,
        interpret=form.interpret,
    )
    return tile_form, Arrays(
        lay_out(operands.q_BTNH, padding_T),
        lay_out(operands.k_BSKH, padding_S),
        lay_out(operands.v_BSKH, padding_S),
        operands.bias_NW,
        keep_BNS,
        query_ids_BT,
        key_ids_BS,
        operands.q_offset.reshape(1),
    )


def padded_head_dim(head_dim: int) -> int:
    """The power of two that a head is padded to.

    >>> [padded_head_dim(size) for size in (8, 64, 80, 256)]
    [16, 64, 128, 256]
    """
    return _power_of_two(max(head_dim, LEAST_SIZE))


def _power_of_two(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _ids(operands: Operands, padding_T: int, padding_S: int) -> tuple[str, jax.Array | None, jax.Array | None]:
    """`TileForm.masked`, `Arrays.query_ids_BT` and `Arrays.key_ids_BS`."""
    (batch, queries), keys = operands.q_BTNH.shape[:2], operands.k_BSKH.shape[1]
    packed = operands.q_segment_ids_BT is not None
    if not packed and not padding_S and operands.prefix_BS is None and operands.key_seen_BS is None:
        return '', None, None
    query_ids_BT, key_ids_BS = jnp.ones((batch, queries), jnp.int32), jnp.ones((batch, keys), jnp.int32)
    if packed:
        query_ids_BT = operands.q_segment_ids_BT.astype(jnp.int32)
        key_ids_BS = operands.kv_segment_ids_BS.astype(jnp.int32)
    if operands.key_seen_BS is not None:
        key_ids_BS = jnp.where(operands.key_seen_BS, key_ids_BS, 0)
    key_ids_BS = 2 * key_ids_BS + (0 if operands.prefix_BS is None else operands.prefix_BS.astype(jnp.int32))
    pad = lambda x, padding, value: jnp.pad(x, [(0, 0), (0, padding)], constant_values=value)
    # Where pairs are not compared, queries that pad see keys as well: all kernels must decide alike whether a query sees any.
    return (
        'pairs' if packed else 'keys',
        pad(query_ids_BT, padding_T, -1 if packed else 1),
        pad(key_ids_BS, padding_S, 0),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(form: TileForm, arrays: Arrays) -> jax.Array:
    return _attention_forward(form, arrays)[0]


def _attention_forward(form: TileForm, arrays: Arrays) -> tuple[jax.Array, Any]:
    y_BTNH, log_sum_BNT = map(checkpoint_name, forward(form, _for_kernels(form, arrays)), SAVED_NAMES)
    return y_BTNH, (arrays, y_BTNH, log_sum_BNT)


def _attention_backward(form: TileForm, residuals: Any, dy_BTNH: jax.Array) -> tuple[Arrays]:
    arrays, *results = residuals
    return (backward(form, _for_kernels(form, arrays), *results, dy_BTNH),)


_attention.defvjp(_attention_forward, _attention_backward)


def _for_kernels(form: TileForm, arrays: Arrays) -> Arrays:
    """The bias of base 2, and as far on at both ends as tiles near the diagonal look: an index that is never held at an
    end is one base and constants to the compiler.
    """
    if arrays.bias_NW is None:
        return arrays
    return arrays._replace(
        bias_NW=LOG2_E * jnp.pad(arrays.bias_NW, [(0, 0), (sum(form.tiling.padding),) * 2], mode='edge')
    )


def largest_tiling(device_kind: str, head_dim: int, dtype: Any) -> Tiling:
    """The blocks for a device (`jax.Device.device_kind`), where there are as many queries and keys."""
    key = jnp.dtype(dtype).itemsize, max(64, padded_head_dim(head_dim))
    table = next((_TILINGS[name] for part, name in _OF_DEVICE.items() if part in device_kind), {})
    return Tiling(*(Blocks(*blocks) for blocks in table.get(key, _TILINGS['safe'][key])))


def tiling(queries: int, keys: int, largest: Tiling) -> Tiling:
    """Blocks of at most the largest sizes, smaller where the whole length is shorter."""
    most_q, most_k = (_power_of_two(max(length, LEAST_SIZE)) for length in (queries, keys))
    fit = [
        blocks._replace(queries=min(blocks.queries, most_q), keys=min(blocks.keys, most_k)) for blocks in largest[:3]
    ]
    square = min(largest.diagonals.queries, most_q, most_k)
    return Tiling(*fit, largest.diagonals._replace(queries=square, keys=square))
