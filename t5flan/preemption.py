"""Preemption: SIGTERM and SIGINT make the train loop of all processes save its state and stop after the same step."""

import contextlib
import functools
import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Self

import jax

from t5flan.signals import SIGNALS, ignore_more, start_deadline

_POLL = 0.5
"""Seconds between looks at what the other processes have received."""
_runs = itertools.count()


class Preemption:
    """A context of a run that catches SIGTERM and SIGINT; a second signal ends the process at once.

    They raise KeyboardInterrupt, but inside `loop`, the loop asks `should_stop` after each step.

    With several processes, all stop at the same step, whichever of them got the signal: a thread of each looks for it
    in JAX's key-value store, says how far its process may have come, and the furthest step is the last one for all.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._interruptible = True
        self._others: _Others | None = None

    @property
    def signal_name(self) -> str:
        """'SIGTERM' or 'SIGINT'."""
        return signal.Signals(self._received or signal.SIGTERM).name

    def __enter__(self) -> Self:
        self._previous: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._catch) for number in SIGNALS}
        if jax.process_count() > 1:
            self._others = _Others(lambda: self._received, self._stop_too)
        return self

    @contextlib.contextmanager
    def loop(self) -> Iterator[None]:
        """While the block runs, a signal does not interrupt it."""
        self._interruptible = False
        try:
            yield
        finally:
            self._interruptible = True

    def __exit__(self, *_: object) -> None:
        if self._received is None:
            self._restore_handlers()
        if self._others is not None:
            self._others.close()

    def _restore_handlers(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler or signal.SIG_DFL)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        self._received = number
        self._restore_handlers()
        start_deadline(number)
        ignore_more()
        if self._interruptible:
            raise KeyboardInterrupt(self.signal_name)

    def _stop_too(self, number: int) -> None:
        """Another process was told to stop."""
        if self._received is None:
            self._received = number
            start_deadline(number)
            if self._interruptible:
                os.kill(os.getpid(), number)

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Inside `loop`, a signal raises KeyboardInterrupt while the block runs: for what is long and loses nothing.

        With several processes it does not: the others would wait for this one in vain.
        """
        self._interruptible = self._others is None
        try:
            if self._interruptible and self._received is not None:
                raise KeyboardInterrupt(self.signal_name)
            yield
        finally:
            self._interruptible = False

    def should_stop(self, step: int) -> bool:
        """Whether the run should save and stop after this step."""
        if self._others is not None:
            return self._others.should_stop(step)
        return self._received is not None


class _Others:
    """The other processes of a job: agrees with them on the step to stop at."""

    def __init__(self, received: Callable[[], int | None], stop_too: Callable[[int], None]) -> None:
        from orbax.checkpoint import multihost

        self._client: Any = multihost.get_jax_distributed_client()
        self._place = f't5flan/stop/{next(_runs)}'
        self._received, self._stop_too = received, stop_too
        self._step = 0
        self._told, self._closed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name='others', daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._closed.wait(_POLL):
            with contextlib.suppress(Exception):  # the coordinator is busy or gone, which JAX reports itself
                number = self._received()
                if number is not None:
                    self._client.key_value_set(f'{self._place}/signal/{jax.process_index()}', str(number))
                elif found := self._client.key_value_dir_get(f'{self._place}/signal/'):
                    number = int(found[0][1])
                if number is not None:
                    self._stop_too(number)
                    self._told.set()  # from now on, the loop waits in `should_stop`: at most one step later
                    self._say(self._step + 1)
                    return

    def _say(self, step: int) -> None:
        self._client.key_value_set(f'{self._place}/step/{jax.process_index()}', str(step))

    def should_stop(self, step: int) -> bool:
        """Whether all processes stop after this step."""
        self._step = step
        return self._told.is_set() and step >= self._last

    @functools.cached_property
    def _last(self) -> int:
        """The step that all processes stop after."""
        keys = [f'{self._place}/step/{process}' for process in range(jax.process_count())]
        try:
            return max(int(self._client.blocking_key_value_get(key, 10_000)) for key in keys)
        except Exception:  # a process is gone; the deadline ends this one
            return self._step

    def close(self) -> None:
        """Tells processes that are stopped later that this one has taken all its steps."""
        self._closed.set()
        self._thread.join()
        if not self._told.is_set():
            with contextlib.suppress(Exception):
                if (number := self._received()) is not None:
                    self._client.key_value_set(f'{self._place}/signal/{jax.process_index()}', str(number))
                self._say(self._step)
