"""Reads the text of a compiled XLA program (HLO): instructions, loops, and how often each computation runs."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping

_ARRAY = re.compile(r'([a-z]\w*)\[([\d,]*)\](\{[^{}]*\})?')
_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$')
_INSTRUCTION = re.compile(r'^\s+(ROOT )?%?([\w.\-]+) = (.*)$')
_NAME = re.compile(r'%([\w.\-]+)')
_BITS = {'pred': 8, 'token': 0, 'opaque': 0}
_SAME = ('copy', 'bitcast', 'convert')  # of a counter: the same number


@dataclasses.dataclass(frozen=True)
class Array:
    """An array of a program.

    Attributes:
        kind: of an element: 'bf16'.
        bits: of an element.
        sizes: of its axes.
        padded: the sizes that it takes with the padding of its layout.
        in_memory: whether it lies in the device's main memory.
    """

    kind: str
    bits: int
    sizes: tuple[int, ...]
    padded: tuple[int, ...]
    in_memory: bool

    @property
    def bytes(self) -> float:
        """Bytes of the array, without padding."""
        return math.prod(self.sizes) * self.bits / 8

    @property
    def padded_bytes(self) -> float:
        """Bytes that it takes."""
        return math.prod(self.padded) * self.bits / 8

    @property
    def text(self) -> str:
        """Kind and sizes: 'bf16[24,3,1024,2048]'."""
        return f'{self.kind}[{",".join(map(str, self.sizes))}]'


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of a computation."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    is_root: bool
    inside: str = ''  # the parentheses of a constant or a parameter: its value, or its number

    @functools.cached_property
    def arrays(self) -> tuple[Array, ...]:
        """The arrays of its result; several of a tuple."""
        return tuple(_array(*found) for found in _ARRAY.findall(self.shape))

    @functools.cached_property
    def arrays_of_elements(self) -> tuple[int, ...]:
        """How many arrays each element of its result has, if that is a tuple."""
        counts, depth = [0], 0
        for found in re.finditer(r'[({[]|[)}\]]|,|[a-z]\w*\[', self.shape[1:-1]):
            mark = found[0]
            depth += (mark[-1] in '({[') - (mark in ')}]')
            if mark == ',' and depth == 0:
                counts.append(0)
            elif len(mark) > 1:
                counts[-1] += 1
        return tuple(counts)

    @property
    def index(self) -> int:
        """The element that a get-tuple-element takes."""
        found = re.search(r'\bindex=(\d+)', self.attributes)
        return int(found[1]) if found else 0

    def attribute(self, name: str) -> str | None:
        """A computation that an attribute names: `body=%region` -> 'region'."""
        found = re.search(rf'\b{name}=%?([\w.\-]+)', self.attributes)
        return found[1] if found else None


Computation = dict[str, Instruction]
"""The instructions of a computation, by name and in order."""


@dataclasses.dataclass(frozen=True)
class Module:
    """A program: its computations by name, and the one it starts with."""

    computations: Mapping[str, Computation]
    entry: str

    def executions(self) -> dict[str, float]:
        """How often each computation runs in a step; those inside fusions and reductions are left out.

        The body of a loop runs as often as its loop; each branch of a conditional counts as if it were taken.
        """
        counts: dict[str, float] = {}

        def run(name: str, times: float) -> None:
            counts[name] = counts.get(name, 0.0) + times
            for instruction in self.computations[name].values():
                for called, factor in self.called(instruction):
                    run(called, times * factor)

        run(self.entry, 1.0)
        return counts

    def called(self, instruction: Instruction) -> Iterator[tuple[str, int]]:
        """The computations that an instruction runs, and how often; not those inside fusions and reductions."""
        if instruction.opcode == 'while':
            body = instruction.attribute('body')
            assert body is not None, instruction.name
            yield body, self.trip_count(instruction)
        elif instruction.opcode == 'conditional':
            listed = re.search(r'branch_computations=\{([^}]*)\}', instruction.attributes)
            branches = _NAME.findall(listed[1]) if listed else []
            names = [*branches, *map(instruction.attribute, ('true_computation', 'false_computation'))]
            yield from ((name, 1) for name in names if name)
        elif instruction.opcode in ('call', 'async-start'):
            called = instruction.attribute('to_apply') or instruction.attribute('calls')
            if called:
                yield called, 1

    def trip_count(self, loop: Instruction) -> int:
        """How often the body of a `while` runs: what XLA found, or what its counter says; else 1.

        The TPU compiler unrolls the loops that gather or reduce while they multiply: two turns in one body, after which
        the counter is two higher.
        """
        known = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes)
        if known:
            return int(known[1])
        condition = self.computations.get(loop.attribute('condition') or '', {})
        bounds = [value for one in condition.values() if (value := _whole_number(one)) is not None]
        turns = max([1, *bounds])
        number = _compared_element(condition)
        if number is None:
            return turns
        step = self._added_to(self.computations.get(loop.attribute('body') or '', {}), number)
        return -(-(turns - self._start_of(loop, number)) // step) if step > 0 else turns

    def _added_to(self, body: Computation, number: int) -> int:
        """What a turn adds to an element of the loop's tuple; 1 if that is not seen."""
        root = next((one for one in body.values() if one.is_root), None)
        if root is None or root.opcode != 'tuple' or number >= len(root.operands):
            return 1
        total, name = 0, root.operands[number]
        while (one := body.get(name)) is not None and one.opcode in ('add', *_SAME):
            if one.opcode == 'add':
                values = [_whole_number(body[operand]) if operand in body else None for operand in one.operands]
                if sum(value is not None for value in values) != 1:
                    return 1
                total += sum(value for value in values if value is not None)
                name = one.operands[values.index(None)]
            else:
                name = one.operands[0]
        return total if one is not None and one.opcode == 'get-tuple-element' and one.index == number else 1

    def _start_of(self, loop: Instruction, number: int) -> int:
        """The value of an element of the loop's tuple before the first turn; 0 if it is no constant."""
        for computation in self.computations.values():
            if computation.get(loop.name) is loop:
                given = computation.get(loop.operands[0]) if loop.operands else None
                if given is None or given.opcode != 'tuple' or number >= len(given.operands):
                    return 0
                name = given.operands[number]
                while (one := computation.get(name)) is not None and one.opcode in _SAME:
                    name = one.operands[0]
                return (_whole_number(one) or 0) if one is not None else 0
        return 0


