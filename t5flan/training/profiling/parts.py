"""From the events of a trace to seconds by part of the step.

A device runs several operations at once (on a CPU, in threads). Each moment of the trace is split evenly between the
operations that run in it, so that the parts add up to the time that has passed.
"""

import collections
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

SCOPES = {
    'loss': 'head and loss',
    'optimizer': 'optimizer',
    'attention': 'attention',
    'projection': 'projections',
    'embedding': 'embedding',
}
"""`jax.named_scope` -> part; of nested scopes, the first of these counts: the head's projection is of the head."""
REST, OTHER_PROGRAMS, DATA, WAITING = 'norms, activations and copies', 'other programs', 'data', 'waiting'

_INSTRUCTION = re.compile(r'^\s*(?:ROOT )?%?([\w.-]+) = .*metadata=\{[^}]*op_name="([^"]*)"', re.MULTILINE)
_CONTROL_FLOW = re.compile(r'(while|conditional|call)[\d.]*$')


class Event(NamedTuple):
    """An operation that ran, or a moment in which the host did something.

    Attributes:
        lane: what it ran on: a thread, or a queue of a device. Events of one lane may be nested.
        start, end: nanoseconds.
        name: of the HLO instruction; or `DATA`.
        program: of the HLO module; '' for the host.
    """

    lane: str
    start: float
    end: float
    name: str
    program: str


def part_of(op_name: str) -> str:
    """The part of an operation, from its name stack: 'jit(f)/transpose(jvp(attention))/dot_general' -> 'attention'."""
    names = set(re.findall(r'\w+', op_name))
    return next((part for scope, part in SCOPES.items() if scope in names), REST)


def instruction_parts(hlo: str) -> dict[str, str]:
    """HLO instruction -> part, from the text of a compiled program."""
    return {name: part_of(op_name) for name, op_name in _INSTRUCTION.findall(hlo)}


def seconds_by_part(
    events: Iterable[Event], parts: Mapping[str, str], program: str, start: float, end: float
) -> dict[str, float]:
    """Seconds of each part between two moments; their sum is `end` - `start`.

    While nothing runs on the device, the time is `DATA` if the host waits for a batch, and otherwise `WAITING`.

    Args:
        events: in any order.
        parts: HLO instruction -> part.
        program: the HLO module they are of; operations of others are `OTHER_PROGRAMS`.
        start, end: nanoseconds.
    """
    lanes: dict[str, list[Event]] = collections.defaultdict(list)
    for event in events:
        # A loop only waits for the operations of its body, which have events of their own.
        if event.end > start and event.start < end and not _CONTROL_FLOW.match(event.name):
            lanes[event.lane].append(event)
    changes: list[tuple[float, int, str]] = [(end, 0, '')]  # (moment, one more or one less, part)
    for lane in lanes.values():
        for begun, ended, event in _innermost(lane):
            part = parts.get(event.name, REST) if event.program == program else OTHER_PROGRAMS
            part = DATA if event.name == DATA and not event.program else part
            changes += [(max(begun, start), 1, part), (min(ended, end), -1, part)]
    seconds: dict[str, float] = collections.defaultdict(float)
    running: collections.Counter[str] = collections.Counter()
    now = start
    for moment, change, part in sorted(changes):
        _share(seconds, running, (moment - now) / 1e9)
        now = max(now, moment)
        running[part] += change
    return dict(seconds)


def _share(seconds: dict[str, float], running: Mapping[str, int], passed: float) -> None:
    """Adds a time in which these parts ran."""
    if passed <= 0:
        return
    on_device = {part: count for part, count in running.items() if count > 0 and part not in (DATA, '')}
    if not on_device:
        seconds[DATA if running.get(DATA, 0) > 0 else WAITING] += passed
    for part, count in on_device.items():
        seconds[part] += passed * count / sum(on_device.values())


def _innermost(events: list[Event]) -> Iterable[tuple[float, float, Event]]:
    """(start, end, event) of every stretch of a lane in which an event has no other event inside."""
    stack: list[Event] = []
    now = 0.0

    def until(moment: float) -> Iterable[tuple[float, float, Event]]:
        nonlocal now
        while stack and stack[-1].end <= moment:
            event = stack.pop()
            if event.end > now:
                yield now, event.end, event
            now = max(now, event.end)
        if stack and moment > now:
            yield now, moment, stack[-1]
        now = max(now, moment)

    for event in sorted(events, key=lambda one: (one.start, -one.end)):
        yield from until(event.start)
        stack.append(event)
    yield from until(max((event.end for event in events), default=0.0))
