"""Accelerator chips that a plan can count on: peak FLOP/s, memory, and what memory and interconnect carry."""

import dataclasses

from t5flan.errors import UserError, did_you_mean
from t5flan.training.throughput import device_peak_tflops


@dataclasses.dataclass(frozen=True)
class Chip:
    """A kind of chip.

    Attributes:
        name: as on the command line.
        peak_tflops: dense bfloat16 TFLOP/s of a whole chip.
        memory_gib: memory of a whole chip, in GiB.
        devices: JAX devices of a chip, which share all of these.
        memory_gbps: GB/s that the memory of a whole chip reads or writes; None if unknown.
        link_gbps: GB/s that a whole chip sends over all its links to its neighbours, in one direction; None if unknown.
        network_gbps: GB/s that a chip sends to other slices; None if unknown.
    """

    name: str
    peak_tflops: float
    memory_gib: float
    devices: int = 1
    memory_gbps: float | None = None
    link_gbps: float | None = None
    network_gbps: float | None = None


# name: (part of `jax.Device.device_kind`, JAX devices of a chip, GiB and GB/s of memory, GB/s of links, of the network)
# from the vendors' data sheets (docs.cloud.google.com/tpu/docs/v5p and its neighbours, nvidia.com). They give links in
# both directions together, or in bits.
_KNOWN = {
    'v4': ('TPU v4', 1, 32.0, 1228.0, 300.0, 6.25),
    'v5e': ('TPU v5e', 1, 16.0, 819.0, 200.0, 3.125),
    'v5p': ('TPU v5', 1, 95.0, 2765.0, 600.0, 6.25),
    'v6e': ('TPU v6', 1, 32.0, 1638.0, 400.0, 12.5),
    'tpu7x': ('TPU7x', 2, 192.0, 7380.0, 600.0, 12.5),
    'a100': ('A100', 1, 80.0, 2039.0, 300.0, None),
    'h100': ('H100', 1, 80.0, 3350.0, 450.0, None),
    'h200': ('H200', 1, 141.0, 4800.0, 450.0, None),
}


def find_chip(name: str, peak_tflops: float | None = None, memory_gib: float | None = None) -> Chip:
    """The chip of --chip, with --peak_tflops and --memory_gib in place of the known numbers.

    Raises:
        UserError: an unknown chip, without both numbers.
    """
    if name in _KNOWN:
        kind, devices, known_memory, *rates = _KNOWN[name]
        known_peak = device_peak_tflops(kind)
        assert known_peak is not None, name
        return Chip(name, peak_tflops or known_peak * devices, memory_gib or known_memory, devices, *rates)
    if peak_tflops is None or memory_gib is None:
        expected = f'expected one of {", ".join(_KNOWN)}{did_you_mean(name, _KNOWN)}'
        raise UserError(f'--chip={name}, {expected}. For other chips set --peak_tflops and --memory_gib too')
    return Chip(name, peak_tflops, memory_gib)
