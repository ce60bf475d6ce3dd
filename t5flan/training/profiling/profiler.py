"""Traces some steps of a run with `jax.profiler`, and writes the trace and the seconds by part into the workdir."""

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

import jax
from etils import epath

from t5flan.files import PathLike, write_json, write_whole
from t5flan.training.profiling.parts import DATA, Event, instruction_parts, seconds_by_part

T = TypeVar('T')
FOLDER = 'profile'
_KEY_SETTING = 'jax_compilation_cache_include_metadata_in_key'
SKIPPED = 2
"""Steps of a start that are not traced: they compile and fill caches."""


class Profiler:
    """Traces steps, once a run has taken two.

        with Profiler(workdir, steps=5, log=print) as profiler:
            for batch in profiler.waiting(pipeline):
                state, metrics = train_step(state, batch)
                profiler.after(metrics, lambda: train_step.lower(state, batch).compile().as_text())

    WORKDIR/profile/ then has the trace, for TensorBoard's profile plugin and ui.perfetto.dev, and parts.json.

    Args:
        workdir: local or gs://.
        steps: how many to trace; 0 traces nothing.
        log: prints a line.
    """

    def __init__(self, workdir: PathLike, steps: int, log: Callable[[str], None]):
        self._folder, self._steps, self._log = epath.Path(workdir) / FOLDER, steps, log
        self._taken = 0
        self._running: tempfile.TemporaryDirectory[str] | None = None
        self._hlo: Callable[[], str] = str
        self._key_setting: bool = getattr(jax.config, _KEY_SETTING)
        if steps:  # the names of parts are metadata: a program that was cached without them must not be taken
            jax.config.update(_KEY_SETTING, True)

    def waiting(self, batches: Iterable[T]) -> Iterator[T]:
        """The same batches; in the trace, the time until each is there is that of the data."""
        iterator = iter(batches)
        while True:
            with jax.profiler.TraceAnnotation(DATA) if self._running else contextlib.nullcontext():
                batch = next(iterator, None)
            if batch is None:
                return
            yield batch

    def after(self, result: Any, hlo: Callable[[], str]) -> bool:
        """Call it after each step; starts and ends the trace.

        Args:
            result: an array of the step; it is there when the step is done.
            hlo: the text of the step's compiled program.

        Returns:
            Whether the trace has ended, which may have taken seconds.
        """
        self._taken += 1
        self._hlo = hlo if self._steps else str
        if self._steps and self._taken == SKIPPED:
            jax.block_until_ready(result)
            self._start()
        elif self._running is not None and self._taken == SKIPPED + self._steps:
            jax.block_until_ready(result)
            self._stop()
            return True
        return False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Ends a trace that goes on: it has fewer steps, or none. After an error it is discarded."""
        if kind is not None:
            pass
        elif self._steps and self._taken <= SKIPPED:
            self._log(f'nothing to profile: this start took {self._taken} steps, and the first {SKIPPED} compile')
        elif self._running is not None:
            self._stop()
        jax.config.update(_KEY_SETTING, self._key_setting)
        if self._running is not None:
            jax.profiler.stop_trace()
            self._running.cleanup()
            self._running = None

    def _start(self) -> None:
        self._running = tempfile.TemporaryDirectory(prefix='t5flan-profile-')
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # calls of Python functions would slow down what is measured
        jax.profiler.start_trace(self._running.name, profiler_options=options)
        self._begun = time.time_ns()

    def _stop(self) -> None:
        seconds = (time.time_ns() - self._begun) / 1e9
        jax.profiler.stop_trace()
        assert self._running is not None
        with self._running as name:
            files = [path for path in Path(name).rglob('*') if path.is_file()]
            events = [event for path in files if path.name.endswith('.xplane.pb') for event in read_events(path)]
            for path in files:
                target = self._folder / path.relative_to(name)
                write_whole(target, path.read_bytes())
        self._running = None
        steps = self._taken - SKIPPED
        if not events:
            self._log(f'the trace of {steps} steps in {os.fspath(self._folder)} has no operations')
            return
        # The clocks of trace and host may differ, so the window ends with the last event.
        hlo, end = self._hlo(), max(event.end for event in events)
        program = hlo.partition(',')[0].removeprefix('HloModule ').strip()
        found = seconds_by_part(events, instruction_parts(hlo), program, end - seconds * 1e9, end)
        per_step = {part: value / steps for part, value in sorted(found.items(), key=lambda item: -item[1])}
        write_json(self._folder / 'parts.json', {'steps': steps, 'seconds_per_step': per_step})
        for line in table(per_step, steps):
            self._log(line)
        self._log(f'the trace is in {os.fspath(self._folder)}')


def table(per_step: Mapping[str, float], steps: int) -> list[str]:
    """Lines: the share and the milliseconds of each part."""
    total = sum(per_step.values())
    lines = [f'profile of {steps} steps, {1000 * total:,.1f} ms each']
    width = max(map(len, per_step))
    return lines + [
        f'  {part:{width}}  {value / total:6.1%}  {1000 * value:10,.1f} ms' for part, value in per_step.items()
    ]


def read_events(path: Path) -> list[Event]:
    """Operations of the first device in a trace (.xplane.pb), and the host's waits for data."""
    planes = {plane.name: plane for plane in jax.profiler.ProfileData.from_file(str(path)).planes}
    devices = sorted(name for name in planes if name.startswith('/device:') and 'CUSTOM' not in name)
    events = []
    for name, plane in planes.items():
        on_device = name == (devices[0] if devices else '/host:CPU')
        if not on_device and not name.startswith('/host:'):
            continue
        for number, line in enumerate(plane.lines):
            of_line = f'{name} {number}'
            for event in line.events:
                if event.name == DATA:
                    events.append(Event('host', event.start_ns, event.end_ns, DATA, ''))
                    continue
                facts = dict(event.stats) if on_device else {}
                if 'hlo_op' in facts or line.name == 'XLA Ops':
                    operation = str(facts.get('hlo_op', event.name.partition(' =')[0].lstrip('%')))
                    program = str(facts.get('hlo_module', '')).partition('(')[0]
                    events.append(Event(of_line, event.start_ns, event.end_ns, operation, program))
    return events
