"""The four implementations behind `attend()`, each on every device of the mesh, and the choice among them."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from t5flan import sharding
from t5flan.errors import UserError
from t5flan.kernels.chunked import chunked_attention
from t5flan.kernels.operands import AttentionSpec, Operands
from t5flan.kernels.reference import reference_attention
from t5flan.kernels.sharded import local_length, on_devices

# Tiles are used from this many logits per head: on a CPU where they were measured to be faster, elsewhere (where whole
# arrays run faster) where whole ones would take much memory. Kernels are used from 1 MiB of logits a head: four times
# the on-chip memory of one GPU multiprocessor, so that the reference would write and read all logits in its memory.
_LEAST_LOGITS = {'cpu': 64 * 64, 'other': 1024 * 1024, 'tpu': 512 * 512, 'gpu': 512 * 512}
_LEAST_FLASH_QUERIES = 128  # fewer are padded to one block of this size
_KERNEL_OF_PLATFORM = {'tpu': 'flash_tpu', 'gpu': 'flash_gpu'}
_HARDWARE = {'flash_tpu': 'TPU', 'flash_gpu': 'NVIDIA GPUs'}
# The platforms that run each kernel, and Pallas' `interpret` argument there. Tests add the CPU.
PLATFORMS: dict[str, dict[str, Any]] = {'flash_tpu': {'tpu': False}, 'flash_gpu': {'gpu': False}}


def choose(
    implementation: str, queries: int, keys: int, platform: str, unsupported: str | None = None
) -> tuple[str, str]:
    """The implementation for T `queries` on one device, S `keys` and a platform, and why it was chosen.

    `implementation` is one of `IMPLEMENTATIONS`, `platform` 'cpu', 'tpu' or 'gpu', `unsupported` from
    `unsupported_reason`.

    Raises:
        UserError: 'flash_tpu' or 'flash_gpu' is requested and cannot run.
    """
    if queries == 1:
        return 'xla', 'one query'
    kernel = _kernel(implementation, platform)
    if kernel and implementation == kernel:
        if platform not in PLATFORMS[kernel]:
            unsupported = f'it runs on {_HARDWARE[kernel]}, not {platform}'
        if unsupported:
            change = "Set ModelConfig.attention='chunked', or 'auto'."
            raise UserError(f"attention '{kernel}' cannot run: {unsupported}. {change}")
    if implementation != 'auto':
        return implementation, 'as configured'
    least = _LEAST_LOGITS.get(platform, _LEAST_LOGITS['other'])
    if queries * keys < least:
        return 'xla', f'fewer than {least} logits a head'
    if kernel and queries >= _LEAST_FLASH_QUERIES and unsupported is None:
        return kernel, f'at least {least} logits a head'
    instead = f'; not {kernel}: {unsupported}' if kernel and unsupported else ''
    return 'chunked', f'at least {least} logits a head{instead}'


def _kernel(implementation: str, platform: str) -> str | None:
    """The kernel that is requested by name, or else the platform's."""
    return implementation if implementation in PLATFORMS else _KERNEL_OF_PLATFORM.get(platform)


def unsupported_reason(implementation: str, spec: AttentionSpec, operands: Operands) -> str | None:
    """Why the requested or else the platform's kernel does not support this device or these arrays; None if it does."""
    kernel = _kernel(implementation, sharding.platform())
    if kernel is None:
        return None
    if kernel == 'flash_gpu':
        return _flash_gpu().unsupported_reason(sharding.device(), spec, operands)
    return _flash_tpu().unsupported_reason(spec, operands)


def _flash_gpu() -> Any:
    """`kernels/gpu/flash.py`, imported on first use: Pallas takes a quarter of a second, and a CPU does not need it."""
    from t5flan.kernels.gpu import flash

    return flash


def _flash_tpu() -> Any:
    """`kernels/tpu/flash.py`, imported on first use."""
    from t5flan.kernels.tpu import flash

    return flash


def _xla(spec: AttentionSpec, operands: Operands) -> jax.Array:
    """Whole arrays of logits; if the mesh splits the queries, each device has the logits of its queries."""
    queries, run = operands.q_BTNH.shape[1], functools.partial(reference_attention, spec)
    return run(operands) if local_length(queries) == queries else on_devices(run, operands)


def _chunked(spec: AttentionSpec, operands: Operands) -> jax.Array:
    return on_devices(functools.partial(chunked_attention, spec), operands)


def _run_flash_tpu(spec: AttentionSpec, operands: Operands) -> jax.Array:
    kernel = _flash_tpu()
    return _run_flash('flash_tpu', kernel.flash_attention, kernel.choose_blocks, spec, operands)


def _run_flash_gpu(spec: AttentionSpec, operands: Operands) -> jax.Array:
    kernel = _flash_gpu()
    return _run_flash('flash_gpu', kernel.flash_attention, kernel.choose_tiling, spec, operands)


def _run_flash(
    name: str, attention: Callable, choose_blocks: Callable, spec: AttentionSpec, operands: Operands
) -> jax.Array:
    def run(operands: Operands) -> jax.Array:
        blocks = choose_blocks(sharding.device().device_kind, spec, operands)
        return attention(spec, operands, blocks, PLATFORMS[name][sharding.platform()])

    return on_devices(run, operands)


PROGRAMS: dict[str, Callable[[AttentionSpec, Operands], jax.Array]] = {
    'xla': _xla,
    'chunked': _chunked,
    'flash_tpu': _run_flash_tpu,
    'flash_gpu': _run_flash_gpu,
}
IMPLEMENTATIONS = ('auto', *PROGRAMS)
