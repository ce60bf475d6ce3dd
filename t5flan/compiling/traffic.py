"""What a compiled program does in one run: FLOPs, bytes of memory, and bytes of each collective by mesh axis.

Instructions in the body of a loop count as often as the loop runs, which XLA's own cost analysis does not do.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

import numpy as np

from t5flan.compiling.hlo import Computation, Instruction, Module

KINDS = ('all-gather', 'all-reduce', 'all-to-all', 'collective-permute', 'reduce-scatter')
_FREE: tuple[str, ...] = (
    'parameter',
    'constant',
    'tuple',
    'get-tuple-element',
    'bitcast',
    'while',
    'conditional',
    'call',
    'iota',
)
_FREE += ('partition-id', 'replica-id', 'after-all', 'copy-done', 'optimization-barrier')
_SLICES = ('dynamic-slice', 'slice', 'gather')


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective operation of a program.

    Attributes:
        kind: one of `KINDS`.
        axes: the mesh axes over which its devices differ; () if that is not known.
        bytes: of its larger side, result or operand, on each device, times the runs of its loop.
        sent: bytes that each device sends at least, by the best ring, times the same.
        devices: how many devices take part in each group.
    """

    kind: str
    axes: tuple[str, ...]
    bytes: float
    sent: float
    devices: int


def executed_flops(module: Module) -> float:
    """FLOPs of the matrix products of one run on one device, without those inside custom kernels."""
    return sum(times * _flops(module, name) for name, times in module.executions().items())


def _flops(module: Module, name: str) -> float:
    computation, total = module.computations[name], 0.0
    for instruction in computation.values():
        if instruction.opcode == 'dot':
            total += _dot_flops(instruction, computation)
        elif instruction.opcode == 'convolution':
            total += _convolution_flops(instruction, computation)
        elif instruction.opcode == 'fusion' and (called := instruction.attribute('calls')):
            total += _flops(module, called)
    return total


def _sizes(computation: Computation, name: str) -> tuple[int, ...]:
    return computation[name].arrays[0].sizes


def _dot_flops(dot: Instruction, computation: Computation) -> float:
    found = re.search(r'lhs_contracting_dims=\{([\d,]*)\}', dot.attributes)
    contracted = [int(axis) for axis in found[1].split(',') if axis] if found else []
    left = _sizes(computation, dot.operands[0])
    return 2.0 * math.prod(dot.arrays[0].sizes) * math.prod(left[axis] for axis in contracted)


def _convolution_flops(one: Instruction, computation: Computation) -> float:
    """A TPU's matrix products are convolutions; their spatial axes are batch axes, where padding costs nothing."""
    found = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', one.attributes)
    assert found is not None, one.name
    left, right, out = (
        dict(zip(labels, sizes, strict=True))
        for labels, sizes in zip(
            found.groups(),
            [*(_sizes(computation, name) for name in one.operands[:2]), one.arrays[0].sizes],
            strict=True,
        )
    )
    total = 2.0 * out['b'] * out['f'] * right['i']
    for axis in sorted(set(out) - {'b', 'f'}):
        total *= _window_products(one.attributes, int(axis), left[axis], right[axis], out[axis])
    return total


def _window_products(attributes: str, axis: int, size: int, window: int, out: int) -> int:
    """Pairs of an output position and a window position that meet an input, along one spatial axis."""
    text = (re.search(r'window=\{([^}]*)\}', attributes) or ['', ''])[1]
    settings = {name: value.split('x') for name, value in re.findall(r'(\w+)=(\S+)', text)}
    number = lambda name: int(settings[name][axis]) if name in settings else 1
    before = int(settings['pad'][axis].split('_')[0]) if 'pad' in settings else 0
    at = np.arange(out)[:, None] * number('stride') + np.arange(window)[None] * number('rhs_dilate') - before
    spread = number('lhs_dilate')
    return int(np.sum((at >= 0) & (at <= (size - 1) * spread) & (at % spread == 0)))


def memory_bytes(module: Module) -> float:
    """Bytes that one run reads from and writes to a device's memory: results and operands of every instruction.

    A fusion that reads or updates a slice of an array, as loops over stacked layers do, counts the slice only.
    """
    total = 0.0
    for name, times in module.executions().items():
        computation = module.computations[name]
        total += times * sum(_moved(module, one, computation) for one in computation.values())
    return total


def _moved(module: Module, one: Instruction, computation: Computation) -> float:
    if one.opcode in _FREE or one.opcode.endswith('-done'):
        return 0.0
    written = sum(array.bytes for array in one.arrays if array.in_memory)
    operands = [computation[name] for name in one.operands if name in computation]
    if one.opcode == 'copy-start':  # its result names source and target
        return written
    if one.opcode in _SLICES:
        return 2 * written
    if one.opcode == 'dynamic-update-slice':
        return 2 * sum(array.bytes for array in operands[1].arrays if array.in_memory)
    inside = module.computations.get(one.attribute('calls') or '') if one.opcode == 'fusion' else None
    if inside is None:
        return written + sum(array.bytes for x in operands for array in x.arrays if array.in_memory)
    parameters = [x for x in inside.values() if x.opcode == 'parameter']
    users = collections.defaultdict(list)
    for x in inside.values():
        for name in x.operands:
            users[name].append(x)
    updates = [x for x in inside.values() if x.opcode == 'dynamic-update-slice']
    targets = {x.operands[0] for x in updates}
    if updates:
        written = min(written, sum(inside[x.operands[1]].arrays[0].bytes for x in updates))
    read = 0.0
    for x in parameters:
        if not all(array.in_memory for array in x.arrays):
            continue
        size = sum(array.bytes for array in x.arrays)
        if x.name in targets:
            size = 0.0
        elif users[x.name] and all(user.opcode in _SLICES for user in users[x.name]):
            size = min(size, sum(user.arrays[0].bytes for user in users[x.name]))
        read += size
    return written + read


