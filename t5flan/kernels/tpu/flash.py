"""Attention with T5's relative bias as Pallas (Mosaic) kernels for TPU, forward and backward, in linear memory.

Flash attention (arXiv:2205.14135, arXiv:2307.08691) with the bias made inside: neither pass holds an array of T x S, and
the bias costs one vector of about 2 * (block_q + max_distance) numbers for each head. JAX's own TPU kernels take a bias
only as a dense [B, N, T, S] array or not at all. `docs/attention.md` explains it with a picture.

This file brings the model's arrays into the kernels' order and back; the kernels are in `tpu/forward.py` and
`tpu/backward.py`, what they share in `tpu/tile.py`.

B batch, T queries, S keys, N heads, K key-value heads, H head_dim, J groups of U heads (`tpu/tile.py`), W numbers
of a band of distances.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from t5flan.kernels.chunked import SAVED_NAMES, Operands
from t5flan.kernels.relative_bias import RelativeBias, bias_of_distances
from t5flan.kernels.tpu.backward import backward
from t5flan.kernels.tpu.forward import forward
from t5flan.kernels.tpu.tile import LANES, Arrays, Band, TileForm, visible_tiles

DTYPES = ('bfloat16', 'float32')
MOST_HEAD_DIM = 256
_LEAST_HEAD_DIM = 32  # smaller heads are padded
_PRECISIONS = (None, 'default', 'highest', jax.lax.Precision.DEFAULT, jax.lax.Precision.HIGHEST)
# Bytes of the sheared bias of a group of heads: 128 rows of float32. The gradient holds two; a core of v4 has 16 MiB.
_MOST_BIAS = {'bfloat16': 7 * 2**19, 'float32': 5 * 2**19}
# Queries and keys of a tile. The safe ones fit on every chip in every form. The others, for 16-bit heads of 64 lanes or
# more and T5's own distances, take the fewest bundles of those of `benchmarks/attention_blocks.py` that fit and skip finely
# enough: of (512, 512) and (512, 1024) in that order, 54 and 36 for 1024 logits on v5e, 55 and 37 on v5p, 45 and 28 on v6e,
# 44 and 27 on tpu7x, at 64 lanes (58 to 48 and 40 to 30 at 128). A core of v4 has too little memory for the second.
SAFE_BLOCKS = {'bfloat16': (512, 512), 'float32': (256, 512)}
BLOCKS = {'TPU v5 lite': (512, 1024), 'TPU v5': (512, 1024), 'TPU v6 lite': (512, 1024), 'TPU7x': (512, 1024)}
_MOST_BIAS_OF_BLOCKS = 2**21


@dataclasses.dataclass(frozen=True)
class FlashForm:
    """What is fixed when the program is traced."""

    causal: bool
    scale: float
    soft_cap: float | None
    dropout_rate: float
    precision: Any
    reach: int | None  # from this distance on the bias is constant (RelativeBias.max_distance); None: no bias
    block_q: int  # multiples of 128
    block_k: int
    interpret: bool = False


def refusal(head_dim: int, dtype: Any, bias: RelativeBias | None, precision: Any = None) -> str | None:
    """Why the kernels do not take such arrays, or None."""
    if precision not in _PRECISIONS:
        return f'it multiplies with the default or the highest precision, not {precision}'
    if str(jnp.dtype(dtype)) not in DTYPES:
        return f'it takes {" and ".join(DTYPES)}, not {jnp.dtype(dtype)} (ModelConfig.dtype)'
    if head_dim > MOST_HEAD_DIM:
        return f'it takes a head_dim up to {MOST_HEAD_DIM}, not {head_dim} (ModelConfig.head_dim)'
    if bias is not None and _bias_bytes(head_dim, dtype, bias) > _MOST_BIAS[str(jnp.dtype(dtype))]:
        return (
            f'a bias over {bias.max_distance} distances does not fit in its memory (ModelConfig.relative_max_distance)'
        )
    return None


def _bias_bytes(head_dim: int, dtype: Any, bias: RelativeBias) -> int:
    heads = max(1, LANES // max(head_dim, _LEAST_HEAD_DIM))
    return heads * LANES * 4 * Band(SAFE_BLOCKS[str(jnp.dtype(dtype))][0], bias.max_distance).width


def band_vector(table_NR: jax.Array, bias: RelativeBias, block_q: int, q_offset: jax.Array) -> jax.Array:
    """What the kernels read of the bias, float32 [N, W]: every distance that differs from those beyond it."""
    return bias_of_distances(table_NR, bias, Band(block_q, bias.max_distance).distances(q_offset))


def flash_attention(form: FlashForm, operands: Operands) -> jax.Array:
    """Attention of all queries, [B, T, N, H] in q's dtype.

    Args:
        operands: as for `chunked_attention`, of any T and S, but with `band_vector` for bias_NW.
    """
    batch, queries, heads, size = operands.q_BTNH.shape
    tile_form, arrays = arrange(form, operands)
    y = _attention(tile_form, arrays)
    return y[:, :queries].reshape(batch, queries, heads, -1)[..., :size]


def arrange(form: FlashForm, operands: Operands) -> tuple[TileForm, Arrays]:
    """The kernels' form and arrays: heads in groups of 128 lanes, lengths padded to blocks, masks as two rows of ids."""
    batch, queries, heads, size = operands.q_BTNH.shape
    keys, kv_heads = operands.k_BSKH.shape[1:3]
    size_padded, group = lane_group(heads, size)
    repeats = _repeats(heads, kv_heads, group)
    padding_T, padding_S = -queries % form.block_q, -keys % form.block_k

    def lay_out(x: jax.Array, padding: int, repeats: int = 1) -> jax.Array:
        x = jnp.pad(x, [(0, 0), (0, padding), (0, 0), (0, size_padded - size)])
        x = jnp.repeat(x, repeats, axis=2) if repeats > 1 else x
        return x.reshape(*x.shape[:2], -1)

    groups = heads // group
    bias = None if operands.bias_NW is None else operands.bias_NW.reshape(groups, group, -1)
    keep = None
    if operands.keep_BNS is not None:
        keep = jnp.pad(operands.keep_BNS.astype(jnp.float32), [(0, 0), (0, 0), (0, padding_S)])
        keep = keep.reshape(batch, groups, group, -1)
    query_ids, key_ids = _ids(operands, padding_T, padding_S)
    tile_form = TileForm(
        heads=group,
        head_dim=size_padded,
        share=heads // (kv_heads * repeats),
        block_q=form.block_q,
        block_k=form.block_k,
        causal=form.causal,
        masked=key_ids is not None,
        kept=None if keep is None else 1.0 - form.dropout_rate,
        band=None if bias is None else Band(form.block_q, form.reach),
        scale=form.scale,
        soft_cap=form.soft_cap,
        precision=form.precision,
        interpret=form.interpret,
    )
    return tile_form, Arrays(
        lay_out(operands.q_BTNH, padding_T),
        lay_out(operands.k_BSKH, padding_S, repeats),
        lay_out(operands.v_BSKH, padding_S, repeats),
        bias,
        keep,
        query_ids,
        key_ids,
        operands.q_offset.reshape(1),
    )


