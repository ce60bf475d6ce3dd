"""`attend()`, the only attention: it checks its arguments and runs the implementation that suits the device.

    xla        plain einsums (`kernels/reference.py`); the reference, and the fastest for one query or few
    chunked    in tiles (`kernels/chunked.py`); never holds [B, N, T, S]
    flash_tpu  Pallas kernels for TPU (`kernels/tpu/flash.py`); for what they do not support 'auto' uses chunked
    flash_gpu  the same for NVIDIA GPUs (`kernels/gpu/flash.py`)

`kernels/implementations.py` chooses among them.

B batch, T queries, S keys, N heads, K key-value heads, G = N / K heads that share one, H head_dim, R buckets.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from t5flan import sharding
from t5flan.errors import UserError
from t5flan.kernels.implementations import IMPLEMENTATIONS, PROGRAMS, choose, unsupported_reason
from t5flan.kernels.operands import SAVED_NAMES, AttentionSpec, Operands
from t5flan.kernels.relative_bias import RelativeBias
from t5flan.kernels.sharded import local_length

__all__ = ['RelativeBias', 'attend']

_Given = jax.Array | None  # None: this argument is not given


@jax.named_scope('attention')
def attend(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    *,
    bias_table: jax.Array | None = None,
    bias: RelativeBias | None = None,
    q_offset: int | jax.Array = 0,
    causal: bool = False,
    prefix_BS: jax.Array | None = None,
    q_segment_ids_BT: jax.Array | None = None,
    kv_segment_ids_BS: jax.Array | None = None,
    kv_lengths_B: jax.Array | None = None,
    scale: float = 1.0,
    soft_cap: float | None = None,
    window: int | tuple[int, int] | None = None,
    far_prefix: bool = False,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    implementation: str = 'auto',
    precision: Any = None,
) -> jax.Array:
    """Softmax attention: y_t = sum over s of softmax_s(logits) v_s, with a float32 softmax.

    logits = cap(scale * q k) + bias, where cap(x) = soft_cap * tanh(x / soft_cap). A query that sees no key returns
    zeros.

    Args:
        q_BTNH: queries.
        k_BSKH: keys, of the same dtype. K divides N: head n reads key-value head n // G.
        v_BSKH: values, like the keys.
        bias_table: [N, R], given together with `bias`: T5's relative bias by bucket of the distance
            (key index) - (query index + q_offset).
        bias: how distances fall into buckets.
        q_offset: the key index of the first query, scalar; may be traced.
        causal: a query sees no key after itself.
        prefix_BS: with `causal`: keys (bool, or 0 and 1) that earlier queries see as well.
        q_segment_ids_BT: a query sees keys of its own segment; segment 0 is padding and is never seen.
        kv_segment_ids_BS: segments of the keys. Without those of the queries, every query sees all keys but padding.
        kv_lengths_B: how many keys of each row exist.
        scale: factor of the products of queries and keys.
        soft_cap: see above; None for no cap.
        window: a query sees only keys at a distance less than this, before it and after it, those of the prefix too; a
            pair (before, after): at most so many keys before it and after it; None for no window.
        far_prefix: the window does not hide keys of the prefix: a query sees all of them.
        dropout_rate: of probabilities. As in T5, a head drops a key for all queries of a row.
        dropout_key: required if `dropout_rate` is above 0.
        implementation: 'auto', or one of those above, which raises if it cannot run.
        precision: of matrix products, as in `jax.lax.dot_general`.

    Returns:
        y_BTNH in q's dtype.

    Raises:
        UserError: shapes, dtypes or options that do not fit together.
    """
    _check_arrays(q_BTNH, k_BSKH, v_BSKH)
    segment_ids = dict(q_segment_ids_BT=q_segment_ids_BT, kv_segment_ids_BS=kv_segment_ids_BS)
    masks = dict(prefix_BS=prefix_BS, **segment_ids, kv_lengths_B=kv_lengths_B)
    _check_masks(q_BTNH.shape[:2], k_BSKH.shape[:2], causal, masks | {'q_offset': q_offset})
    _require(not far_prefix or prefix_BS is not None, 'attend() got far_prefix=True without prefix_BS; pass both.')
    spec = AttentionSpec(causal, scale, soft_cap, dropout_rate, precision, bias, _reach(window), far_prefix)
    _check_options(q_BTNH, bias_table, spec, dropout_key, implementation)
    masks = _mask_operands(k_BSKH.shape[1], **masks)
    operands = Operands(q_BTNH, k_BSKH, v_BSKH, jnp.asarray(q_offset, jnp.int32), bias_table, **masks)
    queries, platform = local_length(q_BTNH.shape[1]), sharding.platform()
    reason = unsupported_reason(implementation, spec, operands)
    chosen, why = choose(implementation, queries, k_BSKH.shape[1], platform, reason)
    _log_once(platform, chosen, why)
    run: Callable[[Operands], jax.Array] = functools.partial(PROGRAMS[chosen], spec)
    if dropout_key is not None and dropout_rate > 0.0:
        run = _with_dropout(run, dropout_rate, dropout_key)
    if chosen != 'xla' and (dropout_rate > 0.0 or queries < q_BTNH.shape[1]):
        # The backward pass draws the dropout mask and gathers or exchanges keys again: that is cheap, and neither is
        # saved.
        # Tiles are not computed again.
        run = jax.checkpoint(run, policy=jax.checkpoint_policies.save_only_these_names(*SAVED_NAMES))
    return run(operands)


def _with_dropout(run: Callable[[Operands], jax.Array], rate: float, key: jax.Array) -> Callable[[Operands], jax.Array]:
    """`run` with a dropout mask, drawn for the whole arrays so that it is the same on every mesh."""

    def dropped(operands: Operands) -> jax.Array:
        (batch, _, heads, _), keys = operands.q_BTNH.shape, operands.k_BSKH.shape[1]
        return run(operands._replace(keep_BNS=jax.random.bernoulli(key, 1.0 - rate, (batch, heads, keys))))

    return dropped


@functools.cache
def _log_once(platform: str, chosen: str, reason: str) -> None:
    logging.getLogger(__name__).info('attention on %s: %s (%s)', platform, chosen, reason)


def _mask_operands(
    keys: int, prefix_BS: _Given, q_segment_ids_BT: _Given, kv_segment_ids_BS: _Given, kv_lengths_B: _Given
) -> dict[str, _Given]:
    """The masks of `attend()` as fields of `Operands`."""
    seen_BS = None
    if kv_lengths_B is not None:
        seen_BS = jnp.arange(keys, dtype=jnp.int32)[None, :] < kv_lengths_B[:, None]
    if prefix_BS is not None:
        prefix_BS = prefix_BS != 0
    if q_segment_ids_BT is not None and kv_segment_ids_BS is not None:
        # Padding among the queries gets an id that no key has; keys that do not exist get one that no query has.
        q_segment_ids_BT = jnp.where(q_segment_ids_BT > 0, q_segment_ids_BT, -1)
        if seen_BS is not None:
            kv_segment_ids_BS = jnp.where(seen_BS, kv_segment_ids_BS, 0)
        return dict(prefix_BS=prefix_BS, q_segment_ids_BT=q_segment_ids_BT, kv_segment_ids_BS=kv_segment_ids_BS)
    if kv_segment_ids_BS is not None:
        seen_BS = kv_segment_ids_BS > 0 if seen_BS is None else seen_BS & (kv_segment_ids_BS > 0)
    return {'prefix_BS': prefix_BS, 'key_seen_BS': seen_BS}


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise UserError(message)


def _reach(window: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """A window as the numbers of keys that a query sees before and after its own place."""
    if window is None:
        return None
    pair, least = (window, 0) if isinstance(window, tuple) else ((window, window), 1)
    whole = len(pair) == 2 and all(isinstance(n, int) and n >= least for n in pair)
    expected = 'expected a number of keys above 0, a pair (before, after) of numbers from 0, or None'
    _require(whole, f'window={window}, {expected}. Set ModelConfig.attention_window.')
    before, after = pair
    return before - least, after - least


def _check_arrays(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array) -> None:
    q, k, v = q_BTNH.shape, k_BSKH.shape, v_BSKH.shape
    got = f'attend() got q {q}, k {k}, v {v}; expected'
    _require(len(q) == len(k) == len(v) == 4, f'{got} [B, T, N, H], [B, S, K, H] and [B, S, K, H].')
    _require(k == v and q[::3] == k[::3], f'{got} equal B and H, and values of the shape of the keys.')
    _require(0 not in q + k, f'{got} no empty axis.')
    divisor = 'Set ModelConfig.num_kv_heads to a divisor of ModelConfig.num_heads.'
    _require(q[2] % k[2] == 0, f'{k[2]} key-value heads do not divide {q[2]} heads. {divisor}')
    dtypes = [str(x.dtype) for x in (q_BTNH, k_BSKH, v_BSKH)]
    one = len(set(dtypes)) == 1 and jnp.issubdtype(q_BTNH.dtype, jnp.floating)
    floating = 'expected one floating-point dtype (ModelConfig.dtype).'
    _require(one, f'attend() got q, k, v of {", ".join(dtypes)}; {floating}')


def _check_masks(by_query: tuple[int, ...], by_key: tuple[int, ...], causal: bool, masks: dict[str, Any]) -> None:
    shapes: dict[str, tuple[int, ...]] = {'q_segment_ids_BT': by_query, 'kv_lengths_B': by_key[:1], 'q_offset': ()}
    for name, x in masks.items():
        if x is None:
            continue
        shape, expected, dtype = jnp.shape(x), shapes.get(name, by_key), jnp.result_type(x)
        integers = jnp.issubdtype(dtype, jnp.integer) or (name == 'prefix_BS' and dtype == jnp.bool_)
        _require(
            shape == expected and integers, f'attend() got {name} of {shape} {dtype}; expected {expected} of int32.'
        )
    pointless = 'without causal=True, where every key is seen anyway; remove one.'
    _require(masks['prefix_BS'] is None or causal, f'attend() got prefix_BS {pointless}')
    one_side = masks['q_segment_ids_BT'] is not None and masks['kv_segment_ids_BS'] is None
    both = 'pass both, or only those of the keys.'
    _require(not one_side, f'attend() got q_segment_ids_BT without kv_segment_ids_BS; {both}')


def _check_options(
    q_BTNH: jax.Array, bias_table: _Given, spec: AttentionSpec, dropout_key: _Given, implementation: str
) -> None:
    if bias_table is None or spec.bias is None:
        neither = bias_table is None and spec.bias is None
        _require(neither, 'attend() got only one of bias_table and bias; expected both or neither.')
    else:
        shape, expected = bias_table.shape, (q_BTNH.shape[2], spec.bias.num_buckets)
        buckets = f'expected [heads, buckets] = {expected}. Set ModelConfig.relative_buckets.'
        _require(shape == expected, f'bias_table has shape {shape}; {buckets}')
    cap, rate = spec.soft_cap, spec.dropout_rate
    above_zero = 'expected a number above 0, or None. Set ModelConfig.attention_soft_cap.'
    _require(cap is None or cap > 0.0, f'soft_cap={cap}, {above_zero}')
    _require(0.0 <= rate < 1.0, f'dropout_rate={rate}, expected a number in [0, 1). Set ModelConfig.dropout_rate.')
    pass_one = 'pass one, or a rate of 0.0 outside training.'
    _require(rate == 0.0 or dropout_key is not None, f'dropout_rate={rate} needs a dropout_key; {pass_one}')
    names = f'expected one of {", ".join(IMPLEMENTATIONS)}. Set ModelConfig.attention.'
    _require(implementation in IMPLEMENTATIONS, f'attention={implementation!r}, {names}')
