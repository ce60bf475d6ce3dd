"""What the implementations of attention share: the options and arrays of a call, and how the Pallas kernels see them.

Inside kernels there is no `//` or `%` of arrays: both look up the current device's kind, and there is none when a
program is compiled for another machine.

B batch, T queries, S keys, N heads, K key-value heads, H head_dim, I and O blocks of queries and of keys.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from t5flan.kernels.kept import kept
from t5flan.kernels.relative_bias import RelativeBias

MASKED = -1e30  # finite: a query that sees no key must not produce NaN
LEAST_MAXIMUM = 0.1 * MASKED  # the least running maximum: the exponential of a masked logit is zero in every row
# What a rematerialisation policy may save (`save_only_these_names`) so that the backward pass does not run the forward
# tiles again: the output [B, T, N, H], and a float32 for each query and head, the log-sum-exp of its logits.
SAVED_NAMES = ('attention_output', 'attention_lse')
MAX_HEAD_DIM = 256  # of the Pallas kernels
_PRECISIONS = (None, 'default', 'highest', lax.Precision.DEFAULT, lax.Precision.HIGHEST)


@dataclasses.dataclass(frozen=True)
class AttentionSpec:
    """The options of one call of `attend()`, fixed when it is traced."""

    causal: bool = False
    scale: float = 1.0
    soft_cap: float | None = None
    dropout_rate: float = 0.0
    precision: Any = None
    bias: RelativeBias | None = None
    window: tuple[int, int] | None = None  # at most so many keys before a query, and after it, are seen
    far_prefix: bool = False  # but those of the prefix are

    @property
    def keep_rate(self) -> float | None:
        """The probability that dropout keeps a key; None without dropout."""
        return 1.0 - self.dropout_rate if self.dropout_rate > 0.0 else None


class Operands(NamedTuple):
    """The arrays of one call; None where an option is off."""

    q_BTNH: jax.Array
    k_BSKH: jax.Array
    v_BSKH: jax.Array
    q_offset: jax.Array  # int32 scalar: the key index of the first query
    bias_NW: jax.Array | None = None  # the bias table by bucket; a tiled program replaces it with the bias by distance
    keep_BNS: jax.Array | None = None  # bool: dropout keeps this key for this head
    q_segment_ids_BT: jax.Array | None = None  # a query sees keys of an equal id; given with the keys' or not at all
    kv_segment_ids_BS: jax.Array | None = None
    prefix_BS: jax.Array | None = None  # bool: seen by earlier queries too
    key_seen_BS: jax.Array | None = None  # bool: False hides a key from every query


class KernelArrays(NamedTuple):
    """The inputs of the Pallas kernels, in order; None where an option is off. T and S are multiples of the blocks.

    `gpu/` keeps the layout given here; `tpu/` groups heads by lanes (`tpu/flash.py`).
    """

    q: jax.Array  # [B, T, N, H]
    k: jax.Array  # [B, S, K, H]
    v: jax.Array
    bias: jax.Array | None  # [N, W] float32
    keep: jax.Array | None  # [B, N, S] float32, 0 or 1
    query_ids: jax.Array | None  # [B, T] int32, as `packed_ids` returns them
    key_ids: jax.Array | None  # [B, S] int32
    q_offset: jax.Array  # [1] int32

    def given(self) -> dict[str, jax.Array]:
        """The arrays that are not None, by name."""
        return {name: x for name, x in self._asdict().items() if x is not None}


def with_gradients(forward: Callable, backward: Callable) -> Callable:
    """`attention(spec, arrays)` from its two passes; the output and the lse have the names that a policy may save.

    Args:
        forward: (spec, arrays) -> the output, and the log-sum-exp of each query's logits.
        backward: (spec, arrays, output, lse, gradient of the output) -> gradients of the arrays.
    """

    @functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
    def attention(spec: AttentionSpec, arrays: Any) -> jax.Array:
        return forward(spec, arrays)[0]

    def save(spec: AttentionSpec, arrays: Any) -> tuple[jax.Array, tuple]:
        y, lse = map(kept, forward(spec, arrays), SAVED_NAMES)
        return y, (arrays, y, lse)

    attention.defvjp(save, lambda spec, saved, dy: (backward(spec, *saved, dy),))
    return attention


def unsupported(spec: AttentionSpec, operands: Operands, dtypes: tuple[str, ...]) -> str | None:
    """Why Pallas kernels for these dtypes do not support such arrays, or None."""
    dtype, head_dim = str(operands.q_BTNH.dtype), operands.q_BTNH.shape[3]
    if spec.precision not in _PRECISIONS:
        return f'it supports default and highest precision, not {spec.precision}'
    if dtype not in dtypes:
        return f'it supports {", ".join(dtypes)}, not {dtype} (ModelConfig.dtype)'
    if head_dim > MAX_HEAD_DIM:
        return f'it supports a head_dim up to {MAX_HEAD_DIM}, not {head_dim} (ModelConfig.head_dim)'
    return None


def packed_ids(
    operands: Operands, padding_T: int, padding_S: int, padded_query: int
) -> tuple[jax.Array | None, jax.Array | None]:
    """All masks but causality as one id for each query [B, T] and key [B, S], int32; None, None if nothing is masked.

    A query sees the keys whose id // 2 equals its own id; key ids are odd in the prefix. Both are padded: added keys
    are never seen, added queries have the id `padded_query`.
    """
    (batch, queries), keys = operands.q_BTNH.shape[:2], operands.k_BSKH.shape[1]
    masks = operands.q_segment_ids_BT, operands.prefix_BS, operands.key_seen_BS
    if not padding_S and all(x is None for x in masks):
        return None, None
    query_ids_BT, key_ids_BS = jnp.ones((batch, queries), jnp.int32), jnp.ones((batch, keys), jnp.int32)
    if operands.q_segment_ids_BT is not None and operands.kv_segment_ids_BS is not None:
        query_ids_BT = operands.q_segment_ids_BT.astype(jnp.int32)
        key_ids_BS = operands.kv_segment_ids_BS.astype(jnp.int32)
    if operands.key_seen_BS is not None:
        key_ids_BS = jnp.where(operands.key_seen_BS, key_ids_BS, 0)
    key_ids_BS = 2 * key_ids_BS + (0 if operands.prefix_BS is None else operands.prefix_BS.astype(jnp.int32))
    pad = lambda x, padding, value: jnp.pad(x, [(0, 0), (0, padding)], constant_values=value)
    return pad(query_ids_BT, padding_T, padded_query), pad(key_ids_BS, padding_S, 0)


def is_near(window: tuple[int, int], distance: jax.Array) -> jax.Array:
    """Whether a window holds keys at these distances, (key index) - (query index)."""
    before, after = window
    return (distance >= -before) & (distance <= after)


def visible_tiles(
    arrays: KernelArrays,
    block_q: int,
    block_k: int,
    causal: bool,
    window: tuple[int, int] | None = None,
    far_prefix: bool = False,
) -> jax.Array:
    """Which tiles may hold a query and a key that it sees, bool [B, I, O]; of ids only the range of a block counts."""
    (batch, queries), keys = arrays.q.shape[:2], arrays.k.shape[1]
    i, o = jnp.arange(queries // block_q), jnp.arange(keys // block_k)
    seen_BIO = jnp.ones((batch, i.size, o.size), bool)
    most = jnp.iinfo(jnp.int32).max
    if causal:
        last_I = (i + 1) * block_q - 1 + arrays.q_offset
        seen_BIO &= (o[None, :] * block_k <= last_I[:, None])[None]
    near_IO = jnp.ones((i.size, o.size), bool)
    if window is not None:
        (before, after), first_I, first_O = window, i * block_q + arrays.q_offset, o * block_k
        before_IO = first_O[None, :] + (block_k - 1) < first_I[:, None] - before
        after_IO = first_O[None, :] > first_I[:, None] + (block_q - 1 + after)
        near_IO = ~(before_IO | after_IO)
    if far_prefix:
        seen_BIO &= near_IO[None]
    if arrays.query_ids is not None and arrays.key_ids is not None:
        query_BIC = arrays.query_ids.reshape(batch, i.size, block_q)
        key_BOP = arrays.key_ids.reshape(batch, o.size, block_k)
        if causal:
            seen_BIO |= jnp.any(key_BOP % 2 == 1, axis=-1)[:, None, :]
        key_BOP = key_BOP // 2
        least = lambda x: jnp.min(jnp.where(x > 0, x, most), axis=-1)
        seen_BIO &= least(query_BIC)[:, :, None] <= jnp.max(key_BOP, axis=-1)[:, None, :]
        seen_BIO &= jnp.max(query_BIC, axis=-1)[:, :, None] >= least(key_BOP)[:, None, :]
    return seen_BIO if far_prefix else seen_BIO & near_IO[None]


def dot(spec: AttentionSpec, a: jax.Array, b: jax.Array, a_axis: int, b_axis: int) -> jax.Array:
    """Product of two matrices over one axis of each, inside a kernel; summed and returned in float32."""
    # Products of 16-bit numbers are exact in float32, and the TPU compiler takes a precision for 32-bit ones only. On a
    # GPU float32 is by default multiplied as tf32, as everywhere in XLA.
    precision = spec.precision if a.dtype == jnp.float32 else None
    axes = (((a_axis,), (b_axis,)), ((), ()))
    return lax.dot_general(a, b, axes, precision=precision, preferred_element_type=jnp.float32)