def collectives(module: Module, mesh: Mapping[str, int]) -> list[Collective]:
    """The collectives of one run; the parts of one that runs beside computations count once.

    Args:
        module: the program.
        mesh: the mesh axes and their sizes, outermost first, over which it was partitioned.
    """
    found = []
    for name, times in module.executions().items():
        seen: set[str] = set()
        for one, computation in _all(module, name):
            kind = one.opcode.removesuffix('-start')
            if kind not in KINDS:
                continue
            # The TPU compiler splits a collective into a start, parts inside other fusions, and an end, of one channel.
            channel = re.search(r'channel_id=(\d+)', one.attributes)
            key = f'{kind} {channel[1] if channel else one.name}'
            if key in seen:
                continue
            seen.add(key)
            found.append(_collective(kind, one, computation, mesh, times))
    return found


def _all(module: Module, name: str) -> Iterator[tuple[Instruction, Computation]]:
    """The instructions of a computation and of the fusions in it."""
    computation = module.computations[name]
    for one in computation.values():
        yield one, computation
        if one.opcode == 'fusion' and (called := one.attribute('calls')):
            yield from _all(module, called)


def _collective(
    kind: str, one: Instruction, computation: Computation, mesh: Mapping[str, int], times: float
) -> Collective:
    given = sum(array.bytes for name in one.operands if name in computation for array in computation[name].arrays)
    sizes = [array.bytes for array in one.arrays]
    result = max(sizes) if one.opcode.endswith('-start') and kind != 'all-reduce' else sum(sizes)
    size = max(given, result)
    groups = replica_groups(one.attributes, math.prod(mesh.values()))
    devices = 1 if groups is None else groups.shape[1]
    axes = () if groups is None else axes_of(groups, mesh)
    share = 1.0 if kind == 'collective-permute' else (devices - 1) / devices * (2 if kind == 'all-reduce' else 1)
    return Collective(kind, axes, times * size, times * size * share, devices)


def replica_groups(attributes: str, devices: int) -> np.ndarray | None:
    """The groups of devices of a collective, [groups, devices of a group]; None if the text is of another form.

    >>> replica_groups('replica_groups=[2,2]<=[2,2]T(1,0)', 4).tolist()
    [[0, 2], [1, 3]]
    """
    numbers = lambda text: [int(number) for number in re.findall(r'\d+', text)]
    if pairs := re.search(r'source_target_pairs=\{([\d,{}]*)\}', attributes):
        moved = np.array(numbers(pairs[1])).reshape(-1, 2)
        return moved[moved[:, 0] != moved[:, 1]] if len(moved) else None
    if listed := re.search(r'replica_groups=\{(\{[\d,{}]*\})\}', attributes):
        rows = [numbers(row) for row in re.findall(r'\{([\d,]+)\}', listed[1])]
        return np.array(rows) if len({len(row) for row in rows}) == 1 else None
    if re.search(r'replica_groups=\{\}', attributes):
        return np.arange(devices)[None]
    order = r'\[([\d,]+)\](?:T\(([\d,]+)\))?'
    if iota := re.search(rf'replica_groups=\[([\d,]+)\]<={order}', attributes):
        return _iota(iota[2], iota[3]).reshape(numbers(iota[1]))
    named = re.search(rf'replica_groups=mesh\[([^\]]*)\](?:, device_ids=\({order}\))? \{{([^}}]*)\}}', attributes)
    if not named:
        return None
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", named[1])}
    ids = _iota(named[2], named[3]) if named[2] else np.arange(math.prod(sizes.values()))
    return _over_axes(ids.reshape(tuple(sizes.values())), list(sizes), named[4])


def _iota(sizes: str, transposed: str | None) -> np.ndarray:
    shape = [int(size) for size in sizes.split(',')]
    ids = np.arange(math.prod(shape)).reshape(shape)
    return ids.transpose([int(axis) for axis in transposed.split(',')]) if transposed else ids


def _over_axes(ids: np.ndarray, names: list[str], chosen: str) -> np.ndarray:
    """Groups over some axes of an array of devices: "'a'", or a part of an axis, "'a':(2)4" (after parts of 2)."""
    shape, picked = [], []
    parts = {name: (before, size) for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", chosen)}
    for name, size in zip(names, ids.shape, strict=True):
        if name not in parts:
            shape.append(size)
            continue
        before, inner = (int(number or 0) for number in parts[name])
        split = [before, inner, size // (before * inner)] if inner else [1, size, 1]
        picked.append(len(shape) + 1)
        shape += split
    ids = np.moveaxis(ids.reshape(shape), picked, range(-len(picked), 0))
    return ids.reshape(-1, math.prod(ids.shape[-len(picked) :]) if picked else 1)


def axes_of(groups: np.ndarray, mesh: Mapping[str, int]) -> tuple[str, ...]:
    """The mesh axes over which devices of a group differ."""
    at = np.stack(np.unravel_index(groups, tuple(mesh.values())), axis=-1)  # [groups, devices, axes]
    differs = np.any(at != at[:, :1], axis=(0, 1))
    return tuple(name for name, differ in zip(mesh, differs, strict=True) if differ)
