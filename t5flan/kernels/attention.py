"""`attend()`, the only attention: queries, keys and values in, their mixture out, by the program that suits the device.

    xla        plain einsums; the reference, and the fastest for one query or few
    chunked    in tiles (`kernels/chunked.py`); never holds [B, N, T, S]
    flash_tpu  Pallas kernels for TPU (`kernels/tpu/flash.py`); what they do not take, 'auto' gives to chunked
    flash_gpu  the same for NVIDIA GPUs (`kernels/gpu/flash.py`)

B batch, T queries, S keys, N heads, K key-value heads, G = N / K heads that share one, H head_dim, R buckets.
"""

import dataclasses
import functools
import logging
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from t5flan import sharding
from t5flan.errors import UserError
from t5flan.kernels.chunked import MASKED, SAVED_NAMES, Form, Operands, chunked_attention
from t5flan.kernels.gpu import flash as flash_gpu
from t5flan.kernels.relative_bias import RelativeBias, bias_vector, relative_buckets, toeplitz
from t5flan.kernels.tpu import flash as flash_tpu

__all__ = ['IMPLEMENTATIONS', 'RelativeBias', 'attend', 'relative_buckets']

IMPLEMENTATIONS = ('auto', 'xla', 'chunked', 'flash_tpu', 'flash_gpu')

# Logits of one tile. On a CPU larger ones were measured to leave the cache; elsewhere a step of the loop must be worth
# its start. No fewer rows than this for long keys: with every tile the gradients of all keys are read and written again.
_TILE_LOGITS = {'cpu': 500_000, 'other': 16_000_000}
_TILE_ROWS = 256
# From this many logits per head on tiles are used: on a CPU where they were measured to be faster, elsewhere (where
# whole arrays run better) where whole ones would take much memory. Kernels start at a MiB of logits a head: four times what
# a processor of a GPU has of its own, so that the plain program writes each array of them out and reads it again.
_LEAST_LOGITS = {'cpu': 64 * 64, 'other': 1024 * 1024, 'tpu': 512 * 512, 'gpu': 512 * 512}
# Platforms that run the TPU and the GPU kernels, and whether interpreted; tests add the CPU.
_FLASH_PLATFORMS = {'tpu': False}
_FLASH_GPU_PLATFORMS = {'gpu': False}
_LEAST_FLASH_QUERIES = 128  # fewer are padded to one block of this size


class _Visible(NamedTuple):
    """Who sees whom, apart from the order: see `Operands`."""

    q_segment_ids_BT: jax.Array | None
    kv_segment_ids_BS: jax.Array | None
    prefix_BS: jax.Array | None
    key_seen_BS: jax.Array | None


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
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    implementation: str = 'auto',
    precision: Any = None,
) -> jax.Array:
    """Softmax attention: y_t = sum over s of softmax_s(logits) v_s, with float32 softmax.

    logits = cap(scale * q k) + bias, where cap(x) = soft_cap * tanh(x / soft_cap). A query that sees no key gives zeros.

    Args:
        q_BTNH: queries; k_BSKH, v_BSKH: keys and values of the same type. K divides N: head n reads key-value head n // G.
        bias_table: [N, R] and `bias`, both or neither: T5's relative bias by bucket of the distance
            (key index) - (query index + q_offset).
        q_offset: which key the first query stands at, scalar; may be traced.
        causal: a query sees no key after itself.
        prefix_BS: with `causal`: keys (bool, or 0 and 1) that are seen by the queries before them as well.
        q_segment_ids_BT, kv_segment_ids_BS: a query sees keys of its own segment; segment 0 is padding and is never seen.
            With the keys' alone every query sees all keys but padding.
        kv_lengths_B: only the first keys of each row exist.
        dropout_rate: of probabilities, with `dropout_key`. As in T5, a head drops a key for all queries of a row.
        implementation: one of IMPLEMENTATIONS; the others raise what they cannot do, 'auto' takes what can.

    Returns:
        y_BTNH in q's type.

    Raises:
        UserError: shapes, types or options that do not go together.
    """
    _check_arrays(q_BTNH, k_BSKH, v_BSKH)
    _check_masks(q_BTNH, k_BSKH, causal, prefix_BS, q_segment_ids_BT, kv_segment_ids_BS, kv_lengths_B, q_offset)
    _check_options(q_BTNH, bias_table, bias, soft_cap, dropout_rate, dropout_key, implementation)
    visible = _visible(k_BSKH, prefix_BS, q_segment_ids_BT, kv_segment_ids_BS, kv_lengths_B)
    queries, keys = _local_length(q_BTNH.shape[1]), k_BSKH.shape[1]
    arrays = q_BTNH.shape[3], q_BTNH.dtype
    refusal = (
        flash_gpu.refusal(_device(), *arrays, precision)
        if _kernel(implementation, _platform()) == 'flash_gpu'
        else flash_tpu.refusal(*arrays, bias, precision)
    )
    chosen, reason = choose(implementation, queries, keys, _platform(), refusal)
    _say_once(_platform(), chosen, reason)
    form = Form(queries, k_BSKH.shape[2], causal, scale, soft_cap, dropout_rate, precision)
    operands = Operands(q_BTNH, k_BSKH, v_BSKH, None, None, *visible, jnp.asarray(q_offset, jnp.int32))
    programs = {'xla': _plain, 'chunked': _chunked, 'flash_tpu': _flash, 'flash_gpu': _flash_gpu}
    run = functools.partial(programs[chosen], form, bias=bias)
    if dropout_rate > 0.0:
        run = _with_dropout(run, dropout_rate, dropout_key)
    if chosen != 'xla' and (dropout_rate > 0.0 or queries < q_BTNH.shape[1]):
        # The backward pass draws the mask and gathers the keys again: little work, and neither is kept. Tiles are not computed
        # again.
        run = jax.checkpoint(run, policy=jax.checkpoint_policies.save_only_these_names(*SAVED_NAMES))
    return run(operands, bias_table=bias_table)


