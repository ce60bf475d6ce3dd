"""What a compiled step takes, as JSON: memory, FLOPs, traffic, and the least time by the chip's data sheet."""

import collections
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax

from t5flan.compiling import hlo, traffic
from t5flan.compiling.buffers import largest_buffers
from t5flan.compiling.step import Program
from t5flan.compiling.targets import SLICES, Target
from t5flan.mesh import MESH_AXES
from t5flan.models.parameters import named_parameters
from t5flan.planning.chips import Chip
from t5flan.planning.cost import GIB


def describe_program(program: Program, target: Target) -> dict[str, Any]:
    """The report of `t5flan compile`.

    Bytes and executed FLOPs are those of one device, model FLOPs those of all.

    Args:
        program: the compiled step.
        target: what it was compiled for.
    """
    mesh = program.sharding.mesh
    report: dict[str, Any] = {
        'topology': target.name,
        'slices': target.slices,
        'devices': mesh.size,
        'mesh': dict(mesh.shape),
        'across_slices': _across_slices(program, target),
        'fits': program.compiled is not None,
        'compile_seconds': program.seconds,
        'limit_bytes': _limit(program, target.chip),
        'argument_bytes': _held([program.parameters, program.optimizer, program.inputs, program.teacher]),
        'optimizer_bytes': _held(program.optimizer),
        'parameter_bytes': _held(program.parameters),
        'teacher_bytes': None if program.teacher is None else _held(program.teacher),
        'model_flops': program.model_flops,
        'parameters': _parameters(program.parameters),
    }
    if program.compiled is None:
        return report | {'peak_bytes_per_device': program.needed_bytes, 'allocations': list(program.allocations)}
    memory = program.compiled.memory_analysis()
    report |= {'peak_bytes_per_device': _peak(memory, target), 'argument_bytes': int(memory.argument_size_in_bytes)}
    report |= {'activation_bytes': int(memory.temp_size_in_bytes), 'allocated_bytes': _allocated(memory)}
    limit = report['limit_bytes']
    report['fits'] = limit is None or report['allocated_bytes'] <= limit
    return report | _work(program, target)


def _work(program: Program, target: Target) -> dict[str, Any]:
    """FLOPs, traffic, and the least time of a step."""
    module, wanted = hlo.parse(program.compiled.as_text()), program.model_flops
    mesh = program.sharding.mesh
    found = [one for one in traffic.collectives(module, dict(mesh.shape)) if one.devices > 1]
    by_kind: dict[str, dict[str, float]] = collections.defaultdict(lambda: collections.defaultdict(float))
    for one in found:
        by_kind[one.kind]['+'.join(one.axes) or 'unknown'] += one.bytes
    flops = traffic.executed_flops(module) + program.kernel_flops
    across = {axis for axis, slices in _across_slices(program, target).items() if slices > 1}
    slow = sum(one.sent for one in found if across & set(one.axes))
    moved = traffic.memory_bytes(module)
    work = {
        'executed_flops': flops,
        'executed_over_model_flops': flops * mesh.size / wanted,
        'kernel_flops': program.kernel_flops,
        'memory_traffic_bytes': moved,
        'collective_bytes': {kind: dict(axes) for kind, axes in sorted(by_kind.items())},
        'largest_buffers': [dataclasses.asdict(row) for row in largest_buffers(module)],
    }
    sent = sum(one.sent for one in found) - slow
    return work | roofline(target.chip, flops, moved, sent, slow, wanted / mesh.size)


def roofline(
    chip: Chip | None, flops: float, moved: float, sent: float, sent_across: float, wanted: float
) -> dict[str, Any]:
    """The least seconds of a step by the chip's data sheet, and the share of its peak that the model then gets.

    Each time is a bound: at the peak, all links of a chip at once, and everything else at the same time. A run takes
    longer.

    Args:
        chip: the kind of chip; None, as for a CPU, has no bounds.
        flops: executed on each device.
        moved: bytes of memory traffic of each device.
        sent: bytes that each device sends inside its slice.
        sent_across: bytes that it sends to other slices.
        wanted: model FLOPs of each device.
    """
    if chip is None:
        return {'roofline_seconds': {}, 'bound': None, 'mfu': None}
    peak = chip.peak_tflops * 1e12 / chip.devices
    seconds = lambda bytes, rate: bytes / (rate * 1e9 / chip.devices) if rate else 0.0
    bounds = {'compute': flops / peak, 'hbm': seconds(moved, chip.memory_gbps)}
    bounds |= {'interconnect': seconds(sent, chip.link_gbps), 'network': seconds(sent_across, chip.network_gbps)}
    bound = max(bounds, key=lambda name: bounds[name])
    mfu = wanted / (peak * bounds[bound]) if bounds[bound] else None
    return {'roofline_seconds': bounds, 'bound': bound, 'mfu': mfu}


def _peak(memory: Any, target: Target) -> int:
    """The most bytes in use at once, as the compiler for TPUs counts them; for other devices, what is allocated."""
    peak = getattr(memory, 'peak_memory_in_bytes', 0)
    is_tpu = target.name.partition(':')[0] in SLICES
    return int(peak) if peak and is_tpu else _allocated(memory)


def _allocated(memory: Any) -> int:
    """Bytes that the program reserves: more than its peak, since buffers of different sizes leave gaps."""
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return int(held + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes)


def _limit(program: Program, chip: Chip | None) -> int | None:
    if program.limit_bytes is not None:
        return program.limit_bytes
    return None if chip is None else int(chip.memory_gib * GIB / chip.devices)


def _held(tree: Any) -> int:
    """Bytes of the arrays on each device."""
    size = lambda x: math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    return int(sum(map(size, jax.tree.leaves(tree))))


def _across_slices(program: Program, target: Target) -> dict[str, int]:
    """How many slices each mesh axis runs over."""
    if target.slices == 1:
        return {}
    devices = program.sharding.mesh.devices
    counts = {}
    for number, axis in enumerate(MESH_AXES):
        line = devices[tuple(slice(None) if i == number else 0 for i in range(devices.ndim))]
        counts[axis] = len({device.slice_index for device in line})
    return {axis: count for axis, count in counts.items() if count > 1}


def _parameters(model: Any) -> dict[str, dict[str, Any]]:
    """Shape, dtype and sharding of every parameter: {'decoder/...': {'sharding': [None, 'fsdp', 'tensor'], ...}}."""

    def entry(x: Any) -> dict[str, Any]:
        spec: Sequence[Any] = [*x.sharding.spec, *[None] * (x.ndim - len(x.sharding.spec))]
        axes = ['+'.join(one) if isinstance(one, tuple) else one for one in spec]
        return {'shape': list(x.shape), 'dtype': str(x.dtype), 'sharding': axes, 'bytes_per_device': _held(x)}

    return {name: entry(x) for name, x in named_parameters(model).items()}
