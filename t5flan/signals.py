"""SIGINT and SIGTERM: every process of a command ends within `DEADLINE` seconds.

The first signal raises KeyboardInterrupt; in the train loop, it makes all processes save and stop (preemption.py). A
second one ends the process at once. Python runs signal handlers only between two of its own instructions, so a thread
watches for the signals as well: it ends a process that is still computing or waiting at the deadline, but it never
interrupts a save.
"""

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
DEADLINE = 20.0
"""Seconds from a signal to the end of its process."""
LINGER = 5.0
"""Seconds from the line that reports the signal to the end of the process."""
_SAME = 0.2
"""Seconds within which a second signal is the same one, sent by a terminal and by a launcher."""


class _Watch:
    """A thread that ends the process at the deadline of a signal, or at a second signal."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._deadline: float | None = None
        self._saving, self._is_reported = 0, False
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._previous = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._run, name='signals', daemon=True)
        self._thread.start()

    def start(self, number: int) -> None:
        """Starts the deadline, if it is not running."""
        if self.received is None:
            self.received, self._deadline = number, time.monotonic() + DEADLINE
            with contextlib.suppress(OSError):
                os.write(self._write, b'\0')  # wakes the thread

    def reported(self) -> None:
        """The signal is reported: what is left is Python's own end, which may wait for threads and other processes."""
        if self._deadline is not None:
            self._is_reported, self._deadline = True, min(self._deadline, time.monotonic() + LINGER)

    def stop(self) -> None:
        """Ends the thread."""
        signal.set_wakeup_fd(self._previous)
        os.write(self._write, b'\xff')
        self._thread.join()
        os.close(self._read)
        os.close(self._write)

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        self._saving += 1
        try:
            yield
        finally:
            self._saving -= 1

    def _run(self) -> None:
        first: float | None = None
        while True:
            ready = select.select([self._read], [], [], None if self._deadline is None else 0.2)[0]
            for number in os.read(self._read, 64) if ready else b'':
                if number == 0xFF:
                    return
                if number not in SIGNALS:
                    continue
                if first is None:
                    first = time.monotonic()
                    self.start(number)
                elif time.monotonic() - first > _SAME:
                    _end(f'ended at once by a second {signal.Signals(number).name}')
            if self._deadline is not None and time.monotonic() > self._deadline and not self._saving:
                if self._is_reported:
                    os._exit(1)
                name = signal.Signals(self.received or signal.SIGTERM).name
                _end(f'stopped by {name}, {DEADLINE:.0f} s ago; what was saved before is whole')


_watch: _Watch | None = None
if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=lambda: _watch and signal.set_wakeup_fd(-1))


def _end(text: str) -> None:
    os.write(2, f'\nt5flan: {text}\n'.encode())
    os._exit(1)


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """While the block runs, SIGINT and SIGTERM raise KeyboardInterrupt with the signal's name."""
    global _watch
    if threading.current_thread() is not threading.main_thread() or _watch is not None:
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        start_deadline(number)  # the thread does too, perhaps later
        ignore_more()
        raise KeyboardInterrupt(signal.Signals(number).name)

    previous = {number: signal.signal(number, interrupt) for number in SIGNALS}
    _watch = _Watch()
    try:
        yield
    finally:
        if _watch.received is None:  # else the deadline also holds for what Python does at its end
            _watch.stop()
            for number, handler in previous.items():
                signal.signal(number, handler or signal.SIG_DFL)
        _watch = None


def ignore_more() -> None:
    """Leaves further signals to the thread, if there is one, which ends the process without Python's help."""
    for number in SIGNALS if _watch is not None else ():
        signal.signal(number, lambda *_: None)


@contextlib.contextmanager
def saving() -> Iterator[None]:
    """While the block runs, the deadline does not end the process: a save may take longer."""
    with _watch.saving() if _watch is not None else contextlib.nullcontext():
        yield


def is_watching() -> bool:
    """Whether this process ends at the deadline of a signal, as commands do."""
    return _watch is not None


def received() -> str | None:
    """The name of the signal that this process was told to end with, or None."""
    return None if _watch is None or _watch.received is None else signal.Signals(_watch.received).name


def reported() -> None:
    """Says that the user has been told: the process ends soon, without another line."""
    if _watch is not None:
        _watch.reported()


def start_deadline(number: int) -> None:
    """Starts the deadline, of a signal that this process or another one of the job has."""
    if _watch is not None:
        _watch.start(number)