def choose(implementation: str, queries: int, keys: int, platform: str, refusal: str | None = None) -> tuple[str, str]:
    """The program for a size and platform ('cpu', 'tpu', 'gpu'), and why.

    Args:
        refusal: why the kernels asked for, or else the platform's, do not take the arrays (their `refusal`), or None.

    Raises:
        UserError: 'flash_tpu' or 'flash_gpu' is asked for and cannot run.
    """
    if queries == 1:
        return 'xla', 'one query'
    kernel = _kernel(implementation, platform)
    if implementation == kernel:
        devices, platforms = {
            'flash_tpu': ('TPU', _FLASH_PLATFORMS),
            'flash_gpu': ('NVIDIA GPUs', _FLASH_GPU_PLATFORMS),
        }[kernel]
        if platform not in platforms:
            refusal = f'it runs on {devices}, not {platform}'
        if refusal:
            raise UserError(
                f"attention '{kernel}' cannot run: {refusal}. Set ModelConfig.attention='chunked', or 'auto'."
            )
    if implementation != 'auto':
        return implementation, 'as configured'
    least = _LEAST_LOGITS.get(platform, _LEAST_LOGITS['other'])
    if queries * keys < least:
        return 'xla', f'fewer than {least} logits a head'
    if kernel and queries >= _LEAST_FLASH_QUERIES and refusal is None:
        return kernel, f'at least {least} logits a head'
    instead = f'; not {kernel}: {refusal}' if kernel and refusal else ''
    return 'chunked', f'at least {least} logits a head{instead}'


def _kernel(implementation: str, platform: str) -> str | None:
    """The kernels that are asked for by name, or else the platform's."""
    if implementation in ('flash_tpu', 'flash_gpu'):
        return implementation
    return {'tpu': 'flash_tpu', 'gpu': 'flash_gpu'}.get(platform)


def _with_dropout(run: Callable[..., jax.Array], rate: float, key: jax.Array) -> Callable[..., jax.Array]:
    """`run` with a mask of dropout: that of whole arrays, so that it is the same on every mesh."""

    def dropped(operands: Operands, bias_table: jax.Array | None) -> jax.Array:
        (batch, _, heads, _), keys = operands.q_BTNH.shape, operands.k_BSKH.shape[1]
        keep_BNS = jax.random.bernoulli(key, 1.0 - rate, (batch, heads, keys))
        return run(operands._replace(keep_BNS=keep_BNS), bias_table=bias_table)

    return dropped


@functools.cache
def _say_once(platform: str, chosen: str, reason: str) -> None:
    logging.getLogger(__name__).info('attention on %s: %s (%s)', platform, chosen, reason)


def _device() -> jax.Device:
    """Where the program will run: on the mesh's devices, which may be those of a topology that is only compiled for."""
    current = sharding.current()
    return current.mesh.devices.flat[0] if current else jax.devices()[0]


