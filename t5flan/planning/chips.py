"""Accelerator chips that a plan can count on: peak FLOP/s and memory."""

import dataclasses

from t5flan.errors import UserError, did_you_mean
from t5flan.training.throughput import device_peak_tflops

# name: (part of `jax.Device.device_kind`, JAX devices of a chip, GiB of memory), from the vendors' data sheets.
_KNOWN = {
    'v4': ('TPU v4', 1, 32.0),
    'v5e': ('TPU v5e', 1, 16.0),
    'v5p': ('TPU v5', 1, 95.0),
    'v6e': ('TPU v6', 1, 32.0),
    'tpu7x': ('TPU7x', 2, 192.0),
    'a100': ('A100', 1, 80.0),
    'h100': ('H100', 1, 80.0),
    'h200': ('H200', 1, 141.0),
}


@dataclasses.dataclass(frozen=True)
class Chip:
    """A kind of chip.

    Attributes:
        name: as on the command line.
        peak_tflops: dense bfloat16 TFLOP/s of a whole chip.
        memory_gib: memory of a whole chip, in GiB.
        devices: JAX devices of a chip, which share both.
    """

    name: str
    peak_tflops: float
    memory_gib: float
    devices: int = 1


def find_chip(name: str, peak_tflops: float | None = None, memory_gib: float | None = None) -> Chip:
    """The chip of --chip, with --peak_tflops and --memory_gib in place of the known numbers.

    Raises:
        UserError: an unknown chip, without both numbers.
    """
    if name in _KNOWN:
        kind, devices, known_memory = _KNOWN[name]
        known_peak = device_peak_tflops(kind)
        assert known_peak is not None, name
        return Chip(name, peak_tflops or known_peak * devices, memory_gib or known_memory, devices)
    if peak_tflops is None or memory_gib is None:
        expected = f'expected one of {", ".join(_KNOWN)}{did_you_mean(name, _KNOWN)}'
        raise UserError(f'--chip={name}, {expected}. For other chips set --peak_tflops and --memory_gib too')
    return Chip(name, peak_tflops, memory_gib)
