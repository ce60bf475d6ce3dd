"""The buffers that a compiled program holds when it needs the most memory, from the order of its instructions.

This is an estimate: the compiler lets buffers share memory in more ways than are followed here, and keeps some longer.
What it shows is which arrays the memory is for.
"""

import collections
import dataclasses
import re
from collections.abc import Callable, Iterator

from t5flan.compiling.hlo import Array, Computation, Instruction, Module

_Leaves = tuple[int | None, ...]  # the buffer of each array of a value; None: of the caller, or not in main memory
_FORWARDED = ('bitcast', 'optimization-barrier', 'while')  # their results lie where their operands do
_NAMING = ('tuple', 'get-tuple-element', 'bitcast')  # they do not touch the memory


@dataclasses.dataclass(frozen=True)
class Buffers:
    """Arrays of one shape that one operation of the model makes.

    Attributes:
        bytes: of all of them, with the padding of their layout.
        count: how many there are.
        shape: as the compiler writes it, 'bf16[24,3,1024,2048]'.
        operation: the operation's name in the traced step.
    """

    bytes: int
    count: int
    shape: str
    operation: str


def largest_buffers(module: Module, most: int = 12) -> list[Buffers]:
    """The largest buffers, besides the arguments, at the instruction where the program holds the most bytes.

    Args:
        module: the program, in the order in which it runs.
        most: how many rows are returned.
    """
    held = _held_at_most(module, module.entry)
    counts = collections.Counter((array, operation) for array, operation in held)
    rows = [
        Buffers(int(count * array.padded_bytes), count, array.text, operation)
        for (array, operation), count in counts.items()
    ]
    return sorted(rows, key=lambda row: -row.bytes)[:most]


def _held_at_most(module: Module, name: str) -> list[tuple[Array, str]]:
    """Arrays and operations of the buffers of a computation, and of those it calls, where they are the largest."""
    computation = module.computations[name]
    made, values = _values(module, computation)
    instructions = list(computation.values())
    last: dict[int | None, int] = {}
    for time, one in enumerate(instructions):
        for operand in () if one.opcode in _NAMING else one.operands:
            last.update(dict.fromkeys(values.get(operand, ()), time))
    # What a body of a loop returns lies in the memory of what it got.
    root = next((one for one in instructions if one.is_root), instructions[-1])
    returned = set(values[root.name])
    if name == module.entry:
        last.update(dict.fromkeys(returned, len(instructions)))
        returned = set()
    size = lambda held: sum(array.padded_bytes for array, _ in held)
    largest: list[tuple[Array, str]] = []
    live: set[int] = set()
    for time, one in enumerate(instructions):
        if one.opcode not in _NAMING:
            live |= {buffer for buffer in values[one.name] if buffer is not None and buffer not in returned}
        inner: list[tuple[Array, str]] = max(
            (_held_at_most(module, called) for called, _ in module.called(one)), key=size, default=[]
        )
        held = [made[buffer] for buffer in live] + inner
        if size(held) > size(largest):
            largest = held
        live = {buffer for buffer in live if last.get(buffer, -1) > time}
    return largest


def _values(module: Module, computation: Computation) -> tuple[dict[int, tuple[Array, str]], dict[str, _Leaves]]:
    """The buffers that a computation makes, and those of each of its values."""
    made: dict[int, tuple[Array, str]] = {}
    values: dict[str, _Leaves] = {}

    def new(one: Instruction, array: Array) -> int | None:
        if not array.in_memory:
            return None
        found = re.search(r'op_name="([^"]*)"', one.attributes)
        made[len(made)] = array, found[1] if found else one.opcode
        return len(made) - 1

    for one in computation.values():
        operands = [values.get(operand, ()) for operand in one.operands]
        forwarded = _forwarded(module, computation, one, operands)
        values[one.name] = tuple(
            forwarded[i] if i in forwarded else new(one, array) for i, array in enumerate(one.arrays)
        )
    return made, values


def _forwarded(
    module: Module, computation: Computation, one: Instruction, operands: list[_Leaves]
) -> dict[int, int | None]:
    """The arrays of a result, by number, that lie in the memory of operands."""
    numbered = lambda leaves: dict(enumerate(leaves))
    if one.opcode in ('parameter', 'constant'):
        return numbered((None,) * len(one.arrays))
    if one.opcode == 'tuple':
        return numbered(leaf for leaves in operands for leaf in leaves)
    if one.opcode == 'get-tuple-element':
        first = sum(computation[one.operands[0]].arrays_of_elements[: one.index])
        return numbered(operands[0][first : first + len(one.arrays)])
    if one.opcode in _FORWARDED or one.opcode == 'dynamic-update-slice':
        return numbered(operands[0][: len(one.arrays)]) if operands else {}
    if one.opcode == 'copy-done':
        return numbered(operands[0][:1])
    if one.opcode.endswith('-done') and operands and len(operands[0]) >= 2 * len(one.arrays):
        return numbered(operands[0][len(one.arrays) : 2 * len(one.arrays)])
    if one.opcode.endswith('-start') and one.opcode != 'copy-start':
        return numbered(leaf for leaves in operands for leaf in leaves)
    called = module.computations.get(one.attribute('calls') or '') if one.opcode == 'fusion' else None
    if called is None:
        return {}
    return {i: operands[p][0] for i, p in _updated_in_place(called) if p < len(operands) and operands[p]}


def _updated_in_place(fused: Computation) -> Iterator[tuple[int, int]]:
    """Results of a fusion, by number, that update a slice of a parameter, with the parameter's number."""
    root = next(one for one in fused.values() if one.is_root)
    for i, name in enumerate(root.operands if root.opcode == 'tuple' else (root.name,)):
        one = _behind(fused, name, lambda one: one.opcode == 'bitcast')
        if one is not None and one.opcode == 'dynamic-update-slice':
            target = _behind(fused, one.operands[0], lambda one: one.opcode in ('bitcast', 'dynamic-update-slice'))
            if target is not None and target.opcode == 'parameter' and target.inside.isdigit():
                yield i, int(target.inside)


def _behind(computation: Computation, name: str, passed: Callable[[Instruction], bool]) -> Instruction | None:
    """The first instruction on the way through first operands that is not passed."""
    one = computation.get(name)
    while one is not None and passed(one):
        one = computation.get(one.operands[0])
    return one