def _whole_number(one: Instruction) -> int | None:
    """The value of a constant; None of anything else."""
    return int(one.inside) if one.opcode == 'constant' and one.inside.isdigit() else None


def _compared_element(condition: Computation) -> int | None:
    """The element of a loop's tuple that its condition compares with a bound, `element < bound`."""
    root = next((one for one in condition.values() if one.is_root), None)
    if root is None or root.opcode != 'compare' or 'direction=LT' not in root.attributes:
        return None
    name = root.operands[0]
    while (one := condition.get(name)) is not None and one.opcode in _SAME:
        name = one.operands[0]
    return one.index if one is not None and one.opcode == 'get-tuple-element' else None


def parse(text: str) -> Module:
    """Reads the text of a compiled program (`compiled.as_text()`).

    Raises:
        ValueError: it has no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry, current = '', None
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            current = computations.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
        elif current is not None and (found := _INSTRUCTION.match(line)):
            instruction = _instruction(bool(found[1]), found[2], found[3])
            if instruction is not None:
                current[instruction.name] = instruction
    if not entry:
        raise ValueError('the program has no ENTRY computation')
    return Module(computations, entry)


def _instruction(is_root: bool, name: str, text: str) -> Instruction | None:
    end = _closing(text) if text.startswith('(') else text.find(' ')
    shape, rest = text[:end].strip(), text[end:].strip()
    opcode, found, _ = rest.partition('(')
    if not found:
        return None
    end = _closing(rest[len(opcode) :]) + len(opcode)
    inside, attributes = rest[len(opcode) + 1 : end - 1], rest[end:]
    operands = tuple(_NAME.findall(inside))
    inside = inside if opcode in ('constant', 'parameter') else ''
    return Instruction(name, shape, opcode, operands, attributes, is_root, inside)


def _closing(text: str) -> int:
    """The index after the parenthesis that closes the first one."""
    depth = 0
    for found in re.finditer(r'[()]', text):
        depth += 1 if found[0] == '(' else -1
        if not depth:
            return found.end()
    return len(text)


def _array(kind: str, sizes: str, layout: str) -> Array:
    found = re.search(r'\d+', kind)
    bits = _BITS.get(kind, int(found[0]) if found else 8)
    # The TPU compiler marks arrays in on-chip memory with S(1) and more; S(5) is the host's.
    shape = tuple(int(size) for size in sizes.split(',') if size)
    return Array(kind, bits, shape, _padded(shape, layout), 'S(' not in layout)


def _padded(sizes: tuple[int, ...], layout: str) -> tuple[int, ...]:
    """The sizes that an array of a layout takes: a TPU's tiles cover whole multiples of their sizes.

    >>> _padded((3, 100, 64), '{1,2,0:T(8,128)(2,1)}')
    (3, 128, 64)
    """
    found = re.match(r'\{([\d,]+):T\(([\d,]+)\)', layout)
    if not found:
        return sizes
    order, tile = ([int(number) for number in text.split(',')] for text in found.groups())
    padded = list(sizes)
    for axis, size in zip(order, reversed(tile), strict=False):
        padded[axis] = -(-padded[axis] // size) * size
    return tuple(padded)