def _platform() -> str:
    return _device().platform


def _tile(queries: int, keys: int, heads: int, kv_heads: int, platform: str) -> tuple[int, int]:
    """Queries and key-value heads of a tile; of the queries an even share, a multiple of 8 where it is not all."""
    share = heads // kv_heads
    logits = _TILE_LOGITS.get(platform, _TILE_LOGITS['other'])
    if share * queries * keys <= logits:
        fit = logits // (share * queries * keys)
        return queries, max(n for n in range(1, min(fit, kv_heads) + 1) if kv_heads % n == 0)
    most = max(logits // (share * keys), _TILE_ROWS // share, 8)
    if queries <= most:
        return queries, 1
    blocks = -(-queries // most)
    return -(-queries // blocks // 8) * 8, 1


def _visible(
    k_BSKH: jax.Array,
    prefix_BS: jax.Array | None,
    q_segment_ids_BT: jax.Array | None,
    kv_segment_ids_BS: jax.Array | None,
    kv_lengths_B: jax.Array | None,
) -> _Visible:
    seen_BS = None
    if kv_lengths_B is not None:
        seen_BS = jnp.arange(k_BSKH.shape[1], dtype=jnp.int32)[None, :] < kv_lengths_B[:, None]
    if prefix_BS is not None:
        prefix_BS = prefix_BS != 0
    if q_segment_ids_BT is not None:
        # Padding among the queries gets an id that no key has, keys that do not exist one that no query has.
        q_segment_ids_BT = jnp.where(q_segment_ids_BT > 0, q_segment_ids_BT, -1)
        if seen_BS is not None:
            kv_segment_ids_BS = jnp.where(seen_BS, kv_segment_ids_BS, 0)
        return _Visible(q_segment_ids_BT, kv_segment_ids_BS, prefix_BS, None)
    if kv_segment_ids_BS is not None:
        seen_BS = kv_segment_ids_BS > 0 if seen_BS is None else seen_BS & (kv_segment_ids_BS > 0)
    return _Visible(None, None, prefix_BS, seen_BS)


def _plain(form: Form, operands: Operands, bias_table: jax.Array | None, bias: RelativeBias | None) -> jax.Array:
    """The reference: whole arrays of logits; where the mesh splits the queries, on each device those of its own."""
    operands, queries = operands._replace(bias_NW=bias_table), operands.q_BTNH.shape[1]
    run = functools.partial(_whole_logits, form, bias)
    return run(operands) if _local_length(queries) == queries else _on_devices(run, operands)


def _whole_logits(form: Form, bias: RelativeBias | None, operands: Operands) -> jax.Array:
    """Attention by logits [B, K, G, T, S]; the operands hold the table [N, R] for bias_NW."""
    q_BTNH, k_BSKH, v_BSKH, table_NR, keep_BNS, *visible, q_offset = operands
    batch, queries, heads, size = q_BTNH.shape
    keys, kv_heads = k_BSKH.shape[1:3]
    q_BTKGH = q_BTNH.reshape(batch, queries, kv_heads, heads // kv_heads, size)
    logits_BKGTS = (
        jnp.einsum('BTKGH,BSKH->BKGTS', q_BTKGH, k_BSKH, precision=form.precision, preferred_element_type=jnp.float32)
        * form.scale
    )
    if form.soft_cap is not None:
        logits_BKGTS = form.soft_cap * jnp.tanh(logits_BKGTS / form.soft_cap)
    if bias is not None:
        bias_NW = bias_vector(table_NR, bias, queries, keys, q_offset)
        logits_BKGTS += toeplitz(bias_NW, queries, keys).reshape(1, kv_heads, -1, queries, keys)
    allowed_BTS = _allowed(form, _Visible(*visible), queries, keys, q_offset)
    if allowed_BTS is not None:
        logits_BKGTS = jnp.where(allowed_BTS[:, None, None], logits_BKGTS, MASKED)
    weights_BKGTS = jax.nn.softmax(logits_BKGTS, axis=-1)
    if keep_BNS is not None:
        keep_BKG1S = keep_BNS.reshape(batch, kv_heads, -1, 1, keys)
        weights_BKGTS = jnp.where(keep_BKG1S, weights_BKGTS / (1.0 - form.dropout_rate), 0.0)
    y_BTKGH = jnp.einsum(
        'BKGTS,BSKH->BTKGH',
        weights_BKGTS.astype(v_BSKH.dtype),
        v_BSKH,
        precision=form.precision,
        preferred_element_type=jnp.float32,
    )
    if allowed_BTS is not None:  # a query that sees nothing: an even mixture by then, and its gradient
        y_BTKGH = jnp.where(jnp.any(allowed_BTS, axis=-1)[:, :, None, None, None], y_BTKGH, 0.0)
    return y_BTKGH.reshape(q_BTNH.shape).astype(q_BTNH.dtype)


def _allowed(form: Form, visible: _Visible, queries: int, keys: int, q_offset: jax.Array) -> jax.Array | None:
    """Which query sees which key, [B or 1, T, S]; None if all see all."""
    masks = []
    if form.causal:
        query_T = q_offset + jnp.arange(queries, dtype=jnp.int32)
        not_after_1TS = (jnp.arange(keys, dtype=jnp.int32)[None, :] <= query_T[:, None])[None]
        masks.append(not_after_1TS if visible.prefix_BS is None else not_after_1TS | visible.prefix_BS[:, None, :])
    if visible.q_segment_ids_BT is not None:
        masks.append(visible.q_segment_ids_BT[:, :, None] == visible.kv_segment_ids_BS[:, None, :])
    if visible.key_seen_BS is not None:
        masks.append(visible.key_seen_BS[:, None, :])
    return functools.reduce(jnp.logical_and, masks) if masks else None


def _chunked(form: Form, operands: Operands, bias_table: jax.Array | None, bias: RelativeBias | None) -> jax.Array:
    """Tiles on each device for its own rows, heads and queries: a loop over a split axis would gather it on every device."""

    def run(operands: Operands) -> jax.Array:
        (_, queries, heads, _), (_, keys, kv_heads, _) = operands.q_BTNH.shape, operands.k_BSKH.shape
        block, tile_kv_heads = _tile(queries, keys, heads, kv_heads, _platform())
        padding = -queries % block
        operands = _pad_queries(operands, padding)
        if bias is not None:
            vector_NW = bias_vector(operands.bias_NW, bias, queries + padding, keys, operands.q_offset)
            operands = operands._replace(bias_NW=vector_NW)
        return chunked_attention(dataclasses.replace(form, block=block, kv_heads=tile_kv_heads), operands)[:, :queries]

    return _on_devices(run, operands._replace(bias_NW=bias_table))


def _flash(form: Form, operands: Operands, bias_table: jax.Array | None, bias: RelativeBias | None) -> jax.Array:
    """The TPU kernels, on each device for its own rows, heads and queries."""

    def run(operands: Operands) -> jax.Array:
        (_, queries, _, size), keys = operands.q_BTNH.shape, operands.k_BSKH.shape[1]
        largest = flash_tpu.largest_blocks(_device().device_kind, size, operands.q_BTNH.dtype, bias)
        block_q, block_k = flash_tpu.block_sizes(queries, keys, largest)
        flash_form = flash_tpu.FlashForm(
            form.causal,
            form.scale,
            form.soft_cap,
            form.dropout_rate,
            form.precision,
            bias and bias.max_distance,
            block_q,
            block_k,
            _FLASH_PLATFORMS[_platform()],
        )
        if bias is not None:
            vector_NW = flash_tpu.band_vector(operands.bias_NW, bias, block_q, operands.q_offset)
            operands = operands._replace(bias_NW=vector_NW)
        return flash_tpu.flash_attention(flash_form, operands)

    return _on_devices(run, operands._replace(bias_NW=bias_table))


def _flash_gpu(form: Form, operands: Operands, bias_table: jax.Array | None, bias: RelativeBias | None) -> jax.Array:
    """The GPU kernels, on each device for its own rows, heads and queries."""

    def run(operands: Operands) -> jax.Array:
        (_, queries, _, size), keys = operands.q_BTNH.shape, operands.k_BSKH.shape[1]
        largest = flash_gpu.largest_tiling(_device().device_kind, size, operands.q_BTNH.dtype)
        flash_form = flash_gpu.FlashForm(
            form.causal,
            form.scale,
            form.soft_cap,
            form.dropout_rate,
            form.precision,
            bias and bias.max_distance,
            flash_gpu.tiling(queries, keys, largest),
            _FLASH_GPU_PLATFORMS[_platform()],
        )
        if bias is not None:
            operands = operands._replace(bias_NW=flash_gpu.bias_by_distance(operands.bias_NW, bias))
        return flash_gpu.flash_attention(flash_form, operands)

    return _on_devices(run, operands._replace(bias_NW=bias_table))


def _on_devices(run: Callable[[Operands], jax.Array], operands: Operands) -> jax.Array:
    """`run` on each device of the mesh, if there is one, for its rows, queries and heads; all heads where they do not divide.

    Args:
        operands: with an array [N, ...] by head, whatever `run` takes, for bias_NW.
    """
    current = sharding.current()
    if current is None:
        return run(operands)
    heads, kv_heads, parts = operands.q_BTNH.shape[2], operands.k_BSKH.shape[2], current.size('act_heads')
    parts = 1 if heads % parts or (kv_heads % parts and parts % kv_heads) else parts
    rows = current.spec(('batch',), operands.q_BTNH.shape[:1])[0]
    head_axes = current.axis('act_heads') if parts > 1 else None
    kv_axes = None if kv_heads % parts else head_axes
    return _sharded(run, operands, current, rows, head_axes, kv_axes)


def _pad_queries(operands: Operands, padding: int) -> Operands:
    """Adds queries that nobody reads, so that blocks divide."""
    if not padding:
        return operands
    q_BTNH = jnp.pad(operands.q_BTNH, [(0, 0), (0, padding), (0, 0), (0, 0)])
    ids_BT = operands.q_segment_ids_BT
    if ids_BT is not None:
        ids_BT = jnp.pad(ids_BT, [(0, 0), (0, padding)], constant_values=-1)
    return operands._replace(q_BTNH=q_BTNH, q_segment_ids_BT=ids_BT)


def _sharded(
    run: Callable[[Operands], jax.Array],
    operands: Operands,
    current: sharding.Sharding,
    rows: Any,
    head_axes: tuple[str, ...] | None,
    kv_axes: tuple[str, ...] | None,
) -> jax.Array:
    """`run` with rows, heads and queries split over mesh axes (None: whole on every device).

    Keys and values, which every query may read, come split over their length too and are gathered; their gradients are
    added up and split again (the transpose of the one is the other).
    """
    kv_heads = operands.k_BSKH.shape[2]
    query_axes, key_axes = (_length_axes(current, x.shape[1]) for x in (operands.q_BTNH, operands.k_BSKH))
    q_spec, kv_spec = PartitionSpec(rows, query_axes, head_axes, None), PartitionSpec(rows, key_axes, kv_axes, None)
    by_row = PartitionSpec(rows, None)
    specs = Operands(
        q_spec,
        kv_spec,
        kv_spec,
        PartitionSpec(head_axes, None),
        PartitionSpec(rows, head_axes, None),
        PartitionSpec(rows, query_axes),
        by_row,
        by_row,
        by_row,
        PartitionSpec(),
    )
    specs = Operands(*[None if x is None else spec for x, spec in zip(operands, specs, strict=True)])

    def local(operands: Operands) -> jax.Array:
        k_BSKH, v_BSKH, q_offset = operands.k_BSKH, operands.v_BSKH, operands.q_offset
        if head_axes and not kv_axes:  # fewer key-value heads than parts: these heads all read the same one
            head = jax.lax.axis_index(head_axes) * kv_heads // _parts_of(current.mesh, head_axes)
            k_BSKH, v_BSKH = (jax.lax.dynamic_slice_in_dim(x, head, 1, axis=2) for x in (k_BSKH, v_BSKH))
        if key_axes:
            k_BSKH, v_BSKH = (jax.lax.all_gather(x, key_axes, axis=1, tiled=True) for x in (k_BSKH, v_BSKH))
        if query_axes:
            q_offset = q_offset + jax.lax.axis_index(query_axes) * operands.q_BTNH.shape[1]
        return run(operands._replace(k_BSKH=k_BSKH, v_BSKH=v_BSKH, q_offset=q_offset))

    return jax.shard_map(local, mesh=current.mesh, in_specs=(specs,), out_specs=specs.q_BTNH, check_vma=False)(operands)


def _parts_of(mesh: Mesh, axes: tuple[str, ...]) -> int:
    return math.prod(mesh.shape[axis] for axis in axes)


def _length_axes(current: sharding.Sharding, length: int) -> tuple[str, ...] | None:
    """The mesh axes that queries or keys of a length are split over; None where it does not divide, as in decoding."""
    axes = current.axis('length')
    return None if axes is None or length % _parts_of(current.mesh, axes) else axes


def _local_length(length: int) -> int:
    """The queries of one device."""
    current = sharding.current()
    axes = _length_axes(current, length) if current else None
    return length // _parts_of(current.mesh, axes) if axes else length


def _check_arrays(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array) -> None:
    shapes = f'q {q_BTNH.shape}, k {k_BSKH.shape}, v {v_BSKH.shape}'
    if not q_BTNH.ndim == k_BSKH.ndim == v_BSKH.ndim == 4:
        raise UserError(f'attend() got {shapes}; expected [B, T, N, H], [B, S, K, H] and [B, S, K, H].')
    if k_BSKH.shape != v_BSKH.shape or q_BTNH.shape[::3] != k_BSKH.shape[::3]:
        raise UserError(f'attend() got {shapes}; expected equal B and H, and values of the shape of the keys.')
    if 0 in q_BTNH.shape + k_BSKH.shape:
        raise UserError(f'attend() got {shapes}; expected no empty axis.')
    if q_BTNH.shape[2] % k_BSKH.shape[2]:
        raise UserError(
            f'{k_BSKH.shape[2]} key-value heads do not divide {q_BTNH.shape[2]} heads. '
            'Set ModelConfig.num_kv_heads to a divisor of ModelConfig.num_heads.'
        )
    dtypes = [str(x.dtype) for x in (q_BTNH, k_BSKH, v_BSKH)]
    if len(set(dtypes)) > 1 or not jnp.issubdtype(q_BTNH.dtype, jnp.floating):
        raise UserError(f'attend() got q, k, v of {", ".join(dtypes)}; expected one floating type (ModelConfig.dtype).')


def _check_masks(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    causal: bool,
    prefix_BS: jax.Array | None,
    q_segment_ids_BT: jax.Array | None,
    kv_segment_ids_BS: jax.Array | None,
    kv_lengths_B: jax.Array | None,
    q_offset: int | jax.Array,
) -> None:
    by_query, by_key = q_BTNH.shape[:2], k_BSKH.shape[:2]
    for name, x, shape in (
        ('prefix_BS', prefix_BS, by_key),
        ('q_segment_ids_BT', q_segment_ids_BT, by_query),
        ('kv_segment_ids_BS', kv_segment_ids_BS, by_key),
        ('kv_lengths_B', kv_lengths_B, by_key[:1]),
        ('q_offset', q_offset, ()),
    ):
        if x is None:
            continue
        whole = jnp.issubdtype(jnp.result_type(x), jnp.integer) or (name == 'prefix_BS' and x.dtype == bool)
        if jnp.shape(x) != shape or not whole:
            raise UserError(f'attend() got {name} of {jnp.shape(x)} {jnp.result_type(x)}; expected {shape} of int32.')
    if prefix_BS is not None and not causal:
        raise UserError('attend() got prefix_BS without causal=True, where it hides nothing; leave one out.')
    if q_segment_ids_BT is not None and kv_segment_ids_BS is None:
        raise UserError(
            'attend() got q_segment_ids_BT without kv_segment_ids_BS; give both, or those of the keys alone.'
        )


def _check_options(
    q_BTNH: jax.Array,
    bias_table: jax.Array | None,
    bias: RelativeBias | None,
    soft_cap: float | None,
    dropout_rate: float,
    dropout_key: jax.Array | None,
    implementation: str,
) -> None:
    if (bias_table is None) != (bias is None):
        raise UserError('attend() got only one of bias_table and bias; expected both or neither.')
    if bias is not None and bias_table.shape != (q_BTNH.shape[2], bias.num_buckets):
        raise UserError(
            f'bias_table has the shape {bias_table.shape}; expected heads x buckets '
            f'{(q_BTNH.shape[2], bias.num_buckets)} (ModelConfig.relative_buckets).'
        )
    if soft_cap is not None and not soft_cap > 0.0:
        raise UserError(f'soft_cap={soft_cap} is not above 0. Set ModelConfig.attention_soft_cap, or None for no cap.')
    if not 0.0 <= dropout_rate < 1.0:
        raise UserError(f'dropout_rate={dropout_rate} is not in [0, 1). Set ModelConfig.dropout_rate.')
    if dropout_rate > 0.0 and dropout_key is None:
        raise UserError(f'dropout_rate={dropout_rate} needs a dropout_key; give one, or 0.0 outside training.')
    if implementation not in IMPLEMENTATIONS:
        raise UserError(
            f'attention {implementation!r} is not known; expected one of {", ".join(IMPLEMENTATIONS)}. '
            'Set ModelConfig.attention.'
        )