def lane_group(heads: int, head_dim: int) -> tuple[int, int]:
    """The lanes a head takes and how many heads share 128 of them.

    >>> [lane_group(heads=6, head_dim=size) for size in (16, 64, 80, 128, 200)]
    [(32, 2), (64, 2), (128, 1), (128, 1), (256, 1)]
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


def _ids(operands: Operands, padding_T: int, padding_S: int) -> tuple[jax.Array | None, jax.Array | None]:
    """`Arrays.query_ids` and `Arrays.key_ids`; None if all keys exist, and no query is told from another."""
    (batch, queries), keys = operands.q_BTNH.shape[:2], operands.k_BSKH.shape[1]
    masks = operands.q_segment_ids_BT, operands.prefix_BS, operands.key_seen_BS
    if not padding_S and all(x is None for x in masks):
        return None, None
    query_ids, key_ids = jnp.ones((batch, queries), jnp.int32), jnp.ones((batch, keys), jnp.int32)
    if operands.q_segment_ids_BT is not None:
        query_ids, key_ids = operands.q_segment_ids_BT.astype(jnp.int32), operands.kv_segment_ids_BS.astype(jnp.int32)
    if operands.key_seen_BS is not None:
        key_ids = jnp.where(operands.key_seen_BS, key_ids, 0)
    key_ids = 2 * key_ids + (0 if operands.prefix_BS is None else operands.prefix_BS.astype(jnp.int32))
    pad = lambda x, padding, value: jnp.pad(x, [(0, 0), (0, padding)], constant_values=value)[:, None, :]
    return pad(query_ids, padding_T, -1), pad(key_ids, padding_S, 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(form: TileForm, arrays: Arrays) -> jax.Array:
    return forward(form, arrays)[0]


def _attention_forward(form: TileForm, arrays: Arrays) -> tuple[jax.Array, Any]:
    y, log_sum = map(checkpoint_name, forward(form, arrays), SAVED_NAMES)
    return y, (arrays, y, log_sum)


def _attention_backward(form: TileForm, residuals: Any, dy: jax.Array) -> tuple[Arrays]:
    return (backward(form, *residuals, dy),)


_attention.defvjp(_attention_forward, _attention_backward)


def tiles_seen(form: FlashForm, operands: Operands) -> jax.Array:
    """The fraction of tiles that are computed, a float32 scalar; the others are skipped."""
    return jnp.mean(visible_tiles(*arrange(form, operands)), dtype=jnp.float32)


def largest_blocks(device_kind: str, head_dim: int, dtype: Any, bias: RelativeBias | None) -> tuple[int, int]:
    """Queries and keys of a tile for a device (`jax.Device.device_kind`), where there are as many."""
    dtype = str(jnp.dtype(dtype))
    fits = dtype == 'bfloat16' and head_dim > _LEAST_HEAD_DIM
    if bias is not None:
        fits = fits and _bias_bytes(head_dim, dtype, bias) <= _MOST_BIAS_OF_BLOCKS
    return BLOCKS.get(device_kind, SAFE_BLOCKS[dtype]) if fits else SAFE_BLOCKS[dtype]


def block_sizes(queries: int, keys: int, largest: tuple[int, int] = SAFE_BLOCKS['bfloat16']) -> tuple[int, int]:
    """Blocks of at most the largest sizes that pad little: smaller ones where they save padding, else the larger.

    >>> block_sizes(queries=16384, keys=640)
    (512, 384)
    """
    return _block(queries, largest[0]), _block(keys, largest[1])


def _block(length: int, most: int) -> int:
    # A block costs about half a tile row of 128 more than its own work.
    cost = lambda block: -(-length // block) * (block + LANES // 2)
    return min(range(LANES, most + 1, LANES), key=lambda block: (cost(block), -block))
