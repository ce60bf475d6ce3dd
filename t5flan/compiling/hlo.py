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


@dataclasses.dataclass(frozen=True)
class Array:
    """An array of a program: bits of an element, sizes, and whether it lies in the device's main memory."""

    bits: int
    sizes: tuple[int, ...]
    in_memory: bool

    @property
    def bytes(self) -> float:
        """Bytes of the array, without padding."""
        return math.prod(self.sizes) * self.bits / 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of a computation."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    @functools.cached_property
    def arrays(self) -> tuple[Array, ...]:
        """The arrays of its result; several of a tuple."""
        return tuple(_array(*found) for found in _ARRAY.findall(self.shape))

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
                for called, factor in self._called(instruction):
                    run(called, times * factor)

        run(self.entry, 1.0)
        return counts

    def _called(self, instruction: Instruction) -> Iterator[tuple[str, int]]:
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
        """How often the body of a `while` runs: what XLA found, or the bound in its condition `i < bound`; else 1."""
        known = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes)
        if known:
            return int(known[1])
        condition = self.computations.get(loop.attribute('condition') or '', {})
        bounds = [
            int(one.attributes) for one in condition.values() if one.opcode == 'constant' and one.attributes.isdigit()
        ]
        return max([1, *bounds])


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
    if opcode == 'constant':
        attributes = inside
    return Instruction(name, shape, opcode, tuple(_NAME.findall(inside)), attributes, is_root)


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
    return Array(bits, tuple(int(size) for size in sizes.split(',') if size), 'S(' not in layout)
